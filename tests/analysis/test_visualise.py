"""Climbing: scores whose best image is known, the spectrum of the start, and a unit of a network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import compiled, filled

from cnn_jax import analysis, models
from cnn_jax.analysis.visualise import starting_noise, unit_score, visualise
from cnn_jax.errors import InputError


def test_a_linear_score_is_climbed_to_its_best_image(key):
    rows, columns = np.indices((16, 12))
    weights = jnp.asarray(np.where((rows < 8) ^ (columns < 6), 1.0, -1.0), jnp.float32)[None, :, :, None]

    def score(images):  # of images in [-1,1]
        return (images * weights).mean((1, 2, 3))

    found = visualise(key, score, shape=(2, 16, 12, 3), preprocess=lambda x: 2 * x - 1, steps=200, jitter=0)
    assert found.images.shape == (2, 16, 12, 3)
    assert found.scores.shape == (200, 2)
    assert 0 <= found.images.min() <= found.images.max() <= 1
    np.testing.assert_allclose(found.scores[0], 0, atol=0.1)
    assert (found.scores[-1] > 0.8).all()
    assert np.mean((found.images > 0.5) == (weights > 0)) > 0.9
    assert (found.images[0] != found.images[1]).any()


def test_the_start_has_the_spectrum_of_photographs(key):
    score = lambda images: images.mean((1, 2, 3))  # noqa: E731
    start = visualise(key, score, shape=(16, 32, 32, 3), steps=1, learning_rate=0.0)
    again = visualise(key, score, shape=(16, 32, 32, 3), steps=1, learning_rate=0.0)
    other = visualise(jax.random.key(1), score, shape=(16, 32, 32, 3), steps=1, learning_rate=0.0)
    np.testing.assert_array_equal(start.images, again.images)
    np.testing.assert_allclose(start.images, starting_noise(key, (16, 32, 32, 3)), atol=1e-6)
    assert (start.images != other.images).any()
    waves = np.log(start.images / (1 - start.images))
    power = (np.abs(np.fft.fft2(waves, axes=(1, 2))) ** 2).mean((0, 3))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(32), np.fft.fftfreq(32), indexing="ij"))
    inside = (frequency > 0.05) & (frequency < 0.5)
    slope = np.polyfit(np.log(frequency[inside]), np.log(power[inside]), 1)[0]
    assert slope == pytest.approx(-2, abs=0.15)


def test_units_like_their_images_better_than_any_noise(key):
    model = models.create("simple_cnn")
    noise = np.random.default_rng(0).uniform(size=(200, 12, 12, 1)).astype(np.float32)
    variables = filled(model, noise)
    answers = compiled(unit_score(model, variables, stage="conv2", units=np.arange(200) % 64), noise)
    maps = analysis.capture(model, variables, noise[:9], names="conv2")["conv2"]
    np.testing.assert_allclose(answers[:9], maps[np.arange(9), :, :, np.arange(9)].mean((1, 2)), rtol=1e-5)
    units = np.argsort(-answers)[:3] % 64  # such as are not silent
    found = visualise(key, unit_score(model, variables, stage="conv2", units=units), shape=(3, 12, 12, 1), steps=64)
    for unit, reached in zip(units, found.scores[-1], strict=True):
        best = compiled(unit_score(model, variables, stage="conv2", units=[unit] * 200), noise).max()
        assert reached > best


def test_bad_arguments(key):
    model = models.create("simple_cnn")
    variables = filled(model, np.zeros((1, 8, 8, 1), np.float32))

    def climb(stage, units, **options):
        score = unit_score(model, variables, stage=stage, units=units)
        return visualise(key, score, **{"shape": (1, 8, 8, 1), **options})

    for call, sentence in [
        (lambda: climb("conv3", [0]), "unknown stage 'conv3'"),
        (lambda: climb("conv2", [64]), "stage 'conv2' has no channel 64: its 64 channels are 0 to 63"),
        (lambda: climb("conv2", [1, 2]), "1 images for 2 units"),
        (lambda: climb("conv2", [1], steps=0), "0 steps"),
        (lambda: climb("conv2", [1], shape=(8, 8, 1)), "expected"),
        (lambda: visualise(key, lambda images: images.mean(), shape=(2, 8, 8, 1)), r"expected \(2,\), one number"),
    ]:
        with pytest.raises(InputError, match=sentence):
            call()
