"""The pieces that the networks share."""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from cnn_jax.errors import InputError

Padding = str | Sequence[tuple[int, int]]


def tap(module: nn.Module, name: str, x: jax.Array) -> jax.Array:
    """Names a stage of a network, and returns it unchanged.

    To look at the stage, apply the model with `mutable=["intermediates"]`: it comes back as
    `intermediates[name][0]`. For the gradient at the stage, pass zeros of its shape as
    `variables["perturbations"][name]`, which are added to it, and differentiate by them.
    Where neither is asked for, it costs nothing.
    """
    # `sow` reserves the name of a new variable, and so refuses that of a submodule; one that exists it takes as it is.
    if module.is_mutable_collection("intermediates") and not module.has_variable("intermediates", name):
        module.put_variable("intermediates", name, ())
    module.sow("intermediates", name, x)
    # Linen's own `perturb` refuses a stage that has the name of a submodule.
    if module.has_variable("perturbations", name):
        x = x + module.get_variable("perturbations", name)
    return x


def convolution(x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Padding, **options) -> jax.Array:
    """`jax.lax.conv_general_dilated`, for `nn.Conv` to use: faster on a CPU for images of one channel.

    With one channel XLA's kernels find too little to do at each place. Written as a sum over the places of the kernel,
    the convolution 1→32 of 128 28×28 images takes 0.4 ms for 2.9, and XLA makes one loop of it, bias and ReLU. Its
    derivatives are XLA's own. Values agree to float32 rounding.

    Args:
        x: [N,H,W,C].
        kernel: [h,w,C,features].
        strides, padding, options: as `conv_general_dilated` takes them.
    """
    dilated = any(side != 1 for name in ("lhs_dilation", "rhs_dilation") for side in options.get(name) or ())
    if jax.default_backend() != "cpu" or x.shape[-1] != 1 or x.dtype != jnp.float32 or dilated:
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    return _one_channel(tuple(strides), tuple(padding), x, kernel)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _one_channel(strides: tuple, padding: tuple, x: jax.Array, kernel: jax.Array) -> jax.Array:
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    height, width = kernel.shape[:2]
    rows, columns = x.shape[1] - height + 1, x.shape[2] - width + 1
    places = [(i, j) for i in range(height) for j in range(width)]
    return sum(
        x[:, i : i + rows : strides[0], j : j + columns : strides[1]] * kernel[i : i + 1, j : j + 1] for i, j in places
    )


@partial(_one_channel.defjvp, symbolic_zeros=True)
def _one_channel_jvp(strides: tuple, padding: tuple, primals: tuple, tangents: tuple) -> tuple:
    (x, kernel), (dx, dkernel) = primals, tangents
    conv = partial(
        jax.lax.conv_general_dilated,
        window_strides=strides, padding=padding, dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    # Images are seldom differentiated by: then there is no first term to compute.
    terms = [conv(*pair) for pair in ((dx, kernel), (x, dkernel)) if not any(isinstance(z, SymbolicZero) for z in pair)]
    return _one_channel(strides, padding, x, kernel), sum(terms[1:], terms[0])


def max_pool(x: jax.Array, *, window: int = 2) -> jax.Array:
    """Max pooling over windows that do not overlap; rows and columns left over at the end are dropped.

    Where a window holds its maximum more than once, the first in reading order takes the gradient, as in PyTorch.

    `flax.linen.max_pool` has the same values, but its gradient (XLA's select-and-scatter) is 30 times slower on a CPU.

    Args:
        x: [N,H,W,C] of any real dtype.
        window: side of the window and stride, in pixels.

    Returns:
        [N, H // window, W // window, C], of the dtype of `x`.

    Raises:
        InputError: `x` is smaller than the window.
    """
    _, height, width, _ = x.shape
    if min(height, width) < window:
        raise InputError(
            f"max_pool: images of {height}×{width} are smaller than its window of {window}: use larger images"
        )
    return _max_pool(x[:, : height // window * window, : width // window * window], window)


def _places(x: jax.Array, window: int) -> list[jax.Array]:
    """The pixels of all windows, a place at a time: `window`² strided views [N,h,w,C], in reading order."""
    return [x[:, i::window, j::window] for i in range(window) for j in range(window)]


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _max_pool(x: jax.Array, window: int) -> jax.Array:
    first, *others = _places(x, window)
    for other in others:
        first = jnp.maximum(first, other)
    return first


@_max_pool.defjvp
def _max_pool_jvp(window: int, primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    y = _max_pool(x, window)
    n, h, w, c = y.shape
    winner = jnp.full(y.shape, window**2 - 1, jnp.uint8)
    for place, value in reversed(list(enumerate(_places(x, window)[:-1]))):
        winner = jnp.where(value == y, jnp.uint8(place), winner)
    places = jnp.arange(window**2, dtype=jnp.uint8).reshape(1, 1, window, 1, window, 1)
    chosen = winner[:, :, None, :, None, :] == places
    # A select over a view [N,h,window,w,window,C]: its transpose is one select, without a scatter.
    return y, jnp.where(chosen, dx.reshape(n, h, window, w, window, c), 0).sum((2, 4))


def max_pool_3x3(x: jax.Array) -> jax.Array:
    """Max pooling over windows of 3×3, one every second pixel, as behind ResNet's first convolution: [N,H,W,C].

    The value and the size, ⌈H/2⌉ × ⌈W/2⌉, are PyTorch's with a padding of 1; written as maxima of strided views, whose
    gradient is many times faster on a CPU. Where a window holds its maximum twice, the two share the gradient.
    """
    for axis in (1, 2):
        ahead = jnp.pad(x, [(1, 1) if i == axis else (0, 0) for i in range(4)], constant_values=-jnp.inf)
        size = x.shape[axis]
        first, middle, last = (jax.lax.slice_in_dim(ahead, i, i + size, stride=2, axis=axis) for i in range(3))
        x = jnp.maximum(jnp.maximum(first, middle), last)
    return x
