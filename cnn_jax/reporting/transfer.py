"""The report of what earlier training is worth: accuracy by number of labelled examples, for several ways to learn."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cnn_jax.statistics import interval

from . import page, plots
from .comparisons import lines
from .progress import print_table
from .report import Cards, Code, Details, Section, Table, write_report
from .trackers import write_json


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
        accuracies: {way: {examples of each class: an accuracy for each seed}}.
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
                        lines(
                            accuracies,
                            "labelled examples of each class",
                            "test accuracy, %",
                            chance=counts.max() / counts.sum(),
                        ),
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
