"""The score of a box, for detectors: `scores.Score` of the place that sees it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.analysis.scores import Score, described, in_batches, prepare, whole_numbers
from cnn_jax.errors import InputError


def box_score(
    model: nn.Module,
    variables: Any,
    images: jax.Array,
    boxes: Any,
    labels: Any,
    *,
    probability: bool = False,
    batch_size: int = 64,
) -> Score:
    """The logit of a box's class at the place that sees the box, for detectors such as `models.FCOS`.

    Of all places of the levels of outputs, dicts of `logits` f32[N,h,w,classes] and `distances` f32[N,h,w,4] in strides
    of the level, it is that whose own box, cut to the image, overlaps the given one most. It is looked for once, in
    these images, and stays where it is when they are changed.

    Args:
        images: f32[N,H,W,C].
        boxes: f32[N,4], one of each image: left, top, right and bottom in pixels; say one that the detector found.
        labels: the class, or i32[N].
        probability: by the logistic function, instead of the logit.

    Raises:
        InputError: as `class_score`; or a box that no place's box overlaps.
    """
    boxes = np.asarray(boxes, np.float32)
    if boxes.shape != (len(images), 4):
        raise InputError(f"boxes have shape {boxes.shape} for {len(images)} images: expected ({len(images)}, 4)")
    targets = {"place": np.zeros((), np.int32), "label": whole_numbers("label", labels)}
    read = _box_probability if probability else _box_logit
    score, images = prepare(Score(model, variables, read, targets, _box_sizes), images)
    place, overlap = in_batches(_best_place, score, images, boxes, batch_size=batch_size)
    if not (overlap > 0).all():
        row = int(jnp.argmin(overlap))
        raise InputError(f"box {boxes[row].tolist()} of image {row} overlaps none of the network's: give one it found")
    return replace(score, targets=score.targets | {"place": place})


def _box_logit(outputs, targets):
    rows = jnp.arange(len(targets["label"]))
    return _flat(outputs, "logits")[rows, targets["place"], targets["label"]]


def _box_probability(outputs, targets):
    return jax.nn.sigmoid(_box_logit(outputs, targets))


def _box_sizes(outputs):
    levels = outputs if isinstance(outputs, list | tuple) else [outputs]
    if not all(isinstance(level, Mapping) and {"logits", "distances"} <= level.keys() for level in levels):
        raise InputError(
            f"box_score needs levels with logits and distances, and the network gives {described(outputs)}"
        )
    return {"place": sum(level["logits"].shape[1] * level["logits"].shape[2] for level in levels),
            "label": levels[0]["logits"].shape[-1]}  # fmt: skip


@jax.jit
def _best_place(score, images, boxes):
    """(i32[N], f32[N]): the place whose box overlaps the given ones most, and the intersection over union."""
    outputs = score.model.apply(score.variables, images, train=False)
    stride = images.shape[1] // outputs[0]["logits"].shape[1]
    centers, strides = [], []
    for level, of_level in enumerate(outputs):
        rows, columns = np.indices(of_level["logits"].shape[1:3]).reshape(2, -1) * stride * 2**level
        centers.append(np.stack([columns, rows], axis=-1))
        strides.append(np.full((len(rows), 1), stride * 2**level))
    centers = jnp.asarray(np.concatenate(centers), jnp.float32)[None]
    away = _flat(outputs, "distances") * np.concatenate(strides)[None]
    limits = jnp.array([images.shape[2], images.shape[1]] * 2, jnp.float32)[None, None]
    corners = jnp.concatenate([centers - away[..., :2], centers + away[..., 2:]], axis=-1).clip(0, limits)

    def area(x):
        return jnp.maximum(x[..., 2:] - x[..., :2], 0).prod(-1)

    boxes = boxes[:, None]
    low, high = jnp.maximum(corners[..., :2], boxes[..., :2]), jnp.minimum(corners[..., 2:], boxes[..., 2:])
    shared = area(jnp.concatenate([low, high], axis=-1))
    overlap = shared / jnp.maximum(area(corners) + area(boxes) - shared, 1e-9)
    return overlap.argmax(1).astype(jnp.int32), overlap.max(1)


def _flat(outputs, name):
    """The numbers of all places of all levels: f32[N,A,…]."""
    levels = [level[name] for level in outputs]
    return jnp.concatenate([level.reshape(len(level), -1, level.shape[-1]) for level in levels], axis=1)
