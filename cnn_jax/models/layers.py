"""The pieces that the networks share."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from cnn_jax.errors import InputError


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


class Conv(nn.Module):
    """A convolution with square kernels, padded as PyTorch's are: by `dilation * (side // 2)` on all sides.

    With a stride, Linen's "SAME" pads otherwise. Parameters are float32, `kernel` [side,side,C,features] and `bias`.

    Attributes:
        dtype: of the computation.
    """

    features: int
    side: int = 3
    stride: int = 1
    dilation: int = 1
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N,H,W,C] to [N,⌈H/stride⌉,⌈W/stride⌉,features] of `dtype`, for kernels of an odd side."""
        kernel = self.param("kernel", self.kernel_init, (self.side, self.side, x.shape[-1], self.features))
        bias = self.param("bias", self.bias_init, (self.features,)) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return convolution(x, kernel, bias, stride=self.stride, dilation=self.dilation)


def convolution(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None, *, stride: int = 1, dilation: int = 1
) -> jax.Array:
    """The sum over the kernel's places, padded by `dilation * (side // 2)`: [N,h,w,features].

    On a CPU it is arranged in other ways than XLA's own, with the same value up to float32 rounding and derivatives of
    every order: see `_ordered` and `_one_channel`.

    Args:
        x: [N,H,W,C].
        kernel: [side,side,C,features].
        bias: [features], added, or None.
        stride: pixels from one place to the next.
        dilation: pixels from one number of the kernel to the next.
    """
    if jax.default_backend() == "cpu" and x.shape[-1] == 1 and x.dtype == jnp.float32 and dilation == 1:
        bias = jnp.zeros(kernel.shape[-1]) if bias is None else bias
        return _one_channel(stride, x, kernel, bias)
    y = (_ordered if jax.default_backend() == "cpu" else _native)(stride, dilation, x, kernel)
    return y if bias is None else _add_bias(y, bias)


def _add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    rows, beside = _rows(x)
    return (rows + jnp.tile(bias, (1, beside))).reshape(x.shape)


def _rows(x: jax.Array) -> tuple[jax.Array, int]:
    """[N,H,W,C] as a matrix, to be summed over its rows, and how many pixels stand beside each other in a row.

    On a CPU they are those of a line of the image, for XLA sums rows of W·C numbers three to ten times faster than such
    of C. The gradients of a bias and of batch norm are such sums too.
    """
    *_, width, channels = x.shape
    beside = width if jax.default_backend() == "cpu" else 1
    return x.reshape(-1, beside * channels), beside


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015): Linen's parameters, statistics and values, faster on a CPU.

    Attributes:
        train: use the statistics of this batch, and move the running ones towards them by a tenth; else use the latter.
        axis_name: the `pmap` axis to take the statistics over. Under `jit` they are those of the whole batch anyway.
        dtype: of the result; statistics and arithmetic are float32.
    """

    train: bool
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N,H,W,C], of any dtype, to the same shape."""
        rows, beside = _rows(x.astype(jnp.float32))
        channels = x.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels)
        scale = self.param("scale", self.scale_init, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        mean, var = running_mean.value, running_var.value
        if self.train:
            sums = jnp.stack([rows.mean(0), jnp.square(rows).mean(0)])
            mean, square = sums.reshape(2, beside, channels).mean(1)
            if self.axis_name and not self.is_initializing():
                mean, square = jax.lax.pmean((mean, square), self.axis_name)
            var = jnp.maximum(square - jnp.square(mean), 0)
            if not self.is_initializing():
                for running, new in ((running_mean, mean), (running_var, var)):
                    running.value = 0.9 * running.value + 0.1 * new
        factor = jax.lax.rsqrt(var + 1e-5) * scale
        mean, factor, bias = (jnp.tile(values, (1, beside)) for values in (mean, factor, bias))
        rows = (rows - mean) * factor + bias
        return rows.reshape(x.shape).astype(self.dtype)


def _native(stride: int, dilation: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    padding = dilation * (kernel.shape[0] // 2)
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), [(padding, padding)] * 2,
        rhs_dilation=(dilation, dilation), dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _ordered(stride: int, dilation: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution whose two gradients are computed one next to the other.

    XLA's CPU back end computes the gradient of a kernel in two halves, a core each. Where one of them waits for the
    gradients of the layer before, which XLA likes to begin in between, the other core ends long before it.
    """
    return _native(stride, dilation, x, kernel)


@partial(_ordered.defjvp, symbolic_zeros=True)
def _ordered_jvp(stride: int, dilation: int, primals: tuple, tangents: tuple) -> tuple:
    (x, kernel), (dx, dkernel) = primals, tangents
    conv = partial(_native, stride, dilation)
    y = _ordered(stride, dilation, x, kernel)
    if isinstance(dx, SymbolicZero):
        return y, conv(x, dkernel)
    dy = conv(dx, kernel)
    if isinstance(dkernel, SymbolicZero):
        return y, dy
    # Read backwards, the gradient of `dx` waits for that of `dkernel`. XLA drops the barrier in the end, but keeps them
    # together in its schedule: a step of SimpleCNN takes 25 ms for 29.
    dy, dkernel = jax.lax.optimization_barrier((dy, dkernel))
    return y, dy + conv(x, dkernel)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _one_channel(stride: int, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """A convolution of images of one channel, in which XLA's kernels find too little to do at each place.

    Written as a sum over the places of the kernel it is one loop with the bias and what follows: for 128 28×28 images
    and 32 features 0.4 ms for 2.9. The gradient of kernel and bias is a product of matrices. Where stride 1 gives sides
    that are even it is made of four, for every second row and column: so XLA, behind a pooling of 2×2, never spreads
    the gradient out over the larger image.
    """
    side = kernel.shape[0]
    shape = tuple(-(-length // stride) for length in x.shape[1:3])
    weights = kernel.reshape(side**2, 1, 1, 1, -1)
    views = _views(_padded(x, side), side, (0, 0), stride, shape)
    return sum(view * weight for view, weight in zip(views, weights, strict=True)) + bias.reshape(1, 1, 1, -1)


def _padded(x: jax.Array, side: int) -> jax.Array:
    around = (side // 2, side // 2)
    return jnp.pad(x, ((0, 0), around, around, (0, 0)))


def _views(x: jax.Array, side: int, corner: tuple, step: int, shape: tuple) -> list[jax.Array]:
    """What each place of a kernel sees: side² views [N,h,w,C] of padded images, every `step` pixels from a corner."""
    rows, columns = (step * (length - 1) + 1 for length in shape)
    return [
        jax.lax.slice(x, (0, i, j, 0), (x.shape[0], i + rows, j + columns, x.shape[3]), (1, step, step, 1))
        for i in range(corner[0], corner[0] + side)
        for j in range(corner[1], corner[1] + side)
    ]


@partial(_one_channel.defjvp, symbolic_zeros=True)
def _one_channel_jvp(stride: int, primals: tuple, tangents: tuple) -> tuple:
    (x, kernel, bias), (dx, dkernel, dbias) = primals, tangents
    y = _one_channel(stride, x, kernel, bias)
    n, height, width, features = y.shape
    side = kernel.shape[0]
    dy = jnp.zeros_like(y)
    if not isinstance(dx, SymbolicZero):  # images are seldom differentiated by
        dy = dy + _native(stride, 1, dx, kernel)
    if not (isinstance(dkernel, SymbolicZero) and isinstance(dbias, SymbolicZero)):
        dkernel, dbias = (
            jnp.zeros_like(a) if isinstance(da, SymbolicZero) else da for a, da in ((kernel, dkernel), (bias, dbias))
        )
        weights = jnp.concatenate([dkernel.reshape(side**2, features), dbias[None]])
        parts = 2 if stride == 1 and height % 2 == width % 2 == 0 else 1
        shape = (height // parts, width // parts)
        padded = _padded(x, side)

        def part(i, j):
            views = _views(padded, side, (i, j), stride * parts, shape)
            seen = jnp.stack([*views, jnp.ones_like(views[0])]).reshape(side**2 + 1, -1)
            return (seen.T @ weights).reshape(n, *shape, features)

        rows = [jnp.stack([part(i, j) for j in range(parts)], axis=3) for i in range(parts)]
        dy = dy + jnp.stack(rows, axis=2).reshape(y.shape)
    return y, dy


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
