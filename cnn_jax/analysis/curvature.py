"""How a loss bends: products with its Hessian, the Hessian's largest eigenvalues, their density, and its trace.

    loss = lambda params: task.loss(model.apply({"params": params}, images), batch)[0].mean()
    curvature.eigenvalues(key, loss, params, count=5).values
    places, density = curvature.density(curvature.spectrum(key, loss, params))

`loss(params) -> f32[]`, of any pytree of float32 arrays with P numbers in all. The Hessian, f32[P,P], is never made.
All but `density` are traceable, and compiled at each call otherwise: to look several times, put them under one
`jax.jit` of the parameters, as `experiments.gradients` does.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from cnn_jax.analysis.loops import for_loops
from cnn_jax.analysis.programs import program
from cnn_jax.analysis.scores import at_least_one
from cnn_jax.errors import InputError

Loss = Callable[[Any], jax.Array]


def product(loss: Loss, params: Any, vector: Any) -> Any:
    """The Hessian of the loss times a vector, both like `params`. Traceable.

    Forward over reverse (Pearlmutter 1994, "Fast exact multiplication by the Hessian"): the gradient's derivative in
    the direction of the vector. It takes half the time of the gradient of the gradient's product with it.
    """
    return jax.jvp(jax.grad(loss), (params,), (vector,))[1]


class Trace(NamedTuple):
    """An estimate of the trace."""

    mean: jax.Array
    """f32[]."""
    standard_error: jax.Array
    """f32[], of the mean; nan of one probe."""
    samples: jax.Array
    """f32[probes], one estimate a probe."""


def trace(key: jax.Array, loss: Loss, params: Any, *, probes: int = 32) -> Trace:
    """The trace of the Hessian by Hutchinson's estimator: the mean of vᵀHv over vectors v of random signs.

    Hutchinson 1990, "A stochastic estimator of the trace of the influence matrix".

    Raises:
        InputError: `probes` below 1.
    """
    at_least_one(probes=probes)

    def run(key, params):
        flat, multiply = _flat(loss, params)

        def sample(key):
            signs = jax.random.rademacher(key, flat.shape, flat.dtype)
            return _dot(signs, multiply(signs))

        samples = jax.lax.map(sample, jax.random.split(key, probes))
        return Trace(samples.mean(), samples.std(ddof=1) / probes**0.5 if probes > 1 else jnp.nan, samples)

    return program(run, key, params)(key, params)


class Eigenvalues(NamedTuple):
    """The largest eigenvalues of a Hessian, in falling order."""

    values: jax.Array
    """f32[count]."""
    vectors: Any
    """Like `params`, each array with a leading `count`; of length 1 over all arrays together."""
    bounds: jax.Array
    """f32[count]: so far at most does the nearest true eigenvalue lie, but for rounding."""


def eigenvalues(key: jax.Array, loss: Loss, params: Any, *, count: int = 1, steps: int = 50) -> Eigenvalues:
    """The `count` largest eigenvalues of the Hessian, by Lanczos' method with full re-orthogonalisation.

    Largest means most positive; those of `lambda params: -loss(params)` are the smallest, with their sign changed. One
    that occurs several times is found once, unless `steps` is P. Memory holds `steps` vectors of P numbers.

    Args:
        key: of the vector to start from.
        count: at most `steps`.
        steps: of Lanczos' method, at most P: one product with the Hessian each. More make `bounds` smaller.

    Raises:
        InputError: `count` or `steps` out of range.
    """
    at_least_one(count=count, steps=steps)
    _check_steps(steps, params)
    if count > steps:
        raise InputError(f"{count} eigenvalues of {steps} steps: take at least as many steps")

    def run(key, params):
        flat, multiply = _flat(loss, params)
        alphas, betas, basis = _lanczos(key, multiply, flat.size, steps)
        values, vectors = jnp.linalg.eigh(_tridiagonal(alphas, betas))
        values, vectors = values[::-1][:count], vectors[:, ::-1][:, :count]
        directions = jnp.matmul(vectors.T, basis, precision="highest")
        unravel = ravel_pytree(params)[1]
        return Eigenvalues(values, jax.vmap(unravel)(directions), jnp.abs(betas[-1] * vectors[-1]))

    return program(run, key, params)(key, params)


class Spectrum(NamedTuple):
    """A Hessian's eigenvalues as they appear to random vectors: at which places, with what weights."""

    nodes: jax.Array
    """f32[probes, steps], in rising order."""
    weights: jax.Array
    """f32[probes, steps], each row summing to 1. A row's Σ weights·nodesᵏ is vᵀHᵏv for its random unit vector v, for k
    up to 2·steps - 1; the mean over many is tr(Hᵏ)/P."""


def spectrum(key: jax.Array, loss: Loss, params: Any, *, steps: int = 80, probes: int = 4) -> Spectrum:
    """The distribution of the Hessian's eigenvalues by stochastic Lanczos quadrature.

    Ghorbani, Krishnan & Xiao 2019, "An investigation into neural net optimization via Hessian eigenvalue density",
    section 2. Memory holds `steps` vectors of P numbers.

    Args:
        key: of the random vectors.
        steps: of Lanczos' method, at most P; the resolution.
        probes: random vectors, one run of the method each.

    Raises:
        InputError: `probes` or `steps` out of range.
    """
    at_least_one(probes=probes, steps=steps)
    _check_steps(steps, params)

    def run(key, params):
        flat, multiply = _flat(loss, params)

        def probe(key):
            alphas, betas, _ = _lanczos(key, multiply, flat.size, steps)
            values, vectors = jnp.linalg.eigh(_tridiagonal(alphas, betas))
            return Spectrum(values, jnp.square(vectors[0]))

        return jax.lax.map(probe, jax.random.split(key, probes))

    return program(run, key, params)(key, params)


def density(spectrum: Spectrum, *, points: int = 1024, width: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The spectrum as a curve: (places f64[points], density f64[points]), with an area of 1.

    Args:
        width: standard deviation of the normal distribution that each eigenvalue is drawn as; a hundredth of the range
            of the nodes if None.

    Raises:
        InputError: `points` below 2, or a `width` that is not above 0.
    """
    if points < 2:
        raise InputError(f"points {points}: a curve needs at least 2")
    nodes, weights = (np.asarray(array, np.float64).reshape(-1) for array in spectrum)
    if width is None:
        width = max(np.ptp(nodes) / 100, 1e-6 * np.abs(nodes).max(), 1e-30)
    if not width > 0:
        raise InputError(f"width {width}: it must be above 0")
    places = np.linspace(nodes.min() - 5 * width, nodes.max() + 5 * width, points)
    bells = np.exp(-0.5 * np.square((places[:, None] - nodes[None]) / width)) / (width * np.sqrt(2 * np.pi))
    return places, bells @ (weights / len(spectrum.nodes))


def _flat(loss: Loss, params: Any) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """`params` as f32[P], and the product of the Hessian with such a vector; for loops."""
    flat, unravel = ravel_pytree(params)
    multiply = for_loops(lambda flat, vector: product(lambda flat: loss(unravel(flat)), flat, vector))
    return flat, lambda vector: multiply(flat, vector)


def _lanczos(key: jax.Array, multiply: Callable, size: int, steps: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Lanczos' tridiagonal matrix, its diagonal f32[steps] and beside it f32[steps], and the basis f32[steps, P].

    The last number beside the diagonal is that of the residual. Where the vectors so far hold all that the first one
    can reach, a new random one goes on from there, with a 0 beside the diagonal.
    """

    def without(basis, vector):
        # Twice is enough (Parlett 1998, "The symmetric eigenvalue problem", section 6.9): rounding leaves no more.
        for _ in range(2):
            along = jnp.matmul(basis, vector, precision="highest")
            vector = vector - jnp.matmul(along, basis, precision="highest")
        return vector

    def unit(vector):
        return vector / jnp.maximum(jnp.sqrt(_dot(vector, vector)), 1e-30)

    def step(carry, scanned):
        basis, vector, scale = carry
        index, key = scanned
        basis = basis.at[index].set(vector)
        image = multiply(vector)
        alpha = _dot(vector, image)
        rest = without(basis, image)
        beta = jnp.sqrt(_dot(rest, rest))
        scale = jnp.maximum(scale, jnp.sqrt(_dot(image, image)))
        done = beta <= 1e-6 * scale
        rest = jax.lax.cond(done, lambda: jax.random.normal(key, (size,)), lambda: rest)
        beta = jnp.where(done, 0, beta)
        return (basis, unit(without(basis, unit(rest))), scale), (alpha, beta)

    keys = jax.random.split(key, steps + 1)
    carry = jnp.zeros((steps, size)), unit(jax.random.normal(keys[0], (size,))), jnp.zeros(())
    (basis, _, _), (alphas, betas) = jax.lax.scan(step, carry, (jnp.arange(steps), keys[1:]))
    return alphas, betas, basis


def _tridiagonal(alphas: jax.Array, betas: jax.Array) -> jax.Array:
    return jnp.diag(alphas) + jnp.diag(betas[:-1], 1) + jnp.diag(betas[:-1], -1)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.vdot(a, b, precision="highest")


def _check_steps(steps: int, params: Any) -> None:
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    if steps > size:
        raise InputError(f"{steps} steps of Lanczos' method for {size} parameters: take at most as many")
