"""Stages by name; what NumPy finds in all of them at once, found batch by batch."""

from functools import partial

import flax.linen as nn
import numpy as np
import pytest
from networks import filled

from cnn_jax import analysis, models
from cnn_jax.analysis import activations, receptive
from cnn_jax.errors import InputError


class Nameless(nn.Module):
    def __call__(self, images, *, train):
        return images


@pytest.fixture(scope="module")
def network():
    """(model, variables, images u8, preprocess, all its stages)."""
    images = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 1), np.uint8)
    model = models.create("simple_cnn")
    variables = filled(model, images)
    bias = variables["params"]["conv1"]["bias"]
    bias[:5] = -100  # dead
    bias[5] = 100  # never silent

    def preprocess(images):
        return (images - 127.5) / 127.5

    return model, variables, images, preprocess, analysis.capture(model, variables, preprocess(images))


def test_stages_by_name_and_pattern(network):
    model, variables, images, preprocess, stages = network
    assert list(stages) == ["conv1", "conv2", "fc1", "logits"]
    some = analysis.capture(model, variables, preprocess(images), names=["logits", "conv*", "conv2"])
    assert list(some) == ["conv1", "conv2", "logits"]
    np.testing.assert_allclose(some["conv2"], stages["conv2"], atol=1e-6)
    with pytest.raises(InputError, match=r"unknown stage 'conf\*'.*Choices: conv1, conv2, fc1, logits"):
        analysis.capture(model, variables, images, names=["conv1", "conf*"])
    with pytest.raises(InputError, match="Nameless names no stages: name them with"):
        analysis.capture(Nameless(), {}, images)


def test_activity(network):
    model, variables, images, preprocess, stages = network
    found = activations.activity(model, variables, images, names=["conv1", "fc1"], preprocess=preprocess, batch_size=3)
    assert list(found) == ["conv1", "fc1"]
    for name, seen in found.items():
        rows = np.asarray(stages[name], np.float64).reshape(-1, stages[name].shape[-1])
        np.testing.assert_allclose(seen.largest, rows.max(0), rtol=1e-4)
        assert seen.dead == pytest.approx(np.mean(rows.max(0) <= 0))
        assert seen.sparsity == pytest.approx(np.mean(rows <= 0), abs=1e-6)
        p = np.linalg.svd(rows, compute_uv=False)
        p = p[p > 0] / p.sum()
        assert seen.effective_rank == pytest.approx(np.exp(-np.sum(p * np.log(p))), rel=1e-3)
    assert found["conv1"].dead >= 5 / 32
    assert found["fc1"].effective_rank < 7  # of seven images


def test_effective_rank():
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(n, 4)))[0].astype(np.float32) for n in (9, 6))
    for values, expected in [
        ([1, 1, 1, 1], 4),
        ([3, 0, 0, 0], 1),
        ([0, 0, 0, 0], 0),
        ([2, 1, 1, 0], np.exp(1.5 * np.log(2))),  # p = ½, ¼, ¼
    ]:
        rank = activations.effective_rank(left * np.float32(values) @ right.T)
        assert float(rank) == pytest.approx(expected, abs=1e-3)


def test_exciting_images(network):
    model, variables, images, preprocess, stages = network
    find = partial(activations.exciting, model, variables, images, preprocess=preprocess, batch_size=3)
    found = find(stage="conv2", units=[40, 3], count=4)
    maps = np.moveaxis(np.asarray(stages["conv2"]), -1, 0)[[40, 3]]
    largest = maps.max((2, 3))
    order = np.argsort(-largest, axis=1, kind="stable")[:, :4]
    np.testing.assert_array_equal(found.images, order)
    np.testing.assert_allclose(found.values, np.take_along_axis(largest, order, 1), rtol=1e-4)
    assert found.places.shape == (2, 4, 2)
    for unit, row, (y, x), value in zip(
        (0, 0, 0, 0, 1, 1, 1, 1), found.images.ravel(), found.places.reshape(-1, 2), found.values.ravel(), strict=True
    ):
        assert maps[unit, row, y, x] == pytest.approx(value, rel=1e-4)
    dead = find(stage="conv1", units=[0], count=7)
    np.testing.assert_array_equal(dead.images, [range(7)])  # what is equal keeps its order
    np.testing.assert_array_equal(dead.places, 0)
    flat = find(stage="logits", count=1)
    np.testing.assert_array_equal(flat.images[:, 0], stages["logits"].argmax(0))
    np.testing.assert_array_equal(flat.places, 0)


def test_patches_are_what_the_kernel_has_seen(network):
    model, variables, images, preprocess, _ = network
    found = activations.exciting(model, variables, images, stage="conv1", count=3, preprocess=preprocess)
    field = receptive.chain([receptive.Layer(3, padding=1)])
    seen = receptive.patches(preprocess(images), found, field)
    assert seen.shape == (32, 3, 3, 3, 1)
    kernel, bias = (variables["params"]["conv1"][name] for name in ("kernel", "bias"))
    values = np.einsum("ukhwc,hwcu->uk", seen, kernel) + bias[:, None]
    np.testing.assert_allclose(found.values, np.maximum(values, 0), rtol=1e-4, atol=1e-5)


def test_bad_arguments(network):
    model, variables, images, *_ = network
    find = partial(activations.exciting, model, variables, images)
    for call, sentence in [
        (lambda: find(stage="conv3", count=1), "unknown stage 'conv3': did you mean 'conv"),
        (
            lambda: find(stage="fc1", units=[128], count=1),
            "stage 'fc1' has no channel 128: its 128 channels are 0 to 127",
        ),
        (lambda: find(stage="fc1", count=8), "count is 8: it must be from 1 to the 7 images"),
        (lambda: activations.activity(model, variables, images[:0]), "N of 1 or more"),
        (lambda: activations.activity(model, variables, images, batch_size=0), "batch_size is 0"),
    ]:
        with pytest.raises(InputError, match=sentence):
            call()
