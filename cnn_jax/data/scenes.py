"""Scenes: real items of a classification set at random sizes and places on cluttered grounds, with exact truth.

Everything is made on the device from a key, so there is no end of them, and the same key makes the same scenes. Items
are in ink of a random colour; they may lie partly behind each other, their boxes sharing at most a quarter of the
smaller. What is true of a scene is counted from its pixels: the box of an object is that of the pixels that are seen
of it.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.data.dataset import Dataset, moments
from cnn_jax.errors import InputError

# Ink of at least this share belongs to the object.
SOLID = 0.4
# Of 255: what is as dark counts as black.
BLACK = 25
CHUNK = 64
# Of items, on the ground of a scene.
PIECES = 6
TEST_KEY = 20_261_125


def load(
    items: Dataset,
    truth: Literal["boxes", "map"],
    *,
    train: int = 6000,
    test: int = 500,
    size: int = 64,
    seed: int = 0,
    most: int = 5,
) -> Dataset:
    """A set of scenes made of another set's images, those of its training split for training.

    The test scenes are the same for every `seed`.

    Args:
        items: a resident set of light items on black, such as `mnist_10k` or `fashion_mnist`.
        truth: "boxes" for detection (`boxes`, `label`, `objects`); "map" for segmentation (`map`, where class 0 is the
            ground, and the others come after it).
        train, test: how many scenes.
        size: side of a scene in pixels.
        seed: of the training scenes.
        most: objects in a scene; at least one, as many as there is room for.

    Raises:
        InputError: items in colour, not in memory, or not on black; a number out of range.
    """
    if not isinstance(items.train, dict) or items.image_shape[-1] != 1:
        raise InputError(
            f"scenes: {items.name} has images of shape {items.image_shape}, expected one channel, in memory"
        )
    edge = np.ones(items.image_shape[:2], bool)
    edge[1:-1, 1:-1] = False
    if np.median(items.train["image"][:1000, edge]) > BLACK:
        raise InputError(
            f"scenes: the images of {items.name} are no light items on black, which is what scenes are made of: at "
            "their edges most pixels are not black"
        )
    if min(train, test) < 1 or size < 32 or not 1 <= most <= 200:
        raise InputError(
            f"scenes: train {train}, test {test}, size {size}, most {most}: expected 1, 1, 32 and 1 or more"
        )
    keys = {"train": jax.random.fold_in(jax.random.key(seed), 1), "test": jax.random.key(TEST_KEY)}
    splits = {
        split: make(keys[split], getattr(items, split), count=count, size=size, most=most)
        for split, count in (("train", train), ("test", test))
    }
    kept = {"boxes": ("image", "boxes", "label", "objects"), "map": ("image", "map")}[truth]
    splits = {split: {name: scenes[name] for name in kept} for split, scenes in splits.items()}
    mean, std = moments(splits["train"]["image"][:1000])
    return Dataset(
        name=f"scenes_{items.name}",
        **splits,
        class_names=items.class_names if truth == "boxes" else ("ground", *items.class_names),
        image_shape=(size, size, 3),
        mean=mean,
        std=std,
        source=f"Scenes of {size}×{size} pixels with up to {most} items each, made from {items.name}. {items.source}",
    )


def make(key: jax.Array, items: dict, *, count: int, size: int = 64, most: int = 5) -> dict[str, np.ndarray]:
    """So many scenes of items {"image": u8[N,h,w,1], "label": i32[N]}.

    Returns:
        `image` u8[count,size,size,3]; `boxes` f32[count,most,4], `label` i32[count,most], `objects` bool[count,most];
        `instances` u8[count,size,size], 0 on the ground and i + 1 on object i; `map` u8[count,size,size], 0 on the
        ground and 1 + the label on an object.
    """
    items = {"image": np.asarray(items["image"])[..., 0], "label": np.asarray(items["label"])}
    chunks = []
    for i in range(-(-count // CHUNK)):
        keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(i * CHUNK, (i + 1) * CHUNK))
        rows = np.asarray(_rows(keys, len(items["label"]), most + PIECES))
        drawn = {name: values[rows] for name, values in items.items()}
        chunks.append(jax.device_get(_scenes(keys, drawn, size, most)))
    return {name: np.concatenate([chunk[name] for chunk in chunks])[:count] for name in chunks[0]}


@partial(jax.jit, static_argnums=2)
def _rows(keys, count, each):
    """The rows of random items, i32[N,each] for N keys; `count` is no constant of the program, nor of a scene's."""
    return jax.vmap(lambda key: jax.random.randint(jax.random.fold_in(key, 1), (each,), 0, count))(keys)


@partial(jax.jit, static_argnums=(2, 3))
def _scenes(keys, items, size, most):
    return jax.vmap(lambda key, items: _scene(key, items, size, most))(keys, items)


def _scene(key, items, size, most):
    ground_key, clutter_key, *object_keys = jax.random.split(key, most + 2)
    images, labels = items["image"] / 255.0, items["label"][:most]
    picture = _clutter(clutter_key, _ground(ground_key, size), images[most:])
    wanted = jax.random.randint(jax.random.fold_in(key, 0), (), 1, most + 1)

    def place(carry, given):
        picture, instances = carry
        i, key, image = given
        place_key, colour_key = jax.random.split(key)
        ink = _placed(place_key, image, size, (0.8, 1.6))
        solid = ink >= SOLID
        shared = _shared(boxes_of(instances, most)[0], boxes_of(solid.astype(jnp.int32), 1)[0])
        fits = (shared <= 0.25).all() & (solid.sum() >= 12) & (i < wanted)
        picture = jnp.where(fits, _painted(colour_key, picture, ink, contrast=0.5), picture)
        return (picture, jnp.where(fits & solid, i + 1, instances)), None

    start = (picture, jnp.zeros((size, size), jnp.int32))
    given = (jnp.arange(most), jnp.stack(object_keys), images[:most])
    (picture, instances), _ = jax.lax.scan(place, start, given)
    boxes, objects = boxes_of(instances, most)
    labels = jnp.where(objects, labels, 0)
    classes = jnp.where(instances > 0, 1 + labels[jnp.maximum(instances - 1, 0)], 0)
    return {
        "image": jnp.round(picture.clip(0, 1) * 255).astype(jnp.uint8),
        "boxes": boxes,
        "label": labels.astype(jnp.int32),
        "objects": objects,
        "instances": instances.astype(jnp.uint8),
        "map": classes.astype(jnp.uint8),
    }


def boxes_of(instances: jax.Array, most: int) -> tuple[jax.Array, jax.Array]:
    """The boxes around the pixels of objects 1 to `most` of a map i32[H,W]: (f32[most,4], whether there are any)."""
    own = instances[None] == jnp.arange(1, most + 1)[:, None, None]
    sides = []
    for axis in (1, 0):  # columns give left and right, rows top and bottom
        there = own.any(1 + (axis == 0))
        sides.append((there.argmax(1), there.shape[1] - there[:, ::-1].argmax(1)))
    (left, right), (top, bottom) = sides
    exists = own.any((1, 2))
    boxes = jnp.stack([left, top, right, bottom], axis=1)
    return jnp.where(exists[:, None], boxes, 0).astype(jnp.float32), exists


def _shared(boxes: jax.Array, box: jax.Array) -> jax.Array:
    """What part of the smaller of two boxes they share: f32[N] of boxes f32[N,4] and one f32[1,4]."""

    def area(x):
        return jnp.maximum(x[:, 2:] - x[:, :2], 0).prod(1)

    both = jnp.concatenate([jnp.maximum(boxes[:, :2], box[:, :2]), jnp.minimum(boxes[:, 2:], box[:, 2:])], axis=1)
    return area(both) / jnp.maximum(jnp.minimum(area(boxes), area(box)), 1)


def _placed(key, item, size, scales):
    """An item f32[h,w] at a random size and place in a scene, where an edge may cut off its margin: f32[size,size]."""
    scale_key, place_key = jax.random.split(key)
    height, width = item.shape
    scale = jax.random.uniform(scale_key, (), minval=scales[0], maxval=scales[1]) * min(1.0, size / 64 * 28 / height)
    lengths = jnp.array([height * scale, width * scale])
    margin = lengths / 7  # what MNIST leaves around a digit
    translation = jax.random.uniform(place_key, (2,), minval=-margin, maxval=size - lengths + margin)
    return jax.image.scale_and_translate(
        item, (size, size), (0, 1), jnp.full(2, scale), translation, method="linear", antialias=True
    )


def _painted(key, picture, ink, contrast):
    """The picture with ink of a random colour, which differs from what lies below it by at least `contrast`."""
    colour = jax.random.uniform(key, (3,))
    below = (picture * ink[..., None]).sum((0, 1)) / jnp.maximum(ink.sum(), 1e-6)
    apart = jnp.abs(colour - below).max()
    colour = jnp.where(apart >= contrast, colour, jnp.where(below < 0.5, below + 0.6, below - 0.6))
    return picture + ink[..., None] * (colour[None, None] - picture)


def _ground(key, size):
    """A ground of slow waves in two colours, and noise: f32[size,size,3]."""
    colour_key, wave_key, phase_key, noise_key = jax.random.split(key, 4)
    colours = jax.random.uniform(colour_key, (2, 3), minval=0.1, maxval=0.9)
    colours = colours.at[1].set(colours[0] + 0.5 * (colours[1] - colours[0]))
    waves = jax.random.normal(wave_key, (4, 2)) * jnp.array([1.0, 2.0, 4.0, 8.0])[:, None]
    y, x = jnp.mgrid[:size, :size] / size
    phases = jax.random.uniform(phase_key, (4, 1, 1))
    height = jnp.cos(
        2 * jnp.pi * (waves[:, 0, None, None] * y[None] + waves[:, 1, None, None] * x[None] + phases)
    ).mean(0)
    share = (0.5 + height)[..., None].clip(0, 1)
    first, second = colours[:, None, None]
    return first + share * (second - first) + 0.04 * jax.random.normal(noise_key, (size, size, 3))


def _clutter(key, picture, items):
    """Pieces of items f32[PIECES,h,w], too small to be any: strokes and corners that look like objects and are none."""

    def add(picture, given):
        key, item = given
        corner_key, place_key, colour_key = jax.random.split(key, 3)
        side = item.shape[0] * 2 // 7
        corner = jax.random.randint(corner_key, (2,), 0, item.shape[0] - side + 1)
        piece = jax.lax.dynamic_slice(item, corner, (side, side))
        ink = _placed(place_key, piece, len(picture), (0.8, 1.4))
        return _painted(colour_key, picture, 0.8 * ink, contrast=0.0), None

    return jax.lax.scan(add, picture, (jax.random.split(key, len(items)), items))[0]
