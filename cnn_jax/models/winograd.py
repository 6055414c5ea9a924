"""Convolutions with kernels of 3×3 by fewer products, for a CPU.

Lavin & Gray 2016, "Fast algorithms for convolutional neural networks", section 4.1: F(2×2, 3×3).
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from cnn_jax.models.places import Places, matrix, spread, views
from cnn_jax.models.xla import linear

# With fewer channels or features its sums cost as much as the products that it saves; with fewer pixels a larger
# program is not worth it.
CHANNELS = 128
PIXELS = 512


def suits_winograd(places: Places, x: jax.Array, kernel: jax.Array) -> bool:
    """Whether `winograd` computes this convolution, and is faster."""
    laid = Places(stride=1, dilation=1, groups=1, pads=((1, 1), (1, 1)))
    much = min(kernel.shape[2:]) >= CHANNELS and x.size >= PIXELS * x.shape[-1]
    return places == laid and len(kernel) == 3 and x.dtype == jnp.float32 and much


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def winograd(places: Places, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution with stride 1 and one pixel of padding, in 16 products where a plain one has 36.

    Tiles of 4×4 pixels, each two pixels from the last, give 2×2 places. All numbers in its matrices are 1, ½ or their
    negatives, so in float32 it is as exact as a plain sum.
    """
    return _of_tiles(x, _transformed(kernel))


@partial(winograd.defjvp, symbolic_zeros=True)
def _winograd_jvp(places: Places, primals: tuple, tangents: tuple) -> tuple:
    (x, kernel), (dx, dkernel) = primals, tangents
    y = winograd(places, x, kernel)
    dy = jnp.zeros_like(y)
    if not isinstance(dkernel, SymbolicZero):
        dy = dy + _of_tiles(x, _transformed(dkernel))
    if not isinstance(dx, SymbolicZero):
        dy = dy + linear(lambda dx: winograd(places, dx, kernel), partial(_of_image, kernel), dx)
    return y, dy


def _of_image(kernel: jax.Array, dy: jax.Array) -> jax.Array:
    """The gradient of the image: with the kernel turned around, whose form has the first and last exchanged."""
    weights = _transformed(kernel)
    return _of_tiles(dy, [[weights[i][j].T for j in (3, 1, 2, 0)] for i in (3, 1, 2, 0)])


def _of_tiles(x: jax.Array, weights: list[list[jax.Array]]) -> jax.Array:
    """[N,H,W,F] of [N,H,W,C] and 4×4 matrices [C,F]."""
    n, height, width, _ = x.shape
    pairs = [list(zip(*rows, strict=True)) for rows in zip(_tiles(x), weights, strict=True)]
    products = [[matrix(tile) @ weight for tile, weight in row] for row in pairs]
    shape = (n, -(-height // 2), -(-width // 2), -1)
    grid = [[values.reshape(shape) for values in row] for row in _both_ways(_place_form, products)]
    return spread(grid)[:, :height, :width]


def _transformed(kernel: jax.Array) -> list[list[jax.Array]]:
    """4×4 matrices [C,F] of a kernel [3,3,C,F]."""
    parts = jax.lax.split(kernel.reshape(9, *kernel.shape[2:]), [1] * 9)  # whose gradient is one array at once
    return _both_ways(_kernel_form, [[part[0] for part in parts[i : i + 3]] for i in (0, 3, 6)])


def _tiles(x: jax.Array) -> list[list[jax.Array]]:
    """4×4 of [N,⌈H/2⌉,⌈W/2⌉,C]: the pixels of all tiles, a place at a time, in the form that is multiplied."""
    shape = tuple(-(-length // 2) for length in x.shape[1:3])
    around = [(1, 2 * half - length + 1) for half, length in zip(shape, x.shape[1:3], strict=True)]
    pixels = views(jnp.pad(x, ((0, 0), *around, (0, 0))), 4, (0, 0), 2, shape)
    return _both_ways(_image_form, [pixels[i : i + 4] for i in range(0, 16, 4)])


def _both_ways(form: Callable, grid: list[list[jax.Array]]) -> list[list[jax.Array]]:
    """A form of a row of arrays, taken of each row of a grid and then of each column."""
    columns = zip(*[form(row) for row in grid], strict=True)
    return [list(row) for row in zip(*[form(column) for column in columns], strict=True)]


# The matrices Bᵀ, G and Aᵀ of F(2, 3).


def _image_form(d: list) -> list:
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _kernel_form(g: list) -> list:
    return [g[0], (g[0] + g[1] + g[2]) / 2, (g[0] - g[1] + g[2]) / 2, g[2]]


def _place_form(m: list) -> list:
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]
