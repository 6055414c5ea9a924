"""Convolutions of each channel by itself, for a CPU."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from cnn_jax.models.places import Places, exact, padded, seen, spread
from cnn_jax.models.xla import alone, linear


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def depthwise(places: Places, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution of each channel by itself: a sum over the places of the kernel, as its two gradients are.

    XLA's CPU back end has no fast kernels for it. Of 8 images of 56×56×144 and kernels of 3×3, the value takes 5 ms of
    the processor's time for 110, the gradient of the image 5 and that of the kernel 13 for 490.
    """
    bare = places._replace(pads=((0, 0), (0, 0)))
    return alone(partial(_sum_over_places, bare), padded(places, x), kernel.reshape(1, -1, x.shape[-1]))


@partial(depthwise.defjvp, symbolic_zeros=True)
def _depthwise_jvp(places: Places, primals: tuple, tangents: tuple) -> tuple:
    (x, kernel), (dx, dkernel) = primals, tangents
    y = depthwise(places, x, kernel)
    of_kernel = partial(alone, partial(_of_kernel, places, len(kernel)), x)
    of_image = partial(alone, partial(_of_image, places, x.shape[1:3]), kernel)
    dy = jnp.zeros_like(y)
    if not isinstance(dkernel, SymbolicZero):
        # A kernel for each image: so devices that have a part of the images each need not speak to each other.
        each = jnp.broadcast_to(dkernel.reshape(1, -1, x.shape[-1]), (len(x), dkernel.size // x.shape[-1], x.shape[-1]))
        dy = dy + linear(partial(_sum_over_places, places, x), of_kernel, each)
    if not isinstance(dx, SymbolicZero):
        dy = dy + linear(lambda dx: depthwise(places, dx, kernel), of_image, dx)
    return y, dy


def _sum_over_places(places: Places, x: jax.Array, kernels: jax.Array) -> jax.Array:
    """[N,h,w,C] of [N,H,W,C] and kernels [1 or N, side², C]."""
    views = seen(places, math.isqrt(kernels.shape[1]), x)
    products = (exact(view) * exact(kernels[:, i, None, None]) for i, view in enumerate(views))
    return sum(products).astype(x.dtype)


def _of_kernel(places: Places, side: int, x: jax.Array, dy: jax.Array) -> jax.Array:
    """The gradient [N, side², C] of each image's kernel.

    One pass over the image sums the products of all places: as a sum for each place it takes 3 to 6 times as long.
    """
    products = [exact(view) * exact(dy) for view in seen(places, side, x)]
    zeros = [jnp.zeros((), products[0].dtype)] * len(products)
    columns = jax.lax.reduce(products, zeros, lambda sums, more: [a + b for a, b in zip(sums, more, strict=True)], (1,))
    return jnp.stack(columns, axis=1).sum(2).astype(x.dtype)


def _of_image(places: Places, size: tuple[int, int], kernel: jax.Array, dy: jax.Array) -> jax.Array:
    """The gradient [N,H,W,C] of the image: for each of its `stride` × `stride` phases a sum over the places."""
    stride = places.stride

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
        total = exact(jnp.zeros((len(dy), height, width, dy.shape[-1]), dy.dtype))
        for i, down in row:
            for j, right in column:
                view = padded[:, top + down : top + down + height, left + right : left + right + width]
                total = total + exact(view) * exact(kernel[None, None, None, i, j, 0])
        return total.astype(dy.dtype)

    return spread([[part(row, column) for column in columns] for row in rows])[:, : size[0], : size[1]]
