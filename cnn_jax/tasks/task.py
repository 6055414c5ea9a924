"""The type that joins a model to what it should learn."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from cnn_jax.errors import InputError


class Task(NamedTuple):
    """What is learned, as four pure functions; training and evaluation know nothing else about the problem.

    A fifth, which need not be there, looks at data before they are used.

    `outputs` is what `model.apply` returns for a batch (for classification: logits f32[N,C]). `batch` is a dict of
    arrays with leading N: `image`, the labels that the task asks for, and perhaps `mask` bool[N], which is False on
    rows that only fill up the batch (no `mask`: every row is real).

    loss(outputs, batch) -> (f32[N], {name: f32[N]})
        One loss per example, and other per-example numbers worth watching while training. Nothing is reduced and
        nothing is masked here: the train step does both, so that it can sum over micro-batches, devices and hosts
        and divide once. Traceable and differentiable.
    predict(outputs) -> predictions
        What a user of the model wants to see (classification: probabilities f32[N,C]). Traceable.
    measure(outputs, batch) -> evidence
        A pytree of arrays with leading N: all that `summarize` needs to know about these examples. Traceable; runs on
        the device, once per batch of an evaluation.
    summarize([evidence, ...]) -> {name: float | numpy array}
        The metrics over all batches, in float64 on the host. It joins the evidence, drops the rows whose mask is
        False and divides once, so the result depends neither on the batch size nor on the padding, the number of
        devices or the order.
    check(split)
        Raises `InputError` where a whole split, a dict of arrays in memory, has labels that the task does not know:
        compiled functions cannot, and would learn nonsense from them.

    Another loss is one line, and keeps all the metrics:

        task = classify(10)
        def focal(logits, batch):
            loss, parts = task.loss(logits, batch)
            return (1 - jnp.exp(-loss)) ** 2 * loss, parts
        task = task._replace(loss=focal)
    """

    loss: Callable[[Any, dict], tuple[Any, dict[str, Any]]]
    predict: Callable[[Any], Any]
    measure: Callable[[Any, dict], Any]
    summarize: Callable[[list], dict[str, Any]]
    check: Callable[[dict], None] | None = None


def needed(batch: dict, name: str) -> Any:
    """What a batch has by this name. Raises `InputError` where it has nothing."""
    if name not in batch:
        raise InputError(f"this task needs `{name}` in a batch, which has {', '.join(batch)}")
    return batch[name]


def counted(split: dict, name: str) -> np.ndarray:
    """What a split has by this name of the rows whose mask is True, on the host; empty where augmentation makes it."""
    values = np.asarray(split.get(name, ()))
    return values[np.asarray(split["mask"])] if "mask" in split and name in split else values


def check_labels(labels, num_classes: int, *, what: str = "labels") -> None:
    """Raise `InputError` unless the integer labels (any shape, on the host) lie in 0..num_classes-1."""
    labels = np.asarray(labels)
    bad = (labels < 0) | (labels >= num_classes)
    if bad.any():
        raise InputError(
            f"{int(bad.sum())} of {labels.size} {what} are out of range, the first of them {labels[bad][0]}: "
            f"with {num_classes} classes they must be 0 to {num_classes - 1}"
        )
