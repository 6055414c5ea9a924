"""What a network computes on the way, and what of it answers to what.

Stages are what a model names with `tap`. Where several may be asked for, `names` is a name or a glob pattern, or a
sequence of these: "conv1", "stage*", ["stem", "*/out"].
"""

import fnmatch
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.analysis.batches import batches
from cnn_jax.errors import InputError, unknown


def capture(
    model: nn.Module, variables: Any, images: jax.Array, *, names: str | Sequence[str] = "*"
) -> dict[str, jax.Array]:
    """The stages that a model names with `tap`, in the order in which it computes them.

    Args:
        images: f32[N,H,W,C], as the model takes them.
        names: which stages.

    Returns:
        {stage: array with leading N}, such as {"conv1": f32[N,28,28,32], …, "logits": f32[N,10]}. Stages of a
        submodule are named "submodule/stage".

    Raises:
        InputError: a name that fits no stage, or a network that names none.
    """
    order = []

    def compute(variables, images):
        found = stages(model, variables, images, names=names)
        order[:] = found  # jit would return a dict sorted by name
        return list(found.values())

    values = jax.jit(compute)(variables, images)
    return dict(zip(order, values, strict=True))


def stages(
    model: nn.Module, variables: Any, images: jax.Array, *, names: str | Sequence[str] = "*"
) -> dict[str, jax.Array]:
    """The same as `capture`, to be traced as a part of a larger program."""
    _, changed = model.apply(variables, images, train=False, mutable=["intermediates"])
    found = _named(changed.get("intermediates", {}))
    if not found:
        raise InputError(f"{type(model).__name__} names no stages: name them with `cnn_jax.models.layers.tap`")
    return {name: found[name] for name in choose(found, names)}


def choose(known: Iterable[str], names: str | Sequence[str]) -> list[str]:
    """Those of the known stages that one of the names or patterns fits, in their order.

    Raises:
        InputError: a name or pattern that fits none.
    """
    known = list(known)
    chosen = set()
    for name in [names] if isinstance(names, str) else names:
        fitting = {name} & set(known) or set(fnmatch.filter(known, name))
        if not fitting:
            raise unknown("stage", name, known)
        chosen |= fitting
    return [name for name in known if name in chosen]


def stage_of(found: dict[str, jax.Array], stage: str) -> jax.Array:
    """The one stage of that name.

    Raises:
        InputError: there is none.
    """
    if stage not in found:
        raise unknown("stage", stage, found)
    return found[stage]


def _named(tree: dict, prefix: str = "") -> dict[str, jax.Array]:
    """{"conv1": (x,), "block": {"out": (y,)}} as {"conv1": x, "block/out": y}."""
    found = {}
    for name, value in tree.items():
        if isinstance(value, tuple):
            found[prefix + name] = value[0]
        else:
            found |= _named(value, f"{prefix}{name}/")
    return found


def outline(function: Callable[..., dict[str, jax.Array]], *arguments: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes and dtypes of what a function would return, in its order, without computing."""
    shapes = {}

    def look(*arguments):
        shapes.update((k, jax.ShapeDtypeStruct(v.shape, v.dtype)) for k, v in function(*arguments).items())

    jax.eval_shape(look, *arguments)
    return shapes


def check_units(units: Sequence[int], stage: str, channels: int) -> None:
    """Raises InputError unless all units are channels of that stage."""
    wrong = [int(unit) for unit in units if not 0 <= unit < channels]
    if wrong:
        raise InputError(f"stage {stage!r} has no channel {wrong[0]}: its {channels} channels are 0 to {channels - 1}")


class Activity(NamedTuple):
    """How the channels of a stage answer to a set of images."""

    largest: np.ndarray
    """f32[C], the largest value of each channel at any place of any image."""
    dead: float
    """The share of the channels that are never above zero."""
    sparsity: float
    """The share of all values that are not above zero."""
    effective_rank: float
    """Of the matrix whose rows are the C channels at each place of each image: from 1 to C, see `effective_rank`."""


def activity(
    model: nn.Module,
    variables: Any,
    images: np.ndarray,
    *,
    names: str | Sequence[str] = "*",
    preprocess: Callable[[jax.Array], jax.Array] = lambda images: images,
    batch_size: int = 64,
) -> dict[str, Activity]:
    """Dead units, sparsity and effective rank of stages over a data set, of which one batch is in memory at a time.

    Args:
        images: [N,H,W,C], as `preprocess` takes them, on the host.
        names: which stages.
        preprocess: images of a batch to what the model takes; traceable.

    Raises:
        InputError: a name that fits no stage.
    """

    def look(variables, images):
        return stages(model, variables, preprocess(images), names=names)

    @jax.jit
    def step(variables, batch, mask, state):
        found = look(variables, batch).values()
        return list(zip(*[_active(value, mask, *of) for value, of in zip(found, state, strict=True)], strict=True))

    shapes = outline(look, variables, jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype))
    channels = [shape.shape[-1] for shape in shapes.values()]
    state = [(np.full(c, -np.inf, np.float32), np.zeros((c, c), np.float32)) for c in channels]
    above = np.zeros(len(channels))
    for _, batch, mask in batches(images, batch_size=batch_size):
        *state, more = step(variables, batch, mask, state)
        state = list(zip(*state, strict=True))
        above += more
    found = {}
    for (name, shape), (largest, triangle), positive in zip(shapes.items(), state, above, strict=True):
        largest, values = np.asarray(largest), len(images) * np.prod(shape.shape[1:])
        dead, rank = float(np.mean(largest <= 0)), float(effective_rank(triangle))
        found[name] = Activity(largest, dead, float(1 - positive / values), rank)
    return found


def _active(value: jax.Array, mask: jax.Array, largest: jax.Array, triangle: jax.Array) -> tuple:
    """(largest by channel, the triangle with the new rows, how many of the new values are above zero)."""
    channels = value.shape[-1]
    rows = value.astype(jnp.float32).reshape(len(value), -1, channels)
    inside = mask[:, None, None]
    largest = jnp.maximum(largest, jnp.where(inside, rows, -jnp.inf).max((0, 1)))
    rows = jnp.where(inside, rows, 0)
    # RᵀR is the sum of all rows' products, and so R has their singular values: found without the squares, which would
    # lose half the digits, and with as many numbers as the stage has pairs of channels (Golub & Van Loan, section 5.2).
    triangle = jnp.linalg.qr(jnp.concatenate([triangle, rows.reshape(-1, channels)]), mode="r")
    return largest, triangle, (rows > 0).sum()


def effective_rank(features: jax.Array) -> jax.Array:
    """exp(-Σ p·log p) of the singular values, scaled to a sum of 1: f32[], from 1 to min(N, D); of zeros alone 0.

    As many directions of equal strength would have this entropy. The mean is a direction too: take it off before, if it
    is not meant.

    Args:
        features: f32[N,D].

    Source: Roy & Vetterli 2007, "The effective rank: a measure of effective dimensionality".
    """
    values = jnp.linalg.svd(features, compute_uv=False)
    total = values.sum()
    entropy = jax.scipy.special.entr(values / jnp.where(total > 0, total, 1)).sum()
    return jnp.where(total > 0, jnp.exp(entropy), 0)


class Exciting(NamedTuple):
    """The images of a set to which units answer most, the strongest first. An image counts once for each unit."""

    values: np.ndarray
    """f32[U,k], the largest value of the unit on the image."""
    images: np.ndarray
    """i32[U,k], the rows of the images."""
    places: np.ndarray
    """i32[U,k,2], the (row, column) of the stage's map where it is found; zeros for a stage without places."""


def exciting(
    model: nn.Module,
    variables: Any,
    images: np.ndarray,
    *,
    stage: str,
    units: Sequence[int] | None = None,
    count: int = 9,
    preprocess: Callable[[jax.Array], jax.Array] = lambda images: images,
    batch_size: int = 64,
) -> Exciting:
    """The images that excite the units of a stage most, over a data set, of which one batch is in memory at a time.

    With `receptive.patches` of the result come the parts of the images that the units see there.

    Args:
        images: [N,H,W,C], as `preprocess` takes them, on the host.
        units: channels of the stage; all by default.
        count: how many images for each.
        preprocess: images of a batch to what the model takes; traceable.

    Raises:
        InputError: no such stage or channel, or fewer images than `count`.

    Source: Zeiler & Fergus 2014, "Visualizing and Understanding Convolutional Networks", figure 2.
    """
    if not 1 <= count <= len(images):
        raise InputError(f"count is {count}: it must be from 1 to the {len(images)} images")

    def look(variables, images):
        return stage_of(stages(model, variables, preprocess(images)), stage)

    @jax.jit
    def step(variables, batch, mask, first, units, best):
        value = look(variables, batch).astype(jnp.float32)
        width = value.shape[2] if value.ndim == 4 else 1
        value = value.reshape(len(batch), -1, value.shape[-1])[..., units]
        place = value.argmax(1)
        new = (
            jnp.where(mask[:, None], value.max(1), -jnp.inf),
            jnp.broadcast_to(first + jnp.arange(len(batch))[:, None], place.shape),
            jnp.stack([place // width, place % width]),
        )
        # [U, k + B]: the first of what is equal stays the first.
        joined = [jnp.concatenate([a, b.swapaxes(-1, -2)], -1) for a, b in zip(best, new, strict=True)]
        values, chosen = jax.lax.top_k(joined[0], count)
        rows = jnp.take_along_axis(joined[1], chosen, -1)
        return values, rows, jnp.take_along_axis(joined[2], chosen[None], -1)

    channels = jax.eval_shape(look, variables, jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype)).shape[-1]
    units = np.arange(channels) if units is None else np.asarray(units)
    check_units(units, stage, channels)
    empty = (len(units), count)
    best = np.full(empty, -np.inf, np.float32), np.zeros(empty, np.int32), np.zeros((2, *empty), np.int32)
    for rows, batch, mask in batches(images, batch_size=batch_size):
        best = step(variables, batch, mask, rows.start, units, best)
    values, rows, places = map(np.asarray, best)
    return Exciting(values, rows, np.moveaxis(places, 0, -1))
