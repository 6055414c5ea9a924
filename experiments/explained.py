"""What is explained of a run: images, and of each one number of the network's outputs.

Of a classifier the score of a class; of a detector that of the box it is surest of; of a segmenter that of the surest
pixel of the class that covers most. Where the object truly is comes from the data set: of a detector the true box of
that class which the found one overlaps by at least a half, zeros where there is none; of a segmenter the true pixels of
that class.
"""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np

from cnn_jax import analysis, data, models, tasks
from cnn_jax.errors import InputError
from experiments.looks import detection, read_picture
from experiments.runs import load_published, load_run, normalised


class Explained(NamedTuple):
    """N images and a score of each."""

    about: dict  # what the run's model.json says
    model: nn.Module
    variables: dict
    raw: np.ndarray  # u8[N,H,W,C]
    score: analysis.Score  # of a logit
    judged: analysis.Score  # the same as a probability
    titles: list[str]
    what: str  # in words
    objects: np.ndarray | None  # f32[N,4] or bool[N,H,W], where the object truly is; None where nobody says so

    @property
    def images(self) -> jax.Array:
        """f32[N,H,W,C], as the model takes them."""
        return normalised(self.raw, self.about)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """{stage: its shape} of one image. Nothing is computed for it."""
        found = jax.eval_shape(partial(analysis.capture, self.model), self.variables, self.images[:1])
        return {name: values.shape for name, values in found.items()}

    def head(self, count: int) -> tuple[analysis.Score, jax.Array]:
        """The score and the images of the first."""
        targets = jax.tree.map(lambda values: values[:count], self.score.targets)
        return replace(self.score, targets=targets), self.images[:count]


def load(config, few: int) -> Explained:
    """Of a run, or of published weights.

    Args:
        config: a script's, with `run`, `pictures`, `model`, `weights` and `image_size`.
        few: how many test images of the run's data set to look at, where there are no pictures.
    """
    pictures = config.pictures
    if config.model:
        about, model, variables = load_published(config.model, config.weights, config.image_size)
        about, pictures = about | {"model": config.model, "task": "classify"}, (config.run, *pictures)
    else:
        about, variables = load_run(config.run)
        model = models.create(about["model"], **about["options"])
    if pictures:
        raw, truth = np.stack([read_picture(path, about)[0] for path in pictures]), {}
    else:
        dataset = dataset_of(config.run, about["task"])
        truth = dataset.rows("test", np.arange(min(few, dataset.size("test"))))
        raw = truth.pop("image")
    of_task = {"classify": _classes, "detect": _boxes, "segment": _pixels}[about["task"]]
    images = normalised(raw, about)
    outputs = jax.jit(model.apply)(variables, images)
    rows, score, titles, what, objects = of_task(about, model, variables, images, outputs, truth)
    scores = [score(probability=p).for_images(images[rows]) for p in (False, True)]
    return Explained(about, model, variables, raw[rows], *scores, titles, what, objects)


def dataset_of(run: Path, task: str) -> data.Dataset:
    """The data set of a run; of scenes the test split alone is whole."""
    settings = json.loads((run / "config.json").read_text())["settings"]
    where = {"data_dir": settings["data_dir"] and Path(settings["data_dir"]), "image_size": settings["image_size"]}
    if task == "classify":
        return data.load(settings["dataset"], **where)
    return data.load_annotated(settings["dataset"], {"detect": "boxes", "segment": "map"}[task], scenes=1, **where)


# Of each task: the rows of the images in which there is something to explain, its score, titles, what it is in words,
# and where it truly is.


def _classes(about, model, variables, images, outputs, truth):
    said = np.asarray(outputs).argmax(-1)
    labels, names = truth.get("label", said), about["class_names"]
    titles = [f"{names[label]}\n→ {names[answer]}" for label, answer in zip(labels, said, strict=True)]
    score = partial(analysis.class_score, model, variables, labels)
    return np.arange(len(images)), score, titles, "the class that each image has, or is taken for", None


def _boxes(about, model, variables, images, outputs, truth):
    found = jax.device_get(detection(about, model).predict(outputs))
    scores = np.where(found["objects"], found["scores"], -1)
    best, rows = scores.argmax(1), np.flatnonzero(scores.max(1) > 0)
    if not len(rows):
        raise InputError("the detector finds nothing in these images: give others, or train it for longer")
    boxes, labels = (found[name][rows, best[rows]] for name in ("boxes", "label"))
    score = partial(analysis.box_score, model, variables, images[rows], boxes, labels)
    objects = true_boxes(boxes, labels, {name: values[rows] for name, values in truth.items()}) if truth else None
    what = "the class of the box of which the detector is surest"
    return rows, score, [about["class_names"][label] for label in labels], what, objects


def true_boxes(boxes: np.ndarray, labels: np.ndarray, truth: dict[str, np.ndarray]) -> np.ndarray:
    """Of each image the object of that class whose box fits a found one best, f32[N,4]; zeros below an IoU of a half.

    Args:
        boxes, labels: f32[N,4], i32[N], one of each image.
        truth: `boxes` f32[N,M,4], `label` i32[N,M], `objects` bool[N,M], as data sets have them.
    """
    fit = np.where(
        truth["objects"] & (truth["label"] == labels[:, None]), tasks.boxes.iou(truth["boxes"], boxes[:, None]), 0
    )
    best = np.take_along_axis(truth["boxes"], fit.argmax(1)[:, None, None], 1)[:, 0]
    return np.where(fit.max(1, keepdims=True) >= 0.5, best, 0)


def _pixels(about, model, variables, images, outputs, truth):
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs
    p = np.array(jax.nn.softmax(logits))
    classes = p.argmax(-1)
    counts = np.stack([(classes == c).sum((1, 2)) for c in range(1, p.shape[-1])], axis=1)
    rows = np.flatnonzero(counts.max(1))
    if not len(rows):
        raise InputError("the segmenter sees nothing but class 0 in these images: give others, or train it for longer")
    labels = 1 + counts[rows].argmax(1)
    sure = np.stack([np.where(classes[row] == c, p[row, ..., c], 0) for row, c in zip(rows, labels, strict=True)])
    pixels = np.stack(np.unravel_index(sure.reshape(len(rows), -1).argmax(1), sure.shape[1:]), axis=1)
    score = partial(analysis.pixel_score, model, variables, pixels, labels)
    titles = [f"{about['class_names'][c]}\nat row {y}, column {x}" for c, (y, x) in zip(labels, pixels, strict=True)]
    what = "the class of one pixel, the surest of the class that covers most of the image, the ground apart"
    objects = truth["map"][rows] == labels[:, None, None] if truth else None
    return rows, score, titles, what, objects
