"""The one training loop: resident or streamed data, one device or many, interrupted or not."""

import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cnn_jax.errors import InputError
from cnn_jax.training.checkpoint import Checkpoints
from cnn_jax.training.order import Order, in_order
from cnn_jax.training.parallel import Parallel, parallel
from cnn_jax.training.state import TrainState, create_state
from cnn_jax.training.step import as_images, make_eval_step, make_train_step
from cnn_jax.training.watch import Clock, NonFinite, Window, is_finite

Split = Any  # a dict of arrays with one row an example, or a stream: `len(split)`, `image_shape`, `batches(rows)`


class Fit(NamedTuple):
    """What `fit` returns."""

    state: TrainState
    """On the host's default device."""
    summary: dict
    """Of the last evaluation: `task.summarize`'s, empty without a test split."""
    evidence: list
    """Of the last evaluation: `task.measure`'s, a batch each."""
    seconds: float
    """Wall time of training, over all restarts: compilation included, evaluation and checkpoints not."""
    images_per_second: float
    """Median over the windows of the log, since the last restart; of a finished run, as it finished."""


class Interrupted(Exception):
    """A signal ended the run; what it had learned is saved where there are checkpoints."""

    def __init__(self, number: int, step: int, saved: bool):
        self.number, self.step, self.exit_code = number, step, 128 + number
        kept = "saved; go on with --resume" if saved else "nothing saved"
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}: {kept}")


def fit(
    model: nn.Module,
    task: Any,
    train: Split,
    *,
    tx: optax.GradientTransformation | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    batch_size: int = 128,
    seed: int = 0,
    test: Split | None = None,
    preprocess: Callable[[jax.Array], jax.Array] = as_images,
    augment: Callable | None = None,
    adversary: Callable | None = None,
    accumulate: int = 1,
    ema_decay: float | None = None,
    freeze: Sequence[str] = (),
    variables: Any = None,
    over: Parallel | None = None,
    steps_per_dispatch: int | None = None,
    log: Callable[[str, int, dict], None] | None = None,
    log_every: int = 20,
    checkpoints: Checkpoints | None = None,
) -> Fit:
    """Trains a model for a number of epochs or of steps.

    Every number is a function of the arguments: the order of the data follows from (seed, step), the randomness of a
    step from its key. With `checkpoints`, a run that was stopped goes on where it was and ends as if it had not been,
    bit for bit on a CPU with the same versions.

    Args:
        train, test: dicts of arrays with one row an example (`image` u8 or f32 [N,H,W,C], `label` i32[N], …), which
            are kept on the devices, and which `task.check` looks at first; or streams. The test split is evaluated
            after each epoch.
        tx: the optimiser; Adam with rate 0.001 by default.
        preprocess, augment, adversary, accumulate, ema_decay, freeze: see `make_train_step`.
        variables: start from these instead of drawing them.
        over: the devices, from `parallel()`; all by default.
        steps_per_dispatch: how many steps the devices make before the host looks again (resident data only).
            By default 1 on a CPU, where loops are slow, and an epoch, up to 1,024 steps, elsewhere.
        log: called as `log("train", step, means over the last steps)` every `log_every` steps, as
            `log("test", step, summary)` after each evaluation, and as `log("restored", step, {"damaged": […]})`.
        checkpoints: saved after each epoch and on SIGINT and SIGTERM, and restored from first.

    Raises:
        InputError: arguments that do not fit together, with a sentence that says which.
        Interrupted: on SIGINT or SIGTERM, after saving.
        NonFinite: the loss or a gradient was not finite, or after an epoch a parameter or the test loss; names the
            steps. Such a state is not saved.
    """
    over = over or parallel()
    tx = tx or optax.adam(1e-3)
    if (epochs is None) == (steps is None):
        raise InputError("fit: give either epochs or steps")
    check(
        over, batch_size=batch_size, epochs=epochs, steps=steps, seed=seed, accumulate=accumulate, ema_decay=ema_decay,
        steps_per_dispatch=steps_per_dispatch, log_every=log_every,
    )  # fmt: skip
    _check_split(task, train)
    size, image_shape = _size(train), _image_shape(train)
    steps = max(1, round(epochs * size / batch_size)) if steps is None else steps
    log = log or (lambda kind, step, values: None)
    resident = isinstance(train, dict)
    if steps_per_dispatch is None:
        steps_per_dispatch = 1 if jax.default_backend() == "cpu" else 1024
    steps_per_dispatch = steps_per_dispatch if resident else 1
    epoch_ends = {round(epoch * size / batch_size) for epoch in range(1, -(-steps * batch_size // size) + 1)} | {steps}

    init_key, step_key = jax.random.split(jax.random.key(seed))
    state = create_state(init_key, model, tx, image_shape, ema=ema_decay is not None, variables=variables)
    start, clock, rate = 0, Clock(), float("nan")
    if checkpoints and (restored := checkpoints.restore(state)):
        state, start = restored.state, restored.step
        clock.seconds, rate = restored.extra.get("seconds", 0.0), restored.extra.get("images_per_second", rate)
        log("restored", start, {"damaged": restored.damaged})
    state = over.replicate(state)
    data = over.replicate(train) if resident else None

    def build(axis_name):
        step = make_train_step(
            model, task, tx, augment=augment, preprocess=preprocess, adversary=adversary, accumulate=accumulate,
            ema_decay=ema_decay, freeze=freeze, axis_name=axis_name,
        )  # fmt: skip

        def run(state, data, feed, key):
            def one(state, feed):
                batch = jax.tree.map(lambda x: jnp.take(x, feed, axis=0), data) if resident else feed
                return step(state, batch, key)

            if len(jax.tree.leaves(feed)[0]) > 1:
                return repeated(one, state, feed)
            # One step without a loop: on a CPU convolutions are many times slower inside one.
            state, stats = one(state, jax.tree.map(lambda x: x[0], feed))
            return state, jax.tree.map(lambda x: x[None], stats)

        return run

    run = over.compile(build, split=(True, True, True, False), donate=0)
    # What fits in memory in training does so here.
    many = max(batch_size // accumulate, _fitting(image_shape))
    evaluator = test is not None and make_evaluator(
        model, task, test, preprocess=preprocess, batch_size=many, over=over
    )
    window = Window(log, log_every, batch_size, size)
    summary, evidence = {}, []

    def test_after(step):
        summary, evidence = evaluator(over.one(state).variables)
        if not np.isfinite(summary.get("loss", 0.0)):
            raise NonFinite(f"the loss on the test split is not finite after step {step}")
        return summary, evidence

    last = start
    with _signals() as caught, _saving(checkpoints):
        clock.start(), window.start()
        stops = sorted(stop for stop in epoch_ends if start < stop <= steps)
        for first, last, feed in _feeds(train, Order(size, batch_size, seed), over, start, stops, steps_per_dispatch):
            state, stats = run(state, data, feed, step_key)
            window.add(first, last, over.one(stats))
            if last not in epoch_ends and not caught:
                continue
            window.flush()
            clock.stop()
            rate = window.median_rate()
            if not is_finite(over.one(state)):  # the statistics of a step say nothing of its update
                raise NonFinite(f"a parameter or a running statistic is not finite after step {last}")
            metrics = None
            if evaluator and not caught:
                summary, evidence = test_after(last)
                log("test", last, summary)
                metrics = {name: float(value) for name, value in summary.items() if np.ndim(value) == 0}
            if checkpoints:
                extra = {"seconds": clock.seconds, "images_per_second": rate}
                checkpoints.save(over.one(state), last, extra=extra, metrics=metrics or None)
            if caught:
                break
            clock.start(), window.start()
    if caught:  # perhaps while the last was saved
        raise Interrupted(caught[0], last, checkpoints is not None)
    if evaluator and not evidence:  # a finished run, resumed
        summary, evidence = test_after(last)
    return Fit(jax.device_put(jax.device_get(over.one(state))), summary, evidence, clock.seconds, rate)


def repeated(step: Callable[[Any, Any], tuple[Any, Any]], state: TrainState, feed: Any) -> tuple[TrainState, Any]:
    """The state after `step(state, part)` for each part of `feed`, and what the steps return, stacked: as one program.

    Of a small network a GPU computes a step faster than its many parts are started from a loop, each by itself. With
    eight steps in a turn SimpleCNN's, of 128 images, takes 0.18 ms on an H200, for 0.23; compiling takes twice as long.
    """
    small = sum(x.size for x in jax.tree.leaves(state.params)) < 2**20
    return jax.lax.scan(step, state, feed, unroll=8 if small and jax.default_backend() != "cpu" else 1)


def check(
    over: Parallel,
    *,
    batch_size: int,
    epochs: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    accumulate: int = 1,
    ema_decay: float | None = None,
    steps_per_dispatch: int | None = None,
    log_every: int = 1,
) -> None:
    """Raises `InputError` for numbers that `fit` cannot train with. A script calls it before it writes anything."""
    over.check(batch_size, accumulate=accumulate)
    if epochs is not None and not 0 < epochs < math.inf:
        raise InputError(f"epochs {epochs}: it must be finite and above 0")
    for name, count in {"steps": steps, "steps_per_dispatch": steps_per_dispatch, "log_every": log_every}.items():
        if count is not None and count < 1:
            raise InputError(f"{name} {count}: it must be 1 or more")
    if not 0 <= seed < 2**32:
        raise InputError(f"seed {seed}: it must be from 0 to 4294967295")
    if ema_decay is not None and not 0 <= ema_decay < 1:
        raise InputError(f"decay of the moving average {ema_decay}: it must be at least 0 and less than 1")


def evaluate(
    model: nn.Module,
    task: Any,
    variables: Any,
    data: Split,
    *,
    preprocess: Callable[[jax.Array], jax.Array] = as_images,
    batch_size: int | None = None,
    over: Parallel | None = None,
) -> dict:
    """`task`'s metrics of a model on a split: exact, whatever the batch size and the number of devices.

    Args:
        batch_size: how many images at a time; by default up to 256, and fewer of large ones.
    """
    return make_evaluator(model, task, data, preprocess=preprocess, batch_size=batch_size, over=over)(variables)[0]


def make_evaluator(
    model: nn.Module,
    task: Any,
    data: Split,
    *,
    preprocess: Callable[[jax.Array], jax.Array] = as_images,
    batch_size: int | None = None,
    over: Parallel | None = None,
) -> Callable[[Any], tuple[dict, list]]:
    """A function `variables -> (summary, evidence)` over a split, compiled once. No example is dropped.

    Otherwise as `evaluate`.
    """
    over = over or parallel()
    _check_split(task, data)
    batch_size = _fitting(_image_shape(data)) if batch_size is None else batch_size
    if batch_size < 1:
        raise InputError(f"batch size {batch_size}: it must be 1 or more")
    batch_size = min(batch_size, _size(data))
    batch_size += -batch_size % over.devices
    resident = isinstance(data, dict)
    on_devices = over.replicate(data) if resident else None
    step = make_eval_step(model, task, preprocess=preprocess)

    def run(variables, data, feed):
        if resident:
            batch = jax.tree.map(lambda x: jnp.take(x, jnp.maximum(feed, 0), axis=0), data)
            batch["mask"] = (feed >= 0) & batch.get("mask", True)
        else:
            batch = feed
        return step(variables, batch)

    compiled = over.compile(lambda axis_name: run, split=(True, True, True), donate=None)
    rows = in_order(_size(data), batch_size)

    def evaluator(variables):
        variables = over.replicate(variables)
        feeds = rows if resident else data.batches(rows)
        evidence = [over.parts(compiled(variables, on_devices, over.split(feed))) for feed in feeds]
        evidence = [part for parts in evidence for part in parts]
        return task.summarize(evidence), evidence

    return evaluator


def _check_split(task: Any, split: Split) -> None:
    """Raises `InputError` for a split that nothing can be learned from or tested on."""
    if isinstance(split, dict):
        for name, values in split.items():
            kind = getattr(values, "dtype", None)
            if kind is None or not (jnp.issubdtype(kind, np.number) or jnp.issubdtype(kind, np.bool_)):
                found = type(values).__name__ if kind is None else f"of {kind}"
                raise InputError(f"{name} is {found}: a split holds arrays of numbers or booleans, one row an example")
        if "image" not in split:
            raise InputError(f"a split needs `image`; this one has {', '.join(map(repr, split)) or 'nothing'}")
        rows = {name: len(values) for name, values in split.items()}
        for name, count in rows.items():
            if count != rows["image"]:
                raise InputError(f"{name} has {count} rows and image {rows['image']}: each needs one an example")
    elif not hasattr(split, "batches"):
        raise InputError(f"a split is a dict of arrays or a stream, such as `dataset.train`; this is {split!r:.80}")
    if not _size(split):
        raise InputError("a split without an example: there is nothing to learn from, or to test on")
    if isinstance(split, dict) and getattr(task, "check", None):
        task.check(split)


def _fitting(image_shape: tuple[int, int, int]) -> int:
    """How many images to look at a time: 256 of up to 64×64, so many pixels of larger ones."""
    height, width, _ = image_shape
    return max(1, min(256, 2**20 // (height * width)))


def _size(split: Split) -> int:
    return len(split["image"]) if isinstance(split, dict) else len(split)


def _image_shape(split: Split) -> tuple[int, int, int]:
    return tuple(split["image"].shape[1:] if isinstance(split, dict) else split.image_shape)


def _feeds(
    train: Split, order: Order, over: Parallel, step: int, stops: list[int], most: int
) -> Iterator[tuple[int, int, Any]]:
    """(first step, step after the last, what to give the devices) of each dispatch; none goes past a stop."""
    for last in stops:
        rows = order.rows(step, last)
        if isinstance(train, dict):
            for first in range(step, last, most):
                feed = rows[first - step : first - step + most]
                yield first, first + len(feed), over.split(feed, axis=1)
        else:
            for first, batch in enumerate(_ahead(train.batches(rows), over), step):
                yield first, first + 1, batch
        step = last


def _ahead(batches: Iterator[dict], over: Parallel, depth: int = 2) -> Iterator[Any]:
    """Batches on the devices, `depth` of them ahead of their use."""
    waiting = []
    for batch in batches:
        waiting.append(over.split(jax.tree.map(lambda x: x[None], batch), axis=1))
        if len(waiting) > depth:
            yield waiting.pop(0)
    yield from waiting


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying of them; a second one does what it did before."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def remember(number, frame):
        caught.append(number)
        restore()

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore():
        for number, handler in before.items():
            signal.signal(number, handler)

    try:
        yield caught
    finally:
        restore()


@contextmanager
def _saving(checkpoints: Checkpoints | None) -> Iterator[None]:
    """Ends when all that was saved is on disk: after an error too, but not after a signal that was not to be caught."""
    failed = None
    try:
        yield
    except Exception as error:
        failed = error
    if checkpoints:
        checkpoints.wait()
    if failed:
        raise failed
