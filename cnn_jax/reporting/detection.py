"""The report of a detector: its data, network and training, what it finds and misses, and a look inside."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from . import page, plots
from .overlays import with_boxes
from .progress import print_table
from .report import Details, Table


def print_start(name: str, sizes: Mapping[str, int], objects: Mapping[str, np.ndarray], class_names, description):
    """Prints the data set and the network. objects: {split: of each class i64[C]}, of the splits where it is known."""
    totals = ", ".join(
        f"{size:,} {split} images" + (f" with {int(objects[split].sum()):,} objects" if split in objects else "")
        for split, size in sizes.items()
    )
    shown = [[label, *(int(of[i]) for of in objects.values())] for i, label in enumerate(class_names)][:20]
    print_table(f"{name}: {totals}", ["class", *objects], shown)
    page.print_network(description)


def write(
    folder: Path,
    *,
    title: str,
    command: str,
    source: str,
    class_names: Sequence[str],
    objects: Mapping[str, np.ndarray],
    samples: Mapping[str, np.ndarray],
    description,
    learning_rate: Callable[[np.ndarray], np.ndarray],
    metrics: Mapping,
    seconds: float,
    images_per_second: float,
    predicted: Mapping[str, np.ndarray],
    true: Mapping[str, np.ndarray],
    losses: np.ndarray,
    test_images: Callable[[np.ndarray], np.ndarray],
    inside: tuple[np.ndarray, Mapping[str, np.ndarray]],
) -> dict[str, float]:
    """Writes and prints what a finished run has found: `summary.json`, `figures/`, `report.html`.

    Args:
        objects: {split: objects of each class i64[C]}, of the splits where it is known.
        samples: training images: `image` u8[N,H,W,C], `boxes` f32[N,M,4], `label` i32[N,M], `objects` bool[N,M].
        metrics: what the task's `summarize` gave for the test set.
        predicted: the same three arrays and `scores` f32[N,D], of the test set, in pixels of its images.
        true: the truth of the test set, alike.
        losses: f32[N], of the test images.
        test_images: rows of the test set -> u8[N,H,W,C].
        inside: an image u8[H,W,C] and its stages f32[H,W,C] by name.
        description, learning_rate, seconds, images_per_second: see `page.write`.
    """
    folder = Path(folder)
    summary = page.write_summary(folder, description, metrics, seconds=seconds, images_per_second=images_per_second)
    draw = page.drawing(folder)
    threshold = metrics["score_threshold"]
    threshold = 0.5 if np.isnan(threshold) else threshold

    def pictures(rows, *, found: bool):
        images = test_images(rows)
        boxes = predicted if found else true
        return [with_boxes(image, {k: v[i] for k, v in boxes.items()}, class_names, threshold=threshold)
                for image, i in zip(images, rows, strict=True)]  # fmt: skip

    shown = [
        with_boxes(image, {name: values[i] for name, values in samples.items()}, class_names)
        for i, image in enumerate(samples["image"])
    ]
    data = [
        source,
        draw(
            "samples", plots.image_grid(np.stack(shown), columns=4), "Training images with the boxes of their objects."
        ),
    ]
    if objects:
        data.append(draw("counts", plots.class_counts(objects, class_names), "Objects of each class."))
    rows = np.arange(min(12, len(losses)))
    worst = np.argsort(-losses, kind="stable")[:6]
    pairs = [picture for i in worst for found in (False, True) for picture in pictures(np.array([i]), found=found)]
    per_class = [
        [
            name,
            float(metrics["ap_per_class"][i]),
            float(metrics["ap50_per_class"][i]),
            int(metrics["support_per_class"][i]),
        ]
        for i, name in enumerate(class_names)
    ]
    averages = [[name, float(metrics[name])] for name in COCO]
    results = [
        "AP is COCO's, over all images of the test set: the mean over the classes and over ten thresholds of overlap "
        f"from 0.5 to 0.95. Boxes are drawn where the score is {threshold:.2f} or more, where F1 is greatest.",
        draw("detections", plots.image_grid(np.stack(pictures(rows, found=True)), columns=4), "What is found."),
        draw(
            "precision_recall",
            plots.precision_recall(metrics["precision50"], class_names),
            "Precision at each recall, at an overlap of 0.5.",
        ),
        draw(
            "misses",
            plots.image_grid(np.stack(pairs), ["true", "found"] * len(worst), columns=4),
            "The test images with the greatest loss: what is there, and what is found.",
        ),
        Details("COCO's numbers", [Table(["measure", "value"], averages)]),
        Details("Each class", [Table(["class", "AP", "AP50", "objects"], per_class)]),
    ]
    cards = [
        ("AP", f"{metrics['ap']:.3f}", "overlap 0.5 to 0.95"),
        ("AP50", f"{metrics['ap50']:.3f}", "overlap 0.5"),
        ("Recall", f"{metrics['ar100']:.3f}", "AR, 100 detections"),
        ("F1", f"{metrics['f1']:.3f}", f"at a score of {threshold:.2f}"),
    ]
    report = page.write(
        folder,
        title=title,
        command=command,
        description=description,
        learning_rate=learning_rate,
        curves=("loss", "ap"),
        summary=summary,
        cards=cards,
        data=data,
        results=results,
        inside=page.stage_blocks(draw, *inside),
    )
    print_table("Test set", ["class", "AP", "AP50", "objects"], per_class[:20])
    print(
        f"test AP {metrics['ap']:.4f}, AP50 {metrics['ap50']:.4f}, AP75 {metrics['ap75']:.4f}; "
        f"trained {summary['train_seconds']:.1f} s, {summary['images_per_second']:,.0f} images/s\nreport: {report}"
    )
    return summary


COCO = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
COCO += ("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large", "voc_ap")
