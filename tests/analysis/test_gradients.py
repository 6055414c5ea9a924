"""Norms, verdicts, gradients of examples and their noise, against NumPy and known distributions."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import filled

from cnn_jax.analysis import gradients
from cnn_jax.errors import InputError
from cnn_jax.models.layers import Conv, max_pool


def test_norms_are_those_of_each_array():
    tree = {"conv": {"kernel": jnp.full((2, 3), 2.0), "bias": jnp.array([3.0, 4.0])}, "out": jnp.zeros(5)}
    found = jax.jit(gradients.norms)(tree)
    assert {path: round(float(norm), 5) for path, norm in found.items()} == {
        "conv/kernel": 4.89898,
        "conv/bias": 5.0,
        "out": 0.0,
    }


LABELS = jnp.arange(16) % 4


def cross_entropy(logits, labels):
    return -jnp.take_along_axis(nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]


@partial(jax.jit, static_argnames="activation")
def flow(kernels, x, activation):
    """Norms of the gradients of a deep dense network, and of that at its output."""

    def loss(kernels):
        y = x
        for name in sorted(kernels):
            y = (activation(y) if name != "00" else y) @ kernels[name]
        losses = partial(cross_entropy, labels=LABELS)
        return losses(y).mean(), gradients.at_output(losses, y)

    gradient, entering = jax.grad(loss, has_aux=True)(kernels)
    return gradients.norms(gradient), entering


@pytest.mark.parametrize(
    ("activation", "scale", "first", "last"),
    [
        (nn.relu, 2.0, "healthy", "healthy"),  # He's initial weights
        (nn.relu, 0.2, "vanishing", "vanishing"),  # what does not get through forward has no gradient either
        (nn.relu, 20.0, "exploding", "exploding"),
        (nn.sigmoid, 1.0, "vanishing", "healthy"),  # the textbook's case
    ],
)
def test_verdicts_on_deep_networks(activation, scale, first, last):
    rng = np.random.default_rng(0)
    shapes = [(32, 32)] * 16 + [(32, 4)]
    kernels = {
        f"{i:02}": rng.normal(0, (scale / 32) ** 0.5, shape).astype(np.float32) for i, shape in enumerate(shapes)
    }
    norms, entering = flow(kernels, rng.normal(size=(16, 32)).astype(np.float32), activation)
    assert 0.2 < entering < 0.7  # of probabilities, less 1 for the label
    found = gradients.verdicts(norms, kernels, output=entering)
    assert (found["00"], found["16"]) == (first, last)


def test_verdicts_of_a_run_are_those_of_its_median():
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones((4, 4)), "c": jnp.ones((3, 3)), "bias": jnp.ones(1)}
    steps = {"bias": [0.0] * 3, "a": [2.0, 0.0, 2.0], "b": [0.0, 0.0, 4.0], "c": [3.0, np.nan, 3.0]}
    output = [1.0, 2.0, 1.0]
    found = gradients.verdicts(steps, params, output=output)
    assert found == {"a": "healthy", "b": "vanishing", "c": "exploding"}
    assert gradients.verdicts(steps, params, output=output, high=1.0)["a"] == "exploding"  # 2 of 4 numbers: 1 each
    assert gradients.verdicts(steps, params, output=output, high=1.1, low=1.0)["a"] == "vanishing"
    still = dict.fromkeys(params, 0.0)
    assert set(gradients.verdicts(still, params, output=0.0).values()) == {"vanishing"}


def test_gradients_at_the_output_are_those_of_each_example():
    outputs = {"scores": jnp.array([[1.0, 2.0], [3.0, 4.0]])}
    found = gradients.at_output(lambda outputs: jnp.square(outputs["scores"]).sum(1) / 2, outputs)
    np.testing.assert_allclose(found, np.sqrt(30 / 4), rtol=1e-6)


class Small(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = max_pool(nn.relu(Conv(4, name="conv1")(x)))
        return nn.Dense(3, name="out")(nn.relu(Conv(5, name="conv2")(x)).mean((1, 2)))


@pytest.fixture(scope="module")
def network():
    """(losses, params, batch) of a small network and 5 images of 8×8."""
    rng = np.random.default_rng(0)
    batch = {"image": rng.normal(size=(5, 8, 8, 1)).astype(np.float32), "label": np.array([0, 1, 2, 0, 1])}
    params = filled(Small(), batch["image"])["params"]

    def losses(params, batch):
        return cross_entropy(Small().apply({"params": params}, batch["image"]), batch["label"])

    return losses, params, batch


@pytest.fixture(scope="module")
def each(network):
    return gradients.per_example(*network, chunk=2)


def flat(each):
    return np.concatenate([np.asarray(g, np.float64).reshape(len(g), -1) for g in jax.tree.leaves(each)], axis=1)


def test_gradients_of_each_example(network, each):
    losses, params, batch = network
    alone = jax.jit(jax.grad(lambda params, example: losses(params, example).sum()))
    for i in range(5):
        expected = alone(params, jax.tree.map(lambda x, i=i: x[i : i + 1], batch))
        jax.tree.map(lambda g, e, i=i: np.testing.assert_allclose(g[i], e, atol=1e-5), each, expected)


def test_cosines(each):
    g = flat(each)
    length = np.linalg.norm(g, axis=1)
    found = gradients.cosines(each)
    np.testing.assert_allclose(found, g @ g.T / np.outer(length, length), atol=1e-5)
    np.testing.assert_allclose(np.diagonal(found), 1, atol=1e-6)
    found = gradients.cosines({"a": jnp.array([[1.0, 0], [0, 0], [-2, 0]]), "b": jnp.zeros((3, 2, 2))})
    np.testing.assert_allclose(found, [[1, 0, -1], [0, 0, 0], [-1, 0, 1]], atol=1e-6)


def test_noise_scale_is_that_of_the_gradients(network, each):
    g = flat(each)
    trace = g.var(0, ddof=1).sum()
    mean = np.square(g.mean(0)).sum()
    found = gradients.noise_scale(*network, chunk=2)
    np.testing.assert_allclose(found.trace, trace, rtol=1e-4)
    np.testing.assert_allclose(found.simple, trace / mean, rtol=1e-4)
    np.testing.assert_allclose(found.square, mean - trace / 5, rtol=1e-3)
    np.testing.assert_allclose(found.unbiased, found.trace / found.square, rtol=1e-5)
    left_out = [np.delete(g, i, axis=0) for i in range(5)]
    scales = [h.var(0, ddof=1).sum() / (np.square(h.mean(0)).sum() - h.var(0, ddof=1).sum() / 4) for h in left_out]
    np.testing.assert_allclose(found.standard_error, np.std(scales) * 4**0.5, rtol=1e-3)  # the jackknife
    losses, params, batch = network
    assert np.isnan(gradients.noise_scale(losses, params, jax.tree.map(lambda x: x[:2], batch)).standard_error)


def test_noise_scale_is_unbiased(key):
    """The loss x·p has the gradient x, here of known mean and variance."""
    mean, deviation = jnp.array([1.0, -0.5, 0.2, 0.0]), jnp.array([3.0, 1.0, 0.0, 2.0])

    def losses(params, batch):
        return batch @ params

    def estimate(key):
        batch = mean[None] + deviation[None] * jax.random.normal(key, (8, 4))
        return gradients.noise_scale(losses, jnp.zeros(4), batch, chunk=8)

    found = jax.jit(jax.vmap(estimate))(jax.random.split(key, 4000))
    for values, true in ((found.trace, 14.0), (found.square, 1.29)):
        assert abs(values.mean() - true) < 4 * values.std() / 4000**0.5
    np.testing.assert_allclose(found.trace.mean() / found.square.mean(), 14 / 1.29, rtol=0.1)
    np.testing.assert_allclose((found.trace / found.simple).mean(), 1.29 + 14 / 8, rtol=0.05)  # the mean has noise too


def test_the_error_of_the_noise_scale(key):
    """It is the deviation of what many batches give; x·p again."""

    def estimate(key):
        batch = 1 + 2 * jax.random.normal(key, (400, 4))
        return gradients.noise_scale(lambda params, batch: batch @ params, jnp.zeros(4), batch, chunk=100)

    found = jax.jit(jax.vmap(estimate))(jax.random.split(key, 1000))
    error = jnp.sqrt(jnp.square(found.standard_error).mean())
    np.testing.assert_allclose(error, found.unbiased.std(), rtol=0.1)


def test_bad_arguments(network):
    losses, params, batch = network
    norms = dict.fromkeys(("a", "out"), 1.0)
    arrays = {"a": np.ones((2, 2)), "out": np.ones(2)}
    for call, sentence in [
        (partial(gradients.verdicts, {"a": 1.0}, arrays, output=1.0), "gradients of a and parameters a, out"),
        (
            partial(gradients.verdicts, norms, arrays, output=[1.0, 2.0]),
            r"a has norms of shape \(\) and the output \(2,\)",
        ),
        (partial(gradients.per_example, losses, params, batch, chunk=0), "chunk is 0: expected 1 or more"),
        (partial(gradients.per_example, losses, params, {**batch, "label": np.zeros(4, int)}), r"lengths \[4, 5\]"),
        (partial(gradients.noise_scale, losses, params, jax.tree.map(lambda x: x[:1], batch)), "give at least 2"),
    ]:
        with pytest.raises(InputError, match=sentence):
            call()
