"""Eigenvalues, their density and the trace, beside the whole Hessian of a tiny network."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from networks import filled

from cnn_jax.analysis import curvature
from cnn_jax.errors import InputError
from cnn_jax.models.layers import Conv, max_pool


class Tiny(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = max_pool(nn.softplus(Conv(3, name="conv1")(x)))
        return nn.Dense(3, name="out")(nn.tanh(Conv(2, name="conv2")(x)).mean((1, 2)))


@pytest.fixture(scope="module")
def network():
    """(loss, params, Hessian f64[P,P]), P = 122."""
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(12, 6, 6, 2)).astype(np.float32), np.arange(12) % 3
    params = filled(Tiny(), images)["params"]

    def loss(params):
        log = nn.log_softmax(Tiny().apply({"params": params}, images))
        return -jnp.take_along_axis(log, labels[:, None], axis=1).mean()

    flat, unravel = ravel_pytree(params)
    # Reverse over reverse, one row a time: not the way of the code.
    row = jax.grad(lambda flat, v: jax.grad(lambda f: loss(unravel(f)))(flat) @ v)
    hessian = jax.jit(lambda flat: jax.lax.map(lambda v: row(flat, v), jnp.eye(len(flat))))(flat)
    assert hessian.shape == (122, 122)
    hessian = np.asarray(hessian, np.float64)
    return loss, params, (hessian + hessian.T) / 2


def test_products(network):
    loss, params, hessian = network
    vector = jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size, dtype=jnp.float32)).reshape(p.shape), params)
    found = ravel_pytree(jax.jit(partial(curvature.product, loss))(params, vector))[0]
    np.testing.assert_allclose(found, hessian @ np.asarray(ravel_pytree(vector)[0]), atol=1e-5)


def test_largest_eigenvalues(key, network):
    loss, params, hessian = network
    values, vectors = np.linalg.eigh(hessian)
    found = curvature.eigenvalues(key, loss, params, count=4, steps=40)
    np.testing.assert_allclose(found.values, values[::-1][:4], rtol=1e-3)
    assert (np.abs(found.values - values[::-1][:4]) <= found.bounds + 1e-5).all()
    for i in range(4):
        direction = ravel_pytree(jax.tree.map(lambda v, i=i: v[i], found.vectors))[0]
        np.testing.assert_allclose(abs(direction @ vectors[:, -1 - i]), 1, atol=1e-3)


def test_bounds_are_the_lengths_of_what_is_left_over(key, network):
    """‖H v − λ v‖: so far at most from λ lies an eigenvalue."""
    loss, params, hessian = network
    found = curvature.eigenvalues(key, loss, params, count=3, steps=6)
    directions = jax.vmap(lambda tree: ravel_pytree(tree)[0])(found.vectors)
    left = np.linalg.norm(directions @ hessian - found.values[:, None] * directions, axis=1)
    np.testing.assert_allclose(found.bounds, left, rtol=0.02)
    assert (left > 0.01 * abs(found.values[0])).any()  # six steps are few


def test_as_many_steps_as_parameters_give_all_eigenvalues(key, network):
    """Though many are nearly zero, and the others are found long before the last step."""
    hessian = network[2]
    found = curvature.eigenvalues(key, lambda p: p @ hessian @ p / 2, jnp.ones(len(hessian)), count=122, steps=122)
    values = np.linalg.eigvalsh(hessian)[::-1]
    np.testing.assert_allclose(found.values, values, atol=1e-3 * values[0])
    np.testing.assert_allclose(found.vectors @ found.vectors.T, np.eye(122), atol=1e-4)


def test_eigenvalues_that_occur_several_times(key):
    scales = jnp.array([5.0, 5.0, 5.0, 2.0, -1.0, 0.0])

    def loss(params):
        return 0.5 * (scales * params["a"] ** 2).sum()

    found = curvature.eigenvalues(key, loss, {"a": jnp.ones(6)}, count=6, steps=6)
    np.testing.assert_allclose(found.values, [5, 5, 5, 2, 0, -1], atol=1e-5)
    flat = curvature.eigenvalues(key, lambda params: params.sum(), jnp.ones(4), count=4, steps=4)
    np.testing.assert_array_equal(flat.values, 0)  # a loss that does not bend


def test_trace(key, network):
    loss, params, hessian = network
    found = curvature.trace(key, loss, params, probes=200)
    assert abs(found.mean - np.trace(hessian)) < 3 * found.standard_error
    assert found.standard_error < 0.2 * abs(found.mean)
    # Random signs vary by the off-diagonal alone: 2·Σ_{i≠j} H_ij² a probe.
    off = hessian - np.diag(np.diag(hessian))
    np.testing.assert_allclose(found.samples.std(), np.sqrt(2 * np.square(off).sum()), rtol=0.25)
    np.testing.assert_allclose(found.standard_error, found.samples.std(ddof=1) / 200**0.5, rtol=1e-5)


@pytest.fixture(scope="module")
def found_spectrum(network):
    loss, params, _ = network
    return curvature.spectrum(jax.random.key(1), loss, params, steps=30, probes=100)


def test_moments_of_the_spectrum(network, found_spectrum):
    _, _, hessian = network
    nodes, weights = (np.asarray(array, np.float64) for array in found_spectrum)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)
    for k in range(1, 5):
        moments = (weights * nodes**k).sum(1)
        true = np.trace(np.linalg.matrix_power(hessian, k)) / len(hessian)
        assert abs(moments.mean() - true) < 3.5 * moments.std(ddof=1) / 10


def test_density_has_the_area_and_the_mass_of_the_eigenvalues(network, found_spectrum):
    _, _, hessian = network
    places, density = curvature.density(found_spectrum, points=2000)
    assert (density >= 0).all()
    np.testing.assert_allclose(np.trapezoid(density, places), 1, atol=1e-4)
    mean = np.trapezoid(density * places, places)
    nodes, weights = (np.asarray(array, np.float64) for array in found_spectrum)
    np.testing.assert_allclose(mean, (weights * nodes).sum() / 100, rtol=1e-3)
    # The share of eigenvalues above a place that lies in a gap.
    values = np.linalg.eigvalsh(hessian)
    gap = values[-1] / 4
    above = places > gap
    share = np.trapezoid(density[above], places[above])
    np.testing.assert_allclose(share, (values > gap).mean(), atol=0.01)


def test_density_of_one_place(key):
    """Of H = 2·1 every vector is an eigenvector: all weight is at 2."""
    one = curvature.spectrum(key, lambda params: (params**2).sum(), jnp.ones(9), steps=3, probes=2)
    nodes, weights = map(np.asarray, one)
    np.testing.assert_allclose((nodes * weights).sum(1), 2, rtol=1e-5)
    places, density = curvature.density(one, width=0.1)
    assert abs(places[density.argmax()] - 2) < 0.01
    np.testing.assert_allclose(density.max(), 1 / (0.1 * np.sqrt(2 * np.pi)), rtol=1e-3)


def test_same_key_same_numbers(key):
    def loss(params):
        return jnp.sin(params[None] * params[:, None]).sum()

    def run(key):
        return curvature.trace(key, loss, jnp.arange(4.0), probes=2).samples

    np.testing.assert_array_equal(run(key), run(key))
    assert (run(key) != run(jax.random.key(5))).any()


def test_bad_arguments(key):
    loss, params = (lambda params: (params**2).sum()), jnp.ones(4)
    spectrum = curvature.Spectrum(np.zeros((1, 2)), np.full((1, 2), 0.5))
    for call, sentence in [
        (lambda: curvature.trace(key, loss, params, probes=0), "probes is 0: expected 1 or more"),
        (lambda: curvature.eigenvalues(key, loss, params, steps=5), "5 steps of Lanczos' method for 4 parameters"),
        (lambda: curvature.eigenvalues(key, loss, params, count=3, steps=2), "3 eigenvalues of 2 steps"),
        (lambda: curvature.eigenvalues(key, loss, params, count=0, steps=2), "count is 0: expected 1 or more"),
        (lambda: curvature.spectrum(key, loss, params, steps=0), "steps is 0: expected 1 or more"),
        (lambda: curvature.density(spectrum, points=1), "points 1: a curve needs at least 2"),
        (lambda: curvature.density(spectrum, width=0.0), "width 0.0: it must be above 0"),
    ]:
        with pytest.raises(InputError, match=sentence):
            call()
