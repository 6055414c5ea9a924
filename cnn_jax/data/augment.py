"""Augmentation on the device: random changes to a batch that keep, or mix, its labels.

Every augmentation is a function `name(key, batch, *, options) -> batch`. It reads `image`, u8[N,H,W,C] in 0..255 or
f32[N,H,W,C] in [0,1], and returns the batch with `image` f32[N,H,W,C] in [0,1]; `mixup` and `cutmix` also turn `label`
into f32[N,num_classes]. All else in the batch is passed on. Shapes are static and everything is traceable. Each image
has random numbers of its own. Give options with `functools.partial` and chain with `compose`:

    augment = compose(partial(translate, pixels=2), flip, partial(mixup, num_classes=10))
    batch = augment(key, batch)

One of your own is any function of that form; the deterministic parts are in `image_ops`:

    def darken(key, batch, *, least=0.5):
        factor = jax.random.uniform(key, batch["image"].shape[:1], minval=least)
        return batch | {"image": image_ops.brightness(image_ops.as_float(batch["image"]), factor)}

Options out of range raise `InputError` when the function is first called or traced. Colour operations need images of 1
or 3 channels, and leave the hue and saturation of grey ones (C=1) alone.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from cnn_jax.data import image_ops as ops
from cnn_jax.errors import InputError, unknown

Augmentation = Literal["shift", "flip", "crop", "resized_crop", "color", "erase", "rand", "mixup", "cutmix"]


def compose(*augmentations: Callable) -> Callable:
    """One augmentation that applies the given ones in turn, each with a key of its own. Without any: only to float.

    The keys depend on the position alone, so that appending an augmentation does not change those before it.
    """

    def augment(key, batch):
        batch = batch | {"image": ops.as_float(batch["image"])}
        for position, augmentation in enumerate(augmentations):
            batch = augmentation(jax.random.fold_in(key, position), batch)
        return batch

    return augment


def named(names: Sequence[Augmentation], num_classes: int) -> Callable | None:
    """The usual augmentations by short names, composed in the order given; None for no names."""
    choices = {
        "shift": partial(translate, pixels=2),
        "flip": flip,
        "crop": partial(pad_crop, padding=4),
        "resized_crop": random_resized_crop,
        "color": color_jitter,
        "erase": random_erasing,
        "rand": rand_augment,
        "mixup": partial(mixup, num_classes=num_classes),
        "cutmix": partial(cutmix, num_classes=num_classes),
    }
    for name in names:
        if name not in choices:
            raise unknown("augmentation", name, get_args(Augmentation))
    return compose(*(choices[name] for name in names)) if names else None


# Geometry


def flip(key, batch, *, p: float = 0.5):
    """Mirror each image left to right with probability `p`."""
    _check_p(p)
    images = ops.as_float(batch["image"])
    chosen = jax.random.bernoulli(key, p, images.shape[:1])
    return batch | {"image": jnp.where(ops.each(chosen), images[:, :, ::-1], images)}


def translate(key, batch, *, pixels: int = 2, mode: str = "constant"):
    """Shift each image by whole pixels, both ways uniform in -pixels..pixels; what comes in is filled by `mode`.

    `mode` is one of `jnp.pad`'s: "constant" (zeros), "edge", "reflect", …
    """
    return pad_crop(key, batch, padding=pixels, mode=mode)


def pad_crop(key, batch, *, padding: int = 4, size: tuple[int, int] | None = None, mode: str = "constant"):
    """Pad all four sides, then cut out a window of `size` (height, width) at a uniformly random place.

    `size` is the images' own unless given. The usual augmentation of CIFAR (Lee et al. 2015, "Deeply-Supervised Nets";
    He et al. 2016, section 4.2). `mode` is one of `jnp.pad`'s: "constant" (zeros), "edge", "reflect", …
    """
    images = ops.as_float(batch["image"])
    n, height, width, _ = images.shape
    if padding < 0:
        raise InputError(f"padding is {padding}: it must not be negative")
    size = size or (height, width)
    room = height + 2 * padding - size[0], width + 2 * padding - size[1]
    if min(size) < 1 or min(room) < 0:
        raise InputError(f"size {size} does not fit into images of {height}x{width} padded by {padding}")
    images = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode=mode)
    corner = jax.random.randint(key, (n, 2), 0, jnp.array(room)[None, :] + 1)
    return batch | {"image": ops.crop(images, corner[:, 0], corner[:, 1], size)}


def random_resized_crop(
    key,
    batch,
    *,
    size: tuple[int, int] | None = None,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
):
    """Cut out a random box and resize it to `size` (height, width), the images' own unless given.

    The box has a share of the area uniform in `scale` and a width:height log-uniform in `ratio`. As in torchvision, ten
    boxes are drawn and the first that fits is taken; if none does, the largest one in the middle whose ratio is
    allowed. Resizing is bilinear, with antialiasing. Szegedy et al. 2015, "Going Deeper with Convolutions", section 6.
    """
    images = ops.as_float(batch["image"])
    n, height, width, _ = images.shape
    box, fits = _random_box(key, n, (height, width), scale, ratio)
    middle_height = min(height, round(width / ratio[0]))
    middle_width = min(width, round(height * ratio[1]))
    middle = (height - middle_height) // 2, (width - middle_width) // 2, middle_height, middle_width
    box = tuple(jnp.where(fits, ours, default) for ours, default in zip(box, middle, strict=True))
    return batch | {"image": ops.crop_resize(images, box, size or (height, width))}


# Colour


def color_jitter(
    key,
    batch,
    *,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
    hue: float = 0.0,
):
    """Change brightness, contrast, saturation and hue, in this order, each by a random amount.

    Factors are uniform in [max(0, 1 - x), 1 + x], the turn of the hue in [-hue, hue] of the circle, hue ≤ 0.5. The
    amounts are torchvision's; its order is random.
    """
    if min(brightness, contrast, saturation, hue) < 0 or hue > 0.5:
        raise InputError(
            f"brightness {brightness}, contrast {contrast}, saturation {saturation} and hue {hue} must not be "
            "negative, and hue at most 0.5"
        )
    images = ops.as_float(batch["image"])
    keys = jax.random.split(key, 4)
    for change, amount, its_key in (
        (ops.brightness, brightness, keys[0]),
        (ops.contrast, contrast, keys[1]),
        (ops.saturation, saturation, keys[2]),
    ):
        if amount:
            factor = jax.random.uniform(its_key, images.shape[:1], minval=max(0, 1 - amount), maxval=1 + amount)
            images = change(images, factor)
    if hue:
        images = ops.hue(images, jax.random.uniform(keys[3], images.shape[:1], minval=-hue, maxval=hue))
    return batch | {"image": images}


# Erasing


def cutout(key, batch, *, size: int = 16, value: float = 0.0, p: float = 1.0):
    """Fill a square of `size` pixels with `value`, with probability `p`; its centre is any pixel, so it may be cut off.

    DeVries & Taylor 2017, "Improved Regularization of Convolutional Neural Networks with Cutout".
    """
    _check_p(p)
    if size < 1:
        raise InputError(f"size is {size}: it must be at least 1")
    images = ops.as_float(batch["image"])
    n, height, width, _ = images.shape
    where, whether = jax.random.split(key)
    centre = jax.random.randint(where, (n, 2), 0, jnp.array([[height, width]]))
    inside = _inside(centre[:, 0] - size // 2, centre[:, 1] - size // 2, size, size, (height, width))
    inside &= ops.each(jax.random.bernoulli(whether, p, (n,)))
    return batch | {"image": jnp.where(inside, value, images)}


def random_erasing(
    key,
    batch,
    *,
    p: float = 0.5,
    scale: tuple[float, float] = (0.02, 0.33),
    ratio: tuple[float, float] = (0.3, 3.3),
    value: float | None = 0.0,
):
    """With probability `p` fill a random box inside the image with `value`, or, if that is None, with uniform noise.

    The box has a share of the area uniform in `scale` and a width:height log-uniform in `ratio`; ten are drawn, and if
    none fits, nothing is erased. Zhong et al. 2020, "Random Erasing Data Augmentation".
    """
    _check_p(p)
    images = ops.as_float(batch["image"])
    n, height, width, _ = images.shape
    where, whether, what = jax.random.split(key, 3)
    (top, left, box_height, box_width), fits = _random_box(where, n, (height, width), scale, ratio)
    inside = _inside(top, left, box_height, box_width, (height, width))
    inside &= ops.each(fits & jax.random.bernoulli(whether, p, (n,)))
    fill = jax.random.uniform(what, images.shape) if value is None else value
    return batch | {"image": jnp.where(inside, fill, images)}


# Mixing. The partner of each image is the one before it: batches come in random order, and a neighbour is the cheapest
# to fetch when the batch is spread over devices. Each image has a weight of its own; the papers draw one a batch.


def mixup(key, batch, *, num_classes: int | None = None, alpha: float = 0.2, p: float = 1.0):
    """Blend each image, and its label, with the one before it in the batch: λ·own + (1 - λ)·other, λ ~ Beta(α, α).

    `label` becomes f32[N,num_classes]; `num_classes` is needed unless the labels are soft already. With probability
    1 - p, and next to padding (`mask` False), an image stays as it is. Zhang et al. 2018, "mixup: Beyond Empirical
    Risk Minimization".
    """
    images, labels = ops.as_float(batch["image"]), _soft_labels(batch["label"], num_classes)
    own = _own_share(key, batch, alpha, p)
    other = jnp.roll(images, 1, axis=0)
    return batch | {
        "image": ops.each(own) * images + ops.each(1 - own) * other,
        "label": _mix_labels(own, labels),
    }


def cutmix(key, batch, *, num_classes: int | None = None, alpha: float = 1.0, p: float = 1.0):
    """Paste a box of the image before it in the batch into each image, and mix their labels by area.

    The box has the images' shape and a share 1 - λ of their area, λ ~ Beta(α, α), around a uniformly random pixel; what
    lies outside is cut off, and the label's weight is the exact share of the pixels that remain. For the labels,
    padding and `p` see `mixup`. Yun et al. 2019, "CutMix".
    """
    images, labels = ops.as_float(batch["image"]), _soft_labels(batch["label"], num_classes)
    n, height, width, _ = images.shape
    share, where = jax.random.split(key)
    side = jnp.sqrt(1 - _own_share(share, batch, alpha, p))
    box_height, box_width = (jnp.floor(side * length).astype(jnp.int32) for length in (height, width))
    centre = jax.random.randint(where, (n, 2), 0, jnp.array([[height, width]]))
    top, left = centre[:, 0] - box_height // 2, centre[:, 1] - box_width // 2
    inside = _inside(top, left, box_height, box_width, (height, width))
    return batch | {
        "image": jnp.where(inside, jnp.roll(images, 1, axis=0), images),
        "label": _mix_labels(1 - inside.mean(axis=(1, 2, 3), dtype=jnp.float32), labels),
    }


# RandAugment

_OPERATIONS = (
    *("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate"),
    *("brightness", "color", "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize"),
)


def rand_augment(key, batch, *, num_ops: int = 2, magnitude: float = 9, fill: float = 0.0):
    """Apply `num_ops` operations in turn, each drawn anew and uniformly from 14 for each image.

    `magnitude` is on torchvision's scale of 0 to 30, where 0 changes nothing but for autocontrast and equalize, and at
    30: shear x/y by 0.3, translate x/y by 45 % of the side (whole pixels), rotate by 30°, brightness, colour, contrast
    and sharpness by a factor of 1 ± 0.9, each with a random sign; posterize to 4 bits; solarize from 0. (The paper's
    scale of 10 spans about the same.) Geometric operations are bilinear and fill with `fill`. On grey images colour is
    the identity. Cubuk et al. 2020, "RandAugment: Practical automated data augmentation with a reduced search space".
    """
    if num_ops < 1 or not 0 <= magnitude <= 30:
        raise InputError(f"num_ops is {num_ops} and magnitude {magnitude}: at least 1, and 0 to 30, are expected")
    images = ops.as_float(batch["image"])
    for its_key in jax.random.split(key, num_ops):
        which, sign = jax.random.split(its_key)
        index = jax.random.randint(which, images.shape[:1], 0, len(_OPERATIONS))
        sign = jax.random.rademacher(sign, images.shape[:1], dtype=jnp.float32)
        images = _apply_operation(images, index, sign, magnitude / 30, fill)
    return batch | {"image": images}


def _apply_operation(images, index, sign, strength, fill):
    """Image i goes through operation `_OPERATIONS[index[i]]`, at `strength` in [0,1], with the sign given: ±1, f32[N].

    An accelerator cannot branch by image, so all are computed, the five geometric ones as one, and one is taken.
    """
    _, height, width, _ = images.shape

    def amount(name, value):
        return jnp.where(index == _OPERATIONS.index(name), sign * value, 0)

    angle = amount("rotate", strength * jnp.pi / 6)
    shift_x = amount("translate_x", round(strength * width * 150 / 331))
    shift_y = amount("translate_y", round(strength * height * 150 / 331))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    matrix = jnp.stack(
        [cos, sin + amount("shear_x", 0.3 * strength), shift_x, amount("shear_y", 0.3 * strength) - sin, cos, shift_y],
        axis=-1,
    ).reshape(-1, 2, 3)
    factor = 1 + 0.9 * strength * sign
    results = {
        "brightness": ops.brightness(images, factor),
        "color": ops.saturation(images, factor),
        "contrast": ops.contrast(images, factor),
        "sharpness": ops.sharpness(images, factor),
        "posterize": ops.posterize(images, 8 - round(4 * strength)),
        "solarize": ops.solarize(images, 1 - strength) if strength else images,
        "autocontrast": ops.autocontrast(images),
        "equalize": ops.equalize(images),
    }
    is_geometric = (index > 0) & (index <= _OPERATIONS.index("rotate"))
    out = jnp.where(ops.each(is_geometric), ops.affine(images, matrix, fill=fill), images)
    for name, result in results.items():
        out = jnp.where(ops.each(index == _OPERATIONS.index(name)), result, out)
    return out


# Parts


def _check_p(p):
    if not 0 <= p <= 1:
        raise InputError(f"p is {p}: a probability lies in 0 to 1")


def _inside(top, left, height, width, size):
    """bool[N,H,W,1], True in each image's box; the parts of a box that lie outside the image count for nothing."""
    y, x = jnp.arange(size[0]).reshape(1, -1, 1, 1), jnp.arange(size[1]).reshape(1, 1, -1, 1)
    top, left, height, width = (ops.each(edge) for edge in (top, left, height, width))
    return (y >= top) & (y < top + height) & (x >= left) & (x < left + width)


def _random_box(key, n, size, scale, ratio, tries=10):
    """The first of `tries` random boxes that fits into `size`: (top, left, height, width) i32[N], and fits bool[N]."""
    if not 0 < scale[0] <= scale[1] <= 1:
        raise InputError(f"scale is {scale}: expected shares of the area, 0 < least ≤ most ≤ 1")
    if not 0 < ratio[0] <= ratio[1]:
        raise InputError(f"ratio is {ratio}: expected width:height, 0 < least ≤ most")
    for_area, for_ratio, for_place = jax.random.split(key, 3)
    area = size[0] * size[1] * jax.random.uniform(for_area, (n, tries), minval=scale[0], maxval=scale[1])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = jnp.exp(jax.random.uniform(for_ratio, (n, tries), minval=low, maxval=high))
    height = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    width = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    fitting = (height >= 1) & (width >= 1) & (height <= size[0]) & (width <= size[1])
    first = jnp.argmax(fitting, axis=1, keepdims=True)
    height, width, fits = (jnp.take_along_axis(values, first, axis=1)[:, 0] for values in (height, width, fitting))
    place = jax.random.uniform(for_place, (n, 2))
    top = jnp.floor(place[:, 0] * (size[0] - height + 1)).astype(jnp.int32)
    left = jnp.floor(place[:, 1] * (size[1] - width + 1)).astype(jnp.int32)
    return (top, left, height, width), fits


def _soft_labels(labels, num_classes):
    if labels.ndim == 2:
        return labels.astype(jnp.float32)
    if num_classes is None:
        raise InputError("num_classes is None: mixing integer labels needs the number of classes")
    return jax.nn.one_hot(labels, num_classes)


def _own_share(key, batch, alpha, p):
    """λ ~ Beta(alpha, alpha), f32[N]; 1 with probability 1 - p, and where the image or its partner is padding."""
    _check_p(p)
    if alpha <= 0:
        raise InputError(f"alpha is {alpha}: it must be positive")
    n = batch["image"].shape[0]
    for_share, whether = jax.random.split(key)
    share = jax.random.uniform(for_share, (n,)) if alpha == 1 else jax.random.beta(for_share, alpha, alpha, (n,))
    mask = batch.get("mask", jnp.ones(n, bool))
    return jnp.where(jax.random.bernoulli(whether, p, (n,)) & mask & jnp.roll(mask, 1), share, 1.0)


def _mix_labels(own, labels):
    return own[:, None] * labels + (1 - own)[:, None] * jnp.roll(labels, 1, axis=0)
