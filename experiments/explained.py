"""What is explained of a run: images, and of each one number of the network's outputs.

Of a classifier the score of a class; of a detector that of the box it is surest of; of a segmenter that of the surest
pixel of the class that covers most.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np

from cnn_jax import analysis, data, models, tasks
from cnn_jax.errors import InputError
from experiments.predict import read_picture
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
    boxes: np.ndarray | None  # f32[N,4], where it is known where the object is
    what: str  # in words

    @property
    def images(self) -> jax.Array:
        """f32[N,H,W,C], as the model takes them."""
        return normalised(self.raw, self.about)

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
        raw, labels = np.stack([read_picture(path, about)[0] for path in pictures]), None
    else:
        raw, labels = _test_images(config.run, about["task"], few)
    of_task = {"classify": _classes, "detect": _boxes, "segment": _pixels}[about["task"]]
    found = of_task(about, model, variables, raw, labels)
    score = found.score.for_images(found.images)
    return found._replace(score=score, judged=found.judged.for_images(found.images))


def _test_images(run: Path, task: str, few: int) -> tuple[np.ndarray, np.ndarray | None]:
    settings = json.loads((run / "config.json").read_text())["settings"]
    where = {"data_dir": settings["data_dir"] and Path(settings["data_dir"]), "image_size": settings["image_size"]}
    if task == "classify":
        dataset = data.load(settings["dataset"], **where)
    else:
        dataset = data.load_annotated(
            settings["dataset"], {"detect": "boxes", "segment": "map"}[task], scenes=1, **where
        )
    rows = np.arange(min(few, dataset.size("test")))
    return dataset.images("test", rows), dataset.labels("test")[rows] if task == "classify" else None


def _classes(about, model, variables, raw, labels) -> Explained:
    said = np.asarray(jax.jit(model.apply)(variables, normalised(raw, about))).argmax(-1)
    labels = said if labels is None else labels
    names = about["class_names"]
    titles = [f"{names[label]}\n→ {names[answer]}" for label, answer in zip(labels, said, strict=True)]
    score, judged = (analysis.class_score(model, variables, labels, probability=p) for p in (False, True))
    what = "the class that each image has, or is taken for"
    return Explained(about, model, variables, raw, score, judged, titles, None, what)


def _boxes(about, model, variables, raw, labels) -> Explained:
    task = tasks.detect(len(about["class_names"]), strides=model.strides)
    found = jax.jit(lambda images: task.predict(model.apply(variables, images)))(normalised(raw, about))
    scores = np.where(found["objects"], found["scores"], -1)
    best, rows = scores.argmax(1), np.flatnonzero(scores.max(1) > 0)
    if not len(rows):
        raise InputError("the detector finds nothing in these images: give others, or train it for longer")
    boxes, labels = (np.asarray(found[name])[rows, best[rows]] for name in ("boxes", "label"))
    raw = raw[rows]
    score, judged = (
        analysis.box_score(model, variables, normalised(raw, about), boxes, labels, probability=p)
        for p in (False, True)
    )
    titles = [about["class_names"][label] for label in labels]
    what = "the class of the box of which the detector is surest"
    return Explained(about, model, variables, raw, score, judged, titles, boxes, what)


def _pixels(about, model, variables, raw, labels) -> Explained:
    outputs = jax.jit(model.apply)(variables, normalised(raw, about))
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
    score, judged = (analysis.pixel_score(model, variables, pixels, labels, probability=p) for p in (False, True))
    titles = [f"{about['class_names'][c]}\nat row {y}, column {x}" for c, (y, x) in zip(labels, pixels, strict=True)]
    what = "the class of one pixel, the surest of the class that covers most of the image, the ground apart"
    return Explained(about, model, variables, raw[rows], score, judged, titles, None, what)
