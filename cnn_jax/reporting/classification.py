"""The report of a classifier: its data, its network, its training, its results, and a look inside."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from . import page, plots
from .progress import print_table
from .report import Details, Table


def print_start(name: str, class_names: Sequence[str], counts: Mapping[str, Sequence[int]], description) -> None:
    """Prints the data set and the network; see `write` for the arguments."""
    if counts:
        shown = [[label, *(int(values[i]) for values in counts.values())] for i, label in enumerate(class_names)][:20]
        left_out = f", the first 20 of {len(class_names)}" if len(class_names) > 20 else ""
        totals = ", ".join(f"{int(sum(values)):,} {split}" for split, values in counts.items())
        print_table(f"{name}: {totals} images in {len(class_names)} classes{left_out}", ["class", *counts], shown)
    page.print_network(description)


def _print_end(metrics: Mapping, class_names: Sequence[str], summary: Mapping[str, float], report: Path) -> None:
    """Prints the results and where the report is."""
    names = ("precision", "recall", "f1")
    rows = [
        [label, *(float(metrics[f"{of}_per_class"][i]) for of in names), int(metrics["support_per_class"][i])]
        for i, label in enumerate(class_names)
    ][:20]
    for average in ("macro", "micro", "weighted"):
        rows.append([average, *(float(metrics[f"{of}_{average}"]) for of in names), metrics["count"]])
    print_table("Test set", ["class", "precision", "recall", "F1", "images"], rows)
    print(
        f"test accuracy {metrics['accuracy']:.2%}, loss {metrics['loss']:.4f}, calibration error {metrics['ece']:.4f}; "
        f"trained {summary['train_seconds']:.1f} s, {summary['images_per_second']:,.0f} images/s\n"
        f"report: {report}"
    )


def write(
    folder: Path,
    *,
    title: str,
    command: str,
    source: str,
    class_names: Sequence[str],
    counts: Mapping[str, Sequence[int]],
    samples: tuple[np.ndarray, np.ndarray],
    description,
    learning_rate: Callable[[np.ndarray], np.ndarray],
    metrics: Mapping,
    seconds: float,
    images_per_second: float,
    evidence: Mapping[str, np.ndarray],
    test_images: Callable[[np.ndarray], np.ndarray],
    kernel: np.ndarray,
    insides: Sequence[tuple[str, np.ndarray, Mapping[str, np.ndarray]]],
) -> dict[str, float]:
    """Writes and prints what a finished run has found: `summary.json`, `figures/`, `report.html`.

    The folder holds the run's `config.json` and `metrics.jsonl`.

    Args:
        counts: {split: images of each class}, empty where they are not known.
        samples: training images u8[N,H,W,C] and their labels.
        description: of the network: `layers`, each (name, type, output shape, parameters, FLOPs), and the totals
            `parameters`, `trainable` and `flops`.
        learning_rate: of steps i64[N].
        metrics: what the task's `summarize` gave for the test set.
        seconds: of training.
        images_per_second: in training.
        evidence: of the test set, in order: `label`, `prediction` i32[N], `probabilities` f32[N,C].
        test_images: rows of the test set -> u8[N,H,W,C].
        kernel: f32[H,W,Cin,Cout] of the first convolution.
        insides: (title, image u8[H,W,C], {stage: f32[H,W,C]}) of the images to look inside with.

    Returns:
        The numbers of `summary.json`.
    """
    folder = Path(folder)
    summary = page.write_summary(folder, description, metrics, seconds=seconds, images_per_second=images_per_second)
    draw = page.drawing(folder)

    images, labels = samples
    data = [source, draw("samples", plots.image_grid(images, [class_names[i] for i in labels]), "Training images.")]
    if counts:
        data.append(draw("counts", plots.class_counts(counts, class_names), "Images of each class."))

    label, prediction = evidence["label"], evidence["prediction"]
    confidence = evidence["probabilities"].max(axis=1)
    per_class = [metrics[f"{name}_per_class"] for name in ("precision", "recall", "f1")]
    averages = [
        [name, *(float(metrics[f"{of}_{name}"]) for of in ("precision", "recall", "f1"))]
        for name in ("macro", "micro", "weighted")
    ]
    class_rows = [
        [
            name,
            *(float(values[i]) for values in per_class),
            float(metrics["auroc_per_class"][i]),
            int(metrics["support_per_class"][i]),
        ]
        for i, name in enumerate(class_names)
    ]
    calibration = plots.calibration(*(metrics[f"reliability_{name}"] for name in ("confidence", "accuracy", "count")))
    worst = plots.mistakes(test_images, label, prediction, confidence, class_names)
    results = [
        "Every image of the test set counts once. The figures are those at the end of training, not of the best epoch: "
        "of the moving average of the parameters where one is kept, otherwise of the last parameters.",
        Table(["average", "precision", "recall", "F1"], averages, "Over the classes."),
        draw("confusion", plots.confusion_matrix(metrics["confusion"], class_names), "Rows are the true classes."),
        draw("per_class", plots.per_class(*per_class, class_names), "Precision, recall and F1 of each class."),
        draw("mistakes", worst, "Wrong, and most certain of it."),
        draw("calibration", calibration, "Is 90 % certain right nine times in ten?"),
        Details("Each class", [Table(["class", "precision", "recall", "F1", "AUROC", "images"], class_rows)]),
    ]

    look = ["What the network computes on the way to its answer, after each stage's ReLU."]
    look.append(
        draw(
            "filters",
            plots.filters(kernel, title="Filters of the first convolution"),
            "What the first layer looks for.",
        )
    )
    for i, (name, image, stages) in enumerate(insides):
        side = plots.feature_maps_side_by_side(stages, image, title=name)
        look.append(draw(f"feature_maps_{i}", side, f"{name}: the first four feature maps of {' and '.join(stages)}."))
    name, image, stages = insides[0]
    grids = [
        draw(
            f"feature_maps_{stage}",
            plots.feature_maps(maps, image=image, title=f"{name}: {stage}"),
            f"All maps of {stage}.",
        )
        for stage, maps in stages.items()
    ]
    look.append(Details(f"All feature maps of {' and '.join(stages)}", grids))

    cards = [
        ("Test accuracy", f"{100 * metrics['accuracy']:.2f} %", f"{metrics['count']:,} images"),
        ("F1, macro", f"{metrics['f1_macro']:.4f}", "mean over the classes"),
        ("Test loss", f"{metrics['loss']:.4f}", "cross entropy, nats"),
        ("Calibration error", f"{metrics['ece']:.4f}", "expected, 15 bins"),
    ]
    report = page.write(
        folder,
        title=title,
        command=command,
        description=description,
        learning_rate=learning_rate,
        curves=("loss", "accuracy"),
        summary=summary,
        cards=cards,
        data=data,
        results=results,
        inside=look,
    )
    _print_end(metrics, class_names, summary, report)
    return summary
