"""Image classification: softmax cross entropy, and exact metrics over a whole test set."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.errors import InputError
from cnn_jax.tasks.task import Task, check_labels, counted, needed


def classify(num_classes: int, *, label_smoothing: float = 0.0, topk: Sequence[int] = (5,), bins: int = 15) -> Task:
    """Classification into `num_classes` exclusive classes; a model's outputs are logits [N, num_classes].

    Batches carry `label`: i32[N] in 0..num_classes-1, or f32[N, num_classes], rows that sum to one (after mixup or
    cutmix). All is computed in float32, whatever the dtype of the logits.

    Args:
        num_classes: 2 or more.
        label_smoothing: ε in [0, 1); training targets are (1 - ε)·label + ε/num_classes (Szegedy et al. 2016,
            "Rethinking the Inception Architecture", section 7). Evaluation does not smooth.
        topk: the k of the top-k accuracies to report; those that are not below `num_classes` say nothing and are
            left out.
        bins: number of equal-width bins of confidence for the calibration error.

    `loss` gives the part `accuracy`, 0 or 1 for each example. `predict` gives probabilities f32[N,C]. `measure` gives,
    for each example, `probabilities` f32[N,C], `nll` f32[N], `label` i32[N], `prediction` i32[N], `rank` i32[N] and
    `mask` bool[N]. `summarize` gives the keys below, as floats or float64 arrays. A soft label counts as its largest
    class, except in `loss`. `check` looks at integer labels.

        count                 examples (int)
        loss                  mean negative log-likelihood in nats, without label smoothing
        accuracy              share of examples whose largest logit is the label's; of equal logits the first counts
        top5_accuracy, …      share of examples whose label is among the k largest logits; equal logits as above
        precision_per_class, recall_per_class, f1_per_class [C]
        support_per_class     i64[C], examples of each class
        precision_macro, …    mean over the classes that occur among the labels or the predictions
        precision_micro, …    from the counts of all classes together; equal to accuracy here
        precision_weighted, … mean weighted by support
        confusion             i64[C,C], rows are labels, columns predictions
        ece                   expected calibration error: Σ_bins count/N · |accuracy - confidence|, confidence being the
                              largest probability; bins are ((i-1)/bins, i/bins] (Guo et al. 2017, section 2)
        reliability_confidence, reliability_accuracy [bins]   means in each bin, nan where it is empty
        reliability_count     i64[bins]
        auroc_per_class       [C], area under the ROC curve of each class against the rest: the share of (example of the
                              class, other example) pairs ordered rightly by the class's probability, ties counting
                              half; nan for a class that has no example, or all of them
        auroc_macro           mean over the classes where it is defined; nan if there is none

    A ratio 0/0 among precision, recall and F1 is 0. All are equal to scikit-learn's (`zero_division=0`).

    Raises:
        InputError: an argument out of range; when traced, logits or labels of the wrong shape or type; from `check` and
            `summarize`, labels out of range; from `summarize`, no example at all.
    """
    if num_classes < 2:
        raise InputError(f"num_classes is {num_classes}: classification needs at least 2 classes")
    if not 0 <= label_smoothing < 1:
        raise InputError(f"label_smoothing is {label_smoothing}: it must be at least 0 and less than 1")
    if bins < 1:
        raise InputError(f"bins is {bins}: it must be at least 1")
    if any(k < 1 for k in topk):
        raise InputError(f"topk is {tuple(topk)}: each k must be at least 1")

    def loss(logits, batch):
        labels = needed(batch, "label")
        _check_shapes(logits, labels, num_classes)
        target = _one_hot(labels, num_classes)
        target = (1 - label_smoothing) * target + label_smoothing / num_classes
        correct = jnp.argmax(logits, axis=-1) == _class_of(labels)
        return _cross_entropy(logits, target), {"accuracy": correct.astype(jnp.float32)}

    def predict(logits):
        return jax.nn.softmax(logits.astype(jnp.float32), axis=-1)

    def measure(logits, batch):
        labels = needed(batch, "label")
        _check_shapes(logits, labels, num_classes)
        # Predictions and ranks come from the logits, because probabilities in float32 run together near 0 and 1.
        return {
            "probabilities": predict(logits),
            "nll": _cross_entropy(logits, _one_hot(labels, num_classes)),
            "label": _class_of(labels),
            "prediction": jnp.argmax(logits, axis=-1).astype(jnp.int32),
            "rank": _rank(logits, _class_of(labels)),
            "mask": batch.get("mask", jnp.ones(logits.shape[:1], bool)),
        }

    def summarize(evidence):
        masks = [np.asarray(e["mask"]) for e in evidence]
        if not any(mask.any() for mask in masks):
            raise InputError("there is nothing to summarize: no batch holds an example whose mask is True")
        seen = {
            name: np.concatenate([np.asarray(e[name])[mask] for e, mask in zip(evidence, masks, strict=True)])
            for name in evidence[0]
        }
        label, prediction, probabilities = seen["label"], seen["prediction"], seen["probabilities"]
        check_labels(label, num_classes)

        confusion = np.bincount(label.astype(np.int64) * num_classes + prediction, minlength=num_classes**2)
        confusion = confusion.reshape(num_classes, num_classes)
        metrics = {
            "count": len(label),
            "loss": float(seen["nll"].mean(dtype=np.float64)),
            "accuracy": float((seen["rank"] == 0).mean()),
            **{f"top{k}_accuracy": float((seen["rank"] < k).mean()) for k in topk if 1 < k < num_classes},
            **_precision_recall_f1(confusion),
            "confusion": confusion,
            **_calibration(probabilities.max(axis=-1).astype(np.float64), prediction == label, bins),
        }
        auroc = np.array([_auroc(probabilities[:, c], label == c) for c in range(num_classes)])
        defined = auroc[~np.isnan(auroc)]
        metrics["auroc_per_class"] = auroc
        metrics["auroc_macro"] = float(defined.mean()) if len(defined) else float("nan")
        return metrics

    def check(split):
        label = counted(split, "label")
        if label.dtype.kind in "iu":
            check_labels(label, num_classes)

    return Task(loss, predict, measure, summarize, check)


def _check_shapes(logits, labels, num_classes):
    if logits.ndim != 2 or logits.shape[1] != num_classes:
        raise InputError(f"outputs has shape {logits.shape}, but {num_classes} classes need logits (N, {num_classes})")
    if labels.shape not in (logits.shape[:1], logits.shape):
        raise InputError(
            f"label has shape {labels.shape}, but logits {logits.shape} need {logits.shape[:1]} "
            f"or, for soft labels, {logits.shape}"
        )
    if labels.ndim == 1 and not jnp.issubdtype(labels.dtype, jnp.integer):
        raise InputError(f"label is {labels.dtype}{list(labels.shape)}: give integers or, for soft labels, a row each")


def _one_hot(labels, num_classes):
    return labels.astype(jnp.float32) if labels.ndim == 2 else jax.nn.one_hot(labels, num_classes)


def _class_of(labels):
    return (jnp.argmax(labels, axis=-1) if labels.ndim == 2 else labels).astype(jnp.int32)


def _cross_entropy(logits, target):
    """-Σ target·log softmax(logits), f32[N]. A class without weight adds 0, even where its logit is -inf."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return -jnp.sum(jnp.where(target > 0, target * log_p, 0.0), axis=-1)


def _rank(logits, label):
    """How many classes are placed before the label's: i32[N]. Counted from behind, so that NaN gives the worst rank."""
    own = jnp.take_along_axis(logits, label[:, None], axis=-1)
    index = jnp.arange(logits.shape[1])[None, :]
    behind = (own > logits) | ((own == logits) & (index > label[:, None]))
    return (logits.shape[1] - 1 - jnp.sum(behind, axis=-1)).astype(jnp.int32)


def _ratio(a, b):
    """a/b, and 0 where b is 0."""
    return np.divide(a, b, out=np.zeros(np.shape(a)), where=np.asarray(b) != 0)


def _precision_recall_f1(confusion):
    right, support, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    per_class = {
        "precision": _ratio(right, predicted),
        "recall": _ratio(right, support),
        "f1": _ratio(2 * right, support + predicted),
    }
    occurs = support + predicted > 0
    # Each wrong answer is one false positive and one false negative, so the three micro averages are the same number.
    micro = float(right.sum() / support.sum())
    metrics = {"support_per_class": support}
    for name, values in per_class.items():
        metrics[f"{name}_per_class"] = values
        metrics[f"{name}_macro"] = float(values[occurs].mean())
        metrics[f"{name}_micro"] = micro
        metrics[f"{name}_weighted"] = float((values * support).sum() / support.sum())
    return metrics


def _calibration(confidence, correct, bins):
    # side="left" puts a confidence that lies on an edge into the bin below it: bins are closed on the right.
    where = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence, side="left")
    count = np.bincount(where, minlength=bins)
    sum_confidence = np.bincount(where, weights=confidence, minlength=bins)
    sum_correct = np.bincount(where, weights=correct, minlength=bins)
    empty = np.where(count > 0, 0.0, np.nan)
    return {
        "ece": float(np.abs(sum_correct - sum_confidence).sum() / count.sum()),
        "reliability_confidence": _ratio(sum_confidence, count) + empty,
        "reliability_accuracy": _ratio(sum_correct, count) + empty,
        "reliability_count": count,
    }


def _auroc(score, positive):
    """Mann-Whitney: each positive example counts the negatives that score below it, and half of those that tie."""
    positives, negatives = score[positive], np.sort(score[~positive])
    if not len(positives) or not len(negatives):
        return np.nan
    below = np.searchsorted(negatives, positives, side="left").astype(np.float64)
    below_or_equal = np.searchsorted(negatives, positives, side="right")
    return (below + below_or_equal).sum() / (2 * len(positives) * len(negatives))
