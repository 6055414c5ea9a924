"""Optimisers and learning-rate schedules by name, from optax."""

import math

import jax
import optax

from cnn_jax.errors import InputError, unknown

SCHEDULES = ("constant", "cosine", "one-cycle")
OPTIMISERS = ("adam", "sgd")


def make_schedule(name: str, learning_rate: float, *, total_steps: int, warmup_steps: int = 0) -> optax.Schedule:
    """The learning rate as a function of the step.

    `constant`; `cosine` (Loshchilov & Hutter 2017), down to zero at `total_steps`; `one-cycle` (Smith & Topin 2018), up
    from a 25th for the first 30 % of the steps and down to almost zero. The first two rise linearly from zero over
    `warmup_steps`; one-cycle has a warm-up of its own.
    """
    if not 0 < learning_rate < math.inf:
        raise InputError(f"learning rate {learning_rate}: it must be above 0")
    if not 0 <= warmup_steps < max(total_steps, 1):
        raise InputError(f"warmup of {warmup_steps} steps in a run of {total_steps}: it must be shorter than the run")
    if name == "one-cycle":
        if warmup_steps:
            raise InputError("schedule one-cycle has a warm-up of its own: leave warmup at 0")
        return optax.cosine_onecycle_schedule(total_steps, learning_rate)
    if name not in SCHEDULES:
        raise unknown("schedule", name, SCHEDULES)
    rest = (
        optax.constant_schedule(learning_rate)
        if name == "constant"
        else optax.cosine_decay_schedule(learning_rate, total_steps - warmup_steps)
    )
    if not warmup_steps:
        return rest
    return optax.join_schedules([optax.linear_schedule(0.0, learning_rate, warmup_steps), rest], [warmup_steps])


def make_optimiser(
    name: str,
    schedule: optax.Schedule | float,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """`adam` (Kingma & Ba 2015) or `sgd` with Nesterov momentum.

    Args:
        schedule: learning rate, or a function of the step.
        momentum: of SGD.
        weight_decay: decoupled (Loshchilov & Hutter 2019): `schedule × weight_decay × parameter` is subtracted each
            step. Only kernels decay: biases and the scales of norms are spared.
        clip_norm: the gradient is scaled down to this global norm where it is above it.
    """
    if name not in OPTIMISERS:
        raise unknown("optimiser", name, OPTIMISERS)
    if not 0 <= weight_decay < math.inf:
        raise InputError(f"weight decay {weight_decay}: it must be 0 or above")
    if clip_norm is not None and not clip_norm > 0:
        raise InputError(f"clip norm {clip_norm}: it must be above 0")
    chain = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    chain += [optax.scale_by_adam() if name == "adam" else optax.trace(momentum, nesterov=True)]
    if weight_decay:
        chain += [optax.add_decayed_weights(weight_decay, mask=kernels)]
    return optax.chain(*chain, optax.scale_by_learning_rate(schedule))


def kernels(params: dict) -> dict:
    """True for the arrays that weight decay is for: those of two dimensions or more."""
    return jax.tree.map(lambda p: p.ndim > 1, params)
