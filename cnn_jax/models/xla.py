"""What JAX and XLA must be told, to leave a program as it is written."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata

from cnn_jax.models.platform import on_cpu


def alone(fun: Callable, *args: Any) -> Any:
    """`fun(*args)` as a part of the program that is neither taken apart nor mixed with others.

    XLA's CPU back end counts sums as cheap, and so would make a depthwise convolution anew for each part that takes its
    result: with the batch norm behind it seven times in a training step.
    """
    with set_xla_metadata(inlineable="false"):
        return jax.jit(fun)(*args)


def kept(x: Any) -> Any:
    """Arrays that on a CPU are computed once and kept in memory; their gradients too.

    Counting sums as cheap, XLA's CPU back end makes the output of a residual block anew in each part of a training step
    that needs it, out of those of all the blocks before. An optimisation barrier is gone by then; a call is not. JAX
    leaves out calls that return what they are given; with the barrier in it, it keeps this one.
    """
    return alone(jax.lax.optimization_barrier, x) if on_cpu() else x


def linear(fun: Callable, transpose: Callable, x: jax.Array) -> jax.Array:
    """`fun(x)`, where `fun` is linear and `transpose` is its transpose, the gradient.

    JAX takes a transpose that is not its own, and then knows derivatives of every order and `vmap`, in one place: where
    it solves a linear system. Here x' = x, y' - fun(x') = 0, in one array; a row for each image, where both have them.
    """
    y = jax.eval_shape(fun, x)
    lines = len(x) if len(x) == len(y) else 1
    pixels = x.size // lines

    def apart(both):
        return both[:, :pixels].reshape(x.shape), both[:, pixels:].reshape(y.shape)

    def joined(x, y):
        return jnp.concatenate([a.reshape(lines, -1) for a in (x, y)], axis=1)

    def system(both):
        x, y = apart(both)
        return joined(x, y - fun(x))

    def solved(_, both):
        x, y = apart(both)
        return joined(x, y + fun(x))

    def transposed(_, both):
        x, y = apart(both)
        return joined(x + transpose(y), y)

    return apart(jax.lax.custom_linear_solve(system, joined(x, jnp.zeros(y.shape, y.dtype)), solved, transposed))[1]
