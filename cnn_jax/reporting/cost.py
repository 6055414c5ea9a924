"""The report of what networks cost: a table, pictures, and the layers of each."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from . import page
from .progress import print_table
from .report import Block, Cards, Code, Details, Section, Table, write_report
from .style import PALETTE, new_figure, power_of_ten, short_number, styled

# Title of a column, the number behind it, and by what it is divided to be read. Columns without numbers are left out.
COLUMNS = (
    ("side", "side", 1),
    ("parameters, M", "parameters", 1e6),
    ("GFLOPs", "flops", 1e9),
    ("published", "published", 1e9),
    ("differs, %", "difference", 0.01),
    ("train GFLOPs", "train_flops", 1e9),
    ("kept, MB", "kept", 1e6),
    ("peak, MB", "peak", 1e6),
    ("compiled, MB", "compiled", 1e6),
    ("forward, ms", "forward_ms", 1),
    ("train, ms", "train_ms", 1),
    ("images/s", "images_per_second", 1),
    ("trained/s", "train_images_per_second", 1),
    ("of peak, %", "share_of_peak", 0.01),
    ("in training, %", "train_share_of_peak", 0.01),
)
LAYERS = ("layer", "type", "output", "parameters", "MFLOPs", "backward", "other operations, M", "kept, kB")


def table(networks: Sequence[Mapping]) -> tuple[list[str], list[list]]:
    """Header and rows of the networks' table; see `write`."""
    columns = [column for column in COLUMNS if any(column[1] in network for network in networks)]

    def cell(network: Mapping, name: str, unit: float) -> str | int | None:
        value = network.get(name)
        if value is None or (isinstance(value, int) and unit == 1):
            return value
        if name == "difference":
            return f"{value / unit:+.2f}".replace("-", "\N{MINUS SIGN}")
        # Three figures of each, for a column spans many powers of ten.
        return f"{value / unit:,.0f}" if value >= 1000 * unit else f"{value / unit:#.3g}".rstrip(".")

    rows = [[network["name"], *(cell(network, name, unit) for _, name, unit in columns)] for network in networks]
    return ["network", *(title for title, *_ in columns)], rows


@styled
def scatter(networks: Sequence[Mapping], x: str, y: str, *, titles: tuple[str, str, str]):
    """Networks as points on two logarithmic axes, those of a family joined by a line.

    Args:
        networks: see `write`; those that lack one of the numbers `x` and `y` are left out.
        titles: of the figure and of the axes.
    """
    shown = [network for network in networks if network.get(x) and network.get(y)]
    families = dict.fromkeys(network["family"] for network in shown)
    few = len(shown) <= 6  # names beside more points than these would hide each other
    figure, (axes,) = new_figure(4.2 if few else 5.0)
    for i, family in enumerate(families):
        members = sorted((n for n in shown if n["family"] == family), key=lambda network: network[x])
        across, up = ([network[name] for network in members] for name in (x, y))
        look = {"color": PALETTE[i % len(PALETTE)], "marker": "os^D"[i // len(PALETTE) % 4]}
        axes.plot(across, up, **look, markersize=4, linewidth=1, label=family)
        for network in members if few else ():
            place = {"xytext": (4, 4), "textcoords": "offset points", "fontsize": 7.5}
            axes.annotate(network["name"], (network[x], network[y]), **place)
    axes.set(title=titles[0], xlabel=titles[1], ylabel=titles[2], xscale="log", yscale="log")
    axes.margins(0.12, 0.1)
    if not few:
        figure.legend(loc="outside lower left", ncols=3, fontsize=8)
    for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        _ticks(axis, low, high)
    return figure


def _ticks(axis, low: float, high: float) -> None:
    """At the powers of ten, or at 1, 2 and 5 where they are few."""
    from matplotlib.ticker import LogLocator, NullFormatter

    few = high < 300 * low
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    axis.set_major_formatter(short_number if few else power_of_ten)
    axis.set_minor_formatter(NullFormatter())


def write(
    folder: Path,
    *,
    command: str,
    networks: Sequence[Mapping],
    layers: Mapping[str, Sequence[Sequence]],
    notes: Sequence[str],
    peak: float | None,
    footer: str,
) -> Path:
    """Prints the table and writes `figures/` and `report.html`; returns the latter.

    Args:
        networks: of each its `name`, the `family` that it is drawn with, and numbers under the names in `COLUMNS`, in
            FLOPs and bytes of one image; those that were not measured are left out. `uncounted` names, with commas
            between, the operations of which its program does not tell the work.
        layers: {network: rows of (layer, type, output shape, parameters, FLOPs forward, FLOPs backward, other
            operations, bytes kept)}.
        notes: paragraphs on how it was counted and measured.
        peak: FLOP/s of a matrix product on this device, if it was measured.
    """
    folder = Path(folder)
    draw = page.drawing(folder)
    header, rows = table(networks)
    print_table("Networks", header, rows)
    drawings = [("size", "flops", "parameters", ("Size", "FLOPs of an image", "parameters"))]
    drawings += [("memory", "flops", "kept", ("Memory", "FLOPs of an image", "bytes kept of an image"))]
    if peak:
        drawings += [
            ("forward_time", "flops", "forward_ms_per_image", ("Time forward", "FLOPs of an image", "ms an image")),
            ("train_time", "train_flops", "train_ms_per_image", ("Time to train", "FLOPs of an image", "ms an image")),
            (
                "parameters_time",
                "parameters",
                "forward_ms_per_image",
                ("Parameters and time", "parameters", "ms an image"),
            ),
        ]
    pictures: list[Block] = []
    for name, x, y, titles in drawings:
        pictures.append(draw(name, scatter(networks, x, y, titles=titles), f"{titles[2]} over {titles[1]}."))
    missing = [f"{network['name']}: {network['uncounted']}" for network in networks if network.get("uncounted")]
    if missing:
        notes = [*notes, f"Not counted, because a program does not tell their work: {'; '.join(missing)}."]
        print(notes[-1])
    known = [abs(network["difference"]) for network in networks if network.get("difference") is not None]
    cards = [("Networks", len(networks), f"{len(known)} of them published")]
    if known:
        cards.append(("Largest difference", f"{100 * max(known):.2f} %", "of FLOPs to the published"))
    if peak:
        best = max(networks, key=lambda network: network["share_of_peak"])
        cards.append(("Matrix product", f"{peak / 1e9:,.0f} GFLOP/s", "the peak, measured in this run"))
        cards.append(("Best share of it", f"{100 * best['share_of_peak']:.0f} %", f"forward, {best['name']}"))
    of_each = [
        Details(name, [Table(LAYERS, [_layer(row) for row in of], f"Of one image through {name}.")])
        for name, of in layers.items()
    ]
    return write_report(
        folder / "report.html",
        title="What the networks cost",
        summary=[Cards(cards), Code(command)],
        sections=[
            Section("Networks", [Table(header, rows, "Of one image."), *pictures]),
            Section("Layers", of_each),
            Section("How it is counted", ["\n\n".join(notes)]),
        ],
        footer=footer,
    )


def print_layers(name: str, rows: Sequence[Sequence]) -> None:
    """Prints the layers of one network; see `write`."""
    print_table(f"Layers of {name}", LAYERS, [_layer(row) for row in rows])


def _layer(row: Sequence) -> list:
    name, kind, shape, parameters, *work, kept = row
    return [name, kind, " × ".join(map(str, shape)), parameters, *(np.divide(work, 1e6).tolist()), kept / 1e3]
