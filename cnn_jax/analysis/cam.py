"""Class activation maps: where a stage of the network holds what a score depends on.

    score = scores.class_score(model, variables, labels)
    maps = cam.grad_cam(score, images, stage="conv2")

A stage is one that the model names with `tap`, a map [N,h,w,C] such as the last before the mean over the image. Maps
are f32[N,H,W], enlarged to the size of the images by bilinear interpolation, and nowhere below 0.
All raise InputError for a score that is not a `scores.Score`, for an unknown stage, for one that is no map, and as the
methods of `attribution` do.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from cnn_jax.analysis.activations import stage_of, stages
from cnn_jax.analysis.scores import Score, in_batches, prepare
from cnn_jax.errors import InputError


def grad_cam(score: Score, images: Any, *, stage: str, batch_size: int = 64) -> jax.Array:
    """The stage's channels, weighted by the mean of their gradients: f32[N,H,W].

    Source: Selvaraju et al. 2017, "Grad-CAM: visual explanations from deep networks via gradient-based localization".
    """
    return _map(_grad_cam, score, images, stage, batch_size)


def grad_cam_plus_plus(score: Score, images: Any, *, stage: str, batch_size: int = 64) -> jax.Array:
    """The stage's channels, weighted by sums of their positive gradients, in which each place has a weight: f32[N,H,W].

    The weights of places assume, as in the paper, that the network's output is the exponential of the score.

    Source: Chattopadhyay et al. 2018, "Grad-CAM++: improved visual explanations for deep convolutional networks",
    equations 5, 6 and 19.
    """
    return _map(_grad_cam_plus_plus, score, images, stage, batch_size)


def layer_cam(score: Score, images: Any, *, stage: str, batch_size: int = 64) -> jax.Array:
    """The stage's values, each weighted by its own positive gradient, summed over channels: f32[N,H,W].

    It keeps places apart, and so serves early stages too.

    Source: Jiang et al. 2021, "LayerCAM: exploring hierarchical class activation maps for localization".
    """
    return _map(_layer_cam, score, images, stage, batch_size)


def _grad_cam(activations, gradients):
    return (activations * gradients.mean((1, 2), keepdims=True)).sum(-1)


def _grad_cam_plus_plus(activations, gradients):
    square = jnp.square(gradients)
    sums = activations.sum((1, 2), keepdims=True)
    denominator = 2 * square + sums * square * gradients
    places = square / (denominator + 1e-6)  # as in pytorch-grad-cam; 0 where there is no gradient
    weights = (places * jnp.maximum(gradients, 0)).sum((1, 2), keepdims=True)
    return (activations * weights).sum(-1)


def _layer_cam(activations, gradients):
    return (activations * jnp.maximum(gradients, 0)).sum(-1)


def _map(rule: Callable, score: Score, images: Any, stage: str, batch_size: int) -> jax.Array:
    if not isinstance(score, Score):
        raise InputError(
            "class activation maps look into a network: give a Score, such as class_score(model, variables, labels)"
        )
    program = partial(_enlarged, rule=rule, stage=stage)
    return in_batches(program, *prepare(score, images), batch_size=batch_size)


@partial(jax.jit, static_argnames=("rule", "stage"))
def _enlarged(score, images, *, rule, stage):
    small = jnp.maximum(rule(*_at_stage(score, images, stage)), 0)
    return jax.image.resize(small, images.shape[:3], "linear", antialias=False)


def _at_stage(score: Score, images: jax.Array, stage: str) -> tuple[jax.Array, jax.Array]:
    """A stage's values and the gradient of the score by them: f32[N,h,w,C]."""
    found = jax.eval_shape(partial(stages, score.model), score.variables, images)
    shape = stage_of(found, stage).shape
    if len(shape) != 4:
        maps = ", ".join(name for name, of in found.items() if len(of.shape) == 4)
        raise InputError(
            f"stage {stage!r} has shape {('N', *shape[1:])}, and a class activation map needs [N,h,w,C]: one of {maps}"
        )

    path = tuple(stage.split("/"))

    def total(perturbation):
        changed = {**score.variables, "perturbations": unflatten_dict({path: perturbation})}
        outputs, state = score.model.apply(changed, images, train=False, mutable=["intermediates"])
        return score.read(outputs, score.targets).sum(), flatten_dict(state["intermediates"])[path][0]

    zeros = jnp.zeros(shape, found[stage].dtype)
    gradients, activations = jax.grad(total, has_aux=True)(zeros)
    return activations.astype(jnp.float32), gradients.astype(jnp.float32)
