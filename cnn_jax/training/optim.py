"""Optimisers and learning-rate schedules by name, from optax; what stays as it is, and what learns more slowly."""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.extend.core import Literal

from cnn_jax.errors import InputError, unknown

SCHEDULES = ("constant", "cosine", "one-cycle")
OPTIMISERS = ("adam", "sgd", "muon")


def make_schedule(name: str, learning_rate: float, *, total_steps: int, warmup_steps: int = 0) -> optax.Schedule:
    """The learning rate as a function of the step.

    `constant`; `cosine` (Loshchilov & Hutter 2017), down to zero at `total_steps`; `one-cycle` (Smith & Topin 2018), up
    from a 25th for the first 30 % of the steps and down to almost zero. The first two rise linearly from zero over
    `warmup_steps`; one-cycle has a warm-up of its own.
    """
    if not 0 < learning_rate < math.inf:
        raise InputError(f"learning rate {learning_rate}: it must be finite and above 0")
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
    rates: Mapping[str, float] | None = None,
) -> optax.GradientTransformation:
    """`adam` (Kingma & Ba 2015), `sgd` with Nesterov momentum, or `muon` (Jordan et al. 2024).

    Muon makes the updates of kernels orthogonal, a convolution's as a matrix [side·side·C, features], with a root mean
    square of 0.2 as Adam's have (Liu et al. 2025, "Muon is scalable for LLM training"); all else is Adam's, with
    Nesterov momentum.

    Args:
        schedule: learning rate, or a function of the step.
        momentum: of SGD.
        weight_decay: decoupled (Loshchilov & Hutter 2019): `schedule × weight_decay × parameter` is subtracted each
            step. Only kernels decay: biases and the scales of norms are spared.
        clip_norm: the gradient is scaled down to this global norm where it is above it.
        rates: of modules and parameters, by path such as "stage1_block1" or "backbone/stem_conv/kernel": what the
            schedule is multiplied by for all below, 1 for those that are not named. Of two that lie one in the other
            the inner one counts. See `layer_rates`.

    Raises:
        InputError: an argument out of range, or an unknown name; from the optimiser's `init`, a path in `rates` that no
            parameter has.
    """
    if name not in OPTIMISERS:
        raise unknown("optimiser", name, OPTIMISERS)
    if not 0 <= weight_decay < math.inf:
        raise InputError(f"weight decay {weight_decay}: it must be finite and 0 or above")
    if clip_norm is not None and not clip_norm > 0:
        raise InputError(f"clip norm {clip_norm}: it must be above 0")
    chain = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    match name:
        case "adam":
            chain += [optax.scale_by_adam()]
        case "sgd":
            chain += [optax.trace(momentum, nesterov=True)]
        case "muon":
            # A rate of −1, which Optax takes off: the direction alone. Rate and decay follow, as for the others.
            chain += [optax.contrib.muon(-1.0, consistent_rms=0.2, muon_weight_dimension_numbers=_as_matrices)]
    if weight_decay:
        chain += [optax.add_decayed_weights(weight_decay, mask=kernels)]
    chain += [optax.scale_by_learning_rate(schedule)]
    if rates is not None:
        chain += [_scaled(rates)]
    return optax.chain(*chain)


def kernels(params: dict) -> dict:
    """True for the arrays that weight decay is for: those of two dimensions or more."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def _as_matrices(params: dict) -> dict:
    """How Muon is to see each kernel as a matrix; None for what is none."""
    return jax.tree.map(
        lambda p: optax.contrib.MuonDimensionNumbers(tuple(range(p.ndim - 1)), p.ndim - 1) if p.ndim > 1 else None,
        params,
    )


def frozen(variables: Mapping[str, Any], patterns: Sequence[str]) -> dict[str, Any]:
    """Which parameters and statistics `patterns` hold still: True at their places, False at all others.

        frozen(variables, ["stem", "stage[123]"])   # all but the last stage and the head
        frozen(variables, ["(?!logits)"])           # all but the head
        frozen(variables, [r".*/(mean|var)$"])      # no parameter, but the statistics of batch norm

    Args:
        variables: {"params", "batch_stats"}, of arrays or of their shapes.
        patterns: regular expressions that the beginning of a path such as "stage1_block1/norm2/scale" or, for a
            statistic, "stage1_block1/norm2/mean" must match. No match ends within a number: "conv1" is not "conv12".

    Raises:
        InputError: a pattern is no regular expression or matches nothing, or no parameter is left to learn.
    """
    if isinstance(patterns, str):
        raise InputError(f"freeze {patterns!r}: give a sequence of patterns, [{patterns!r}]")
    paths = {kind: list(flatten_dict(tree, sep="/")) for kind, tree in variables.items()}
    every = [path for found in paths.values() for path in found]
    for pattern in patterns:
        try:
            matches = any(is_frozen(path, [pattern]) for path in every)
        except re.error as error:
            raise InputError(f"freeze {pattern!r}: not a regular expression ({error})") from error
        if not matches:
            modules = sorted({path.split("/")[0] for path in every})
            raise InputError(f"freeze {pattern!r}: no parameter has such a path; they begin with {', '.join(modules)}")
    held = {kind: {path: is_frozen(path, patterns) for path in found} for kind, found in paths.items()}
    if patterns and all(held["params"].values()):
        raise InputError(f"freeze {', '.join(map(repr, patterns))}: no parameter is left to learn")
    return {kind: unflatten_dict(tree, sep="/") for kind, tree in held.items()}


def is_frozen(path: str, patterns: Sequence[str]) -> bool:
    """Whether one of the patterns matches the beginning of a path; see `frozen`."""
    return any(re.match(rf"(?:{pattern})(?!(?<=\d)\d)", path) for pattern in patterns)


def layer_rates(model: nn.Module, image_shape: tuple[int, int, int], *, decay: float) -> dict[str, float]:
    """Rates that fall from the heads to the first layer, `decay` times a layer, for `make_optimiser`.

    Layer-wise learning-rate decay (Howard & Ruder 2018, "Universal language model fine-tuning", section 3.2). A layer
    is a module of the network, or of its backbone, that has weights; a norm belongs to the layer before it. What counts
    is how many layers follow, one after the other, on the longest way to an output: the heads of a detector have the
    rate 1 alike, and layers side by side the same.

    Args:
        image_shape: (H,W,C) of what the model is to see.
        decay: in (0, 1]; 1 is the same rate everywhere.

    Returns:
        The rates, in the order in which the modules compute.
    """
    if not 0 < decay <= 1:
        raise InputError(f"layer decay {decay}: it must be above 0 and at most 1")
    names = []

    def init(key):
        variables = model.init(key, jnp.zeros((1, *image_shape)))
        for name, module in variables["params"].items():  # outside of `eval_shape`, they would be sorted by name
            names.extend([f"{name}/{inner}" for inner in module] if name == "backbone" else [name])
        return {kind: variables[kind] for kind in ("params", "batch_stats") if kind in variables}

    variables = jax.eval_shape(init, jax.random.key(0))
    weights, owner = set(), {}
    for path, leaf in flatten_dict(variables["params"], sep="/").items():
        owner[path] = next(prefix for prefix in _prefixes(path) if prefix in names)
        weights |= {owner[path]} if leaf.ndim > 1 else set()
    before = _before(model, variables, owner, image_shape)
    following = dict.fromkeys(names, 0)
    for place, name in reversed(list(enumerate(names))):
        for earlier in before[name] & set(names[:place]):  # a module that runs again may also follow what it precedes
            following[earlier] = max(following[earlier], following[name] + (name in weights))
    return {name: decay ** following[name] for name in names}


def _before(model: nn.Module, variables: Any, owner: dict[str, str], image_shape: tuple) -> dict[str, set[str]]:
    """The modules that what a module sees depends on, for each; `owner` is the module of each parameter."""

    def apply(images, variables):
        return model.apply(variables, images)

    program = jax.make_jaxpr(apply)(jax.ShapeDtypeStruct((1, *image_shape), jnp.float32), variables).jaxpr
    images, *rest = program.invars
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(variables)]
    # The modules of what depends on the images, and of what is made of variables alone, such as a kernel in bfloat16.
    seen, made = {images: set()}, {}
    for path, var in zip(paths, rest, strict=True):
        kind, path = path.split("/", 1)
        made[var] = {owner[path]} if kind == "params" else set()
    before = {name: set() for name in owner.values()}
    for equation in program.eqns:
        inputs = [var for var in equation.invars if not isinstance(var, Literal)]
        modules = set().union(*(made.get(var, ()) for var in inputs))
        if from_images := [seen[var] for var in inputs if var in seen]:
            for name in modules:
                before[name] = before[name].union(*from_images)
        (seen if from_images else made).update(dict.fromkeys(equation.outvars, modules.union(*from_images)))
    return before


def _scaled(rates: Mapping[str, float]) -> optax.GradientTransformation:
    """Multiplies each update by its rate."""

    def init(params):
        paths = {prefix for path in flatten_dict(params, sep="/") for prefix in _prefixes(path)}
        for path in rates:
            if path not in paths:
                (near,) = difflib.get_close_matches(path, sorted(paths), n=1, cutoff=0)
                raise InputError(f"rates: no module or parameter has the path {path!r}: did you mean {near!r}?")
        return optax.EmptyState()

    def update(updates, state, params=None):
        scaled = {
            path: next((rates[prefix] for prefix in _prefixes(path) if prefix in rates), 1.0) * x
            for path, x in flatten_dict(updates, sep="/").items()
        }
        return unflatten_dict(scaled, sep="/"), state

    return optax.GradientTransformation(init, update)


def _prefixes(path: str) -> list[str]:
    """Of "a/b/c": itself, "a/b" and "a"."""
    parts = path.split("/")
    return ["/".join(parts[:length]) for length in range(len(parts), 0, -1)]
