"""The report of what gradients look like while a network learns, and how curved its loss is."""

from collections.abc import Mapping
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
    looks: Mapping[int, tuple[Mapping[str, float], tuple[np.ndarray, np.ndarray]]],
    note: str,
) -> Path:
    """Writes and prints what was found: `summary.json`, `figures/`, `report.html`; returns the report's path.

    The folder holds the run's `config.json`.

    Args:
        history: {"gradient", "update", "weight": {kernel: {step: norm}}}.
        flow: {kernel: "healthy", "vanishing" or "exploding"}.
        looks: {step: ({name: number}, what `density` takes)}.
        note: of what these numbers are.
    """
    folder = Path(folder)
    draw = page.drawing(folder)
    rows = [
        [kernel, *(f"{np.median(list(history[kind][kernel].values())):.3g}" for kind in history), flow[kernel]]
        for kernel in history["gradient"]
    ]
    first, *_ = looks.values()
    numbers = [[name.replace("_", " "), *(of[name] for of, _ in looks.values())] for name in first[0]]
    header = ["kernel", *history, "flow"]
    norms = [draw(kind, series(of, "step", f"norm of {kind}"), f"Norm of {kind}.") for kind, of in history.items()]
    curves = [
        draw(f"density_{step}", density(*curve), f"Eigenvalues of the Hessian after {step} steps.")
        for step, (_, curve) in looks.items()
    ]
    path = write_report(
        folder / "report.html",
        title=title,
        summary=[Code(command)],
        sections=[
            Section(
                "Kernels", [Table(header, rows, "Median norms over training, as the training step has them."), *norms]
            ),
            Section(
                "Single examples, and curvature",
                [Table(["steps done", *looks], numbers, note), *curves],
            ),
        ],
        footer=page.footer(folder),
    )
    write_json(
        folder / "summary.json",
        {f"{name}_{step}": value for step, (of, _) in looks.items() for name, value in of.items()},
    )
    print_table("Kernels", header, rows)
    return path
