"""Augmentation that moves boxes and maps with the image, on the device.

Functions `name(key, batch, *, options) -> batch` as in `augment`, whose `compose` joins them. What is in the batch
beside `image` moves too: `boxes` f32[N,M,4] with `objects` bool[N,M], and `map` and `instances`, i32 or u8[N,H,W],
where what comes in from outside is 255 in a map and 0 among instances, and in the image the grey of a letterbox. An
object of which no more than the share `least` of its box is left is one no more.
"""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from cnn_jax.data import augment, image_ops
from cnn_jax.data.annotated import IGNORE, PAD
from cnn_jax.errors import InputError, unknown

Augmentation = Literal["flip", "scale", "crop", "color"]
OUTSIDE = {"map": IGNORE, "instances": 0}


def named(names: Sequence[Augmentation]) -> Callable | None:
    """The usual augmentations by short names, composed in the order given; None for no names."""
    choices = {
        "flip": flip,
        "scale": scale,
        "crop": crop,
        "color": augment.color_jitter,
    }
    for name in names:
        if name not in choices:
            raise unknown("augmentation", name, get_args(Augmentation))
    return augment.compose(*(choices[name] for name in names)) if names else None


def flip(key, batch, *, p: float = 0.5):
    """Mirrors each image left to right with probability `p`."""
    if not 0 <= p <= 1:
        raise InputError(f"p is {p}: it must be from 0 to 1")
    width = batch["image"].shape[2]
    chosen = jax.random.bernoulli(key, p, batch["image"].shape[:1])
    moved = {"image": batch["image"][:, :, ::-1]}
    moved |= {name: batch[name][:, :, ::-1] for name in OUTSIDE if name in batch}
    if "boxes" in batch:
        left, top, right, bottom = jnp.moveaxis(batch["boxes"], -1, 0)
        mirrored = jnp.stack([width - right, top, width - left, bottom], axis=-1)
        moved["boxes"] = jnp.where(batch["objects"][..., None], mirrored, 0)
    each = lambda x: chosen.reshape(-1, *[1] * (x.ndim - 1))  # noqa: E731
    return batch | {name: jnp.where(each(new), new, batch[name]) for name, new in moved.items()}


def scale(key, batch, *, factors: tuple[float, float] = (0.7, 1.4), least: float = 0.3):
    """Scales each image about its centre by a random factor; around what is made smaller there is grey."""
    if not 0 < factors[0] <= factors[1]:
        raise InputError(f"factors is {factors}: expected 0 < factors[0] ≤ factors[1]")
    factor = _between(key, factors, len(batch["image"]))
    return moved(batch, factor, jnp.zeros((len(factor), 2)), least=least)


def crop(key, batch, *, shares: tuple[float, float] = (0.5, 1.0), least: float = 0.3):
    """Cuts a window out of each image, at a random place and of a random share of its sides, and enlarges it to all."""
    if not 0 < shares[0] <= shares[1] <= 1:
        raise InputError(f"shares is {shares}: expected 0 < shares[0] ≤ shares[1] ≤ 1")
    n, height, width = batch["image"].shape[:3]
    share_key, place_key = jax.random.split(key)
    factor = 1 / _between(share_key, shares, n)
    # So far may the middle of the window, enlarged, be from that of the image.
    room = (factor - 1)[:, None] * jnp.array([[width, height]]) / 2
    return moved(batch, factor, jax.random.uniform(place_key, (n, 2), minval=-1) * room, least=least)


def _between(key, limits: tuple[float, float], count: int) -> jax.Array:
    """f32[count], as often twice as half."""
    low, high = map(jnp.log, limits)
    return jnp.exp(jax.random.uniform(key, (count,), minval=low, maxval=high))


def moved(batch: dict, factor: jax.Array, away: jax.Array, *, least: float = 0.3) -> dict:
    """The batch with each image scaled about its centre by `factor` f32[N], then shifted by `away` f32[N,2], (x, y).

    Images are interpolated, maps are not.
    """
    if not 0 <= least < 1:
        raise InputError(f"least is {least}: it must be from 0 to below 1")
    n, height, width = batch["image"].shape[:3]
    back = -away / factor[:, None]
    matrix = jnp.zeros((n, 2, 3)).at[:, [0, 1], [0, 1]].set(1 / factor[:, None]).at[:, :, 2].set(back)
    out = dict(batch, image=image_ops.affine(image_ops.as_float(batch["image"]), matrix, fill=PAD / 255))
    x = (jnp.arange(width)[None] - (width - 1) / 2) / factor[:, None] + back[:, :1] + (width - 1) / 2
    y = (jnp.arange(height)[None] - (height - 1) / 2) / factor[:, None] + back[:, 1:] + (height - 1) / 2
    column, row = (jnp.floor(places + 0.5).astype(jnp.int32) for places in (x, y))
    inside = ((row >= 0) & (row < height))[:, :, None] & ((column >= 0) & (column < width))[:, None, :]
    for name, outside in OUTSIDE.items():
        if name in batch:
            take = jax.vmap(lambda values, row, column: values[row.clip(0, height - 1)][:, column.clip(0, width - 1)])
            out[name] = jnp.where(inside, take(batch[name], row, column), outside).astype(batch[name].dtype)
    if "boxes" in batch:
        size = jnp.array([[[width, height, width, height]]], jnp.float32)
        moved_boxes = (batch["boxes"] - size / 2) * factor[:, None, None] + size / 2 + jnp.tile(away, 2)[:, None]
        seen = moved_boxes.clip(0, size)
        sides, whole = ((b[..., 2:] - b[..., :2]).prod(-1) for b in (seen, moved_boxes))
        out["objects"] = batch["objects"] & (sides > least * whole)
        out["boxes"] = jnp.where(out["objects"][..., None], seen, 0)
        if "area" in batch:
            out["area"] = batch["area"] * sides / jnp.maximum(whole, 1e-6)
    return out
