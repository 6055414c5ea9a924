"""Semantic segmentation: a class for every pixel; losses to choose and sum, metrics that are exact over a whole set."""

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.errors import InputError
from cnn_jax.tasks.task import Task, check_labels, counted, needed

IGNORE = 255


def segment(
    num_classes: int,
    *,
    losses: Mapping[str, float] | None = None,
    class_weights: Sequence[float] | None = None,
    ignore: int = IGNORE,
    gamma: float = 2.0,
    auxiliary: float = 0.4,
    boundary: int = 2,
) -> Task:
    """Segmentation into `num_classes` classes; a model's outputs are logits f32[N,H,W,C], or {"logits", "aux"} of them.

    Batches carry `map`, u8 or i32[N,H,W]: a class 0..num_classes-1 for each pixel, or `ignore`, which counts nowhere.

    Args:
        losses: {name: weight} of the losses to sum, {"cross_entropy": 1} by default:
            cross_entropy   mean over the pixels of −log p of the class, weighted by `class_weights`
            focal           the same with each pixel weighted by (1 − p)^gamma (Lin et al. 2017)
            dice            1 − the mean over the classes in the image of 2·Σ p·y / (Σ p + Σ y) (Milletari et al. 2016)
        class_weights: one a class, for cross entropy and focal loss; the mean is weighted too, as PyTorch's is.
        auxiliary: weight of the loss of `aux` where the model has it.
        boundary: pixels that a boundary may be off and still counts as found.

    `loss` gives one loss an image, and the part `accuracy`, the share of its pixels that are right. `predict` gives
    classes i32[N,H,W]. `measure` gives, for each image, `confusion` i32[N,C,C] over its pixels, and the counts for
    boundaries. `summarize`, over the pixels of the whole set, in float64:

        count                         images (int)
        loss                          mean over the images
        pixel_accuracy                share of the pixels that are right
        miou, iou_per_class           intersection over union; mean over the classes that occur in truth or prediction
        dice, dice_per_class          2·intersection / (truth + prediction)
        boundary_f1, boundary_f1_per_class    F1 of boundary pixels within `boundary` pixels of one of the other side
                                      (Csurka et al. 2013), from the counts of the whole set
        precision_per_class, recall_per_class
        support_per_class             i64[C], pixels of each class
        confusion                     i64[C,C], rows are true classes, columns predictions

    Raises:
        InputError: an argument out of range; when traced, outputs or maps of the wrong shape; from `check`, maps with
            other classes.
    """
    weights_of = dict(losses or {"cross_entropy": 1.0})
    known = {"cross_entropy": _cross_entropy, "focal": _focal, "dice": _dice}
    for name, weight in weights_of.items():
        if name not in known or not 0 <= weight < math.inf:
            raise InputError(f"losses has {name!r}: {weight}; expected weights of 0 or more for {', '.join(known)}")
    if not any(weights_of.values()):
        raise InputError(f"losses is {weights_of}: at least one weight must be above 0")
    if num_classes < 2:
        raise InputError(f"num_classes is {num_classes}: segmentation needs at least 2 classes, the background is one")
    weights = (1.0,) * num_classes if class_weights is None else tuple(class_weights)
    if len(weights) != num_classes or not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise InputError(f"class_weights is {weights}: give {num_classes} numbers of 0 or more, not all of them 0")
    if not 0 <= auxiliary < math.inf or not 0 <= gamma < math.inf or boundary < 0:
        raise InputError(f"auxiliary is {auxiliary}, gamma {gamma}, boundary {boundary}: each must be 0 or more")
    pixel_weights = jnp.asarray(weights, jnp.float32)

    def checked(outputs, batch=None):
        logits = logits_of(outputs)
        if logits.ndim != 4 or logits.shape[-1] != num_classes:
            raise InputError(f"outputs has shape {logits.shape}, expected logits (N, H, W, {num_classes})")
        if batch is not None and needed(batch, "map").shape != logits.shape[:3]:
            raise InputError(f"map has shape {batch['map'].shape}, but logits {logits.shape} need {logits.shape[:3]}")
        return logits

    def one_loss(logits, labels):
        valid = labels != ignore
        one_hot = jax.nn.one_hot(jnp.where(valid, labels, -1), num_classes)  # of an ignored pixel all zeros
        log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
        weights = one_hot @ pixel_weights
        return sum(weight * known[name](log_p, one_hot, weights, gamma) for name, weight in weights_of.items())

    def loss(outputs, batch):
        logits, labels = checked(outputs, batch), batch["map"].astype(jnp.int32)
        total = one_loss(logits, labels)
        if isinstance(outputs, dict) and "aux" in outputs and auxiliary:
            total = total + auxiliary * one_loss(outputs["aux"], labels)
        valid = labels != ignore
        right = ((logits.argmax(-1) == labels) & valid).sum((1, 2))
        return total, {"accuracy": right / jnp.maximum(valid.sum((1, 2)), 1)}

    def predict(outputs):
        return checked(outputs).argmax(-1).astype(jnp.int32)

    def measure(outputs, batch):
        logits = checked(outputs, batch)
        prediction, labels = predict(outputs), batch["map"].astype(jnp.int32)
        valid = labels != ignore
        one_loss_of_each, _ = loss(outputs, batch)
        cell = jnp.where(valid, labels * num_classes + prediction, num_classes**2)
        confusion = jax.vmap(lambda cells: jnp.bincount(cells.ravel(), length=num_classes**2 + 1))(cell)
        counts = _boundary_counts(prediction, labels, valid, num_classes, boundary)
        return {
            "confusion": confusion[:, :-1].reshape(-1, num_classes, num_classes).astype(jnp.int32),
            "boundary": counts,
            "loss": one_loss_of_each,
            "mask": batch.get("mask", jnp.ones(len(logits), bool)),
        }

    def summarize(evidence):
        masks = [np.asarray(part["mask"]) for part in evidence]
        if not any(mask.any() for mask in masks):
            raise InputError("there is nothing to summarize: no batch holds an example whose mask is True")
        seen = {
            name: np.concatenate([np.asarray(part[name])[mask] for part, mask in zip(evidence, masks, strict=True)])
            for name in ("confusion", "boundary", "loss")
        }
        confusion = seen["confusion"].astype(np.int64).sum(0)
        near, found, near_true, truth = seen["boundary"].astype(np.int64).sum(0)
        precision, recall = _ratio(near, found), _ratio(near_true, truth)
        edges = np.where(found + truth > 0, _ratio(2 * precision * recall, precision + recall), np.nan)
        return {
            "count": len(seen["loss"]),
            "loss": float(seen["loss"].mean(dtype=np.float64)),
            **of_confusion(confusion),
            "boundary_f1": float(np.nanmean(edges)) if not np.isnan(edges).all() else float("nan"),
            "boundary_f1_per_class": edges,
        }

    def check(split):
        classes = counted(split, "map")
        check_labels(classes[classes != ignore], num_classes, what=f"pixels of `map` that are not {ignore}")

    return Task(loss, predict, measure, summarize, check)


def logits_of(outputs):
    """The logits among a segmenter's outputs, which are these alone or a dict that has more."""
    return outputs["logits"] if isinstance(outputs, dict) else outputs


def of_confusion(confusion: np.ndarray) -> dict:
    """The metrics of `segment` that follow from the counts of pixels i64[C,C], rows true, columns predicted."""
    right, truth, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    occurs = truth + predicted > 0
    iou = np.where(occurs, _ratio(right, truth + predicted - right), np.nan)
    dice = np.where(occurs, _ratio(2 * right, truth + predicted), np.nan)
    return {
        "pixel_accuracy": float(_ratio(right.sum(), confusion.sum())),
        "miou": float(iou[occurs].mean()) if occurs.any() else float("nan"),
        "dice": float(dice[occurs].mean()) if occurs.any() else float("nan"),
        "iou_per_class": iou,
        "dice_per_class": dice,
        "precision_per_class": _ratio(right, predicted),
        "recall_per_class": _ratio(right, truth),
        "support_per_class": truth,
        "confusion": confusion,
    }


def _cross_entropy(log_p, one_hot, weights, gamma):
    return _weighted_mean(-(one_hot * log_p).sum(-1), weights)


def _focal(log_p, one_hot, weights, gamma):
    own = (one_hot * log_p).sum(-1)
    return _weighted_mean(-((1 - jnp.exp(own)) ** gamma) * own, weights)


def _weighted_mean(values, weights):
    """Over the pixels of each image: f32[N]; 0 where no pixel has weight."""
    total = weights.sum((1, 2))
    return (values * weights).sum((1, 2)) / jnp.where(total > 0, total, 1)


def _dice(log_p, one_hot, weights, gamma):
    valid = one_hot.sum(-1, keepdims=True)
    p = jnp.exp(log_p) * valid
    shared, both, truth = (x.sum((1, 2)) for x in (p * one_hot, p + one_hot, one_hot))
    present = truth > 0
    dice = jnp.where(present, 2 * shared / jnp.where(both > 0, both, 1), 0).sum(-1)
    count = present.sum(-1)
    return jnp.where(count > 0, 1 - dice / jnp.maximum(count, 1), 0)


def _boundary_counts(prediction, labels, valid, num_classes, reach):
    """Boundary pixels of each class, i32[N,4,C]: predicted and near a true one, predicted, true and near a predicted
    one, true. A boundary pixel belongs to the class and has one of the four beside it that does not."""

    def edges(classes):
        own = (jax.nn.one_hot(classes, num_classes) > 0) & valid[..., None]
        inside = own
        for axis in (1, 2):
            for shift in (1, -1):
                # Beyond the image, and where nothing is known, there is no boundary.
                beside, known = _shifted(own, shift, axis), _shifted(valid[..., None], shift, axis)
                inside = inside & (beside | ~known)
        return own & ~inside

    found, truth = edges(prediction), edges(labels)
    parts = [found & _grown(truth, reach), found, truth & _grown(found, reach), truth]
    return jnp.stack([part.sum((1, 2), dtype=jnp.int32) for part in parts], axis=1)


def _shifted(x, shift, axis):
    moved = jnp.roll(x, shift, axis)
    first = jax.lax.broadcasted_iota(jnp.int32, x.shape, axis)
    return moved & (first >= shift if shift > 0 else first < x.shape[axis] + shift)


def _grown(x, reach):
    """Whether a pixel within `reach` of it, along rows and columns, is set."""
    window = (1, 2 * reach + 1, 2 * reach + 1, 1)
    return jax.lax.reduce_window(x, False, jax.lax.bitwise_or, window, (1, 1, 1, 1), "SAME")


def _ratio(a, b):
    return np.divide(a, b, out=np.zeros(np.shape(a)), where=np.asarray(b) != 0)
