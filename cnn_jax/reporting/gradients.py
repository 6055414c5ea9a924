"""The report of what gradients look like while a network learns, and how curved its loss is."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from . import page
from .progress import print_table
from .report import Code, Section, Table, write_report
from .style import PALETTE, new_figure, power_of_ten, styled
from .trackers import write_json


@styled
def series(values: Mapping[str, Mapping[float, float]], x: str, y: str):
    """A line for each name, {name: {place on the x axis: value}}; on a logarithmic axis where they are far apart."""
    figure, (axes,) = new_figure(3.4)
    for i, (name, of) in enumerate(values.items()):
        axes.plot(list(of), list(of.values()), color=PALETTE[i % len(PALETTE)], label=name)
    every = np.array([value for of in values.values() for value in of.values()])
    if every.max() > 30 * every.min() > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(power_of_ten)
        axes.yaxis.set_minor_formatter("")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if len(values) <= 8:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure


@styled
def density(places: np.ndarray, values: np.ndarray):
    """The density of eigenvalues, on a logarithmic axis."""
    figure, (axes,) = new_figure(2.8)
    axes.plot(places, np.maximum(values, 1e-12), color=PALETTE[0])
    axes.set_yscale("log")
    axes.set_ylim(bottom=1e-8)  # one eigenvalue of half a million is to be seen
    axes.yaxis.set_major_formatter(power_of_ten)
    axes.set_xlabel("eigenvalue")
    axes.set_ylabel("density")
    return figure


def write(
    folder: Path,
    *,
    title: str,
    command: str,
    history: Mapping[str, Mapping[str, Mapping[int, float]]],
    flow: Mapping[str, str],
    looks: Sequence[Mapping],
) -> Path:
    """Writes and prints what was found: `summary.json`, `figures/`, `report.html`; returns the report's path.

    The folder holds the run's `config.json`.

    Args:
        history: {"gradient", "update", "weight": {kernel: {step: norm}}}.
        flow: {kernel: "healthy", "vanishing" or "exploding"}.
        looks: each with its `step`, `numbers` {name: number} and `density`, as `density` takes it.
    """
    folder = Path(folder)
    draw = page.drawing(folder)
    rows = [
        [kernel, *(f"{np.median(list(history[kind][kernel].values())):.3g}" for kind in history), flow[kernel]]
        for kernel in history["gradient"]
    ]
    numbers = [[name.replace("_", " "), *(look["numbers"][name] for look in looks)] for name in looks[0]["numbers"]]
    header = ["kernel", *history, "flow"]
    norms = [draw(kind, series(of, "step", f"norm of {kind}"), f"Norm of {kind}.") for kind, of in history.items()]
    curves = [
        draw(
            f"density_{look['step']}", density(*look["density"]), f"Eigenvalues of the Hessian at step {look['step']}."
        )
        for look in looks
    ]
    path = write_report(
        folder / "report.html",
        title=title,
        summary=[Code(command)],
        sections=[
            Section("Kernels", [Table(header, rows, "Median norms over training."), *norms]),
            Section(
                "Single examples, and curvature",
                [Table(["", *(f"step {look['step']}" for look in looks)], numbers), *curves],
            ),
        ],
        footer=page.footer(folder),
    )
    write_json(
        folder / "summary.json",
        {f"{name}_{look['step']}": value for look in looks for name, value in look["numbers"].items()},
    )
    print_table("Kernels", header, rows)
    return path
