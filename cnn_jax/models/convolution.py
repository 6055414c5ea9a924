"""The convolution that all networks use, arranged on a CPU and on a GPU in other ways than XLA's own."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from cnn_jax.errors import unknown
from cnn_jax.models.depthwise import depthwise
from cnn_jax.models.places import Places, exact, matrix, padded, seen, spread, views
from cnn_jax.models.platform import on_cpu, on_gpu
from cnn_jax.models.winograd import is_much, suits_winograd, winograd
from cnn_jax.models.xla import kept, linear

PADDINGS = ("torch", "same", "valid", "circular")
LARGE = 2**20  # numbers of a kernel, from which its transpose is worth a thought


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

    On a CPU and on a GPU it is arranged in other ways than XLA's own, with the same value up to float32 rounding and
    derivatives of every order: see `_ordered`, `winograd`, `_one_channel`, `_product`, `_within`, `depthwise` and
    `_grouped`, and for a GPU `_one_channel`, `_of_squares` and `_in_view`.

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
    places = Places(stride, dilation, groups, pads)
    if x.shape[-1] == 1 and dilation == 1 and (on_gpu() or (on_cpu() and x.dtype == jnp.float32)):
        return _one_channel(places, x, kernel, jnp.zeros(kernel.shape[-1], x.dtype) if bias is None else bias)
    y = _arrangement(places, x, kernel)(places, x, kernel)
    return y if bias is None else _add_bias(y, bias)


def _arrangement(places: Places, x: jax.Array, kernel: jax.Array) -> Callable[..., jax.Array]:
    """The function of the same three arguments that is fast for such a convolution on this platform."""
    side, channels = kernel.shape[0], x.shape[-1]
    if on_cpu():
        if places.groups > 1:
            return depthwise if places.groups == channels == kernel.shape[-1] else _grouped
        if side == 1:
            return _product
        if _meets_little(places, x, kernel):
            return _within
        return winograd if suits_winograd(places, x, kernel) else _ordered
    if on_gpu():
        if places.groups > 1:
            return _in_view
        if channels <= 4 and places.stride > 1 and places.dilation == 1:
            return _of_squares
    return _native


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
    """Line by line on a CPU: its gradient is a sum over rows, three to ten times as fast over W·C numbers as over C."""
    beside = x.shape[2] if on_cpu() else 1
    return (x.reshape(-1, beside * len(bias)) + jnp.tile(bias, (1, beside))).reshape(x.shape)


def _native(places: Places, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (places.stride,) * 2, places.pads, rhs_dilation=(places.dilation,) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=places.groups,
    )  # fmt: skip


def _of_squares(places: Places, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution with a stride, of images with few channels: squares of `stride` × `stride` pixels become one each.

    They have all the channels of theirs, as those of the kernel have, with zeros where it ends within a square. The
    matrix units of a GPU are made for 8 channels and more.
    """
    stride, side, channels = places.stride, len(kernel), x.shape[-1]
    across = -(-side // stride)  # squares
    pads = []
    for (before, after), length in zip(places.pads, x.shape[1:3], strict=True):
        squares = (before + length + after - side) // stride + across
        pads.append((before, squares * stride - length - before, 0))
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *pads, (0, 0, 0)))
    n, height, width, _ = x.shape
    x = x.reshape(n, height // stride, stride, width // stride, stride, channels).swapaxes(2, 3)
    more = (0, across * stride - side)
    kernel = jnp.pad(kernel, (more, more, (0, 0), (0, 0)))
    kernel = kernel.reshape(across, stride, across, stride, channels, -1).swapaxes(1, 2)
    return _native(
        Places(1, 1, 1, ((0, 0), (0, 0))),
        x.reshape(n, height // stride, width // stride, -1),
        kernel.reshape(across, across, stride**2 * channels, -1),
    )


def _in_view(places: Places, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution in groups, with more places than the kernel has numbers along a side.

    Of fewer, XLA's GPU back end takes the gradient of the kernel for a forward pass, with a kernel of their number,
    which in groups is ten times slower.
    """
    side = len(kernel)
    reach = places.dilation * (side - 1) + 1
    room = [sum(pads) + length - reach for pads, length in zip(places.pads, x.shape[1:3], strict=True)]
    shape = [pixels // places.stride + 1 for pixels in room]
    more = [max(0, side + 1 - there) * places.stride for there in shape]
    pads = tuple((before, after + beyond) for (before, after), beyond in zip(places.pads, more, strict=True))
    return _native(places._replace(pads=pads), x, kernel)[:, : shape[0], : shape[1]]


def _product(places: Places, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution with kernels of 1×1, as a product of matrices.

    The gradient of the kernel takes half the time, where it strides or has few channels.
    """
    x = x[:, :: places.stride, :: places.stride]
    return (matrix(x) @ kernel[0, 0]).reshape(*x.shape[:-1], -1)


def _within(places: Places, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution with stride 1, as a product for each number of the kernel, with the pixels that it meets.

    XLA multiplies the zeros around the images as well. Of two images of 32×32×2048, with 256 features and a dilation of
    24, it takes 51 ms, and 174 with the gradients; this takes 16 and 54.
    """
    (height, rows), (width, columns) = _meetings(places, x, len(kernel))
    terms = []
    for i, top, bottom, down in rows:
        for j, left, right, along in columns:
            view = x[:, top + down : bottom + down, left + along : right + along]
            around = ((0, 0), (top, height - bottom), (left, width - right), (0, 0))
            terms.append(jnp.pad(_product(places, view, kernel[i : i + 1, j : j + 1]), around))
    return sum(terms)


def _meets_little(places: Places, x: jax.Array, kernel: jax.Array) -> bool:
    """Whether `_within` computes this convolution, and saves at least a third of the products."""
    side = len(kernel)
    share = 1.0
    for there, meetings in _meetings(places, x, side):
        share *= sum(end - first for _, first, end, _ in meetings) / max(side * there, 1)
    return places.stride == 1 and is_much(x, kernel) and 0 < share <= 2 / 3


def _meetings(places: Places, x: jax.Array, side: int) -> list[tuple[int, list[tuple[int, int, int, int]]]]:
    """Along both axes how many places there are, for a stride of 1, and which numbers of the kernel meet pixels.

    Of each that does its index, the first place where it does, the one after the last, and how far on the pixels are.
    """
    axes = []
    for (before, after), length in zip(places.pads, x.shape[1:3], strict=True):
        there = before + length + after - places.dilation * (side - 1)
        ahead = [places.dilation * i - before for i in range(side)]
        spans = [(i, max(0, -far), min(there, length - far), far) for i, far in enumerate(ahead)]
        axes.append((there, [span for span in spans if span[1] < span[2]]))
    return axes


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _ordered(places: Places, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution whose two gradients are computed one next to the other.

    XLA's CPU back end computes the gradient of a kernel in two halves, a core each. Where one of them waits for the
    gradients of the layer before, which XLA likes to begin in between, the other core ends long before it.
    """
    return _native(places, x, kernel)


@partial(_ordered.defjvp, symbolic_zeros=True)
def _ordered_jvp(places: Places, primals: tuple, tangents: tuple) -> tuple:
    (x, kernel), (dx, dkernel) = primals, tangents
    conv = partial(_native, places)
    y = _ordered(places, x, kernel)
    if isinstance(dx, SymbolicZero):
        return y, conv(x, dkernel)
    if kernel.size >= LARGE and kernel.shape[2] % 8 == 0:
        dy = linear(lambda dx: conv(dx, kernel), partial(_of_image, places, x.shape, kernel), dx)
    else:
        dy = conv(dx, kernel)
    if isinstance(dkernel, SymbolicZero):
        return y, dy
    # Read backwards, the gradient of `dx` waits for that of `dkernel`. XLA drops the barrier in the end, but keeps them
    # together in its schedule: a step of SimpleCNN, whose second convolution was such a one then, took 25 ms for 29.
    dy, dkernel = jax.lax.optimization_barrier((dy, dkernel))
    # The gradient of a kernel reads both arrays across, and what it made them of would be read across too.
    return y, kept(dy + conv(kept(x), dkernel))


def _of_image(places: Places, shape: tuple, kernel: jax.Array, dy: jax.Array) -> jax.Array:
    """The gradient of images of `shape`, as XLA computes it but for the transpose of a large kernel.

    XLA reads it across; in two steps, by eight channels at a time, it takes a third of the time.
    """
    side, _, channels, features = kernel.shape
    beyond = places.dilation * (side - 1)
    pads = [
        (beyond - before, length + before - (places.stride * (there - 1) + 1))
        for (before, _), length, there in zip(places.pads, shape[1:3], dy.shape[1:3], strict=True)
    ]
    eights = kernel[::-1, ::-1].reshape(side, side, channels // 8, 8, features).swapaxes(3, 4)
    turned = kept(eights).swapaxes(2, 3).reshape(side, side, features, channels)
    return jax.lax.conv_general_dilated(
        dy, turned, (1, 1), pads, lhs_dilation=(places.stride,) * 2, rhs_dilation=(places.dilation,) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _one_channel(places: Places, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """A convolution of images of one channel, in which XLA's kernels find too little to do at each place.

    Written as a sum over the places of the kernel it is one loop with the bias and what follows: for 128 28×28 images
    and 32 features 0.4 ms for 2.9. Its gradients are products of matrices. Where stride 1 gives sides that are even
    they have four parts, for every second row and column: so XLA, behind a pooling of 2×2, never spreads the gradient
    out over the larger image.
    """
    weights = exact(kernel).reshape(-1, 1, 1, 1, kernel.shape[-1])
    parts = zip(seen(places, kernel.shape[0], exact(x)), weights, strict=True)
    return (sum(view * weight for view, weight in parts) + exact(bias).reshape(1, 1, 1, -1)).astype(x.dtype)


@partial(_one_channel.defjvp, symbolic_zeros=True)
def _one_channel_jvp(places: Places, primals: tuple, tangents: tuple) -> tuple:
    (x, kernel, bias), (dx, dkernel, dbias) = primals, tangents
    y = _one_channel(places, x, kernel, bias)
    n, height, width, features = y.shape
    side, stride = kernel.shape[0], places.stride
    parts = 2 if stride == 1 and height % 2 == width % 2 == 0 else 1
    step, shape = stride * parts, (height // parts, width // parts)
    corners = [(i, j) for i in range(parts) for j in range(parts)]
    terms = []  # each a list of [n·h·w,features], for each corner that a part begins at
    if not isinstance(dx, SymbolicZero):
        # Read backwards: what the places of all parts give the pixels that they see together, and a sum of shifted
        # images.
        pixels = matrix(jnp.concatenate(views(padded(places, dx), side + parts - 1, (0, 0), step, shape), axis=-1))
        around = [((i, parts - 1 - i), (j, parts - 1 - j), (0, 0), (0, 0)) for i, j in corners]
        terms.append([pixels @ jnp.pad(kernel, zeros).reshape(-1, features) for zeros in around])
    if not (isinstance(dkernel, SymbolicZero) and isinstance(dbias, SymbolicZero)):
        dkernel, dbias = (
            jnp.zeros_like(a) if isinstance(da, SymbolicZero) else da for a, da in ((kernel, dkernel), (bias, dbias))
        )
        weights = jnp.concatenate([dkernel.reshape(side**2, features), dbias[None]])
        whole = padded(places, x)
        of_parts = [views(whole, side, corner, step, shape) for corner in corners]
        rows = [jnp.stack([*ours, jnp.ones_like(ours[0])]).reshape(side**2 + 1, n, -1) for ours in of_parts]
        # One product for all parts, which is one launch on a GPU; image by image, so that devices that have a part of
        # the images each have nothing to exchange but its sum.
        product = jnp.stack(rows, axis=2).reshape(side**2 + 1, -1).T @ weights
        product = product.reshape(n, len(corners), -1, features)
        terms.append([product[:, i].reshape(-1, features) for i in range(len(corners))])
    if not terms:
        return y, jnp.zeros_like(y)
    sums = [sum(of_part).reshape(n, *shape, features) for of_part in zip(*terms, strict=True)]
    return y, spread([sums[i : i + parts] for i in range(0, len(sums), parts)])


def _grouped(places: Places, x: jax.Array, kernel: jax.Array) -> jax.Array:
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
    pieces = jnp.split(x, parts, axis=-1)
    return jnp.concatenate([conv(piece, kernels[:, :, :, i]) for i, piece in enumerate(pieces)], axis=-1)
