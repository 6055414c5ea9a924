"""How gradients flow through the layers of a network, and how far examples agree on them.

    flow = gradients.norms(jax.grad(loss)(params))         # {"conv1/kernel": f32[], …}
    entering = gradients.at_output(lambda outputs: task.loss(outputs, batch)[0], outputs)
    gradients.verdicts(flow, params, output=entering)      # {"conv1/kernel": "healthy", …}
    each = gradients.per_example(losses, params, batch)    # losses(params, batch) -> f32[N]
    gradients.cosines(each), gradients.noise_scale(losses, params, batch)

`losses` gives one value an example, which depends on that example alone: batch norm has to use its running statistics.
All but `verdicts` are traceable; `per_example` and `noise_scale` are compiled at each call otherwise: to look several
times, put them under one `jax.jit` of the parameters.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.analysis.loops import for_loops
from cnn_jax.analysis.scores import at_least_one
from cnn_jax.errors import InputError

Losses = Callable[[Any, Any], jax.Array]


def norms(tree: Any) -> dict[str, jax.Array]:
    """The Euclidean norm of each array of a tree of parameters, gradients or updates: {"conv1/kernel": f32[], …}.

    Traceable: a training step can return those of all three, and a scan stack them.
    """
    return {path: jnp.sqrt(_square(leaf)) for path, leaf in _by_path(tree).items()}


def at_output(losses: Callable[[Any], jax.Array], outputs: Any) -> jax.Array:
    """How large gradients are where they enter a network: f32[], the root mean square, for `verdicts`. Traceable.

    Args:
        losses: `losses(outputs) -> f32[N]`, such as `lambda outputs: task.loss(outputs, batch)[0]`.
        outputs: of the network, with a leading N.
    """
    leaves = jax.tree.leaves(jax.grad(lambda outputs: losses(outputs).sum())(outputs))
    return jnp.sqrt(sum(map(_square, leaves)) / sum(leaf.size for leaf in leaves))


def verdicts(
    gradient: Mapping[str, Any], params: Any, *, output: Any, low: float = 1e-4, high: float = 1e3
) -> dict[str, str]:
    """Whether gradients vanish or explode on their way back from the output, for each kernel.

    The rule: the root mean square of a kernel's gradient, as a multiple of that of the examples' gradients at the
    output; of the records of a run, the median. A kernel is "exploding" where a record is not finite or the median is
    `high` or more, "vanishing" where it is `low` or less, and otherwise "healthy". A good start keeps all layers near
    each other (Glorot & Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks"; He et
    al. 2015, "Delving deep into rectifiers"): in 20 dense layers of 64 with ReLU and He's initial weights the multiples
    are 0.01 to 0.2 for 16 to 1,024 examples; with Lecun's they are 10⁻⁵, with the sigmoid the first layer's is 10⁻¹⁴.
    Of VGG-11 and MobileNetV2 they are 0.001 to 5 at the start; a ResNet's branches begin at zero, and at the very first
    step have no gradient inside.

    Args:
        gradient: of the mean loss, {path: norm, f32[], or f32[T] of T records}, as `norms` gives them.
        params: arrays, or anything that has their shapes. Those of two dimensions or more are judged.
        output: f32[] or f32[T], as `at_output` gives it.

    Returns:
        {path: "vanishing", "exploding" or "healthy"}.

    Raises:
        InputError: gradients are not those of `params`, or records differ in number.
    """
    arrays = _by_path(params)
    if set(gradient) != set(arrays):
        raise InputError(
            f"gradients of {', '.join(sorted(gradient)) or 'nothing'} and parameters {', '.join(sorted(arrays))}: "
            "they must have the same paths"
        )
    entering = np.asarray(output, np.float64)
    for path, norm in gradient.items():
        if np.shape(norm) != entering.shape:
            raise InputError(
                f"{path} has norms of shape {np.shape(norm)} and the output {entering.shape}: give the same"
            )

    def verdict(norm, size):
        multiple = np.asarray(norm, np.float64) / np.sqrt(size) / np.maximum(entering, 1e-300)
        if not np.isfinite(multiple).all() or np.median(multiple) >= high:
            return "exploding"
        return "vanishing" if np.median(multiple) <= low else "healthy"

    kernels = {path: np.prod(leaf.shape) for path, leaf in arrays.items() if len(leaf.shape) > 1}
    return {path: verdict(gradient[path], size) for path, size in kernels.items()}


def per_example(losses: Losses, params: Any, batch: Any, *, chunk: int = 8) -> Any:
    """The gradient of each example's loss: like `params`, each array with a leading N.

    Args:
        losses: `losses(params, batch) -> f32[N]`.
        batch: arrays with a leading N, such as {"image": f32[N,H,W,C], "label": i32[N]}.
        chunk: so many examples at a time are differentiated; it bounds what is kept beside the result.

    Raises:
        InputError: `chunk` below 1, or arrays of different lengths.
    """
    count = _length(batch, chunk)

    @jax.jit
    def run(params, batch):
        chunks, _ = _chunks(batch, count, chunk)
        found = jax.lax.map(lambda chunk: _each(losses)(params, chunk), chunks)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], found)

    return run(params, batch)


def cosines(gradients: Any) -> jax.Array:
    """The cosine between the gradients of each two examples: f32[N,N], 0 where one is zero. Traceable.

    Below zero, a step that serves the one harms the other.

    Args:
        gradients: arrays with a leading N, as `per_example` gives them.
    """
    return _cosines([_rows(leaf) for leaf in jax.tree.leaves(gradients)])


@jax.jit
def _cosines(rows: list[jax.Array]) -> jax.Array:
    gram = sum(jnp.matmul(row, row.T, precision="highest") for row in rows)
    length = jnp.sqrt(jnp.diagonal(gram))
    inverse = jnp.where(length > 0, 1 / jnp.where(length > 0, length, 1), 0)
    return (gram * inverse[:, None] * inverse[None]).clip(-1, 1)


class NoiseScale(NamedTuple):
    """How noisy gradients are: the batch size above which a larger one is of little use."""

    simple: jax.Array
    """f32[], trace / square of the mean gradient as it is, in which trace/N is noise: hardly ever above N."""
    unbiased: jax.Array
    """f32[], trace / square. Of few examples `square` can be near zero or below, and this means nothing."""
    standard_error: jax.Array
    """f32[], of `unbiased`, by the jackknife; NaN for fewer than 3 examples. Where it is as large, they are too few."""
    trace: jax.Array
    """f32[], tr(Σ), the summed variance of the parameters' gradients between examples; unbiased."""
    square: jax.Array
    """f32[], |G|², the square of the true gradient's norm; unbiased. To use many batches, average `trace` and `square`
    over them, and divide last."""


FOLDS = 8  # parts of a batch, each left out once for the standard error


def noise_scale(losses: Losses, params: Any, batch: Any, *, chunk: int = 8) -> NoiseScale:
    """The simple noise scale B = tr(Σ) / |G|² of N examples, one gradient each, in memory that does not grow with N.

    McCandlish et al. 2018, "An empirical model of large-batch training", section 2.2; the unbiased estimates are those
    of appendix A.1, with small batches of one example and a large one of all. Of N examples `square` has an error of
    about tr(Σ)/N: take several times as many as the scale that is found.

    Args:
        losses, batch, chunk: as for `per_example`; N of 2 or more.

    Raises:
        InputError: fewer than two examples, `chunk` below 1, or arrays of different lengths.
    """
    count = _length(batch, chunk)
    if count < 2:
        raise InputError(f"the noise scale of {count} example: give at least 2")
    folds = min(FOLDS, count)

    @jax.jit
    def run(params, batch):
        def add(sums, scanned):
            chunk, ours = scanned
            each = _each(losses)(params, chunk)
            squares = sum(jnp.square(_rows(g)).sum(1) for g in jax.tree.leaves(each))
            summed = partial(jnp.einsum, "nf,n...->f...", ours, precision="highest")
            return jax.tree.map(jnp.add, sums, jax.tree.map(summed, (each, squares, jnp.ones(len(ours))))), None

        chunks, real = _chunks(batch, count, chunk)
        ours = real[..., None] * jax.nn.one_hot(jnp.arange(real.size).reshape(real.shape) % folds, folds)
        zeros = jax.tree.map(lambda p: jnp.zeros((folds, *p.shape), p.dtype), params)
        of_folds, _ = jax.lax.scan(add, (zeros, jnp.zeros(folds), jnp.zeros(folds)), (chunks, ours))
        total = jax.tree.map(lambda x: x.sum(0), of_folds)
        without = jax.lax.map(lambda fold: _noise_scale(*jax.tree.map(jnp.subtract, total, fold)), of_folds)
        return _noise_scale(*total)._replace(standard_error=jnp.sqrt((folds - 1) * without.unbiased.var()))

    return run(params, batch)


def _noise_scale(gradient: Any, squares: jax.Array, count: jax.Array) -> NoiseScale:
    """Of sums over `count` examples; its error is not known here."""
    mean_square = squares / count
    square_of_mean = sum(_square(g / count) for g in jax.tree.leaves(gradient))
    trace = (mean_square - square_of_mean) * count / (count - 1)
    square = (count * square_of_mean - mean_square) / (count - 1)
    return NoiseScale(trace / square_of_mean, trace / square, jnp.nan, trace, square)


def _each(losses: Losses) -> Callable:
    """`(params, chunk) -> gradients`, one for each example of the chunk; for loops."""

    def loss(params, example):
        return losses(params, jax.tree.map(lambda x: x[None], example))[0]

    return for_loops(jax.vmap(jax.grad(loss), in_axes=(None, 0)))


def _chunks(batch: Any, count: int, chunk: int) -> tuple[Any, jax.Array]:
    """The batch in rows [chunks, chunk, …], the last filled up with the first example, and 1 for the real ones."""
    chunk = min(chunk, count)
    rows = np.arange(-(-count // chunk) * chunk).reshape(-1, chunk)
    real = rows < count
    return jax.tree.map(lambda x: jnp.asarray(x)[np.where(real, rows, 0)], batch), jnp.asarray(real, jnp.float32)


def _length(batch: Any, chunk: int) -> int:
    lengths = {len(x) for x in jax.tree.leaves(batch)}
    if len(lengths) != 1:
        raise InputError(
            f"the arrays of the batch have lengths {sorted(lengths)}: they must have the same, one row each"
        )
    at_least_one(chunk=chunk)
    return lengths.pop()


def _by_path(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _rows(x: jax.Array) -> jax.Array:
    return x.reshape(len(x), -1).astype(jnp.float32)


def _square(x: jax.Array) -> jax.Array:
    return jnp.square(x.astype(jnp.float32)).sum()
