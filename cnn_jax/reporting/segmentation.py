"""The report of a segmenter: its data, network and training, its maps beside the true ones, and a look inside."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from . import page, plots
from .overlays import map_alone, map_colours, with_classes
from .progress import print_table
from .report import Details, Table

_MANY = 30  # classes: beyond so many, a legend names those that occur
_SMALL = 128  # pixels: images no wider are seen well enough when two stand in a row with their maps
HEADER = ["class", "IoU", "Dice", "precision", "recall", "boundary F1", "pixels"]


def print_start(name: str, sizes: Mapping[str, int], class_names: Sequence[str], description) -> None:
    """Prints the data set and the network."""
    print(f"{name}: {', '.join(f'{n:,} {split}' for split, n in sizes.items())} images in {len(class_names)} classes\n")
    page.print_network(description)


def write(
    folder: Path,
    *,
    title: str,
    command: str,
    source: str,
    class_names: Sequence[str],
    samples: tuple[np.ndarray, np.ndarray],
    description,
    learning_rate: Callable[[np.ndarray], np.ndarray],
    metrics: Mapping,
    seconds: float,
    images_per_second: float,
    shown: tuple[np.ndarray, np.ndarray, np.ndarray],
    worst: tuple[np.ndarray, np.ndarray, np.ndarray],
    several_looks: bool = False,
    inside: tuple[np.ndarray, Mapping[str, np.ndarray]],
) -> dict[str, float]:
    """Writes and prints what a finished run has found: `summary.json`, `figures/`, `report.html`.

    Args:
        samples: training images u8[N,H,W,C] and their maps [N,H,W].
        metrics: what the task's `summarize` gave for the test set.
        shown, worst: test images u8[N,H,W,C], their true maps and the predicted ones [N,H,W].
        several_looks: whether the results are the mean of several looks at each test image.
        inside: an image u8[H,W,C] and its stages f32[H,W,C] by name.
        description, learning_rate, seconds, images_per_second: see `page.write`.
    """
    folder = Path(folder)
    summary = page.write_summary(folder, description, metrics, seconds=seconds, images_per_second=images_per_second)
    draw = page.drawing(folder)
    palette = map_colours(len(class_names))

    def beside(images, *maps, titles):
        """Images, each beside its maps, which have a colour a class. What is found where nothing is known is not shown:
        in the rim of a square, say."""
        maps = [np.where(maps[0] == 255, 255, classes) for classes in maps]
        pictures = [
            picture
            for image, *of_image in zip(images, *maps, strict=True)
            for picture in (with_classes(image), *(map_alone(classes, palette) for classes in of_image))
        ]
        named = np.arange(len(class_names))
        if len(named) > _MANY:
            named = np.intersect1d(named, np.concatenate([np.unique(classes) for classes in maps]))
        legend = [class_names[i] for i in named], palette[named]
        columns = len(titles) * (2 if len(titles) < 3 or images.shape[2] <= _SMALL else 1)
        return plots.image_grid(np.stack(pictures), [*titles] * len(images), columns=columns, legend=legend)

    per_class = [
        [
            name,
            *(float(metrics[f"{of}_per_class"][i]) for of in ("iou", "dice", "precision", "recall", "boundary_f1")),
            int(metrics["support_per_class"][i]),
        ]
        for i, name in enumerate(class_names)
    ]
    results = [
        "Every pixel of the test set counts once: intersection and union are those of the whole set."
        + " Each image is looked at several times, as the command says; the curves are of one look." * several_looks,
        draw(
            "predictions",
            beside(*shown, titles=("image", "true", "found")),
            "Test images, their true maps and what is found. What is white counts nowhere.",
        ),
        draw("worst", beside(*worst, titles=("image", "true", "found")), "The test images with the greatest loss."),
        draw(
            "confusion", plots.confusion_matrix(metrics["confusion"], class_names), "Pixels; rows are the true classes."
        ),
        Details("Each class", [Table(HEADER, per_class)]),
    ]
    cards = [
        ("mIoU", f"{metrics['miou']:.3f}", "mean over the classes"),
        ("Pixel accuracy", f"{100 * metrics['pixel_accuracy']:.2f} %", f"{metrics['count']:,} images"),
        ("Dice", f"{metrics['dice']:.3f}", "mean over the classes"),
        ("Boundary F1", f"{metrics['boundary_f1']:.3f}", "within 2 pixels"),
    ]
    report = page.write(
        folder,
        title=title,
        command=command,
        description=description,
        learning_rate=learning_rate,
        curves=("loss", "miou"),
        summary=summary,
        cards=cards,
        data=[
            source,
            draw("samples", beside(*samples, titles=("image", "true")), "Training images and their maps."),
        ],
        results=results,
        inside=page.stage_blocks(draw, *inside),
    )
    print_table("Test set", HEADER, per_class[:20])
    print(
        f"test mIoU {metrics['miou']:.4f}, pixel accuracy {metrics['pixel_accuracy']:.2%}, Dice {metrics['dice']:.4f}; "
        f"trained {summary['train_seconds']:.1f} s, {summary['images_per_second']:,.0f} images/s\nreport: {report}"
    )
    return summary
