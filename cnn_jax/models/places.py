"""Where a kernel is laid on images, and images seen from there."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Places(NamedTuple):
    """Where the kernel is laid; `pads` are pixels (before, after) the rows and the columns."""

    stride: int
    dilation: int
    groups: int
    pads: tuple[tuple[int, int], tuple[int, int]]


def matrix(x: jax.Array) -> jax.Array:
    """[N,H,W,C] as [N·H·W,C]. Of four axes XLA's CPU back end makes transposed copies, to sum products over three."""
    return x.reshape(-1, x.shape[-1])


def exact(x: jax.Array) -> jax.Array:
    """`x` as sums over places are made of it: float32 for all that is smaller."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def largest(values: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The maxima of what each place sees, and u8 which place it is: of equals the first. What is no number wins."""
    best, *others = values
    place = jnp.zeros(best.shape, jnp.uint8)
    for i, other in enumerate(others, start=1):
        stays = (best >= other) | jnp.isnan(best)
        best, place = jnp.where(stays, best, other), jnp.where(stays, place, jnp.uint8(i))
    return best, place


def padded(places: Places, x: jax.Array) -> jax.Array:
    """Images with the zeros around them."""
    return jnp.pad(x, ((0, 0), *places.pads, (0, 0)))


def seen(places: Places, side: int, x: jax.Array) -> list[jax.Array]:
    """What each place of a kernel sees: side² views [N,h,w,C] of images."""
    x = padded(places, x)
    shape = tuple((length - places.dilation * (side - 1) - 1) // places.stride + 1 for length in x.shape[1:3])
    return views(x, side, (0, 0), places.stride, shape, dilation=places.dilation)


def views(x: jax.Array, side: int, corner: tuple, step: int, shape: tuple, *, dilation: int = 1) -> list[jax.Array]:
    """What each place of a kernel sees: side² views [N,h,w,C] of padded images, every `step` pixels from a corner."""
    rows, columns = (step * (length - 1) + 1 for length in shape)
    return [
        jax.lax.slice(x, (0, i, j, 0), (x.shape[0], i + rows, j + columns, x.shape[3]), (1, step, step, 1))
        for i in range(corner[0], corner[0] + side * dilation, dilation)
        for j in range(corner[1], corner[1] + side * dilation, dilation)
    ]


def spread(phases: list[list[jax.Array]]) -> jax.Array:
    """[N,h·s,w·s,C] of s×s arrays [N,h,w,C]: of each square of s×s pixels one from each."""
    rows = jnp.stack([jnp.stack(row, axis=3) for row in phases], axis=2)
    n, height, down, width, right, channels = rows.shape
    return rows.reshape(n, height * down, width * right, channels)


def apart(x: jax.Array, step: int) -> list[list[jax.Array]]:
    """The s×s arrays [N,h,w,C] of which `spread` makes [N,h·s,w·s,C]."""
    n, height, width, channels = x.shape
    x = x.reshape(n, height // step, step, width // step, step, channels)

    def along(x: jax.Array, axis: int) -> list[jax.Array]:
        return [part.squeeze(axis) for part in jax.lax.split(x, [1] * step, axis)]  # whose gradient is one array

    return [along(row, 3) for row in along(x, 2)]
