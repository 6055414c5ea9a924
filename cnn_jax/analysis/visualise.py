"""Images that a unit likes best, found by climbing its gradient."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cnn_jax.analysis.activations import check_units, stage_of, stages
from cnn_jax.analysis.loops import for_loops
from cnn_jax.analysis.scores import Score
from cnn_jax.errors import InputError


class Visualised(NamedTuple):
    """Images that have been climbed to, and the way."""

    images: jax.Array
    """f32[N,H,W,C] in [0,1]."""
    scores: jax.Array
    """f32[steps,N], of each image before each step, jitter included."""


def visualise(
    key: jax.Array,
    score: Callable[[jax.Array], jax.Array],
    *,
    shape: tuple[int, int, int, int],
    preprocess: Callable[[jax.Array], jax.Array] = lambda images: images,
    steps: int = 256,
    learning_rate: float = 0.05,
    jitter: int = 2,
) -> Visualised:
    """Images that raise a score, by gradient ascent from noise; all steps are one compiled program.

    An image is the sigmoid of a sum of waves. Adam moves their amplitudes, each in units of 1/frequency, as waves are
    in photographs: moved in pixels, an image becomes a fine pattern instead. In each step it is shifted at random, in a
    circle, which the waves do not notice.

    Args:
        score: f32[N,H,W,C], as the model takes them, to f32[N], one number an image; traceable. Such as `unit_score`,
            or `scores.class_score`.
        shape: of the images, [N,H,W,C].
        preprocess: images f32 in [0,1] to what the score takes; traceable.
        jitter: the largest shift, in pixels.

    Raises:
        InputError: a shape that is not [N,H,W,C], no steps, or a score that is not one number an image.

    Source: Olah et al. 2017, "Feature Visualization", Distill; step and start are those of its code, `lucid`.
    """
    if len(shape) != 4 or min(shape) < 1 or steps < 1 or jitter < 0:
        raise InputError(f"shape {shape}, {steps} steps, jitter {jitter}: expected [N,H,W,C], 1 or more, and 0 or more")
    count, height, width, _ = shape
    of = jax.eval_shape(lambda images: score(preprocess(images)), jax.ShapeDtypeStruct(shape, jnp.float32)).shape
    score = score if isinstance(score, Score | jax.tree_util.Partial) else jax.tree_util.Partial(score)
    if of != (count,):
        raise InputError(f"the score of {count} images has shape {of}: expected ({count},), one number an image")
    paint = partial(_painted, size=(height, width))
    adam = optax.adam(learning_rate)

    def climb(score, state, key):
        amplitudes, moments = state
        shift = jax.random.randint(key, (2,), -jitter, jitter + 1)

        def total(amplitudes):
            scores = score(preprocess(jnp.roll(paint(amplitudes), shift, (1, 2))))
            return -scores.sum(), scores

        gradient, scores = for_loops(jax.grad(total, has_aux=True))(amplitudes)
        updates, moments = adam.update(gradient, moments)
        return (optax.apply_updates(amplitudes, updates), moments), scores

    @jax.jit
    def ascend(key, score):  # an argument, for the weights in it would be constants of the program
        first, others = jax.random.split(key)
        amplitudes = _drawn(first, shape)
        state = amplitudes, adam.init(amplitudes)
        (amplitudes, _), scores = jax.lax.scan(partial(climb, score), state, jax.random.split(others, steps))
        return Visualised(paint(amplitudes), scores)

    return ascend(key, score)


def starting_noise(key: jax.Array, shape: tuple[int, int, int, int]) -> jax.Array:
    """The noise in [0,1] that `visualise` begins with: f32[N,H,W,C]."""
    return _painted(_drawn(jax.random.split(key)[0], shape), shape[1:3])


def _drawn(key: jax.Array, shape: tuple[int, int, int, int]) -> jax.Array:
    """Amplitudes of waves, real and imaginary, f32[2,N,H,W // 2 + 1,C]."""
    count, height, width, colours = shape
    return 0.01 * jax.random.normal(key, (2, count, height, width // 2 + 1, colours))


def _painted(amplitudes: jax.Array, size: tuple[int, int]) -> jax.Array:
    """The images that amplitudes are of."""
    height, width = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    waves = (height * width) ** 0.5 / 4 / np.maximum(frequency, 1 / max(height, width))
    real, imaginary = amplitudes * jnp.asarray(waves, jnp.float32)[None, None, :, :, None]
    return jax.nn.sigmoid(jnp.fft.irfft2(jax.lax.complex(real, imaginary), (height, width), (1, 2)))


def unit_score(
    model: nn.Module, variables: Any, *, stage: str, units: Sequence[int]
) -> Callable[[jax.Array], jax.Array]:
    """A score for `visualise`: of image i the mean of channel units[i] over the stage's map, f32[N].

    A channel that the ReLU before it silences at every place of the first image has no gradient, and is not climbed.

    The score raises InputError for a stage or channel that does not exist, and for another number of images.
    """
    units = np.asarray(units)

    def score(variables, images):
        value = stage_of(stages(model, variables, images), stage).astype(jnp.float32)
        check_units(units, stage, value.shape[-1])
        if len(units) != len(images):
            raise InputError(f"{len(images)} images for {len(units)} units: expected one for each")
        value = value.reshape(len(value), -1, value.shape[-1]).mean(1)
        return jnp.take_along_axis(value, jnp.asarray(units)[:, None], 1)[:, 0]

    return jax.tree_util.Partial(score, variables)
