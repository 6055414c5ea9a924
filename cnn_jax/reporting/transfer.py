"""The report of what earlier training is worth: accuracy by number of labelled examples, for several ways to learn."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cnn_jax.statistics import interval

from . import page, plots
from .progress import print_table
from .report import Cards, Code, Details, Section, Table, write_report
from .style import PALETTE, new_figure, short_number, styled
from .trackers import write_json


@styled
def curve(accuracies: Mapping[str, Mapping[int, Sequence[float]]], *, chance: float):
    """Accuracy over labelled examples of each class, a line with its 95 % intervals for each way to learn.

    Args:
        accuracies: {way: {examples of each class: an accuracy for each seed}}.
        chance: accuracy of guessing.
    """
    figure, (axes,) = new_figure(3.9)
    for i, (way, by_shots) in enumerate(accuracies.items()):
        shots = np.array(list(by_shots))
        mean, half = 100 * np.array([interval(values) for values in by_shots.values()]).T
        look = {"color": PALETTE[i], "marker": "osD^"[i % 4], "markersize": 5, "label": way}
        axes.errorbar(shots * 1.03 ** (i - 1), mean, half.clip(max=mean), capsize=3, elinewidth=1.2, **look)
    axes.axhline(100 * chance, color="#59636E", linewidth=1, linestyle=":", label="chance")
    axes.set_xscale("log")
    axes.set_xticks(shots)
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(short_number)
    axes.set_ylim(top=min(101, axes.get_ylim()[1]))
    axes.set_xlabel("labelled examples of each class")
    axes.set_ylabel("test accuracy, %")
    axes.legend(loc="lower right", frameon=True, edgecolor="none", framealpha=0.9)
    return figure


def write(
    folder: Path,
    *,
    title: str,
    command: str,
    dataset,
    weights: str,
    accuracies: Mapping[str, Mapping[int, Sequence[float]]],
    seconds: Mapping[str, float],
    notes: Sequence[str],
) -> Path:
    """Writes and prints what was found: `summary.json`, `figures/`, `report.html`; returns the report's path.

    The folder holds the run's `config.json`.

    Args:
        dataset: a `data.Dataset` for classification.
        weights: where they come from, in a sentence.
        accuracies: see `curve`.
        seconds: {way: time of all its runs}.
        notes: paragraphs on how it was done.
    """
    folder = Path(folder)
    intervals = {way: {n: interval(values) for n, values in of.items()} for way, of in accuracies.items()}
    summary = {}
    for way, of in intervals.items():
        name = way.replace(" ", "_").replace("-", "_")
        for n, (mean, half) in of.items():
            summary |= {f"{name}_{n}_accuracy": mean, f"{name}_{n}_interval": half}
        summary[f"{name}_seconds"] = seconds[way]
    write_json(folder / "summary.json", summary)

    counts, samples = dataset.counts("test"), dataset.samples("train", 24)
    titles = [dataset.class_names[label] for label in samples["label"]]
    ways = list(accuracies)
    shots = list(accuracies[ways[0]])
    rows = [[n, *("{:.1f} ± {:.1f}".format(*(100 * np.array(intervals[way][n]))) for way in ways)] for n in shots]
    seeds = len(accuracies[ways[0]][shots[0]])
    caption = f"Accuracy on {counts.sum():,} test images in per cent, mean and 95 % interval over {seeds} seeds."
    each = [[w, n, *(100 * np.asarray(values)).tolist()] for w, of in accuracies.items() for n, values in of.items()]
    draw = page.drawing(folder)
    fewest, most = shots[0], shots[-1]
    cards = [
        (way, f"{100 * of[most][0]:.1f} %", f"{most} of each class; {100 * of[fewest][0]:.1f} % with {fewest}")
        for way, of in intervals.items()
    ]
    path = write_report(
        folder / "report.html",
        title=title,
        summary=[Cards(cards), Code(command)],
        sections=[
            Section(
                "Result",
                [
                    draw(
                        "transfer",
                        curve(accuracies, chance=counts.max() / counts.sum()),
                        "What earlier training is worth in labels.",
                    ),
                    Table(["of each class", *ways], rows, caption),
                    Details("Every run", [Table(["way", "of each class", *(f"seed {i}" for i in range(seeds))], each)]),
                    "Time of all runs: " + ", ".join(f"{way} {seconds[way]:.0f} s" for way in ways) + ".",
                ],
            ),
            Section(
                "Data",
                [dataset.source, draw("samples", plots.image_grid(samples["image"], titles), "Training images.")],
            ),
            Section("How it was done", [weights, *notes]),
        ],
        footer=page.footer(folder),
    )
    print_table(caption, ["of each class", *ways], rows)
    return path
