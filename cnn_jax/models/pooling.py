"""Halving an image: by maxima, means, a blur (Zhang 2019), or by those pixels that weigh most (Chaman & Dokmanić 2021).

A pooling of 2×2 or a stride of 2 keeps every second pixel. What it keeps changes with a shift of the image by one
pixel, and so does what a network says. After a blur it changes less; and where the pixels are chosen by their content,
a network with circular padding and a mean over the image at its end is exactly invariant.

All functions have one signature. Networks take their names, the keys of `POOLINGS`, as the option `pooling`; "max" is
what is usual, a network's own strides and maxima. The others stand in the place of these: behind a convolution that
keeps the size, its norm and its activation, and behind maxima around every pixel.
"""

from collections.abc import Callable
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.errors import InputError
from cnn_jax.models.layers import max_pool
from cnn_jax.models.places import exact, largest, spread, views
from cnn_jax.models.xla import kept, linear

PADDINGS = ("torch", "circular")


def maximum(x: jax.Array, *, window: int = 2, padding: str = "torch", choice: jax.Array | None = None) -> jax.Array:
    """Every second pixel of the maxima over windows, as PyTorch's max pooling has them.

    Where a window holds its maximum more than once, the first in reading order takes the gradient, as in PyTorch.

    Args:
        x: [N,H,W,C] of any floating dtype.
        window: side of the windows in pixels. 2: they lie side by side; 3: around every second pixel; 1: that pixel
            alone, which makes a convolution that keeps the size one of stride 2.
        padding: "torch": there is nothing beyond the border; "circular": beyond it is the opposite side.
        choice: [N,H,W,D], whose content decides what is kept, where a pooling goes by content. `x` by default.

    Returns:
        [N,h,w,C] of the dtype of `x`. Of odd sides windows of 2 leave the last row and column out, as in PyTorch:
        h = ⌊H/2⌋. Others do not: h = ⌈H/2⌉.

    Raises:
        InputError: `x` has a side of 1, and windows one of 2.
    """
    if window == 2:
        return max_pool(x)
    return _max_of_nine(x) if window == 3 and padding == "torch" else _maxima(x, window, 2, padding)


def average(x: jax.Array, *, window: int = 2, padding: str = "torch", choice: jax.Array | None = None) -> jax.Array:
    """Means over 2×2 pixels that lie side by side, without maxima: the window says only what becomes of odd sides.

    Otherwise as `maximum`.
    """
    return _summed(_cut(x, window), (0.5, 0.5), "circular" if padding == "circular" else "edge")


def blur(x: jax.Array, *, window: int = 2, padding: str = "torch", choice: jax.Array | None = None) -> jax.Array:
    """Maxima around every pixel, and every second pixel of these, blurred by (1, 2, 1)/4 both ways.

    Beyond the border the blur sees the image mirrored, or the opposite side. Otherwise as `maximum`.

    Source: Zhang 2019, "Making Convolutional Networks Shift-Invariant Again": MaxBlurPool, with the filter Tri-3.
    """
    x = kept(_maxima(_cut(x, window), window, 1, padding))
    return _summed(x, (0.25, 0.5, 0.25), "circular" if padding == "circular" else "mirror")


def adaptive_polyphase(
    x: jax.Array, *, window: int = 2, padding: str = "torch", choice: jax.Array | None = None
) -> jax.Array:
    """Maxima around every pixel, and of the four grids of every second pixel that whose squares have the largest sum.

    It is chosen for each image. An image that is shifted in a circle has the same grids in another order, and keeps the
    same one. Two branches that are to be added need one `choice`. Otherwise as `maximum`.

    Source: Chaman & Dokmanić 2021, "Truly Shift-Invariant Convolutional Neural Networks", with the norm of p = 2.
    """
    x = kept(_maxima(_cut(x, window), window, 1, padding))
    choice = x if choice is None else _maxima(_cut(choice, window), window, 1, padding)
    squares = jnp.square(jax.lax.stop_gradient(choice).astype(jnp.float32))
    best = _grids(_even(squares, padding)).sum((1, 3, 5)).reshape(-1, 4).argmax(1).reshape(-1, 1, 1, 1, 1)
    grids = _grids(_even(x, padding))
    rows = jnp.where(best // 2 == 1, grids[:, :, 1], grids[:, :, 0])
    return jnp.where(best[:, 0] % 2 == 1, rows[:, :, :, 1], rows[:, :, :, 0])


POOLINGS: dict[str, Callable[..., jax.Array]] = {
    "max": maximum,
    "average": average,
    "blur": blur,
    "aps": adaptive_polyphase,
}


def adaptive_average(x: jax.Array, *, size: tuple[int, int]) -> jax.Array:
    """[N,H,W,C] to [N,*size,C], of any size: means over parts that share pixels where they must, as in PyTorch."""

    def parts(side, count):
        matrix = np.zeros((count, side))
        for row in range(count):
            part = slice(row * side // count, -(-(row + 1) * side // count))
            matrix[row, part] = 1 / (part.stop - part.start)
        return jnp.asarray(matrix, x.dtype)

    if x.shape[1:3] == size:
        return x
    rows, columns = (parts(side, count) for side, count in zip(x.shape[1:3], size, strict=True))
    return jnp.einsum("nhwc,ih,jw->nijc", x, rows, columns, precision=jax.lax.Precision.HIGHEST)


def _cut(x: jax.Array, window: int) -> jax.Array:
    """Without what windows of 2 leave out of odd sides."""
    _, height, width, _ = x.shape
    if window != 2:
        return x
    if min(height, width) < 2:
        raise InputError(f"pooling: images of {height}×{width} are smaller than its window of 2: use larger images")
    return x[:, : height // 2 * 2, : width // 2 * 2]


def _even(x: jax.Array, padding: str) -> jax.Array:
    """Odd sides made even, with the first row and column again where the image is a circle, otherwise with the last."""
    widths = [(0, 0), *((0, side % 2) for side in x.shape[1:3]), (0, 0)]
    return jnp.pad(x, widths, mode="wrap" if padding == "circular" else "edge")


def _grids(x: jax.Array) -> jax.Array:
    """[N,2h,2w,C] as [N,h,2,w,2,C]: the gradient of a sum over this view needs no scatter."""
    n, height, width, channels = x.shape
    return x.reshape(n, height // 2, 2, width // 2, 2, channels)


@jax.custom_jvp
def _max_of_nine(x: jax.Array) -> jax.Array:
    """Over windows of 3×3 around every second pixel.

    The gradient is the choice read backwards: each pixel asks the windows that see it, one, two or four by its row and
    column. For 8 images of 112×112×64 both ways take 10 ms on a CPU, by `_maxima` 36, and by Linen, whose gradient is
    XLA's select-and-scatter, 116.
    """
    return largest(_nine(x, -jnp.inf))[0]


@_max_of_nine.defjvp
def _max_of_nine_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    y, place = largest(_nine(x, -jnp.inf))
    (_, height, width, _), (_, h, w, _) = x.shape, y.shape

    def chosen(dx):
        return sum(jnp.where(place == i, view, 0) for i, view in enumerate(_nine(dx, 0)))

    def back(dy):
        beyond = ((0, 0), (0, 1), (0, 1), (0, 0))
        places, dy = jnp.pad(place, beyond, constant_values=9), jnp.pad(dy, beyond)
        # Of even and of odd rows, and columns: (how far on the window is, where in it they are).
        along = (((0, 1),), ((0, 2), (1, 0)))

        def pixels(rows, columns):
            return sum(
                jnp.where(places[:, i : i + h, j : j + w] == 3 * row + column, dy[:, i : i + h, j : j + w], 0)
                for i, row in rows
                for j, column in columns
            )

        return spread([[pixels(rows, columns) for columns in along] for rows in along])[:, :height, :width]

    return y, linear(chosen, back, dx)


def _nine(x: jax.Array, beyond: float) -> list[jax.Array]:
    """What each place of a window of 3×3 sees, laid around every second pixel: nine views [N,h,w,C]."""
    shape = tuple(-(-side // 2) for side in x.shape[1:3])
    around = [(1, 2 * places - side, 0) for places, side in zip(shape, x.shape[1:3], strict=True)]
    x = jax.lax.pad(x, jnp.array(beyond, x.dtype), [(0, 0, 0), *around, (0, 0, 0)])
    return views(x, 3, (0, 0), 2, shape)


def _maxima(x: jax.Array, window: int, stride: int, padding: str) -> jax.Array:
    """Over windows of 1, 2 or 3, at every pixel or every second one."""
    beyond = "circular" if padding == "circular" else "nothing"
    for axis in (2, 1):  # in this order the first in reading order wins
        x = reduce(_larger, _views(x, axis, window, stride, beyond))
    return x


def _larger(a: jax.Array, b: jax.Array) -> jax.Array:
    # The gradient of `jnp.maximum` compares twice and divides.
    return jnp.where((a >= b) | jnp.isnan(a), a, b)


def _views(x: jax.Array, axis: int, window: int, stride: int, beyond: str) -> list[jax.Array]:
    """What each place of a window sees along an axis: a view for each.

    Beyond the border lies "nothing", which no maximum is; the image again, as in a circle ("circular") or a "mirror";
    or its last line ("edge").
    They are joined of parts of the image: the gradient of slices of a padded image is many times slower on a CPU.
    """
    size = x.shape[axis]

    def part(first, last, step=1):
        return jax.lax.slice_in_dim(x, first, last, step, axis)

    middle = part(0, size, stride)
    if window == 1:
        return [middle]
    if beyond == "nothing":
        start = end = jnp.full_like(part(0, 1), -jnp.inf)
    else:
        lines = {"circular": (-1, 0), "mirror": (min(1, size - 1), max(size - 2, 0)), "edge": (0, -1)}[beyond]
        start, end = (part(line % size, line % size + 1) for line in lines)
    after = part(1, size, stride)
    if after.shape[axis] < middle.shape[axis]:
        after = jnp.concatenate([after, end], axis)
    if window == 2:
        return [middle, after]
    before = part(stride - 1, max(size, stride) - 1, stride)
    return [jnp.concatenate([start, before], axis), middle, after]


def _summed(x: jax.Array, weights: tuple[float, ...], beyond: str) -> jax.Array:
    """Sums over windows with a weight for each place, both ways, at every second pixel; `beyond` as for `_views`.

    One way is done before the other begins: XLA on a CPU would join them, and compute many sums many times over.
    """
    for axis in (1, 2):
        parts = zip(weights, _views(x, axis, len(weights), 2, beyond), strict=True)
        x = kept(sum(weight * exact(view) for weight, view in parts).astype(x.dtype))
    return x
