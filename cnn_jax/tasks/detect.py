"""Object detection as FCOS does it (Tian et al. 2019): losses, decoding on the device, COCO's and VOC's metrics."""

from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cnn_jax.errors import InputError
from cnn_jax.tasks import boxes as bx
from cnn_jax.tasks import coco
from cnn_jax.tasks.task import Task, check_labels, counted, needed


def detect(
    num_classes: int,
    *,
    strides: Sequence[int],
    center_radius: float = 1.5,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.6,
    candidates: int = 1000,
    detections: int = 100,
) -> Task:
    """Detection of objects of `num_classes` classes by a model such as `models.FCOS`.

    A model's outputs are a list of levels, fine to coarse: dicts of `logits` f32[N,h,w,num_classes], `distances`
    f32[N,h,w,4] to the left, top, right and bottom, in strides of the level, and `centerness` f32[N,h,w], a logit.

    Batches carry, for M places for objects in each image (boxes in pixels, see `tasks.boxes`):

        boxes     f32[N,M,4]
        label     i32[N,M] in 0..num_classes-1
        objects   bool[N,M], False where there is no object
        crowd     bool[N,M], optional: regions full of objects, where detections are neither right nor wrong
        area      f32[N,M], optional: the area of the object itself, in pixels of the original image, for the metrics
                  by size; the box's where it is left out
        scale     f32[N], optional: pixels of this image for one of the original; 1 where it is left out
        inside    f32[N,2], optional: width and height of what the picture takes of this image, from its upper left;
                  what is found is cut off there before it is measured

    Args:
        strides: pixels between the places of each level, as `FCOS.strides` says.
        center_radius: an object is learned at places so near to its centre, in strides of the level.
        score_threshold: what scores less is no detection.
        nms_threshold: of two boxes of a class that overlap by a greater IoU, the one that scores less is dropped.
        candidates: boxes of each level that are considered at most, the best.
        detections: of an image, at most.

    `loss` is focal loss + GIoU loss + centre-ness loss of each image, each divided by the number of places that an
    object falls to (torchvision divides by that of the whole batch); these are its parts `classes`, `box`,
    `centerness`. An object is learned at the level where the greatest distance to its sides is 4 to 8 strides.
    `predict` gives, for each image, by falling score: `boxes` f32[N,D,4] inside the image, `scores` f32[N,D] in [0,1],
    `label` i32[N,D], and `objects` bool[N,D], False where there are fewer. `summarize` gives `loss` and what
    `coco.summarize` gives.

    Raises:
        InputError: an argument out of range; when traced, outputs or a batch of the wrong shape; from `check`, labels
            out of range.
    """
    strides = tuple(strides)
    if num_classes < 1:
        raise InputError(f"num_classes is {num_classes}: detection needs at least one class")
    if not strides or any(b != 2 * a for a, b in pairwise(strides)):
        raise InputError(f"strides is {strides}: each must be twice the one before")
    if not center_radius > 0:
        raise InputError(f"center_radius is {center_radius}: it must be above 0")
    if not (0 <= score_threshold < 1 and 0 <= nms_threshold <= 1):
        raise InputError(
            f"score_threshold is {score_threshold} and nms_threshold {nms_threshold}: both must be from 0 to 1"
        )
    if candidates < 1 or detections < 1:
        raise InputError(f"candidates is {candidates} and detections {detections}: both must be at least 1")

    def check_outputs(outputs):
        if len(outputs) != len(strides) or outputs[0]["logits"].shape[-1] != num_classes:
            found = [level["logits"].shape for level in outputs]
            raise InputError(
                f"outputs have logits of shapes {found}, expected {len(strides)} levels with {num_classes} classes"
            )

    def flat(outputs, name, width=()):
        return jnp.concatenate([level[name].reshape(len(level[name]), -1, *width) for level in outputs], axis=1)

    def parts_of(outputs, batch):
        check_outputs(outputs)
        centers, sizes = _places(outputs, strides)
        boxes, labels, objects = (needed(batch, name) for name in ("boxes", "label", "objects"))
        real = objects & ~batch["crowd"] if "crowd" in batch else objects
        assign = lambda boxes, real: _assign(centers, sizes, boxes, real, strides, center_radius)  # noqa: E731
        positive, which = jax.vmap(assign)(boxes, real)
        label = jnp.take_along_axis(labels, which, axis=1)
        target = jnp.take_along_axis(boxes, which[..., None], axis=1)
        one_hot = jax.nn.one_hot(label, num_classes) * positive[..., None]
        classes = focal_loss(flat(outputs, "logits", (num_classes,)), one_hot).sum((1, 2))

        distances = flat(outputs, "distances", (4,))
        overlap = bx.generalized_iou(_decode(centers, sizes, distances), target)
        sides = _sides(centers[None], target)
        near, far = jnp.minimum(sides[..., :2], sides[..., 2:]), jnp.maximum(sides[..., :2], sides[..., 2:])
        middle = jnp.sqrt(jnp.where(positive, jnp.prod(near / jnp.where(far > 0, far, 1), axis=-1), 1))
        centerness = optax.sigmoid_binary_cross_entropy(flat(outputs, "centerness"), middle)
        count = jnp.maximum(positive.sum(1), 1)
        box = jnp.where(positive, 1 - overlap, 0).sum(1)
        centerness = jnp.where(positive, centerness, 0).sum(1)
        return {"classes": classes / count, "box": box / count, "centerness": centerness / count}

    def loss(outputs, batch):
        parts = parts_of(outputs, batch)
        return sum(parts.values()), parts

    def predict(outputs):
        check_outputs(outputs)
        height, width = (side * strides[0] for side in outputs[0]["logits"].shape[1:3])
        best = []
        for i, level in enumerate(outputs):
            centers, sizes = _places([level], strides[i : i + 1])
            scores = jnp.sqrt(jax.nn.sigmoid(level["logits"]) * jax.nn.sigmoid(level["centerness"])[..., None])
            scores = scores.reshape(len(scores), -1)
            scores, rows = jax.lax.top_k(scores, min(candidates, scores.shape[1]))
            place, label = rows // num_classes, rows % num_classes
            decoded = _decode(centers, sizes, level["distances"].reshape(len(scores), -1, 4))
            decoded = jnp.take_along_axis(decoded, place[..., None], axis=1)
            limits = jnp.array([width, height, width, height], jnp.float32)[None, None]
            best.append((decoded.clip(0, limits), scores, label.astype(jnp.int32)))
        all_boxes, scores, labels = (jnp.concatenate(part, axis=1) for part in zip(*best, strict=True))
        scores = jnp.where(scores > score_threshold, scores, -jnp.inf)
        limit = min(detections, scores.shape[1])
        rows, found = jax.vmap(lambda *of: bx.nms(*of, threshold=nms_threshold, limit=limit))(all_boxes, scores, labels)
        return {
            "boxes": jnp.where(found[..., None], jnp.take_along_axis(all_boxes, rows[..., None], axis=1), 0),
            "scores": jnp.where(found, jnp.take_along_axis(scores, rows, axis=1), 0),
            "label": jnp.where(found, jnp.take_along_axis(labels, rows, axis=1), 0),
            "objects": found,
        }

    def measure(outputs, batch):
        boxes, labels, objects = (needed(batch, name) for name in ("boxes", "label", "objects"))
        n = len(boxes)
        scale = batch.get("scale", jnp.ones(n, jnp.float32))
        predicted = predict(outputs)
        if "inside" in batch:
            limits = jnp.tile(batch["inside"], 2)[:, None]
            predicted["boxes"] = jnp.minimum(predicted["boxes"], limits)
        return {
            "predicted": predicted,
            "true": {
                "boxes": boxes,
                "label": labels,
                "objects": objects,
                "crowd": batch.get("crowd", jnp.zeros(objects.shape, bool)),
                "area": batch.get("area", bx.area(boxes) / scale[:, None] ** 2),
            },
            "scale": scale,
            "loss": loss(outputs, batch)[0],
            "mask": batch.get("mask", jnp.ones(n, bool)),
        }

    def summarize(evidence):
        masks = [np.asarray(part["mask"]) for part in evidence]
        if not any(mask.any() for mask in masks):
            raise InputError("there is nothing to summarize: no batch holds an example whose mask is True")
        rows = [
            jax.tree.map(lambda x, m=mask: np.asarray(x)[m], part) for part, mask in zip(evidence, masks, strict=True)
        ]
        seen = jax.tree.map(lambda *parts: np.concatenate(parts), *rows)
        for kind in ("predicted", "true"):
            seen[kind]["boxes"] = seen[kind]["boxes"].astype(np.float64) / seen["scale"][:, None, None]
        loss_mean = float(seen["loss"].mean(dtype=np.float64))
        return {"loss": loss_mean, **coco.summarize(seen["predicted"], seen["true"], num_classes)}

    def check(split):
        labels, objects = counted(split, "label"), counted(split, "objects")
        if labels.shape == objects.shape:  # otherwise augmentation makes one of them
            check_labels(labels[objects.astype(bool)], num_classes, what="labels of objects")

    return Task(loss, predict, measure, summarize, check)


def focal_loss(logits: jax.Array, targets: jax.Array, *, alpha: float = 0.25, gamma: float = 2.0) -> jax.Array:
    """Sigmoid cross entropy that dwells on what is still wrong (Lin et al. 2017): [...], targets in [0,1]."""
    p = jax.nn.sigmoid(logits)
    wrong = p * (1 - targets) + (1 - p) * targets
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    return weight * wrong**gamma * optax.sigmoid_binary_cross_entropy(logits, targets)


def _places(outputs: list[dict], strides: Sequence[int]) -> tuple[jax.Array, jax.Array]:
    """The pixel (x, y) that each place of each level stands for, f32[A,2], and the level's stride, f32[A]."""
    centers, sizes = [], []
    for level, stride in zip(outputs, strides, strict=True):
        height, width = level["logits"].shape[1:3]
        y, x = np.mgrid[:height, :width] * stride
        centers.append(np.stack([x, y], axis=-1).reshape(-1, 2))
        sizes.append(np.full(height * width, stride))
    return jnp.asarray(np.concatenate(centers), jnp.float32), jnp.asarray(np.concatenate(sizes), jnp.float32)


def _decode(centers: jax.Array, sizes: jax.Array, distances: jax.Array) -> jax.Array:
    """Boxes f32[N,A,4] from distances to their sides in strides."""
    away, centers = distances * sizes[None, :, None], centers[None]
    return jnp.concatenate([centers - away[..., :2], centers + away[..., 2:]], axis=-1)


def _sides(centers: jax.Array, boxes: jax.Array) -> jax.Array:
    """Pixels from centers [...,2] to the left, top, right and bottom of boxes [...,4]; negative outside."""
    return jnp.concatenate([centers - boxes[..., :2], boxes[..., 2:] - centers], axis=-1)


def _assign(centers, sizes, boxes, real, strides, radius) -> tuple[jax.Array, jax.Array]:
    """Which object of f32[M,4] each place learns, the smallest that it may: (whether there is one bool[A], i32[A])."""
    sides = _sides(centers[:, None], boxes[None])
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    near = jnp.abs(centers[:, None] - middle[None]).max(-1) < radius * sizes[:, None]
    least = jnp.where(sizes == strides[0], 0, 4 * sizes)[:, None]
    most = jnp.where(sizes == strides[-1], jnp.inf, 8 * sizes)[:, None]
    farthest = sides.max(-1)
    fits = near & (sides.min(-1) > 0) & (farthest > least) & (farthest < most) & real[None]
    size = jnp.where(fits, bx.area(boxes)[None], jnp.inf)
    return fits.any(1), jnp.argmin(size, axis=1)
