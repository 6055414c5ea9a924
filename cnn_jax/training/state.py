"""What changes during training: one pytree of arrays."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from cnn_jax.errors import InputError

PyTree = Any


class TrainState(struct.PyTreeNode):
    """All that a run must keep to go on, and nothing else: arrays only, no functions, no random key.

    `step` counts the updates made (i32[]); the key of a step is `fold_in(key, step)`. `ema`, where it is asked for,
    holds a moving average of params and batch_stats.
    """

    step: jax.Array
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    ema: PyTree = None

    @property
    def variables(self) -> dict:
        """What `model.apply` takes for evaluation: the moving average where there is one, else the parameters."""
        latest = {"params": self.params, "batch_stats": self.batch_stats}
        return latest if self.ema is None else self.ema


def create_state(
    key: jax.Array,
    model: nn.Module,
    tx: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    *,
    ema: bool = False,
    variables: PyTree = None,
) -> TrainState:
    """The state before the first step. Under `jax.vmap` over keys it is that of so many networks.

    Args:
        key: from which the model's parameters are drawn.
        image_shape: (H, W, C) of what the model is to see.
        ema: keep a moving average.
        variables: start from these `{"params", "batch_stats"}` instead of drawing them.

    Raises:
        InputError: variables without parameters.
    """

    if variables is not None and "params" not in variables:
        raise InputError(f'variables have no "params", but {", ".join(variables)}: give {{"params": …}}')

    def init(key):
        start = variables
        if start is None:
            start = model.init(key, jnp.zeros((1, *image_shape), jnp.float32))
        params, batch_stats = start["params"], start.get("batch_stats", {})
        average = {"params": params, "batch_stats": batch_stats} if ema else None
        return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, tx.init(params), average)

    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((key, variables))):
        return init(key)
    # It runs once: on a CPU the compiler's optimisation takes many times longer than it saves.
    options = {"xla_backend_optimization_level": "0"} if jax.default_backend() == "cpu" else None
    with jax.ensure_compile_time_eval():
        return jax.jit(init, compiler_options=options)(key)
