"""The image operations against Pillow, jax.image and rotations by hand. `level` is one of Pillow's 256 levels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from cnn_jax.data import image_ops as ops
from cnn_jax.errors import InputError

level = 1 / 255


def pictures(channels, size=(24, 31)):
    """u8[5,H,W,C]: noise, a dark smooth one, a bright one, one of two values, one of a single value."""
    rng = np.random.default_rng(channels)
    y, x = np.mgrid[: size[0], : size[1]]
    smooth = (40 + 3 * x + 2 * y)[:, :, None] + rng.integers(0, 9, (*size, channels))
    noise = rng.integers(0, 256, (*size, channels))
    return np.stack([noise, smooth, 255 - smooth // 4, 20 + 200 * (noise > 128), 0 * noise + 77]).astype(np.uint8)


def through_pillow(function, images):
    out = []
    for image in images:
        picture = Image.fromarray(image[:, :, 0] if image.shape[-1] == 1 else image)
        out.append(np.asarray(function(picture)).reshape(image.shape))
    return np.stack(out) / 255


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("ours", "pillow", "tolerance"),
    [
        (ops.autocontrast, ImageOps.autocontrast, level),
        (ops.equalize, ImageOps.equalize, 1e-6),
        (lambda x: ops.solarize(x, 100 / 255), lambda x: ImageOps.solarize(x, 100), 1e-6),
        (lambda x: ops.solarize(x, 1.0), lambda x: ImageOps.solarize(x, 255), 1e-6),
        (lambda x: ops.posterize(x, 8), lambda x: ImageOps.posterize(x, 8), 1e-6),
        (lambda x: ops.posterize(x, 3), lambda x: ImageOps.posterize(x, 3), 1e-6),
        (lambda x: ops.brightness(x, 0.3), lambda x: ImageEnhance.Brightness(x).enhance(0.3), level),
        (lambda x: ops.brightness(x, 1.9), lambda x: ImageEnhance.Brightness(x).enhance(1.9), level),
        # Here Pillow rounds twice: first the mean, the grey or the smooth image, of which |1 - factor| half levels
        # reach the result, and then the result.
        (lambda x: ops.contrast(x, 0.4), lambda x: ImageEnhance.Contrast(x).enhance(0.4), 1.4 * level),
        (lambda x: ops.contrast(x, 1.7), lambda x: ImageEnhance.Contrast(x).enhance(1.7), 1.4 * level),
        (lambda x: ops.saturation(x, 0.0), lambda x: ImageEnhance.Color(x).enhance(0.0), level),
        (lambda x: ops.saturation(x, 1.6), lambda x: ImageEnhance.Color(x).enhance(1.6), 1.4 * level),
        (lambda x: ops.sharpness(x, 0.0), lambda x: ImageEnhance.Sharpness(x).enhance(0.0), level),
        (lambda x: ops.sharpness(x, 1.5), lambda x: ImageEnhance.Sharpness(x).enhance(1.5), 1.4 * level),
    ],
)
def test_as_pillow(ours, pillow, tolerance, channels):
    images = pictures(channels)
    got = jax.jit(ours)(ops.as_float(images))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, through_pillow(pillow, images), atol=tolerance + 1e-6, rtol=0)


def test_one_parameter_per_image():
    images = ops.as_float(pictures(3))
    factors = jnp.array([0.0, 0.5, 1.0, 1.5, 2.0])
    for op in (ops.brightness, ops.contrast, ops.saturation, ops.sharpness, ops.hue, ops.solarize):
        op = jax.jit(op)
        alone = [op(images[i : i + 1], float(factors[i])) for i in range(5)]
        np.testing.assert_allclose(op(images, factors), jnp.concatenate(alone), atol=1e-6)
    for op in (ops.brightness, ops.contrast, ops.saturation, ops.sharpness):
        np.testing.assert_allclose(op(images, 1.0), images, atol=1e-6)


def test_hue_by_hand_and_around_the_circle():
    image = jnp.array([1.0, 0.2, 0.2]).reshape(1, 1, 1, 3)  # a red
    for shift, expected in ((1 / 6, [1, 1, 0.2]), (1 / 3, [0.2, 1, 0.2]), (0.5, [0.2, 1, 1]), (-1 / 3, [0.2, 0.2, 1])):
        np.testing.assert_allclose(ops.hue(image, shift).ravel(), expected, atol=1e-5)
    images = ops.as_float(pictures(3))
    np.testing.assert_allclose(ops.hue(images, 0.0), images, atol=1e-5)
    np.testing.assert_allclose(ops.hue(ops.hue(images, 0.2), 0.8), images, atol=1e-5)


def test_grey_images_have_no_colour():
    images = ops.as_float(pictures(1))
    np.testing.assert_array_equal(ops.saturation(images, 0.3), images)
    np.testing.assert_array_equal(ops.hue(images, 0.3), images)
    np.testing.assert_array_equal(ops.grey(images), images)


# Geometry


@pytest.mark.parametrize("channels", [1, 3])
def test_affine_by_hand(channels):
    images = ops.as_float(pictures(channels, size=(9, 9)))
    zero, one = jnp.zeros(5), jnp.ones(5)
    warp = jax.jit(lambda rows: ops.affine(images, jnp.stack(rows, axis=-1).reshape(5, 2, 3)))
    np.testing.assert_array_equal(warp([one, zero, zero, zero, one, zero]), images)
    # Output (x, y) from input (-y, x): the right-hand side, x = 4, comes from the lowest row.
    np.testing.assert_allclose(warp([zero, -one, zero, one, zero, zero]), jnp.rot90(images, axes=(1, 2)), atol=1e-6)
    moved = warp([one, zero, 2 * one, zero, one, -3 * one])
    np.testing.assert_array_equal(moved[:, 3:, :-2], images[:, :-3, 2:])
    assert not moved[:, :3].any()
    assert not moved[:, :, -2:].any()
    between = warp([one, zero, 0.25 * one, zero, one, zero])
    np.testing.assert_allclose(between[:, :, :-1], 0.75 * images[:, :, :-1] + 0.25 * images[:, :, 1:], atol=1e-6)
    assert not warp([one, zero, 1e9 * one, zero, one, zero]).any()


def test_affine_fill_and_pillow():
    images = pictures(3)
    height, width = images.shape[1:3]
    matrix = jnp.tile(jnp.array([[0.9, 0.2, 1.3], [-0.1, 1.1, -0.6]])[None], (5, 1, 1))
    got = ops.affine(ops.as_float(images), matrix, fill=0.5)
    assert (got >= 0).all()
    np.testing.assert_allclose(got[:, -1, -1], 0.5)  # x = 19.7, beyond the last column at 15
    # Pillow's origin is the corner of the first pixel, ours is (width/2, height/2) from there.
    a, b, c, d, e, f = np.asarray(matrix[0], np.float64).ravel()
    coefficients = (
        *(a, b, c + width / 2 - a * width / 2 - b * height / 2),
        *(d, e, f + height / 2 - d * width / 2 - e * height / 2),
    )
    theirs = through_pillow(
        lambda x: x.transform(x.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR), images
    )
    inside = np.asarray(ops.affine(jnp.ones((5, height, width, 3)), matrix)) > 1 - 1e-6
    assert inside.mean() > 0.6
    np.testing.assert_allclose(np.where(inside, got, 0), np.where(inside, theirs, 0), atol=level + 1e-4)


@pytest.mark.parametrize("size", [(12, 40), (7, 5)])
def test_crop_resize_is_a_crop_then_a_resize(size):
    images = ops.as_float(pictures(3))
    box = np.array([[0, 0, 24, 31], [3, 5, 12, 20], [23, 30, 1, 1], [10, 0, 14, 9], [2, 2, 7, 5]])
    got = jax.jit(ops.crop_resize, static_argnums=2)(images, tuple(box.T), size)
    for i, (top, left, height, width) in enumerate(box):
        part = images[i, top : top + height, left : left + width]
        expected = jax.image.resize(part, (*size, 3), "bilinear", antialias=True)
        np.testing.assert_allclose(got[i], expected, atol=1e-5)


def test_crop():
    images = ops.as_float(pictures(1))
    got = ops.crop(images, jnp.arange(5), 2 * jnp.arange(5), (4, 6))
    for i in range(5):
        np.testing.assert_array_equal(got[i], images[i, i : i + 4, 2 * i : 2 * i + 6])


def test_what_is_not_an_image_is_refused():
    with pytest.raises(InputError, match=r"image has shape \(4, 4, 3\)"):
        ops.as_float(np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(InputError, match="image has dtype int32"):
        ops.as_float(np.zeros((1, 4, 4, 3), np.int32))
    with pytest.raises(InputError, match="need 1 or 3 channels"):
        ops.hue(jnp.zeros((1, 4, 4, 2)), 0.1)
    assert ops.as_float(jnp.ones((1, 2, 2, 1), jnp.bfloat16)).dtype == jnp.float32
