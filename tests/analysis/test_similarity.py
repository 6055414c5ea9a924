"""Centred kernel alignment: by its definition in float64, what must not change it, and estimates without bias."""

from functools import partial

import numpy as np
import pytest
from networks import filled

from cnn_jax import analysis, models
from cnn_jax.analysis.similarity import cka, compare
from cnn_jax.errors import InputError


def features(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) + 3


def by_definition(x, y):
    x, y = (a.reshape(len(a), -1).astype(np.float64) for a in (x, y))
    x, y = x - x.mean(0), y - y.mean(0)
    return np.linalg.norm(y.T @ x) ** 2 / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)


@pytest.mark.parametrize("dimensions", [(4, 6), (40, 5), (40, 50)])  # by either product
def test_values_and_what_does_not_change_them(dimensions):
    x, y = features(20, dimensions[0]), features(20, dimensions[1], seed=1)
    y[:, :3] += x[:, :3]
    found = float(cka(x, y))
    assert found == pytest.approx(by_definition(x, y), rel=1e-5)
    assert float(cka(y, x)) == pytest.approx(found, rel=1e-5)
    rotation = np.linalg.qr(features(dimensions[0], dimensions[0]))[0]
    assert float(cka(1e6 * x @ rotation - 5, -1e-6 * y)) == pytest.approx(found, rel=1e-3)
    assert float(cka(x, x)) == pytest.approx(1, abs=1e-5)
    assert float(cka(x, x @ rotation)) == pytest.approx(1, abs=1e-4)
    stretch = np.logspace(0, 3, dimensions[0], dtype=np.float32)
    assert float(cka(x, x * stretch)) < 0.9  # not any linear map
    assert np.isnan(cka(x, np.ones_like(y)))  # alike in nothing, nor different


def hsic(x, y):
    """As Song et al. 2012 write it, "Feature selection via dependence maximization"."""
    n = len(x)
    k, m = (a.reshape(n, -1).astype(np.float64) @ a.reshape(n, -1).T.astype(np.float64) for a in (x, y))
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    one = np.ones(n)
    product = k @ m
    return (
        np.trace(product)
        + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        - 2 / (n - 2) * (one @ product @ one)
    ) / (n * (n - 3))


def test_stages_of_two_networks_in_batches():
    images = np.random.default_rng(0).integers(0, 256, (13, 8, 8, 1), np.uint8)
    model, other = models.create("simple_cnn"), models.create("simple_cnn", pooling="blur", num_classes=5)
    variables, others = filled(model, images), filled(other, images)

    def preprocess(images):
        return images / np.float32(255)

    found = compare(
        (model, variables), (other, others), images, names=["conv?", "logits"], preprocess=preprocess, batch_size=8
    )
    assert found.first == found.second == ("conv1", "conv2", "logits")
    x, y = (analysis.capture(m, v, preprocess(images)) for m, v in ((model, variables), (other, others)))
    parts = [slice(0, 6), slice(6, 13)]  # spread evenly
    mean = lambda a, b: np.mean([hsic(np.asarray(a)[part], np.asarray(b)[part]) for part in parts])  # noqa: E731
    for i, first in enumerate(found.first):
        for j, second in enumerate(found.second):
            a, b = x[first], y[second]
            expected = mean(a, b) / np.sqrt(mean(a, a) * mean(b, b))
            assert found.values[i, j] == pytest.approx(expected, abs=1e-4), (first, second)


def test_the_same_network_and_independent_ones():
    images = features(64, 8, 8, 1)
    model = models.create("simple_cnn")
    variables = filled(model, images)
    variables["params"]["fc1"]["bias"][:] = -1e6  # fc1 is dead, and the logits do not vary
    own = compare((model, variables), (model, variables), images, batch_size=16)
    np.testing.assert_allclose(np.diag(own.values)[:2], 1, atol=1e-5)
    np.testing.assert_allclose(own.values[:2, :2], own.values[:2, :2].T, atol=1e-5)
    assert np.isnan(own.values[2]).all()
    # 64 examples of 2,000 dimensions that have nothing to do with each other: the plain form is far too high.
    assert float(cka(features(64, 2000), features(64, 2000, seed=1))) > 0.9


def test_bad_arguments():
    images = features(5, 8, 8, 1)
    model = models.create("simple_cnn")
    pair = (model, filled(model, images))
    both = partial(compare, pair, pair)
    for call, sentence in [
        (lambda: cka(features(4, 3), features(5, 3)), r"shapes \(4, 3\) and \(5, 3\)"),
        (lambda: both(images[:3]), "3 images in batches of 256: estimates without bias need 4 images"),
        (lambda: both(images, batch_size=4), "batches of 8"),
        (lambda: both(images, names="fc9"), "unknown stage 'fc9'"),
    ]:
        with pytest.raises(InputError, match=sentence):
            call()
