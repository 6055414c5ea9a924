"""Which pixels an output depends on: maps from gradients, and from hiding parts of the image.

    score = scores.class_score(model, variables, labels)
    maps = attribution.gradient(score, images)

Methods take `score`, a traceable function of images f32[N,H,W,C] to f32[N], one number an image: a `scores.Score` or
any other. They look at `batch_size` images at a time, and where those are fewer at several steps of each; beyond that
memory does not grow with steps, samples, windows or masks. Maps are signed: what is above 0 speaks for the score.
All raise InputError for images that are not finite f32[N,H,W,C], as the model takes them after preprocessing; for
targets out of range; and for a score that does not give one number an image.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.analysis.guided import guided
from cnn_jax.analysis.scores import (
    at_least_one,
    evaluate,
    in_batches,
    like_images,
    prepare,
    repeated,
    values,
    weighted_sum,
)
from cnn_jax.errors import InputError


def gradient(score: Callable, images: Any, *, batch_size: int = 64) -> jax.Array:
    """The derivative of the score by each number of an image: f32[N,H,W,C].

    Source: Simonyan et al. 2014, "Deep inside convolutional networks", section 3.
    """
    return in_batches(_gradient, *prepare(score, images), batch_size=batch_size)


def gradient_times_input(score: Callable, images: Any, *, batch_size: int = 64) -> jax.Array:
    """The gradient times the image: f32[N,H,W,C].

    Its sum is the score where that is linear along the way from 0: a network of ReLUs without biases.

    Source: Shrikumar et al. 2016, "Not just a black box: learning important features through propagating activation
    differences".
    """
    score, images = prepare(score, images)
    return gradient(score, images, batch_size=batch_size) * images


def guided_backpropagation(score: Callable, images: Any, *, batch_size: int = 64) -> jax.Array:
    """The gradient, of which ReLUs pass on the positive part alone: f32[N,H,W,C].

    See `guided.guided` for what is known as a ReLU.

    Raises:
        InputError: there is no ReLU.
    """
    return in_batches(_guided, *prepare(score, images), batch_size=batch_size)


class Integrated(NamedTuple):
    """Integrated gradients, and how far their integral is from exact."""

    maps: jax.Array
    """f32[N,H,W,C]; their sum is the difference of the score between image and baseline, but for the gap."""
    gap: jax.Array
    """f32[N], the sum of the map less that difference: 0 with steps enough."""


def integrated_gradients(
    score: Callable, images: Any, *, baseline: Any = 0.0, steps: int = 50, batch_size: int = 64
) -> Integrated:
    """The mean gradient on the straight way from a baseline to the image, times their difference.

    The integral is by Gauss and Legendre's rule, as captum's is.

    Args:
        baseline: an image that says nothing: a number, f32[H,W,C] or f32[N,H,W,C], as the model takes them.
        steps: points on the way.

    Source: Sundararajan et al. 2017, "Axiomatic attribution for deep networks".
    """
    at_least_one(steps=steps)
    score, images = prepare(score, images)
    together = max(1, batch_size // len(images))
    program = partial(_integrated, steps=steps, together=together)
    return in_batches(program, score, images, like_images("baseline", baseline, images), batch_size=batch_size)


def smooth_grad(
    key: jax.Array, score: Callable, images: Any, *, samples: int = 50, noise: float = 0.15, batch_size: int = 64
) -> jax.Array:
    """The mean gradient of copies of the image with noise: f32[N,H,W,C].

    Args:
        key: an image's noise depends on it and on the image's row, not on the batch size.
        noise: the deviation of its normal distribution, for each image in parts of the range of its numbers.

    Source: Smilkov et al. 2017, "SmoothGrad: removing noise by adding noise".
    """
    at_least_one(samples=samples)
    score, images = prepare(score, images)
    keys = jax.random.split(key, len(images))
    together = max(1, batch_size // len(images))
    program = partial(_smooth, jnp.float32(noise), samples=samples, together=together)
    return in_batches(program, score, images, keys, batch_size=batch_size)


def occlusion(
    score: Callable, images: Any, *, window: int, stride: int = 1, baseline: Any = 0.0, batch_size: int = 64
) -> jax.Array:
    """By how much the score falls when a square is covered; for each pixel the mean over its squares: f32[N,H,W].

    Args:
        window: side of the squares in pixels; those at the right and lower border are cut there.
        stride: pixels from one square to the next.
        baseline: what covers: a number, f32[H,W,C] or f32[N,H,W,C].

    Raises:
        InputError: squares that are larger than the image, or leave pixels between them.

    Source: Zeiler & Fergus 2014, "Visualizing and understanding convolutional networks", section 4.2.
    """
    score, images = prepare(score, images)
    height, width = images.shape[1:3]
    if not 1 <= stride <= window <= min(height, width):
        raise InputError(
            f"window is {window} and stride {stride} for images of {height}×{width}: expected stride ≤ window ≤ side"
        )
    together = max(1, batch_size // len(images))
    program = partial(_occlusion, window=window, stride=stride, together=together)
    return in_batches(program, score, images, like_images("baseline", baseline, images), batch_size=batch_size)


def rise(
    key: jax.Array,
    score: Callable,
    images: Any,
    *,
    masks: int = 4000,
    cells: int = 7,
    probability: float = 0.5,
    baseline: Any = 0.0,
    batch_size: int = 64,
) -> jax.Array:
    """The mean of random masks, weighted by the score of what they let through: f32[N,H,W].

    A mask is a small grid of zeros and ones, enlarged with smooth borders and shifted by part of a cell; all images see
    the same masks. Unlike the paper's, the map does not show how unevenly chance has laid the masks: that, times the
    mean score, is taken away, so that a score that is always the same gives a map that is the same everywhere.

    Args:
        masks: how many.
        cells: of the grid in each direction.
        probability: that a cell lets through.
        baseline: what hides: a number, f32[H,W,C] or f32[N,H,W,C].

    Source: Petsiuk et al. 2018, "RISE: Randomized input sampling for explanation of black-box models", section 3.
    """
    at_least_one(masks=masks, cells=cells)
    if not 0 < probability < 1:
        raise InputError(f"probability is {probability}: expected a number between 0 and 1")
    score, images = prepare(score, images)
    together = max(1, batch_size // len(images))
    program = partial(_rise, key, jnp.float32(probability), masks=masks, cells=cells, together=together)
    return in_batches(program, score, images, like_images("baseline", baseline, images), batch_size=batch_size)


def _derivative(score: Callable, images: jax.Array) -> jax.Array:
    # A number of an image has a part in that image's score alone.
    return jax.grad(lambda images: values(score, images).sum())(images)


def _derivatives(images: jax.Array, score: Callable, *_: Any) -> jax.Array:
    """Of K versions of each image, f32[N,K,H,W,C]."""
    flat = images.reshape(-1, *images.shape[2:])
    return _derivative(repeated(score, images.shape[1]), flat).reshape(images.shape)


_gradient = jax.jit(_derivative)


@jax.jit
def _guided(score, images):
    # With all that it depends on as arguments, its program has no constants.
    function = guided(lambda images, score: values(score, images).sum())
    return jax.grad(function)(images, score)


def _integrated(score, images, baseline, *, steps, together):
    places, weights = np.polynomial.legendre.leggauss(steps)  # on [-1,1]
    places = np.asarray((places + 1) / 2, jnp.result_type(float))
    arrays = (score, images, baseline, places)
    mean = weighted_sum(_on_the_way, _derivatives, arrays, weights / 2, together=together)
    return _with_gap(score, images, baseline, mean)


def _on_the_way(index, score, images, baseline, places):
    part = places[index].reshape(1, -1, 1, 1, 1)
    return baseline[:, None] + part * (images - baseline)[:, None]


@jax.jit
def _with_gap(score, images, baseline, mean):
    maps = mean * (images - baseline)
    gap = maps.sum((1, 2, 3)) - (values(score, images) - values(score, baseline))
    return Integrated(maps, gap)


def _smooth(noise, score, images, keys, *, samples, together):
    arrays = (score, images, keys, noise)
    return weighted_sum(_with_noise, _derivatives, arrays, np.full(samples, 1 / samples), together=together)


def _with_noise(index, score, images, keys, noise):
    deviation = noise * (images.max((1, 2, 3)) - images.min((1, 2, 3)))

    def noisy(key, deviation, image, sample):
        return image + deviation * jax.random.normal(jax.random.fold_in(key, sample), image.shape)

    return jax.vmap(jax.vmap(noisy, (None, None, None, 0)), (0, 0, 0, None))(keys, deviation, images, index)


def _occlusion(score, images, baseline, *, window, stride, together):
    tops, lefts = (np.arange(-(-(side - window) // stride) + 1) * stride for side in images.shape[1:3])
    rows, columns = (  # which pixels of a side lie in each window: bool[windows, side]
        (np.arange(side) >= first[:, None]) & (np.arange(side) < first[:, None] + window)
        for side, first in zip(images.shape[1:3], (tops, lefts), strict=True)
    )
    arrays = (score, images, baseline, rows, columns, _values(score, images))
    total = weighted_sum(_covered, _fall, arrays, np.ones(len(tops) * len(lefts)), together=together)
    return total / (rows.sum(0)[:, None] * columns.sum(0)).astype(np.float32)[None]


def _covered(index, score, images, baseline, rows, columns, whole):
    covered = rows[index // len(columns)][:, :, None] & columns[index % len(columns)][:, None, :]
    return jnp.where(covered[None, ..., None], baseline[:, None], images[:, None]), covered[None]


def _fall(made, score, images, baseline, rows, columns, whole):
    changed, covered = made
    return (whole[:, None] - evaluate(score, changed))[..., None, None] * covered


_values = jax.jit(values)


def _rise(key, probability, score, images, baseline, *, masks, cells, together):
    arrays = (score, images, baseline, key, probability)
    means = weighted_sum(_masked, _let_through, arrays, np.full(masks, 1 / masks), together=together, options=(cells,))
    both, through, alone = means[..., 0], means[..., 1], means[..., 2]
    return (both - alone * (through - probability)) / probability


def _masked(index, score, images, baseline, key, probability, cells):
    height, width = images.shape[1:3]
    steps = tuple(-(-side // cells) for side in (height, width))  # pixels of a cell

    def mask(number):
        of_cells, of_shift = jax.random.split(jax.random.fold_in(key, number))
        grid = jax.random.bernoulli(of_cells, probability, (cells, cells)).astype(jnp.float32)
        large = jax.image.resize(grid, tuple((cells + 1) * step for step in steps), "linear")
        shift = jax.random.randint(of_shift, (2,), 0, jnp.array(steps))
        return jax.lax.dynamic_slice(large, shift, (height, width))

    through = jax.vmap(mask)(index)[None]
    return through[..., None] * (images - baseline)[:, None] + baseline[:, None], through


def _let_through(made, score, *_):
    """f32[N,K,H,W,3]: the score times the mask, the mask, and the score."""
    seen, through = made
    alone = jnp.broadcast_to(evaluate(score, seen)[..., None, None], (len(seen), *through.shape[1:]))
    through = jnp.broadcast_to(through, alone.shape)
    return jnp.stack([alone * through, through, alone], axis=-1)
