"""Norms, verdicts, gradients of examples and their noise, against NumPy and known distributions."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax import models
from cnn_jax.analysis import gradients
from cnn_jax.errors import InputError


def test_norms_are_those_of_each_array():
    tree = {"conv": {"kernel": jnp.full((2, 3), 2.0), "bias": jnp.array([3.0, 4.0])}, "out": jnp.zeros(5)}
    found = jax.jit(gradients.norms)(tree)
    assert {path: round(float(norm), 5) for path, norm in found.items()} == {
        "conv/kernel": 4.89898,
        "conv/bias": 5.0,
        "out": 0.0,
    }


class Deep(nn.Module):
    activation: str
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x):
        for i in range(16):
            x = getattr(nn, self.activation)(nn.Dense(32, kernel_init=self.kernel_init, name=f"layer{i:02}")(x))
        return nn.Dense(4, name="out")(x)


@pytest.mark.parametrize(
    ("activation", "scale", "first", "last"),
    [
        ("relu", 2.0, "healthy", "healthy"),  # He's initial weights
        ("relu", 0.2, "vanishing", "vanishing"),  # what does not get through forward has no gradient either
        ("relu", 20.0, "exploding", "exploding"),
        ("sigmoid", 1.0, "vanishing", "healthy"),  # the textbook's case
    ],
)
def test_verdicts_on_deep_networks(key, activation, scale, first, last):
    model = Deep(activation, nn.initializers.variance_scaling(scale, "fan_in", "normal"))
    x, labels = jax.random.normal(key, (16, 32)), jnp.arange(16) % 4

    def losses(outputs):
        return -jnp.take_along_axis(nn.log_softmax(outputs), labels[:, None], 1)[:, 0]

    @jax.jit
    def run(key):
        params = model.init(key, x)["params"]

        def loss(params):
            outputs = model.apply({"params": params}, x)
            return losses(outputs).mean(), gradients.at_output(losses, outputs)

        gradient, entering = jax.grad(loss, has_aux=True)(params)
        return params, gradients.norms(gradient), entering

    params, norms, entering = run(key)
    assert 0.2 < entering < 0.5  # of probabilities less one or zero
    found = gradients.verdicts(norms, params, output=entering)
    assert (found["layer00/kernel"], found["out/kernel"]) == (first, last)
    assert len(found) == 17  # biases are not judged


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


@pytest.fixture(scope="module")
def network():
    """(losses, params, batch) of SimpleCNN and 5 images of 8×8."""
    model = models.create("simple_cnn", num_classes=3)
    rng = np.random.default_rng(0)
    batch = {"image": rng.normal(size=(5, 8, 8, 1)).astype(np.float32), "label": np.array([0, 1, 2, 0, 1])}
    params = jax.jit(model.init)(jax.random.key(0), batch["image"])["params"]

    def losses(params, batch):
        log = nn.log_softmax(model.apply({"params": params}, batch["image"]))
        return -jnp.take_along_axis(log, batch["label"][:, None], axis=1)[:, 0]

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
