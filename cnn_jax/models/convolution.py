"""The convolution that all networks use, arranged on a CPU in other ways than XLA's own."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.experimental.xla_metadata import set_xla_metadata

from cnn_jax.errors import unknown
from cnn_jax.models.platform import on_cpu

PADDINGS = ("torch", "same", "valid", "circular")


class _Places(NamedTuple):
    """Where the kernel is laid; `pads` are pixels (before, after) the rows and the columns."""

    stride: int
    dilation: int
    groups: int
    pads: tuple[tuple[int, int], tuple[int, int]]


def convolution(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    padding: str = "torch",
) -> jax.Array:
    """The sum over the kernel's places: [N,h,w,features].

    On a CPU it is arranged in other ways than XLA's own, with the same value up to float32 rounding and derivatives of
    every order: see `_ordered`, `_one_channel`, `_product`, `_depthwise` and `_grouped`.

    Args:
        x: [N,H,W,C].
        kernel: [side,side,C/groups,features].
        bias: [features], added, or None.
        stride: pixels from one place to the next.
        dilation: pixels from one number of the kernel to the next.
        groups: the channels of `x` and the features are cut into so many parts, and each part sees its own alone.
        padding: "torch", by `dilation * (side // 2)` on all sides; "same", XLA's and TensorFlow's, as little as gives
            ⌈H/stride⌉ × ⌈W/stride⌉ places, where of an odd number the end takes more; "valid", none; "circular", as
            "same" for a stride of 1, but by the opposite sides of the images instead of zeros.

    Raises:
        InputError: no such padding.
    """
    side = kernel.shape[0]
    if padding == "circular":
        beyond = dilation * (side - 1)
        around = (beyond // 2, beyond - beyond // 2)
        x, padding = jnp.pad(x, ((0, 0), around, around, (0, 0)), mode="wrap"), "valid"
    pads = tuple(_pads(padding, length, side, stride, dilation) for length in x.shape[1:3])
    places = _Places(stride, dilation, groups, pads)
    if on_cpu() and x.shape[-1] == 1 and x.dtype == jnp.float32 and dilation == 1:
        return _one_channel(places, x, kernel, jnp.zeros(kernel.shape[-1]) if bias is None else bias)
    if not on_cpu():
        arranged = _native
    elif groups == 1:
        arranged = _product if side == 1 else _ordered
    else:
        arranged = _depthwise if groups == x.shape[-1] == kernel.shape[-1] else _grouped
    y = arranged(places, x, kernel)
    return y if bias is None else _add_bias(y, bias)


def _pads(padding: str, length: int, side: int, stride: int, dilation: int) -> tuple[int, int]:
    match padding:
        case "torch":
            return (dilation * (side // 2),) * 2
        case "same":
            whole = max((-(-length // stride) - 1) * stride + dilation * (side - 1) + 1 - length, 0)
            return (whole // 2, whole - whole // 2)
        case "valid":
            return (0, 0)
    raise unknown("padding", padding, PADDINGS)


def _add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    rows, beside = lines(x)
    return (rows + jnp.tile(bias, (1, beside))).reshape(x.shape)


def lines(x: jax.Array) -> tuple[jax.Array, int]:
    """[N,H,W,C] as a matrix, to be summed over its rows, and how many pixels stand beside each other in a row.

    On a CPU they are those of a line of the image, for XLA sums rows of W·C numbers three to ten times faster than such
    of C. The gradients of a bias and of batch norm are such sums too.
    """
    *_, width, channels = x.shape
    beside = width if on_cpu() else 1
    return x.reshape(-1, beside * channels), beside


def _native(places: _Places, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (places.stride,) * 2, places.pads, rhs_dilation=(places.dilation,) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=places.groups,
    )  # fmt: skip


def _product(places: _Places, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution with kernels of 1×1, as a product of matrices.

    The gradient of the kernel takes half the time, where it strides or has few channels.
    """
    return x[:, :: places.stride, :: places.stride] @ kernel[0, 0]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _ordered(places: _Places, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution whose two gradients are computed one next to the other.

    XLA's CPU back end computes the gradient of a kernel in two halves, a core each. Where one of them waits for the
    gradients of the layer before, which XLA likes to begin in between, the other core ends long before it.
    """
    return _native(places, x, kernel)


@partial(_ordered.defjvp, symbolic_zeros=True)
def _ordered_jvp(places: _Places, primals: tuple, tangents: tuple) -> tuple:
    (x, kernel), (dx, dkernel) = primals, tangents
    conv = partial(_native, places)
    y = _ordered(places, x, kernel)
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
def _one_channel(places: _Places, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """A convolution of images of one channel, in which XLA's kernels find too little to do at each place.

    Written as a sum over the places of the kernel it is one loop with the bias and what follows: for 128 28×28 images
    and 32 features 0.4 ms for 2.9. The gradient of kernel and bias is a product of matrices. Where stride 1 gives sides
    that are even it is made of four, for every second row and column: so XLA, behind a pooling of 2×2, never spreads
    the gradient out over the larger image.
    """
    weights = kernel.reshape(-1, 1, 1, 1, kernel.shape[-1])
    views = _seen(places, kernel.shape[0], x)
    return sum(view * weight for view, weight in zip(views, weights, strict=True)) + bias.reshape(1, 1, 1, -1)


def _padded(places: _Places, x: jax.Array) -> jax.Array:
    return jnp.pad(x, ((0, 0), *places.pads, (0, 0)))


def _seen(places: _Places, side: int, x: jax.Array) -> list[jax.Array]:
    """What each place of a kernel sees: side² views [N,h,w,C] of images."""
    x = _padded(places, x)
    shape = tuple((length - places.dilation * (side - 1) - 1) // places.stride + 1 for length in x.shape[1:3])
    return _views(x, side, (0, 0), places.stride, shape, dilation=places.dilation)


def _views(x: jax.Array, side: int, corner: tuple, step: int, shape: tuple, *, dilation: int = 1) -> list[jax.Array]:
    """What each place of a kernel sees: side² views [N,h,w,C] of padded images, every `step` pixels from a corner."""
    rows, columns = (step * (length - 1) + 1 for length in shape)
    return [
        jax.lax.slice(x, (0, i, j, 0), (x.shape[0], i + rows, j + columns, x.shape[3]), (1, step, step, 1))
        for i in range(corner[0], corner[0] + side * dilation, dilation)
        for j in range(corner[1], corner[1] + side * dilation, dilation)
    ]


@partial(_one_channel.defjvp, symbolic_zeros=True)
def _one_channel_jvp(places: _Places, primals: tuple, tangents: tuple) -> tuple:
    (x, kernel, bias), (dx, dkernel, dbias) = primals, tangents
    y = _one_channel(places, x, kernel, bias)
    n, height, width, features = y.shape
    side, stride = kernel.shape[0], places.stride
    dy = jnp.zeros_like(y)
    if not isinstance(dx, SymbolicZero):  # images are seldom differentiated by
        dy = dy + _native(places, dx, kernel)
    if not (isinstance(dkernel, SymbolicZero) and isinstance(dbias, SymbolicZero)):
        dkernel, dbias = (
            jnp.zeros_like(a) if isinstance(da, SymbolicZero) else da for a, da in ((kernel, dkernel), (bias, dbias))
        )
        weights = jnp.concatenate([dkernel.reshape(side**2, features), dbias[None]])
        parts = 2 if stride == 1 and height % 2 == width % 2 == 0 else 1
        shape = (height // parts, width // parts)
        padded = _padded(places, x)

        def part(i, j):
            views = _views(padded, side, (i, j), stride * parts, shape)
            seen = jnp.stack([*views, jnp.ones_like(views[0])]).reshape(side**2 + 1, -1)
            return (seen.T @ weights).reshape(n, *shape, features)

        rows = [jnp.stack([part(i, j) for j in range(parts)], axis=3) for i in range(parts)]
        dy = dy + jnp.stack(rows, axis=2).reshape(y.shape)
    return y, dy


def _grouped(places: _Places, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution in groups, as some beside each other.

    XLA's CPU back end has no fast kernels for groups: the gradient of one of ResNeXt-50's takes 5 s. Each of these
    here sees some groups, for 32 channels in all, with zeros between a group and the features of another.
    """
    side, _, channels, features = kernel.shape
    together = max(
        i for i in range(1, places.groups + 1) if places.groups % i == 0 and i * channels <= max(channels, 32)
    )
    parts = places.groups // together
    kernel = kernel.reshape(side, side, 1, channels, parts, together, features // places.groups)
    own = jnp.eye(together, dtype=kernel.dtype).reshape(1, 1, together, 1, 1, together, 1)
    kernels = (kernel * own).reshape(side, side, together * channels, parts, -1)
    conv = partial(_native, places._replace(groups=1))
    seen = jnp.split(x, parts, axis=-1)
    return jnp.concatenate([conv(part, kernels[:, :, :, i]) for i, part in enumerate(seen)], axis=-1)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _depthwise(places: _Places, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution of each channel by itself: a sum over the places of the kernel, as its two gradients are.

    XLA's CPU back end has no fast kernels for it. Of 8 images of 56×56×144 and kernels of 3×3, the value takes 5 ms of
    the processor's time for 110, the gradient of the image 5 and that of the kernel 13 for 490.
    """
    return _alone(partial(_sum_over_places, places), x, kernel.reshape(1, -1, x.shape[-1]))


@partial(_depthwise.defjvp, symbolic_zeros=True)
def _depthwise_jvp(places: _Places, primals: tuple, tangents: tuple) -> tuple:
    (x, kernel), (dx, dkernel) = primals, tangents
    y = _depthwise(places, x, kernel)
    of_kernel = partial(_alone, partial(_of_kernel, places, len(kernel)), x)
    of_image = partial(_alone, partial(_of_image, places, x.shape[1:3]), kernel)
    dy = jnp.zeros_like(y)
    if not isinstance(dkernel, SymbolicZero):
        # A kernel for each image: so devices that have a part of the images each need not speak to each other.
        each = jnp.broadcast_to(dkernel.reshape(1, -1, x.shape[-1]), (len(x), dkernel.size // x.shape[-1], x.shape[-1]))
        dy = dy + _linear(partial(_sum_over_places, places, x), of_kernel, each)
    if not isinstance(dx, SymbolicZero):
        dy = dy + _linear(lambda dx: _depthwise(places, dx, kernel), of_image, dx)
    return y, dy


def _sum_over_places(places: _Places, x: jax.Array, kernels: jax.Array) -> jax.Array:
    """[N,h,w,C] of [N,H,W,C] and kernels [1 or N, side², C]."""
    side, exact = math.isqrt(kernels.shape[1]), _exact(x)
    views = _seen(places, side, x)
    products = (view.astype(exact) * kernels[:, i, None, None].astype(exact) for i, view in enumerate(views))
    return sum(products).astype(x.dtype)


def _of_kernel(places: _Places, side: int, x: jax.Array, dy: jax.Array) -> jax.Array:
    """The gradient [N, side², C] of each image's kernel.

    One pass over the image sums the products of all places: as a sum for each place it takes 3 to 6 times as long.
    """
    exact = _exact(x)
    products = [view.astype(exact) * dy.astype(exact) for view in _seen(places, side, x)]
    zeros = [jnp.zeros((), exact)] * len(products)
    columns = jax.lax.reduce(products, zeros, lambda sums, more: [a + b for a, b in zip(sums, more, strict=True)], (1,))
    return jnp.stack(columns, axis=1).sum(2).astype(x.dtype)


def _of_image(places: _Places, size: tuple[int, int], kernel: jax.Array, dy: jax.Array) -> jax.Array:
    """The gradient [N,H,W,C] of the image: for each of its `stride` × `stride` phases a sum over the places."""
    stride, exact = places.stride, _exact(dy)

    def phases(axis):
        """For each phase the rows (or columns) of the kernel that see it, and how far ahead in `dy` they are."""
        starts = [places.pads[axis][0] - i * places.dilation for i in range(len(kernel))]
        return [
            [(i, (phase + start) // stride) for i, start in enumerate(starts) if (phase + start) % stride == 0]
            for phase in range(stride)
        ]

    rows, columns = phases(0), phases(1)
    height, width = (-(-length // stride) for length in size)
    # As far as any place lies before the first pixel of `dy`, or behind its last.
    around = [
        (
            max(0, *(-j for phase in ahead for _, j in phase)),
            max(0, *(j + length - has for phase in ahead for _, j in phase)),
        )
        for ahead, length, has in ((rows, height, dy.shape[1]), (columns, width, dy.shape[2]))
    ]
    padded = jnp.pad(dy, ((0, 0), *around, (0, 0)))
    top, left = around[0][0], around[1][0]

    def part(row, column):
        total = jnp.zeros((len(dy), height, width, dy.shape[-1]), exact)
        for i, down in row:
            for j, right in column:
                view = padded[:, top + down : top + down + height, left + right : left + right + width]
                total = total + view.astype(exact) * kernel[None, None, None, i, j, 0].astype(exact)
        return total.astype(dy.dtype)

    parts = [jnp.stack([part(row, column) for column in columns], axis=3) for row in rows]
    whole = jnp.stack(parts, axis=2).reshape(len(dy), height * stride, width * stride, -1)
    return whole[:, : size[0], : size[1]]


def _exact(x: jax.Array) -> jnp.dtype:
    """What sums are made in."""
    return jnp.promote_types(x.dtype, jnp.float32)


def _alone(fun: Callable, *args: jax.Array) -> jax.Array:
    """`fun(*args)` as a part of the program that is neither taken apart nor mixed with others.

    XLA's CPU back end counts sums as cheap, and so would make a depthwise convolution anew for each part that takes its
    result: with the batch norm behind it seven times in a training step.
    """
    with set_xla_metadata(inlineable="false"):
        return jax.jit(fun)(*args)


def _linear(fun: Callable, transpose: Callable, x: jax.Array) -> jax.Array:
    """`fun(x)`, where `fun` is linear and `transpose` is its transpose, the gradient.

    JAX takes a transpose that is not its own, and then knows derivatives of every order and `vmap`, in one place: where
    it solves a linear system. Here x' = x, y' - fun(x') = 0, in one array [N, pixels of x and of y, C].
    """
    y = jax.eval_shape(fun, x)
    pixels = math.prod(x.shape[1:-1])

    def apart(both):
        return both[:, :pixels].reshape(x.shape), both[:, pixels:].reshape(y.shape)

    def joined(x, y):
        return jnp.concatenate([a.reshape(len(a), -1, a.shape[-1]) for a in (x, y)], axis=1)

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
