"""One training step and one evaluation step, as pure functions of a batch."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cnn_jax.errors import InputError
from cnn_jax.training.optim import frozen, is_frozen
from cnn_jax.training.state import TrainState

Batch = dict[str, jax.Array]
Task = Any  # cnn_jax.tasks.Task, or anything with its four functions


def as_images(images: jax.Array) -> jax.Array:
    """u8 [0,255] to f32 [0,1]; floats as they are. What a model sees when no other `preprocess` is given."""
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(f"images are {images.dtype}: give uint8, floats, or a `preprocess` that makes floats of them")
    return images


def make_train_step(
    model: nn.Module,
    task: Task,
    tx: optax.GradientTransformation,
    *,
    augment: Callable[[jax.Array, Batch], Batch] | None = None,
    preprocess: Callable[[jax.Array], jax.Array] = as_images,
    adversary: Callable[[jax.Array, Any, Batch], Batch] | None = None,
    accumulate: int = 1,
    ema_decay: float | None = None,
    freeze: Sequence[str] = (),
    axis_name: str | None = None,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, dict]]:
    """A pure function `step(state, batch, key) -> (state, stats)` that makes one update.

    The gradient is that of the mean loss over the examples whose `mask` is True (all, where the batch has no mask).

    Args:
        model: `model.apply(variables, images, train=True)` gives what `task.loss` takes.
        task: its `loss(outputs, batch)` gives f32[N] and named parts to watch, each f32[N].
        augment: `augment(key, batch)`, on images as the data set has them.
        preprocess: images of a batch to what the model takes; also used in evaluation.
        adversary: `adversary(key, variables, batch)` changes the batch in view of the model, after `augment`.
        accumulate: go through the batch in so many equal parts, to save memory; the gradient is the whole batch's.
            Batch norm sees a part at a time.
        ema_decay: decay of the moving average, reached after a warm-up of min(decay, (1 + step) / (10 + step)).
        freeze: patterns of the parameters and statistics that stay as they are, see `optim.frozen`. What lies before
            the first layer that learns is not differentiated. A batch norm whose statistics stay uses them, as in
            evaluation.
        axis_name: makes it the per-device function under `pmap`: gradients, statistics and batch norm are those of the
            global batch; augmentation and dropout draw from a key of the device's own.

    Returns:
        `step`. Its stats are `{"sums": {"count", "loss", parts…}, "grad_norm": {layer: f32[]}}`: sums over the
        examples of the global batch, and the norm of the gradient of each top-level module that learns.
    """
    if axis_name and "axis_name" in model.__dataclass_fields__:
        model = model.clone(axis_name=axis_name)

    def total(tree):
        return jax.lax.psum(tree, axis_name) if axis_name else tree

    def loss_of(params, batch_stats, batch, key, count):
        still = frozen({"params": params, "batch_stats": batch_stats}, freeze)["params"]
        params = jax.tree.map(lambda p, still: jax.lax.stop_gradient(p) if still else p, params, still)
        with _running_statistics(freeze):
            outputs, changed = model.apply(
                {"params": params, "batch_stats": batch_stats},
                preprocess(batch["image"]),
                train=True,
                rngs={"dropout": key},
                mutable=["batch_stats"],
            )
        loss, parts = task.loss(outputs, batch)
        mask = batch["mask"].astype(jnp.float32)
        sums = {name: jnp.where(batch["mask"], values, 0).sum() for name, values in {"loss": loss, **parts}.items()}
        return sums["loss"] / count, (changed.get("batch_stats", {}), sums | {"count": mask.sum()})

    gradient = jax.grad(loss_of, has_aux=True)

    def gradient_of_parts(params, batch_stats, batch, key, count):
        # Part i holds rows i, i + accumulate, …: where the batch lies on many devices, every part lies on all of them.
        parts = jax.tree.map(
            lambda x: x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:]).swapaxes(0, 1), batch
        )

        def add(carry, part):
            grads, batch_stats, sums = carry
            more_grads, (batch_stats, more_sums) = gradient(
                params, batch_stats, part["batch"], jax.random.fold_in(key, part["index"]), count
            )
            grads, sums = jax.tree.map(jnp.add, (grads, sums), (more_grads, more_sums))
            return (grads, batch_stats, sums), None

        first = jax.tree.map(lambda x: x[0], parts)
        _, (_, sums) = jax.eval_shape(gradient, params, batch_stats, first, key, count)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (params, sums))
        # Unrolled on a CPU, where convolutions inside a loop are many times slower.
        unroll = jax.default_backend() == "cpu"
        scanned = {"batch": parts, "index": jnp.arange(accumulate)}
        carry, _ = jax.lax.scan(add, (zeros[0], batch_stats, zeros[1]), scanned, unroll=unroll)
        return carry[0], (carry[1], carry[2])

    def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, dict]:
        held = frozen({"params": state.params, "batch_stats": state.batch_stats}, freeze)["params"]
        key = jax.random.fold_in(key, state.step)
        if axis_name:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        augment_key, adversary_key, dropout_key = jax.random.split(key, 3)
        batch = with_mask(batch)
        if augment:
            batch = augment(augment_key, batch)
        if adversary:
            batch = adversary(adversary_key, {"params": state.params, "batch_stats": state.batch_stats}, batch)

        count = jnp.maximum(total(batch["mask"].sum()), 1).astype(jnp.float32)
        differentiate = gradient if accumulate == 1 else gradient_of_parts
        grads, (batch_stats, sums) = differentiate(state.params, state.batch_stats, batch, dropout_key, count)
        grads, sums = total((grads, sums))

        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        # Momentum and weight decay move what has no gradient.
        updates = jax.tree.map(lambda update, held: jnp.zeros_like(update) if held else update, updates, held)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay is not None:
            decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
            latest = {"params": params, "batch_stats": batch_stats}
            ema = jax.tree.map(lambda average, new: average + (1 - decay) * (new - average), ema, latest)
        learning = [layer for layer in grads if not all(jax.tree.leaves(held[layer]))]
        stats = {"sums": sums, "grad_norm": {layer: optax.tree.norm(grads[layer]) for layer in learning}}
        return TrainState(state.step + 1, params, batch_stats, opt_state, ema), stats

    return step


def make_eval_step(
    model: nn.Module, task: Task, *, preprocess: Callable[[jax.Array], jax.Array] = as_images
) -> Callable[[Any, Batch], Any]:
    """A pure function `step(variables, batch) -> evidence`, the evidence being `task.measure`'s."""

    def step(variables, batch):
        batch = with_mask(batch)
        return task.measure(model.apply(variables, preprocess(batch["image"]), train=False), batch)

    return step


def with_mask(batch: Batch) -> Batch:
    """The batch with a `mask`: all True where it has none."""
    return batch if "mask" in batch else {**batch, "mask": jnp.ones(batch["image"].shape[0], bool)}


def _running_statistics(freeze: Sequence[str]) -> contextlib.AbstractContextManager:
    """Within it, batch norms whose statistics are frozen use and keep their running ones, though the network trains.

    A norm is known by the attribute with which it is told to: `train` of ours, `use_running_average` of Linen's.
    """
    if not freeze:
        return contextlib.nullcontext()

    def intercept(call, args, kwargs, context):
        module = context.module
        fields = getattr(module, "__dataclass_fields__", {})
        switch = {"train": False} if "train" in fields else {"use_running_average": True}
        ((name, value),) = switch.items()
        is_norm = name in fields and context.method_name == "__call__"
        if not is_norm or not is_frozen("/".join((*module.path, "mean")), freeze) or getattr(module, name) is value:
            return call(*args, **kwargs)
        if name in kwargs:  # Linen's takes it with the call too
            return call(*args, **(kwargs | switch))
        return module.clone(parent=module.scope, **switch)(*args, **kwargs)

    return nn.intercept_methods(intercept)
