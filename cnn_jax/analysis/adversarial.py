"""Images changed a little, so that a network errs.

    attack = partial(adversarial.pgd, epsilon=0.1, steps=20, restarts=5)
    found = attack(key, adversarial.fooling(logits, labels), images)      # logits(images) -> f32[N,C]
    curve = adversarial.robust_accuracy(key, logits, images, labels, epsilons=[0, 0.1, 0.2, 0.3])
    training.fit(…, adversary=adversarial.adversary(attack, loss))        # loss(variables, images, batch) -> f32[N]

An attack is `attack(key, objective, images, *, epsilon, norm, bounds) -> images`, both f32[N,H,W,C] in `bounds`, the
range of pixels; what a model wants beside that, such as a mean and a deviation, is part of `logits` and `loss`. The
`objective(images) -> (f32[N], f32[N])` gives what the attack climbs by its gradient, and what the images that it keeps
are to have most of; each number depends on its own image alone. `project`, `draw` and `steepest` are what attacks are
made of.

Attacks are traceable, loops of any number of steps in one program of constant size and memory: jit what calls them.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.analysis.batches import batches
from cnn_jax.analysis.loops import for_loops
from cnn_jax.analysis.programs import program
from cnn_jax.analysis.scores import at_least_one, check_labels
from cnn_jax.errors import InputError, unknown

NORMS = ("linf", "l2")

Objective = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
Attack = Callable[..., jax.Array]
Bounds = tuple[float, float]


def fooling(logits: Callable[[jax.Array], jax.Array], labels: jax.Array, *, targeted: bool = False) -> Objective:
    """An objective: images that are not taken for their class, or are taken for a given one.

    Climbed is the cross entropy of the label, and kept the margin, the largest other logit less the label's: above zero
    the network errs, and what has erred once is kept.

    Args:
        logits: f32[N,H,W,C] to f32[N,classes].
        labels: i32[N], the images' classes; with `targeted` those to be taken for, and both numbers change sign.

    Raises:
        InputError: labels out of range or of another length than the images.
    """

    def objective(images):
        scores = logits(images).astype(jnp.float32)
        check_labels(labels, *scores.shape)
        own = jax.nn.one_hot(labels, scores.shape[-1], dtype=bool)
        label = jnp.where(own, scores, 0).sum(-1)
        entropy = jax.nn.logsumexp(scores, axis=-1) - label
        margin = jnp.where(own, -jnp.inf, scores).max(-1) - label
        return (-entropy, -margin) if targeted else (entropy, margin)

    return objective


def raising(loss: Callable[[jax.Array], jax.Array]) -> Objective:
    """An objective: images whose loss, f32[N,H,W,C] to f32[N], is as high as can be."""

    def objective(images):
        values = loss(images)
        return values, values

    return objective


def fgsm(
    key: jax.Array,
    objective: Objective,
    images: jax.Array,
    *,
    epsilon: float,
    norm: str = "linf",
    bounds: Bounds = (0.0, 1.0),
) -> jax.Array:
    """The fast gradient sign method: one step of `epsilon` (Goodfellow et al. 2015, "Explaining and harnessing
    adversarial examples", section 4).

    With `norm` "l2" the step is along the gradient itself.

    Args:
        key: not used; all attacks take one.
        objective, images, epsilon, norm, bounds: as for `pgd`.

    Raises:
        InputError: as `pgd`.
    """
    _check(images, epsilon, norm, bounds)
    gradient = jax.grad(lambda images: objective(images)[0].sum())(images)
    step = images + epsilon * steepest(gradient, norm=norm)
    return project(images, step, epsilon=epsilon, norm=norm, bounds=bounds)


def pgd(
    key: jax.Array,
    objective: Objective,
    images: jax.Array,
    *,
    epsilon: float,
    norm: str = "linf",
    steps: int = 40,
    step_size: float | None = None,
    restarts: int = 1,
    bounds: Bounds = (0.0, 1.0),
) -> jax.Array:
    """Projected gradient ascent from random places (Madry et al. 2018, "Towards deep learning models resistant to
    adversarial attacks", section 2.1).

    Of all images on the way, of all restarts, and the image itself, the one is kept that has most of what the objective
    wants kept; so what comes back is never worse for the attack than what was given.

    Args:
        key: of the places to start from.
        objective: see above; `fooling` and `raising` make one.
        images: f32[N,H,W,C] within `bounds`.
        epsilon: radius of the ball that images stay in, 0 or above; traced or not.
        norm: "linf", the largest change of a pixel, or "l2", the Euclidean norm of an image's change.
        steps: gradients for each start.
        step_size: length of a step, in that norm; 2.5·epsilon/steps if None, so that all of the ball is within reach.
        restarts: random places to start from, one after the other.
        bounds: lowest and highest value of a pixel.

    Returns:
        f32[N,H,W,C] within the ball and the bounds.

    Raises:
        InputError: an unknown norm, `epsilon` below 0, `steps`, `step_size` or `restarts` not above 0, or, where they
            are not traced, images outside of the bounds.
    """
    _check(images, epsilon, norm, bounds)
    at_least_one(steps=steps, restarts=restarts)
    if step_size is None:
        step_size = 2.5 * epsilon / steps
    elif not _is_traced(step_size) and not step_size > 0:
        raise InputError(f"step size {step_size}: it must be above 0")

    def climbed(images):
        climb, keep = objective(images)
        return climb.sum(), keep

    gradient = for_loops(jax.value_and_grad(climbed, has_aux=True))
    within = partial(project, images, epsilon=epsilon, norm=norm, bounds=bounds)

    def better(best, most, now, keep):
        wins = keep > most
        return jnp.where(wins[:, None, None, None], now, best), jnp.where(wins, keep, most)

    def step(carry, _):
        now, best, most = carry
        (_, keep), direction = gradient(now)
        best, most = better(best, most, now, keep)
        return (within(now + step_size * steepest(direction, norm=norm)), best, most), None

    def restart(carry, key):
        start = draw(key, images, epsilon=epsilon, norm=norm, bounds=bounds)
        (now, best, most), _ = jax.lax.scan(step, (start, *carry), length=steps)
        return better(best, most, now, for_loops(objective)(now)[1]), None

    (best, _), _ = jax.lax.scan(restart, (images, objective(images)[1]), jax.random.split(key, restarts))
    return best


def project(images: jax.Array, candidates: jax.Array, *, epsilon: float, norm: str, bounds: Bounds) -> jax.Array:
    """The nearest point, for each candidate, of those within `epsilon` of its image and within the bounds.

    Nearest in the Euclidean norm, also where ball and bounds both hold a candidate back: clipping what has been put on
    the ball would leave room to both.
    """
    low, high = bounds
    if norm == "linf":
        return candidates.clip(jnp.maximum(images - epsilon, low), jnp.minimum(images + epsilon, high))
    # The nearest point moves each pixel by the same share of the way to the candidate, but not over the border. Pixels
    # at the border are found in rounds: with more of them, the others may go further, and reach it in turn.
    change = candidates - images
    way, room = jnp.abs(change), jnp.where(change > 0, high - images, images - low)

    def share(at_border):
        left = epsilon**2 - jnp.where(at_border, room**2, 0).sum((1, 2, 3), keepdims=True)
        others = jnp.where(at_border, 0, way**2).sum((1, 2, 3), keepdims=True)
        return jnp.where(others > left, jnp.sqrt(left.clip(0) / jnp.where(others > 0, others, 1)), 1)

    def more(state):
        at_border, _ = state
        found = at_border | (share(at_border) * way >= room)
        return found, jnp.any(found != at_border)

    at_border, _ = jax.lax.while_loop(lambda state: state[1], more, (jnp.zeros(way.shape, bool), True))
    moved = jnp.where(at_border, room, share(at_border) * way)
    return (images + jnp.sign(change) * moved).clip(low, high)


def draw(key: jax.Array, images: jax.Array, *, epsilon: float, norm: str, bounds: Bounds) -> jax.Array:
    """Images drawn evenly from the ball of radius `epsilon` around each, and brought into the bounds."""
    if norm == "linf":
        change = jax.random.uniform(key, images.shape, minval=-1, maxval=1)
    else:
        direction_key, radius_key = jax.random.split(key)
        radius = jax.random.uniform(radius_key, (len(images), 1, 1, 1)) ** (1 / images[0].size)
        change = radius * steepest(jax.random.normal(direction_key, images.shape), norm=norm)
    return project(images, images + epsilon * change, epsilon=epsilon, norm=norm, bounds=bounds)


def steepest(gradient: jax.Array, *, norm: str) -> jax.Array:
    """The direction of length 1 in the norm in which each image's objective rises fastest; 0 where it does not."""
    if norm == "linf":
        return jnp.sign(gradient)
    # Scaled first: squares of small gradients would be 0.
    largest = jnp.abs(gradient).max((1, 2, 3), keepdims=True)
    gradient = gradient / jnp.where(largest > 0, largest, 1)
    length = jnp.sqrt(jnp.square(gradient).sum((1, 2, 3), keepdims=True))
    return gradient / jnp.where(length > 0, length, 1)


def adversary(attack: Attack, loss: Callable[[Any, jax.Array, Any], jax.Array]) -> Callable[[jax.Array, Any, Any], Any]:
    """An attack as training takes it: `adversary(key, variables, batch) -> batch`, its images changed.

    Args:
        attack: one of the above with its options, such as `partial(pgd, epsilon=0.1, steps=7)`.
        loss: `loss(variables, images, batch) -> f32[N]`, to be raised; images are f32 in [0,1] where the batch has u8.
    """

    def adversary(key, variables, batch):
        images = batch["image"]
        if images.dtype == jnp.uint8:
            images = images.astype(jnp.float32) / 255
        return {**batch, "image": attack(key, raising(lambda images: loss(variables, images, batch)), images)}

    return adversary


class Robustness(NamedTuple):
    """How many images a network still classifies rightly, by how far they may be changed."""

    epsilons: np.ndarray
    """f64[E], as given."""
    accuracy: np.ndarray
    """f64[E], the share of `robust`."""
    robust: np.ndarray
    """bool[E,N]: no image that was found within the epsilon is taken for another class, nor the image itself."""


def robust_accuracy(
    key: jax.Array,
    logits: Callable[[jax.Array], jax.Array],
    images: np.ndarray,
    labels: np.ndarray,
    *,
    epsilons: Sequence[float],
    attack: Attack = pgd,
    bounds: Bounds = (0.0, 1.0),
    batch_size: int = 128,
) -> Robustness:
    """Accuracy under attack, as a curve over epsilon: the worst case over all that the attack has tried.

    What errs within an epsilon errs within all larger ones, so the curve never rises. A tie between the label and
    another class counts as an error. One program serves all batches and epsilons.

    Args:
        logits: f32[n,H,W,C] within `bounds` to f32[n,classes].
        images: f32[N,H,W,C] within `bounds`, on the host.
        labels: i32[N].
        epsilons: radii of the ball, 0 or above, in any order.
        attack: with its other options: `partial(pgd, norm="l2", steps=100, restarts=10)`.
        batch_size: images attacked at a time; it bounds memory.

    Raises:
        InputError: an argument out of range.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    epsilons = np.asarray(epsilons, np.float64)
    if epsilons.ndim != 1 or not len(epsilons):
        raise InputError("epsilons: give at least one, as a list")
    for epsilon in epsilons:
        _check(images, float(epsilon), NORMS[0], bounds)
    check_labels(labels, len(images), jax.eval_shape(logits, images[:1]).shape[-1])

    def survives(key, images, labels, epsilon):
        objective = fooling(logits, labels)
        found = attack(key, objective, images, epsilon=epsilon, bounds=bounds)
        return (objective(images)[1] < 0) & (objective(found)[1] < 0)

    robust, run = np.zeros((len(epsilons), len(images)), bool), None
    for number, (rows, batch, mask) in enumerate(batches(images, batch_size=batch_size)):
        filled = np.pad(labels[rows], (0, (~mask).sum()), mode="edge")
        for i, epsilon in enumerate(epsilons):
            args = (jax.random.fold_in(key, number), batch, filled, np.float32(epsilon))
            run = run or program(survives, *args)
            robust[i, rows] = np.asarray(run(*args))[mask]
    order = np.argsort(epsilons)
    robust[order] = np.logical_and.accumulate(robust[order])
    return Robustness(epsilons, robust.mean(1), robust)


def _is_traced(value: Any) -> bool:
    return isinstance(value, jax.core.Tracer)


def _check(images: jax.Array, epsilon: float, norm: str, bounds: Bounds) -> None:
    if norm not in NORMS:
        raise unknown("norm", norm, NORMS)
    low, high = bounds
    if not low < high:
        raise InputError(f"bounds {bounds}: the lowest pixel must be below the highest")
    if not _is_traced(epsilon) and not 0 <= epsilon < np.inf:
        raise InputError(f"epsilon {epsilon}: it must be 0 or above")
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(f"images of shape {images.shape} and {images.dtype}: expected floating point [N,H,W,C]")
    if not _is_traced(images) and images.size and not (images.min() >= low and images.max() <= high):
        raise InputError(
            f"images from {images.min():.3g} to {images.max():.3g}, outside of the bounds {low:g} and {high:g}: attack "
            "them before they are normalised, or give other bounds"
        )
