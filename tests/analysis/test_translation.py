"""Shifts, turns and scalings against NumPy, SciPy and Pillow; what networks make of them against loops and theory."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from networks import compiled, filled
from PIL import Image

from cnn_jax import analysis, models
from cnn_jax.analysis import translation
from cnn_jax.errors import InputError
from cnn_jax.models.layers import tap
from cnn_jax.models.resnet import ResNet


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def shifted(images, offset, fill=None):
    moved = np.roll(images, offset, (1, 2))
    if fill is not None:
        rows, columns = (np.arange(side) - by for side, by in zip(images.shape[1:3], offset, strict=True))
        moved[:, (rows < 0) | (rows >= images.shape[1])] = fill
        moved[:, :, (columns < 0) | (columns >= images.shape[2])] = fill
    return moved


def test_whole_shifts_roll_or_fill():
    images = noise(2, 6, 7, 2)
    roll = jax.jit(translation.shift)
    cut, between = (
        jax.jit(partial(function, fill=[5, -5])) for function in (translation.shift, translation.shift_between)
    )
    for offset in [(0, 0), (2, -3), (-1, 4), (6, 0)]:
        np.testing.assert_array_equal(roll(images, jnp.array(offset)), shifted(images, offset))
        expected = shifted(images, offset, fill=[5, -5])
        np.testing.assert_array_equal(cut(images, jnp.array(offset)), expected)
        np.testing.assert_allclose(between(images, jnp.array(offset, jnp.float32)), expected)
    np.testing.assert_array_equal(cut(images, jnp.array((6, 0))), np.broadcast_to(np.float32([5, -5]), images.shape))


@pytest.mark.parametrize("side", [7, 8])
def test_waves_are_shifted_by_parts_of_pixels(side):
    places = np.arange(side) * 2 * np.pi / side

    def wave(down, right):
        rows, columns = (places - 2 * np.pi * by / side for by in (down, right))
        return (np.cos(2 * rows)[:, None] + np.sin(3 * columns + rows[:, None]))[None, :, :, None].astype(np.float32)

    move = jax.jit(translation.shift_between)
    moved = move(wave(0, 0), jnp.array([0.3, -1.6]))
    np.testing.assert_allclose(moved, wave(0.3, -1.6), atol=1e-5)
    images = noise(1, side, side, 1)
    rolled = move(images, jnp.array([2.0, -1.0]))
    np.testing.assert_allclose(rolled, np.roll(images, (2, -1), (1, 2)), atol=1e-5)


def test_of_the_highest_wave_the_part_is_kept_that_pixels_can_show():
    """(-1)^y · cos x shifted by half a row is sin(π y) · cos x, 0 at every pixel; by a quarter 1/√2 of it is left."""
    highest = np.where(np.arange(8) % 2, -1.0, 1.0)
    slow = np.cos(2 * np.pi * np.arange(8) / 8)
    images = (highest[:, None] * slow).astype(np.float32)[None, :, :, None]
    for by, left in ((0.5, 0), (0.25, 0.5**0.5)):
        down = translation.shift_between(images, jnp.array([by, 0.0]))
        right = translation.shift_between(images.swapaxes(1, 2), jnp.array([0.0, by]))
        np.testing.assert_allclose(down, left * images, atol=1e-6)
        np.testing.assert_allclose(right, left * images.swapaxes(1, 2), atol=1e-6)


def test_bilinear_shifts_are_those_of_scipy():
    image = noise(6, 7)
    move = partial(translation.shift_between, fill=2.0)
    moved = compiled(move, image[None, ..., None], jnp.array([0.25, -1.6]))[0, ..., 0]
    expected = scipy.ndimage.shift(image, (0.25, -1.6), order=1, mode="grid-constant", cval=2.0)
    np.testing.assert_allclose(moved, expected, atol=1e-5)


def test_turns():
    images = noise(2, 6, 6, 2)
    np.testing.assert_allclose(compiled(translation.rotate, images, 90.0), np.rot90(images, axes=(1, 2)), atol=1e-4)
    image = noise(7, 9)
    turned = compiled(partial(translation.rotate, fill=[2.0]), image[None, ..., None], 33.0)[0, ..., 0]
    expected = scipy.ndimage.rotate(image, 33, reshape=False, order=1, mode="grid-constant", cval=2.0)
    np.testing.assert_allclose(turned, expected, atol=1e-4)


def test_scalings():
    image = noise(8, 12)
    scaled = jax.jit(partial(translation.scale, fill=2.0))
    np.testing.assert_allclose(scaled(image[None, ..., None], 1.0)[0, ..., 0], image, atol=1e-5)
    # Larger: each pixel is the image at half its distance from the middle.
    matrix, offset = [0.5, 0.5], [(side - 1) / 4 for side in image.shape]
    expected = scipy.ndimage.affine_transform(image, matrix, offset, order=1)
    np.testing.assert_allclose(scaled(image[None, ..., None], 2.0)[0, ..., 0], expected, atol=1e-5)
    # Smaller: as Pillow makes it, on a larger canvas.
    small = scaled(image[None, ..., None], 0.5)[0, ..., 0]
    expected = np.full(image.shape, 2, np.float32)
    expected[2:6, 3:9] = Image.fromarray(image - 2).resize((6, 4), Image.Resampling.BILINEAR) + np.float32(2)
    np.testing.assert_allclose(small, expected, atol=1e-4)


RESNET = ResNet((1, 1), "basic", stem="medium", width=4, zero_init=False)
NETWORKS = {
    "simple_cnn": (models.create("simple_cnn", head="average"), {"conv1": 1, "conv2": 2, "fc1": 4, "logits": 4}),
    "resnet": (RESNET, {"stem": 2, "stage1": 2, "stage2": 4, "pre_logits": 4, "logits": 4}),
}
SHIFTS = [(0, 0), (1, 0), (2, -2), (4, 3), (-4, 8)]


@pytest.mark.parametrize(
    ("name", "pooling", "side"),
    [*((name, pooling, 16) for name in NETWORKS for pooling in ("max", "aps")), ("simple_cnn", "max", 18)],
)
def test_circular_networks_are_equivariant_where_theory_says_so(name, pooling, side):
    """18 pixels become 9, and 4: of them the last is left out, and what comes after is not exact."""
    images = noise(3, side, side, 3)
    network, strides = NETWORKS[name]
    network = network.clone(padding="circular", pooling=pooling)
    errors = analysis.translation.equivariance(network, filled(network, images), images, SHIFTS, batch_size=2)
    assert list(errors) == list(strides)
    for stage, stride in strides.items():
        for shift, error in zip(SHIFTS, errors[stage], strict=True):
            exact = (side % stride == 0 and (pooling == "aps" or not np.mod(shift, stride).any())) or shift == (0, 0)
            assert (error < 2e-6).all() if exact else (error > 1e-3).all(), (stage, shift, error)


def test_errors_with_zero_padding_are_those_of_rolled_stages():
    images = noise(3, 14, 14, 1)
    network = models.create("simple_cnn")
    variables = filled(network, images)
    shifts = [(0, 2), (3, -5)]
    errors = translation.equivariance(network, variables, images, shifts, names=["conv2", "fc1"], batch_size=2)
    still = analysis.capture(network, variables, images)
    for (down, right), conv2, fc1 in zip(shifts, *errors.values(), strict=True):
        moved = analysis.capture(network, variables, np.roll(images, (down, right), (1, 2)))
        nearest = [(down // 2, right // 2), (-(-down // 2), -(-right // 2))]
        nearest += [(nearest[0][0], nearest[1][1]), (nearest[1][0], nearest[0][1])]
        expected = np.min(
            [
                np.linalg.norm((moved["conv2"] - np.roll(still["conv2"], by, (1, 2))).reshape(3, -1), axis=1)
                for by in nearest
            ],
            axis=0,
        )
        np.testing.assert_allclose(conv2, expected / np.linalg.norm(still["conv2"].reshape(3, -1), axis=1), rtol=1e-4)
        change = np.linalg.norm(moved["fc1"] - still["fc1"], axis=1) / np.linalg.norm(still["fc1"], axis=1)
        np.testing.assert_allclose(fc1, change, rtol=1e-4)
        assert conv2.min() > 0.01


class Same(nn.Module):
    def __call__(self, images, *, train=False):
        return images


class Ramp(nn.Module):
    """Knows where a pixel is, and so is not equivariant."""

    @nn.compact
    def __call__(self, images, *, train=False):
        return tap(self, "ramp", images * jnp.arange(1.0, 1 + images.shape[2])[None, None, :, None]).mean((1, 2))


def test_with_a_fill_only_what_both_have_seen_is_compared():
    images = noise(2, 3, 5, 1)
    found = translation.equivariance(Ramp(), {}, images, [(-1, 2)], fill=9.0)["ramp"]
    both = images[:, 1:, :3, 0]  # seen at columns 0, 1, 2 and then 2, 3, 4
    before, after = both * np.float32([1, 2, 3]), both * np.float32([3, 4, 5])
    expected = np.linalg.norm((after - before).reshape(2, -1), axis=1) / np.linalg.norm(before.reshape(2, -1), axis=1)
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)


@pytest.mark.parametrize("fill", [None, -0.4])
def test_heat_maps_are_those_of_a_loop(fill):
    images, labels = noise(5, 8, 8, 1), np.array([0, 1, 2, 3, 9])
    network = models.create("simple_cnn")
    variables = filled(network, images)
    maps = translation.heat_map(network, variables, images, labels, reach=2, fill=fill, batch_size=2)
    np.testing.assert_array_equal(maps.down, [-2, -1, 0, 1, 2])
    offsets = [(down, right) for down in maps.down for right in maps.right]
    moved = np.concatenate([shifted(images, offset, fill) for offset in offsets])
    logits = compiled(network.apply, variables, moved).reshape(25, 5, 10)
    classes = logits.argmax(-1)
    probability = np.exp(logits - np.logaddexp.reduce(logits, -1, keepdims=True))[:, np.arange(5), labels]
    np.testing.assert_allclose(maps.accuracy, (classes == labels).mean(1).reshape(5, 5))
    np.testing.assert_allclose(maps.kept, (classes == classes[12]).mean(1).reshape(5, 5))
    np.testing.assert_allclose(maps.probability, probability.mean(1).reshape(5, 5), rtol=1e-4)
    pairs = [[classes[i, n] == classes[j, n] for i in range(25) for j in range(25)] for n in range(5)]
    np.testing.assert_allclose(maps.consistency, np.mean(pairs, axis=1), rtol=1e-5)
    assert maps.consistency.min() < 1


def test_an_invariant_network_has_flat_maps_over_all_shifts():
    images, labels = noise(4, 8, 8, 1), np.arange(4)
    network = models.create("simple_cnn", padding="circular", pooling="aps", head="average")
    maps = translation.heat_map(network, filled(network, images), images, labels)
    np.testing.assert_array_equal(maps.right, np.arange(-4, 4))
    assert maps.accuracy.shape == (8, 8)
    np.testing.assert_allclose(maps.probability, np.full((8, 8), maps.probability[4, 4]), rtol=1e-5)
    np.testing.assert_array_equal(maps.kept, 1)
    np.testing.assert_array_equal(maps.consistency, 1)


def test_curves():
    images, labels = noise(3, 8, 8, 1), np.array([1, 2, 3])
    network = models.create("simple_cnn")
    variables = filled(network, images)
    turned = translation.respond(network, variables, images, labels, partial(translation.rotate, fill=1.0), [0.0, 90])
    both = np.concatenate([np.rot90(images, k, (1, 2)) for k in (0, 1)])
    expected = compiled(network.apply, variables, both).reshape(2, 3, 10)
    np.testing.assert_array_equal(turned.classes, expected.argmax(-1))
    np.testing.assert_array_equal(turned.correct, expected.argmax(-1) == labels)
    probability = np.exp(expected - np.logaddexp.reduce(expected, -1, keepdims=True))[:, np.arange(3), labels]
    np.testing.assert_allclose(turned.probability, probability, rtol=1e-3)


def test_bad_arguments():
    images, labels = noise(3, 8, 8, 1), np.arange(3)
    network = models.create("simple_cnn")
    variables = filled(network, images)
    maps = partial(translation.heat_map, network, variables)
    errors = partial(translation.equivariance, network, variables, images)
    for call, sentence in [
        (lambda: maps(images, labels, reach=-1), "reach is -1: it must be 0 or more"),
        (lambda: maps(images, labels[:2]), r"labels of shape \(2,\) and int64: expected integers of shape \(3,\)"),
        (lambda: maps(images, labels + 8), "labels from 8 to 10: the network has classes 0 to 9"),
        (lambda: translation.heat_map(Same(), {}, images, labels), r"Same does not give logits \[N,K\]"),
        (lambda: maps(images, labels, batch_size=0), "batch_size is 0"),
        (lambda: errors([(0.5, 1)]), "expected whole pixels"),
        (lambda: errors([(0, 8)], fill=0), r"shifts of up to 8 pixels leave nothing of images of 8×8"),
        (lambda: errors([(0, 1)], names="conv3"), "unknown stage 'conv3': did you mean 'conv2'.*conv1, conv2, fc1"),
    ]:
        with pytest.raises(InputError, match=sentence):
            call()
