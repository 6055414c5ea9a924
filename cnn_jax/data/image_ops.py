"""Deterministic operations on images: the vocabulary of `augment`, which draws their parameters at random.

`images` is f32[N,H,W,C] in [0,1], and so is every result unless said otherwise. A parameter (`factor`, `bits`, …) is a
number, or an array [N] with one value per image. All are traceable. "As Pillow" means equal to the Pillow function
named, on 8-bit images, up to its rounding to whole levels (1/255).
"""

import jax
import jax.numpy as jnp

from cnn_jax.errors import InputError


def as_float(images):
    """u8 in 0..255 becomes f32 in [0,1]; floating point images are taken to be in [0,1] and become f32."""
    images = jnp.asarray(images)
    if images.ndim != 4:
        raise InputError(f"image has shape {images.shape}, expected (N, H, W, C)")
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images.astype(jnp.float32)
    raise InputError(f"image has dtype {images.dtype}, expected uint8 in 0..255 or floating point in [0,1]")


def grey(images):
    """Luma 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601, as Pillow's `convert("L")`): f32[N,H,W,1]. C=1: the image."""
    if images.shape[-1] == 1:
        return images
    if images.shape[-1] != 3:
        raise InputError(f"image has shape {images.shape}: operations on colour need 1 or 3 channels")
    red, green, blue = jnp.split(images, 3, axis=-1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def each(values):
    """A number or an array [N], shaped to multiply f32[N,H,W,C]."""
    return jnp.reshape(jnp.asarray(values), (-1, 1, 1, 1))


def blend(start, images, factor):
    """`start` at factor 0, `images` at 1, in between or beyond on that line, clipped to [0,1] (Pillow's `blend`)."""
    return jnp.clip(start + each(factor) * (images - start), 0, 1)


def brightness(images, factor):
    """0 is black, 1 the image (as `ImageEnhance.Brightness`)."""
    return blend(jnp.zeros_like(images), images, factor)


def contrast(images, factor):
    """0 is the image's mean grey level, 1 the image (as `ImageEnhance.Contrast`)."""
    return blend(grey(images).mean(axis=(1, 2, 3), keepdims=True), images, factor)


def saturation(images, factor):
    """0 is the grey image, 1 the image (as `ImageEnhance.Color`). Grey images (C=1) stay as they are."""
    return blend(grey(images), images, factor) if images.shape[-1] > 1 else images


def sharpness(images, factor):
    """0 is smoothed, 1 the image, above 1 sharper (as `ImageEnhance.Sharpness`). The outermost pixels stay."""
    inner = images[:, 1:-1, 1:-1]
    if inner.size == 0:
        return images
    # The kernel 1 1 1 / 1 5 1 / 1 1 1 over 13: a box sum in two passes, and four times the middle.
    box = images[:, :-2] + images[:, 1:-1] + images[:, 2:]
    box = box[:, :, :-2] + box[:, :, 1:-1] + box[:, :, 2:]
    return blend(images.at[:, 1:-1, 1:-1].set((box + 4 * inner) / 13), images, factor)


def hue(images, shift):
    """Turn the hue by `shift` of the colour circle (1 is a full turn), keeping HSV saturation and value; C=1 stays."""
    if images.shape[-1] == 1:
        return images
    grey(images)  # refuses channels that are not colours
    red, green, blue = jnp.split(images, 3, axis=-1)
    value = images.max(axis=-1, keepdims=True)
    chroma = value - images.min(axis=-1, keepdims=True)
    over = jnp.where(chroma > 0, chroma, 1)
    sector = jnp.where(
        value == red,
        (green - blue) / over,
        jnp.where(value == green, 2 + (blue - red) / over, 4 + (red - green) / over),
    )
    sector = sector + 6 * each(shift)
    # Each channel falls from `value` by up to `chroma`, as a trapezium around the circle, shifted by a third.
    k = jnp.mod(sector + jnp.array([5.0, 3.0, 1.0]).reshape(1, 1, 1, 3), 6)
    return value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)


def levels(images):
    """The nearest of 256 levels, i32 in 0..255."""
    return jnp.round(images * 255).astype(jnp.int32)


def posterize(images, bits):
    """Keep the highest `bits` (0 to 8) of each 8-bit level (as `ImageOps.posterize`, exactly)."""
    low = 8 - each(bits).astype(jnp.int32)
    return ((levels(images) >> low) << low).astype(jnp.float32) / 255


def solarize(images, threshold):
    """Invert the values at or above `threshold` (as `ImageOps.solarize`, exactly; its threshold is 255 times ours)."""
    return jnp.where(images >= each(threshold), 1 - images, images)


def autocontrast(images):
    """Stretch each channel to reach 0 and 1; a channel of one value stays (as `ImageOps.autocontrast`)."""
    low, high = images.min(axis=(1, 2), keepdims=True), images.max(axis=(1, 2), keepdims=True)
    return jnp.where(high > low, (images - low) / jnp.where(high > low, high - low, 1), images)


def equalize(images):
    """Make each channel's histogram of 256 levels as flat as a look-up table can (as `ImageOps.equalize`, exactly)."""
    n, height, width, channels = images.shape
    level = levels(images).transpose(0, 3, 1, 2).reshape(n * channels, height * width)
    histogram = jax.vmap(lambda row: jnp.zeros(256, jnp.int32).at[row].add(1))(level)
    last = jnp.take_along_axis(histogram, level.max(axis=1, keepdims=True), axis=1)
    step = (height * width - last) // 255
    before = jnp.cumsum(histogram, axis=1) - histogram
    table = jnp.clip((before + step // 2) // jnp.maximum(step, 1), 0, 255)
    table = jnp.where(step > 0, table, jnp.arange(256)[None, :])
    equal = jnp.take_along_axis(table, level, axis=1)
    return equal.reshape(n, channels, height, width).transpose(0, 2, 3, 1).astype(jnp.float32) / 255


def affine(images, matrix, *, fill=0.0):
    """Warp each image: the output at (x, y) is the input at `matrix @ (x, y, 1)`, bilinear; outside of it is `fill`.

    `matrix` is f32[N,2,3]. x counts columns and y rows, both from the centre of the image. (Pillow's
    `Image.transform(AFFINE)` has the same direction, and its origin in the corner.)
    """
    n, height, width, channels = images.shape
    middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
    y = (jnp.arange(height) - middle_y)[None, :, None]
    x = (jnp.arange(width) - middle_x)[None, None, :]
    a = matrix[:, :, :, None, None]
    from_x = a[:, 0, 0] * x + a[:, 0, 1] * y + a[:, 0, 2] + middle_x
    from_y = a[:, 1, 0] * x + a[:, 1, 1] * y + a[:, 1, 2] + middle_y
    # A frame of `fill` makes every neighbour of every point exist: one pixel before, two behind.
    framed = jnp.pad(images, ((0, 0), (1, 2), (1, 2), (0, 0)), constant_values=fill).reshape(n, -1, channels)
    from_x, from_y = jnp.clip(from_x, -1, width) + 1, jnp.clip(from_y, -1, height) + 1
    column, row = jnp.floor(from_x).astype(jnp.int32), jnp.floor(from_y).astype(jnp.int32)
    right, down = (from_x - column)[..., None], (from_y - row)[..., None]

    def pixels(row, column):
        return jax.vmap(lambda image, index: image[index])(framed, row * (width + 3) + column)

    above = pixels(row, column) * (1 - right) + pixels(row, column + 1) * right
    below = pixels(row + 1, column) * (1 - right) + pixels(row + 1, column + 1) * right
    return above * (1 - down) + below * down


def crop(images, top, left, size):
    """The window of `size` (height, width) whose first pixel is (top, left), i32[N]; it must lie inside."""
    height, width = size
    return jax.vmap(
        lambda image, y, x: jax.lax.dynamic_slice(image, (y, x, 0), (height, width, image.shape[-1])),
    )(images, top, left)


def crop_resize(images, box, size):
    """Cut out `box` = (top, left, height, width), four i32[N], and resize it to `size` (height, width).

    Bilinear with antialiasing, as `jax.image.resize` and Pillow's `resize(BILINEAR)` on the cut out part alone.
    """
    top, left, height, width = box
    rows = _resize_weights(top, height, images.shape[1], size[0])
    columns = _resize_weights(left, width, images.shape[2], size[1])
    # Two small matrix products are faster than gathering; "highest" because TF32 would cost the lowest two bits of 8.
    images = jnp.einsum("noh,nhwc->nowc", rows, images, precision="highest")
    return jnp.clip(jnp.einsum("now,nhwc->nhoc", columns, images, precision="highest"), 0, 1)


def _resize_weights(start, length, inputs, outputs):
    """f32[N,outputs,inputs]: how much each input pixel of start..start+length-1 adds to each output pixel."""
    start, length = start[:, None, None], length[:, None, None]
    scale = length / outputs
    centre = (jnp.arange(outputs)[None, :, None] + 0.5) * scale - 0.5 + start
    pixel = jnp.arange(inputs)[None, None, :]
    weight = jax.nn.relu(1 - jnp.abs(pixel - centre) / jnp.maximum(scale, 1))
    weight = jnp.where((pixel >= start) & (pixel < start + length), weight, 0)
    return weight / weight.sum(axis=-1, keepdims=True)
