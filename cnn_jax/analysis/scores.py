"""What is explained: one number for each image, such as the logit of a class, as a function of images.

    score = class_score(model, variables, labels)
    maps = attribution.integrated_gradients(score, images).maps

Methods take any traceable function of images, f32[N,H,W,C] to f32[N]. One that is a `Score` can have a target for each
image, keeps them with their images in batches, and is compiled once for all weights and targets.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.analysis.batches import row_batches
from cnn_jax.errors import InputError


def _unlimited(outputs: Any) -> dict[str, int]:
    return {}


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["variables", "targets"],
    meta_fields=["model", "read", "sizes"],
)
@dataclass(frozen=True, eq=False)
class Score:
    """A number for each image, read off a network's outputs: `score(images)` is f32[N]. A pytree.

    Attributes:
        model: the network; hashable, as Linen's modules are.
        variables: {"params", …}.
        read: outputs and targets to f32[N]; a function that is defined once, as programs are compiled for it.
        targets: {name: i32[N] or i32[]}, what is read of each image or of all.
        sizes: of the outputs, as shapes, how many values each target can have: {name: count}. InputError where the
            outputs are not those that `read` can take.
    """

    model: nn.Module
    variables: Any
    read: Callable[[Any, dict[str, jax.Array]], jax.Array]
    targets: dict[str, jax.Array]
    sizes: Callable[[Any], dict[str, int]] = _unlimited

    def __call__(self, images: jax.Array) -> jax.Array:
        """f32[N] of images f32[N,H,W,C], as the model takes them."""
        outputs = self.model.apply(self.variables, images, train=False)
        return self.read(outputs, self.for_images(images).targets)

    def for_images(self, images: jax.Array) -> "Score":
        """The same with a target for each of these images.

        Raises:
            InputError: another number of targets, or targets out of range. Those that are traced are taken as they are.
        """
        targets = {name: np.asarray(x) if isinstance(x, list) else x for name, x in self.targets.items()}
        for name, values in targets.items():
            if values.shape not in ((), images.shape[:1]):
                raise InputError(
                    f"{name} has shape {values.shape} for {len(images)} images: give one for all, or one for each"
                )
        known = {name: np.asarray(x) for name, x in targets.items() if not isinstance(x, jax.core.Tracer)}
        sizes = self.sizes(_shapes(self.model, self.variables, images.shape[1:])) if known else {}
        for name in sizes.keys() & known.keys():
            wrong = known[name][(known[name] < 0) | (known[name] >= sizes[name])]
            if wrong.size:
                raise InputError(
                    f"{name} {wrong.flat[0]} is out of range: the network's outputs have {name} 0 to {sizes[name] - 1}"
                )
        spread = {name: jnp.broadcast_to(values, images.shape[:1]) for name, values in targets.items()}
        return replace(self, targets=spread)


def class_score(model: nn.Module, variables: Any, labels: Any, *, probability: bool = False) -> Score:
    """The logit of a class of a classifier.

    Args:
        labels: the class, or i32[N], one for each image.
        probability: by softmax, instead of the logit.

    Raises:
        InputError: labels that are not whole numbers; when used, those that the outputs do not have, or outputs that
            are not [N,classes].
    """
    read = _class_probability if probability else _class_logit
    return Score(model, variables, read, {"label": whole_numbers("label", labels)}, _class_sizes)


def pixel_score(model: nn.Module, variables: Any, pixels: Any, labels: Any, *, probability: bool = False) -> Score:
    """The logit of a class at a pixel, for segmenters: outputs f32[N,H,W,classes], or {"logits": …} of such.

    Args:
        pixels: (row, column), or i32[N,2], one for each image.
        labels: the class, or i32[N].
        probability: by softmax, instead of the logit.

    Raises:
        InputError: as `class_score`.
    """
    pixels = whole_numbers("pixels", pixels)
    if pixels.ndim not in (1, 2) or pixels.shape[-1] != 2:
        raise InputError(f"pixels have shape {pixels.shape}: expected (row, column), or one for each image, (N, 2)")
    targets = {"row": pixels[..., 0], "column": pixels[..., 1], "label": whole_numbers("label", labels)}
    read = _pixel_probability if probability else _pixel_logit
    return Score(model, variables, read, targets, _pixel_sizes)


def check_labels(labels: Any, count: int, classes: int) -> None:
    """Raises InputError unless labels are integers [count], from 0 to `classes` - 1, as far as they are not traced."""
    if labels.shape != (count,) or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise InputError(f"labels of shape {labels.shape} and {labels.dtype}: expected integers of shape ({count},)")
    if isinstance(labels, jax.core.Tracer) or not labels.size:
        return
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(f"labels from {labels.min()} to {labels.max()}: the network has classes 0 to {classes - 1}")


def _class_logit(outputs, targets):
    return jnp.take_along_axis(_logits(outputs), targets["label"][:, None], axis=1)[:, 0]


def _class_probability(outputs, targets):
    return _class_logit(jax.nn.softmax(_logits(outputs)), targets)


def _class_sizes(outputs):
    logits = _logits(outputs)
    if getattr(logits, "ndim", 0) != 2:
        raise InputError(
            f"class_score needs logits [N,classes], and the network gives {described(outputs)}: use pixel_score for "
            "maps of classes, box_score for boxes"
        )
    return {"label": logits.shape[1]}


def _pixel_logit(outputs, targets):
    rows = jnp.arange(len(targets["label"]))
    return _logits(outputs)[rows, targets["row"], targets["column"], targets["label"]]


def _pixel_probability(outputs, targets):
    return _pixel_logit(jax.nn.softmax(_logits(outputs)), targets)


def _pixel_sizes(outputs):
    logits = _logits(outputs)
    if getattr(logits, "ndim", 0) != 4:
        raise InputError(f"pixel_score needs logits [N,H,W,classes], and the network gives {described(outputs)}")
    return dict(zip(("row", "column", "label"), logits.shape[1:], strict=True))


def _logits(outputs):
    return outputs["logits"] if isinstance(outputs, Mapping) and "logits" in outputs else outputs


def described(outputs: Any) -> str:
    """The shapes of a network's outputs, for a sentence."""
    return str(jax.tree.map(lambda x: ("N", *x.shape[1:]), outputs)).replace("'", "")


def whole_numbers(name: str, values: Any) -> jax.Array | np.ndarray:
    """Targets as an array, where they were; InputError if they are not whole numbers."""
    values = values if isinstance(values, jax.Array) else np.asarray(values)
    if not jnp.issubdtype(values.dtype, jnp.integer):
        raise InputError(f"{name} is of type {values.dtype}: expected whole numbers")
    return values


def _shapes(model: nn.Module, variables: Any, image_shape: tuple[int, int, int]) -> Any:
    leaves, tree = jax.tree.flatten(variables)
    return _traced(model, tree, tuple((np.shape(leaf), leaf.dtype) for leaf in leaves), image_shape)


@lru_cache(maxsize=64)
def _traced(model, tree, leaves, image_shape):
    """The shapes of the outputs for one image, traced once."""
    variables = tree.unflatten([jax.ShapeDtypeStruct(*leaf) for leaf in leaves])
    return jax.eval_shape(
        partial(model.apply, train=False), variables, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    )


# What the methods share.


def prepare(score: Callable, images: Any) -> tuple[Callable, jax.Array]:
    """What a method was given, checked: the score as a pytree with a target for each image, and images of float32.

    Raises:
        InputError: images that are not finite numbers f32[N,H,W,C], or targets that do not fit.
    """
    images = check_images(images)
    if isinstance(score, Score):
        return score.for_images(images), images
    return score if isinstance(score, jax.tree_util.Partial) else jax.tree_util.Partial(score), images


def check_images(images: Any) -> jax.Array:
    """Images as float32, or as float64 under `jax.enable_x64`; on the host if they are there.

    Raises:
        InputError: they are not finite numbers f32[N,H,W,C] with N of 1 or more.
    """
    images = images if isinstance(images, jax.Array) else np.asarray(images)
    if images.ndim != 4 or 0 in images.shape or not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(
            f"images are {images.dtype}{list(images.shape)}: expected f32[N,H,W,C], as the model takes them after "
            "preprocessing"
        )
    if not isinstance(images, jax.core.Tracer) and not bool(jnp.isfinite(images).all()):
        raise InputError("images hold numbers that are not finite: see what preprocessing makes of them")
    return images.astype(jnp.result_type(float))


def values(score: Callable, images: jax.Array) -> jax.Array:
    """f32[N], traced in a larger program.

    Raises:
        InputError: the score gives another shape.
    """
    found = score(images)
    if found.shape != images.shape[:1]:
        raise InputError(f"the score gives shape {found.shape} for {len(images)} images: expected one number for each")
    return found.astype(jnp.result_type(float))


def like_images(name: str, array: Any, images: jax.Array) -> jax.Array:
    """A number, [H,W,C] or [N,H,W,C] as an array for each image, without copying what is on the host.

    Raises:
        InputError: it does not fit.
    """
    of = jnp if isinstance(array, jax.Array) else np
    try:
        return of.broadcast_to(of.asarray(array, images.dtype), images.shape)
    except ValueError:
        raise InputError(
            f"{name} has shape {np.shape(array)}: expected a number, or an array like the images {images.shape}"
        ) from None


def in_batches(program: Callable, score: Callable, images: jax.Array, *others: jax.Array, batch_size: int) -> Any:
    """`program(score, images, *others)` of `batch_size` images at a time, joined.

    The last batch is filled up with the last image, so that all have one shape and are compiled once.

    Args:
        score: as `prepare` gives it.
        others: arrays with leading N.

    Raises:
        InputError: a batch size below 1.
    """
    count = len(images)
    own = score.targets if isinstance(score, Score) else None
    parts = []
    for _, rows in row_batches(count, batch_size):
        arrays = own, images, others
        if len(rows) < count:
            arrays = jax.tree.map(lambda array: array[rows], arrays)  # noqa: B023
        some = replace(score, targets=arrays[0]) if own is not None else score
        parts.append(program(some, arrays[1], *arrays[2]))
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[:count], *parts)


def evaluate(score: Callable, images: jax.Array) -> jax.Array:
    """f32[N,K] of K versions of each image, f32[N,K,H,W,C]; traced in a larger program."""
    count, versions = images.shape[:2]
    return values(repeated(score, versions), images.reshape(-1, *images.shape[2:])).reshape(count, versions)


def repeated(score: Callable, versions: int) -> Callable:
    """The score of so many versions of each image, which stand beside each other."""
    if not isinstance(score, Score):
        return score
    return replace(score, targets={name: jnp.repeat(x, versions) for name, x in score.targets.items()})


def weighted_sum(
    make: Callable, measure: Callable, arrays: tuple, weights: np.ndarray, *, together: int, options: tuple = ()
) -> jax.Array:
    """The sum over steps i of `weights[i]` times what is measured of the images made for it.

    Some steps at a time, so that memory does not grow with them all, by two compiled programs that are called in turns.
    In one, XLA's CPU back end would make an image anew for each place of a kernel that sees it, which takes twice the
    time; and in a compiled loop it is slow for the gradients of convolutions.

    Args:
        make: `make(index, *arrays, *options)`, of i32[K], some steps, to any pytree of arrays; traceable, and defined
            once, as programs are compiled for it.
        measure: `measure(made, *arrays)` to [N,K,…]; likewise.
        arrays: pytrees of arrays.
        weights: f32[S].
        together: K. What is missing in the last turn is computed for the first steps, and weighs nothing.
        options: hashable; a program is compiled for each.
    """
    steps = len(weights)
    together = min(together, steps)
    index = np.arange(-(-steps // together) * together, dtype=np.int32)
    weights = np.where(index < steps, np.asarray(weights)[index % steps], 0).astype(jnp.result_type(float))
    total = None
    for first in range(0, len(index), together):
        turn = slice(first, first + together)
        part = _measured(measure, weights[turn], _made(make, options, index[turn] % steps, arrays), arrays)
        total = part if total is None else total + part
    return total


@partial(jax.jit, static_argnums=(0, 1))
def _made(make, options, index, arrays):
    return make(index, *arrays, *options)


@partial(jax.jit, static_argnums=0)
def _measured(measure, weights, made, arrays):
    found = measure(made, *arrays)
    # No product of matrices, which is slow for so few numbers.
    return (found * weights.reshape(1, -1, *[1] * (found.ndim - 2))).sum(1)


def at_least_one(**counts: int) -> None:
    """Raises InputError for a count below 1, such as `steps=0`."""
    for name, count in counts.items():
        if count < 1:
            raise InputError(f"{name} is {count}: expected 1 or more")
