"""How a trained network looks at pictures of any size: as at the images of the set that it learned from.

`about` is what the run's `model.json` says.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from cnn_jax import tasks
from cnn_jax.data import annotated, images, paper
from experiments.runs import normalised


def read_picture(path: Path, about: dict) -> tuple[np.ndarray, list[str]]:
    """A picture as the run's data set has them, u8[H,W,C], and what was done to it."""
    shape = tuple(about["image_shape"])
    if about.get("form"):
        return paper.read(path, shape, centred=paper.CENTRED[about["form"]])
    if about.get("layout") == "crop":
        size, whole = shape[0], _filled(read_whole(path, about), shape[0])
        top, left = ((n - size) // 2 for n in whole.shape[:2])
        return whole[top : top + size, left : left + size], ["its middle, at its own scale"]
    return images.read(path, shape), []


def read_whole(path: Path, about: dict) -> np.ndarray:
    """A picture of its own size, u8[H,W,C], its levels as the run's data set has them."""
    if about.get("stretch"):
        return images.stretched(annotated.read_bytes(path), about["stretch"], path)[..., None]
    return annotated.decode(path, about["image_shape"][-1])


def detection(about: dict, model) -> tasks.Task:
    """The task that a run's detector was measured with."""
    return tasks.detect(len(about["class_names"]), strides=model.strides, **about["task_options"])


def detector(about: dict, model, variables) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A function from a picture u8[H,W,C] to its objects, as `tasks.detect` predicts them, in pixels of the picture.

    The network sees the picture as a whole, laid into a square.
    """
    task, size = detection(about, model), about["image_shape"][0]
    predict = jax.jit(lambda variables, images: task.predict(model.apply(variables, images)))

    def find(picture):
        square, scale = annotated.letterbox(picture, size)
        objects = {k: np.asarray(v[0]) for k, v in predict(variables, normalised(square[None], about)).items()}
        height, width = picture.shape[:2]
        return objects | {"boxes": (objects["boxes"] / scale).clip(0, [width, height, width, height])}

    return find


def segmenter(about: dict, model, variables) -> Callable[[np.ndarray], np.ndarray]:
    """A function from a picture u8[H,W,C] to the classes i[H,W] of its pixels.

    A network that learned from crops sees the picture at its own scale, in windows that overlap by half: what lies in
    several has the mean of their probabilities, and a picture smaller than a window goes on as its mirror image. Any
    other network sees the picture as a whole, laid into a square.
    """
    size, crop = about["image_shape"][0], about["layout"] == "crop"
    apply = jax.jit(tasks.Averaged(model, flip=False, window=size).apply)

    def find(picture):
        seen, scale = (_filled(picture, size), 1) if crop else annotated.letterbox(picture, size)
        classes = np.asarray(apply(variables, normalised(seen[None], about)))[0].argmax(-1)
        # Each pixel of the picture has the class of the one below its centre in what the network saw.
        sides = zip(picture.shape[:2], classes.shape, strict=True)
        rows, columns = (((np.arange(n) + 0.5) * scale).astype(int).clip(0, length - 1) for n, length in sides)
        return classes[rows][:, columns]

    return find


def _filled(picture: np.ndarray, size: int) -> np.ndarray:
    """A picture [H,W,C] of at least so many pixels along both sides: a smaller one goes on as its mirror image."""
    return np.pad(picture, (*((0, max(0, size - n)) for n in picture.shape[:2]), (0, 0)), mode="symmetric")
