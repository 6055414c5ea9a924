"""How far a map can be trusted: measures of attribution methods.

    maps = attribution.gradient(score, images)
    area = faithfulness.deletion(score, images, maps).area

Maps are f32[N,H,W,C] or f32[N,H,W]. Where a measure needs one number for a pixel, those of its channels are added, with
their signs; where it needs one for each channel, a pixel's counts as spread evenly over them. A map that is the same
everywhere is blank: it says nothing, and what cannot be measured of it is NaN. A method is a function of a key, a score
and images that gives maps. `report_card` brings all together. Scores and images are those of `attribution`.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.analysis.scores import (
    Score,
    at_least_one,
    check_images,
    evaluate,
    in_batches,
    like_images,
    prepare,
    values,
    weighted_sum,
)
from cnn_jax.errors import InputError

Method = Callable[[jax.Array, Callable, jax.Array], jax.Array]


def completeness(
    score: Callable, images: Any, maps: Any, *, baseline: Any = 0.0, batch_size: int = 64
) -> tuple[jax.Array, jax.Array]:
    """(sum of the map f32[N], difference of the score between image and baseline f32[N]), which should be equal.

    Source: Sundararajan et al. 2017, "Axiomatic attribution for deep networks", section 3.
    """
    score, images = prepare(score, images)
    maps, baseline = _fitting(maps, images), like_images("baseline", baseline, images)
    return in_batches(_sum_and_difference, score, images, maps, baseline, batch_size=batch_size)


class Curve(NamedTuple):
    """The score while an image is changed, pixel by pixel."""

    area: jax.Array
    """f32[N], under the curve by trapezia, over the part of pixels that are changed: in the score's own unit."""
    values: jax.Array
    """f32[N,steps + 1], the score with 0, 1/steps, …, all of the pixels changed."""


def deletion(
    score: Callable, images: Any, maps: Any, *, baseline: Any = 0.0, steps: int = 50, batch_size: int = 64
) -> Curve:
    """The score while pixels are covered, those of the greatest values of the map first.

    Made for probabilities. Equal values are taken in an order drawn once for all.

    Args:
        maps: f32[N,H,W] or f32[N,H,W,C].
        baseline: what covers: a number, f32[H,W,C] or f32[N,H,W,C].

    Source: Petsiuk et al. 2018, "RISE: Randomized input sampling for explanation of black-box models", section 4.1.
    """
    score, images = prepare(score, images)
    return _curve(score, images, like_images("baseline", baseline, images), maps, steps, batch_size)


def insertion(
    score: Callable, images: Any, maps: Any, *, start: Any = None, steps: int = 50, batch_size: int = 64
) -> Curve:
    """The score while pixels are uncovered, those of the greatest values of the map first; otherwise as `deletion`.

    Args:
        start: what the image is uncovered from: a number, f32[H,W,C] or f32[N,H,W,C]; None for `blurred`.
    """
    score, images = prepare(score, images)
    start = blurred(images) if start is None else like_images("start", start, images)
    return _curve(score, start, images, maps, steps, batch_size)


def blurred(images: Any) -> jax.Array:
    """Images under a Gaussian of 5 pixels, cut to 11×11, as RISE's insertion begins with: f32[N,H,W,C].

    Beyond the border lies the last pixel; in RISE's program 0.
    """
    return _blurred(check_images(images))


def cover_square(key: jax.Array, image: jax.Array, baseline: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(1 in a square and 0 elsewhere, the image with the baseline in the square), all f32[H,W,C].

    For maps that say how much each number adds to the score, as integrated gradients do. The square's side is drawn
    from 1 pixel to half the image, and its place.
    """
    height, width, _ = image.shape
    of_side, of_place = jax.random.split(key)
    side = jax.random.randint(of_side, (), 1, max(2, min(height, width) // 2 + 1))
    top, left = jax.random.randint(of_place, (2,), 0, jnp.stack([height - side + 1, width - side + 1]))
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None]
    inside = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
    inside = jnp.broadcast_to(inside[..., None], image.shape)
    return inside.astype(image.dtype), jnp.where(inside, baseline, image)


def remove_square(key: jax.Array, image: jax.Array, baseline: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same square, with the difference to the baseline in it in the place of 1: for maps that are derivatives."""
    inside, changed = cover_square(key, image, baseline)
    return inside * (image - baseline), changed


class Infidelity(NamedTuple):
    """How wrong a map is about changes of an image."""

    error: jax.Array
    """f32[N], the mean squared error of the map as it is, in the score's unit, squared."""
    scaled: jax.Array
    """f32[N], with the map times the number, above or below 0, that makes the error least; many scales mean nothing."""
    relative: jax.Array
    """f32[N], `scaled` over the error of a map of zeros: in [0,1], 1 for a map that says nothing."""


def infidelity(
    key: jax.Array,
    score: Callable,
    images: Any,
    maps: Any,
    *,
    perturb: Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]] = cover_square,
    baseline: Any = 0.0,
    samples: int = 200,
    batch_size: int = 64,
) -> Infidelity:
    """The mean squared error of what the map says of changes.

    For a change I of an image, the map says that the score falls by the sum of I times the map.

    Args:
        key: an image's changes depend on it and on the image's row, not on the batch size.
        perturb: (key, image, baseline) to (I, changed image), all f32[H,W,C]; traceable, and defined once.
        baseline: what covers: a number, f32[H,W,C] or f32[N,H,W,C].

    Source: Yeh et al. 2019, "On the (in)fidelity and sensitivity of explanations", definition 2.1; as captum has it.
    """
    at_least_one(samples=samples)
    score, images = prepare(score, images)
    maps = jnp.asarray(_fitting(maps, images))
    if maps.ndim == 3:
        maps = jnp.broadcast_to(maps[..., None] / images.shape[-1], images.shape)
    keys = jax.random.split(key, len(images))
    together = max(1, batch_size // len(images))
    program = partial(_of_changes, perturb=perturb, samples=samples, together=together)
    arrays = maps, like_images("baseline", baseline, images), keys
    said, fallen, both, error = in_batches(program, score, images, *arrays, batch_size=batch_size).T
    explained = jnp.square(both) / jnp.where(said > 0, said, 1)
    scaled = jnp.maximum(fallen - explained, 0)
    return Infidelity(error, scaled, scaled / jnp.where(fallen > 0, fallen, 1))


def max_sensitivity(
    key: jax.Array, method: Method, score: Callable, images: Any, *, radius: float = 0.02, samples: int = 10
) -> jax.Array:
    """The greatest change of a map under changes of the image by up to `radius`, in parts of the map: f32[N].

    The length of the difference over that of the map, both as vectors, for uniform noise; NaN for a blank map. The
    method has the same key for all, so that its own chance counts for nothing.

    Args:
        radius: in units of the images.

    Source: Yeh et al. 2019, "On the (in)fidelity and sensitivity of explanations", definition 3.1; as captum has it.
    """
    at_least_one(samples=samples)
    images = check_images(images)
    of_noise, of_method = jax.random.split(key)
    maps = method(of_method, score, images)
    length, most = _lengths(maps), jnp.zeros(len(images))
    for sample in range(samples):
        noise = jax.random.uniform(jax.random.fold_in(of_noise, sample), images.shape, minval=-radius, maxval=radius)
        most = jnp.maximum(most, _lengths(method(of_method, score, images + noise) - maps))
    return jnp.where(blank(maps), jnp.nan, most / jnp.where(length > 0, length, 1))


class Cascade(NamedTuple):
    """How a map stays as it is while the network is drawn anew."""

    modules: tuple[str, ...]
    """The network's, from the last to the first; a row is of all up to this one drawn anew."""
    similarity: jax.Array
    """f32[draws,modules,N], the rank correlation with the map of the network as it is; NaN where either is blank."""


def cascade(key: jax.Array, method: Method, score: Score, images: Any, *, draws: int = 1) -> Cascade:
    """The cascading randomisation check: a map that stays as it is when the network forgets does not explain it.

    The network's modules are drawn anew from the last to the first by `model.init`, with the statistics of their norms.
    A ResNet starts its blocks as the identity, unless it is one of `zero_init=False`. Correlations are Spearman's, over
    all numbers of the maps. The method has the same key for all.

    Args:
        draws: how often all modules are drawn, for an interval: one draw says little of another.

    Source: Adebayo et al. 2018, "Sanity checks for saliency maps", section 3.1.

    Raises:
        InputError: the score is not a `Score`, or `draws` below 1.
    """
    at_least_one(draws=draws)
    if not isinstance(score, Score):
        raise InputError("to draw a network anew give a Score, such as class_score(model, variables, labels)")
    images = check_images(images)
    of_network, of_method = jax.random.split(key)
    order = []

    def init(key, image):
        drawn = score.model.init(key, image)
        order[:] = drawn["params"]  # in which they are made; jit sorts them
        return drawn

    # It hardly ever runs: not worth optimising.
    image = jnp.asarray(images[:1])
    program = jax.jit(init).lower(of_network, image).compile({"xla_backend_optimization_level": "0"})
    maps = method(of_method, score, images)
    similarity = []
    for key in jax.random.split(of_network, draws):
        drawn, variables = program(key, image), dict(score.variables)
        for module in reversed(order):
            for kind, of_kind in drawn.items():
                if module in of_kind:
                    variables[kind] = {**variables[kind], module: of_kind[module]}
            found = method(of_method, replace(score, variables=dict(variables)), images)
            similarity.append(rank_correlation(maps, found))
    return Cascade(tuple(reversed(order)), jnp.stack(similarity).reshape(draws, len(order), -1))


@jax.jit
def rank_correlation(a: jax.Array, b: jax.Array) -> jax.Array:
    """Spearman's correlation of maps of the same shape [N,…], equal values with the mean of their ranks: f32[N].

    NaN where one of them is the same everywhere.
    """

    def ranks(row):
        row = jnp.where(row == 0, 0, row)  # −0 too
        ordered = jnp.sort(row)
        twice = jnp.searchsorted(ordered, row, side="left") + jnp.searchsorted(ordered, row, side="right")
        ranks = twice.astype(jnp.float32) / (2 * len(row)) - 0.5
        return ranks - ranks.mean()

    a, b = (jax.lax.map(ranks, x.reshape(len(x), -1)) for x in (a, b))
    lengths = jnp.sqrt(jnp.square(a).sum(1) * jnp.square(b).sum(1))
    return jnp.where(lengths > 0, (a * b).sum(1) / jnp.where(lengths > 0, lengths, 1), jnp.nan)


def blank(maps: Any) -> jax.Array:
    """Whether a map is the same everywhere: bool[N]."""
    flat = maps.reshape(len(maps), -1)
    return flat.max(1) == flat.min(1)


def pointing_game(maps: Any, objects: Any, *, tolerance: float = 0.0) -> np.ndarray:
    """Whether the greatest value of a map lies on the object: f32[N], 1 or 0; NaN where no object is known.

    A blank map points nowhere, which is 0.

    Args:
        maps: f32[N,H,W] or f32[N,H,W,C].
        objects: boxes f32[N,M,4] or f32[N,4], left, top, right and bottom in pixels, of which one without area is none;
            or masks bool[N,H,W].
        tolerance: pixels around a box that count as in it; 15 in the paper, on photographs.

    Source: Zhang et al. 2018, "Top-down neural attention by excitation backprop", section 4.1.

    Raises:
        InputError: shapes that do not fit.
    """
    maps, objects = np.asarray(maps), np.asarray(objects)
    boxes = objects[:, None] if objects.ndim == 2 else objects
    masked = objects.dtype == bool
    found, expected = (boxes.shape, maps.shape[:3]) if masked else (boxes.shape[::2], (len(maps), 4))
    if maps.ndim not in (3, 4) or boxes.ndim != 3 or found != expected:
        raise InputError(
            f"objects are {objects.dtype}{list(objects.shape)} for maps {maps.shape}: expected boxes (N, M, 4) or "
            "(N, 4), or masks bool (N, H, W)"
        )
    points = _of_pixels(maps)
    rows, columns = np.divmod(points.reshape(len(points), -1).argmax(1), points.shape[2])
    if masked:
        known, hit = objects.any((1, 2)), objects[np.arange(len(maps)), rows, columns]
    else:
        x, y = columns[:, None] + 0.5, rows[:, None] + 0.5
        left, top, right, bottom = np.moveaxis(boxes.astype(np.float32), -1, 0)
        real = (right > left) & (bottom > top)
        across = (x > left - tolerance) & (x < right + tolerance)
        down = (y > top - tolerance) & (y < bottom + tolerance)
        known, hit = real.any(1), (real & across & down).any(1)
    return np.where(known, hit & ~np.asarray(blank(points)), np.nan).astype(np.float32)


def _fitting(maps: Any, images: jax.Array) -> jax.Array:
    if np.shape(maps) not in (images.shape[:3], images.shape):
        raise InputError(f"maps have shape {np.shape(maps)}: expected {images.shape} or {images.shape[:3]}")
    return maps


def _of_pixels(maps: jax.Array) -> jax.Array:
    return maps.sum(-1) if maps.ndim == 4 else maps


def _lengths(maps: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.square(maps.reshape(len(maps), -1)).sum(1))


@jax.jit
def _sum_and_difference(score, images, maps, baseline):
    return maps.reshape(len(maps), -1).sum(1), values(score, images) - values(score, baseline)


def _curve(score, before, after, maps, steps, batch_size):
    at_least_one(steps=steps)
    maps = _of_pixels(jnp.asarray(_fitting(maps, before)))
    together = max(1, batch_size // len(before))
    program = partial(_by_rank, steps=steps, together=together)
    found = in_batches(program, score, before, after, maps, batch_size=batch_size)
    return Curve((found[:, 1:] + found[:, :-1]).mean(1) / 2, found)


def _by_rank(score, before, after, maps, *, steps, together):
    arrays = (score, before, after, _ranks(maps))
    return weighted_sum(_changed, _one_value, arrays, np.ones(steps + 1), together=together, options=(steps,))


@jax.jit
def _ranks(maps):
    """i32[N,H,W], 0 for the greatest value of a map; equal ones in an order drawn once for all."""
    count = maps[0].size
    any_order = jnp.broadcast_to(jax.random.permutation(jax.random.key(0), count)[None], (len(maps), count))
    order = jnp.lexsort((any_order, -maps.reshape(len(maps), -1)))
    return jnp.argsort(order, axis=-1).reshape(maps.shape)


def _changed(index, score, before, after, ranks, steps):
    changed = ranks[:, None] < (index * ranks[0].size // steps).reshape(1, -1, 1, 1)
    images = jnp.where(changed[..., None], after[:, None], before[:, None])
    return images, jax.nn.one_hot(index, steps + 1)


def _one_value(made, score, *_):
    """The score of each step at its place among the steps, so that their sum is the curve."""
    images, place = made
    return evaluate(score, images)[..., None] * place[None]


@jax.jit
def _blurred(images):
    along = np.exp(-0.5 * (np.arange(-5, 6) / 5) ** 2)
    along = along / along.sum()
    for axis in (1, 2):
        widths = [(5, 5) if i == axis else (0, 0) for i in range(4)]
        padded, side = jnp.pad(images, widths, mode="edge"), images.shape[axis]
        images = sum(w * jax.lax.slice_in_dim(padded, i, i + side, axis=axis) for i, w in enumerate(along.tolist()))
    return images


def _of_changes(score, images, maps, baseline, keys, *, perturb, samples, together):
    """f32[N,4]: means over changes of said², fallen², said · fallen and (said − fallen)²."""
    arrays = (score, images, maps, baseline, keys)
    weights = np.full(samples, 1 / samples)
    return weighted_sum(_changes, _moments, arrays, weights, together=together, options=(perturb,))


def _changes(index, score, images, maps, baseline, keys, perturb):
    def one(key, image, baseline, sample):
        return perturb(jax.random.fold_in(key, sample), image, baseline)

    return jax.vmap(jax.vmap(one, (None, None, None, 0)), (0, 0, 0, None))(keys, images, baseline, index)


def _moments(made, score, images, maps, baseline, keys):
    change, changed = made
    said = (change * maps[:, None]).sum((2, 3, 4))
    fallen = values(score, images)[:, None] - evaluate(score, changed)
    return jnp.stack([said**2, fallen**2, said * fallen, (said - fallen) ** 2], axis=-1)
