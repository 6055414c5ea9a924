"""Convolutions with kernels of 3×3 by fewer products, for a CPU.

Lavin & Gray 2016, "Fast algorithms for convolutional neural networks", section 4.1: F(2×2, 3×3).
"""

from collections.abc import Callable
from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from cnn_jax.models.places import Places, apart, matrix, spread
from cnn_jax.models.xla import kept

# With fewer channels or features its sums cost as much as the products that it saves.
CHANNELS = 32
# Pixels times channels times features; with less to do a larger program, longer in compilation, is not worth it.
WORK = 2**24
# With so many channels and features a product that reads an array across is as fast as with its transpose.
WIDE = 128


def is_much(x: jax.Array, kernel: jax.Array) -> bool:
    """Whether a convolution is worth a larger program with fewer products."""
    n, height, width, channels = x.shape
    images = n if isinstance(n, int) else 1  # an exported program takes any number of images
    products = images * height * width * channels * kernel.shape[3]
    return x.dtype == jnp.float32 and min(kernel.shape[2:]) >= CHANNELS and products >= WORK


def suits_winograd(places: Places, x: jax.Array, kernel: jax.Array) -> bool:
    """Whether `winograd` computes this convolution, and is faster."""
    beyond = (places.dilation,) * 2
    laid = Places(stride=1, dilation=places.dilation, groups=1, pads=(beyond, beyond))
    return places == laid and len(kernel) == 3 and is_much(x, kernel)


def winograd(places: Places, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution with stride 1 and a padding as wide as its dilation, in 16 products where a plain one has 36.

    Tiles of 4×4 pixels, each two pixels from the last, give 2×2 places. All numbers in its matrices are 1, ½ or their
    negatives, so in float32 it is as exact as a plain sum. The gradients have 16 products each too, and share their
    form of the gradient of the places. Training holds the tiles, four times the numbers of the image.
    """
    if places.dilation > 1:
        return _dilated(places, x, kernel)
    n, height, width, _ = x.shape
    h, w = -(-height // 2), -(-width // 2)
    pixels = _pixels(jnp.pad(x, ((0, 0), (0, 2 * h - height), (0, 2 * w - width), (0, 0))))
    # Kept, and so are their gradients: XLA would make anew what they are made of, for each of the 16 and of the four.
    tiles = kept(_both_ways(_image_form, pixels))
    products = _products([matrix(tile) for row in tiles for tile in row], _transformed(kernel))
    values = [product.reshape(n, h, w, -1) for product in products]
    return spread(kept(_both_ways(_place_form, [values[i : i + 4] for i in range(0, 16, 4)])))[:, :height, :width]


def _dilated(places: Places, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """With a dilation of d every d-th pixel belongs to an image of its own, on which the kernel is not dilated."""
    step, (n, height, width, channels) = places.dilation, x.shape
    h, w = -(-height // step), -(-width // step)
    x = jnp.pad(x, ((0, 0), (0, step * h - height), (0, step * w - width), (0, 0)))
    x = x.reshape(n, h, step, w, step, channels).transpose(0, 2, 4, 1, 3, 5).reshape(-1, h, w, channels)
    y = winograd(places._replace(dilation=1), x, kernel)
    y = y.reshape(n, step, step, h, w, -1).transpose(0, 3, 1, 4, 2, 5).reshape(n, step * h, step * w, -1)
    return y[:, :height, :width]


def _transformed(kernel: jax.Array) -> list[jax.Array]:
    """16 matrices [C,F] of a kernel [3,3,C,F]."""
    parts = jax.lax.split(kernel.reshape(9, *kernel.shape[2:]), [1] * 9)  # whose gradient is one array at once
    grid = _both_ways(_kernel_form, [[part[0] for part in parts[i : i + 3]] for i in (0, 3, 6)])
    return [weight for row in grid for weight in row]


@jax.custom_jvp
def _products(tiles: list[jax.Array], weights: list[jax.Array]) -> list[jax.Array]:
    """16 matrices [tiles,F] of such [tiles,C] and [C,F]."""
    return [tile @ weight for tile, weight in zip(tiles, weights, strict=True)]


@partial(_products.defjvp, symbolic_zeros=True)
def _products_jvp(primals: tuple, tangents: tuple) -> tuple[list[jax.Array], list[jax.Array]]:
    (tiles, weights), (dtiles, dweights) = primals, tangents
    y, terms = _products(tiles, weights), []
    if not isinstance(dweights[0], SymbolicZero):
        if min(weights[0].shape) >= WIDE:
            terms.append([tile @ dweight for tile, dweight in zip(tiles, dweights, strict=True)])
        else:  # read backwards, products of the transposes, and so YNNPACK's: XLA's own take half as long again
            turned = kept([tile.T for tile in tiles])
            across = (((0,), (0,)), ((), ()))
            terms.append([jax.lax.dot_general(*pair, across) for pair in zip(turned, dweights, strict=True)])
    if not isinstance(dtiles[0], SymbolicZero):
        terms.append([dtile @ weight for dtile, weight in zip(dtiles, weights, strict=True)])
    return y, [reduce(jnp.add, parts) for parts in zip(*terms, strict=True)]


def _pixels(x: jax.Array) -> list[list[jax.Array]]:
    """4×4 views [N,H/2,W/2,C]: the pixels of all tiles, a place at a time; tiles begin a pixel before their places."""

    def four(two: list, axis: int) -> list:
        even, odd = two
        return [_moved(odd, axis, 1), even, odd, _moved(even, axis, -1)]

    rows = [four(row, 2) for row in apart(x, 2)]
    return [list(row) for row in zip(*[four(column, 1) for column in zip(*rows, strict=True)], strict=True)]


def _moved(x: jax.Array, axis: int, by: int) -> jax.Array:
    """Each number `by` places on, with zeros where none comes."""
    return jax.lax.pad(x, jnp.zeros((), x.dtype), [(by, -by, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)])


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
