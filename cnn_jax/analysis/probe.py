"""What can be read off a network's features by a linear map: probes in closed form, on features computed once.

features = {split: embed(model, variables, images[split]) for split in images}
probe = linear_probe(features["train"], labels["train"], num_classes=10)
accuracy = (probe.scores(features["test"]).argmax(-1) == labels["test"]).mean()
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.analysis.activations import outline, stage_of, stages
from cnn_jax.analysis.batches import batches
from cnn_jax.analysis.scores import at_least_one
from cnn_jax.errors import InputError

# Strengths of the regularisation that are tried, in units of the features' mean variance in all directions.
STRENGTHS = tuple(10.0 ** (k / 2) for k in range(-8, 9))


def embed(
    model: nn.Module,
    variables: Any,
    images: np.ndarray,
    *,
    stage: str = "pre_logits",
    preprocess: Callable[[jax.Array], jax.Array] = lambda images: images,
    batch_size: int = 64,
) -> np.ndarray:
    """A stage of a network for many images, computed once, to be kept: f32[N,D].

    Args:
        images: [N,H,W,C], as `preprocess` takes them, on the host.
        stage: one that the model names with `tap`, as `capture` has them. Maps [h,w,D] are averaged over their places.
        preprocess: images of a batch to what the model takes; traceable.

    Raises:
        InputError: the model names no such stage.
    """

    def look(variables, images):
        return {stage: stage_of(stages(model, variables, preprocess(images)), stage)}

    return _embedded(look, variables, images, batch_size)[stage]


def _embedded(look: Callable, variables: Any, images: np.ndarray, batch_size: int) -> dict[str, np.ndarray]:
    """{stage: f32[N,D]} of the stages that `look(variables, images of a batch)` gives."""
    order = outline(look, variables, jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype))

    @jax.jit
    def features(variables, images):
        found = look(variables, images)
        return [found[s].astype(jnp.float32).reshape(len(images), -1, found[s].shape[-1]).mean(1) for s in order]

    parts = [
        [np.asarray(values)[mask] for values in features(variables, batch)]
        for _, batch, mask in batches(images, batch_size=batch_size)
    ]
    return {stage: np.concatenate(values) for stage, *values in zip(order, *parts, strict=True)}


class Probe(NamedTuple):
    """A linear classifier of features, and how it was chosen."""

    kernel: jax.Array
    """f32[D,C]."""
    bias: jax.Array
    """f32[C]."""
    strengths: jax.Array
    """f32[S], the strengths of regularisation that were tried."""
    errors: jax.Array
    """f32[S], the squared error of each on examples that were left out of the fit in turn, per example and class."""
    best: jax.Array
    """i32[], which of the strengths was taken: the one of the smallest error."""

    def scores(self, features: jax.Array) -> jax.Array:
        """f32[N,C] of features f32[N,D]: near 1 for the class that an example has, near 0 for the others.

        Raises:
            InputError: features of another D than it has learned from.
        """
        if features.shape[1:] != self.kernel.shape[:1]:
            raise InputError(f"features have shape {features.shape}, and the probe is of (N, {len(self.kernel)})")
        return jnp.matmul(features, self.kernel, precision="highest") + self.bias[None]


def linear_probe(
    features: jax.Array, labels: jax.Array, *, num_classes: int, strengths: Sequence[float] = STRENGTHS
) -> Probe:
    """The linear classifier by ridge regression on one-hot labels, with the strength of regularisation chosen.

    Features are centred and scaled to unit variance; the bias is not regularised. One decomposition serves all
    strengths, and gives for each the error on examples left out in turn without fitting again (Allen 1974, "The
    relationship between variable selection and data augmentation and a method for prediction"), so that no labelled
    example is spent on the choice. All strengths are tried in one compiled call.

    Args:
        features: f32[N,D], N of 2 or more, finite.
        labels: i32[N], 0 to num_classes - 1.
        strengths: above 0, in units of the mean variance of the features: 1 shrinks an average direction by half.

    Raises:
        InputError: shapes that do not fit together, fewer than two examples, or values that are none of these.
    """
    features, labels = _checked("training", features, labels, num_classes, least=2)
    return _fit(features, labels, _positive(strengths), num_classes)


def few_shot(
    features: jax.Array,
    labels: jax.Array,
    rows: jax.Array,
    test_features: jax.Array,
    test_labels: jax.Array,
    *,
    num_classes: int,
    strengths: Sequence[float] = STRENGTHS,
) -> jax.Array:
    """The accuracy of linear probes that learn from few examples, each from a selection of its own: f32[R].

    All selections and strengths are one compiled call, as in big_vision's `fewshot_lsr`; but there the strength that is
    best on the test set is reported, and here each selection chooses its own by its examples alone.

    Args:
        features: f32[N,D] of the examples to choose from.
        labels: i32[N].
        rows: i32[R,n], the rows of the examples of each selection, n of 2 or more.
        test_features: f32[M,D].
        test_labels: i32[M].

    Raises:
        InputError: as `linear_probe`, rows that are not there, or selections of fewer than two.
    """
    learned = _checked("training", features, labels, num_classes, least=2)
    tested = _checked("test", test_features, test_labels, num_classes)
    rows, last = jnp.asarray(rows), len(learned[0]) - 1
    if rows.ndim != 2 or not len(rows) or rows.shape[1] < 2 or not jnp.issubdtype(rows.dtype, jnp.integer):
        raise InputError(f"rows of {rows.dtype} have shape {rows.shape}: expected whole numbers (R, n), n at least 2")
    if rows.min() < 0 or rows.max() > last:
        raise InputError(f"rows from {rows.min()} to {rows.max()}: there are 0 to {last}")
    return _few_shot(*learned, rows, *tested, _positive(strengths), num_classes)


def probe_stages(
    model: nn.Module,
    variables: Any,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    num_classes: int,
    names: str | Sequence[str] = "*",
    preprocess: Callable[[jax.Array], jax.Array] = lambda images: images,
    batch_size: int = 64,
) -> dict[str, float]:
    """The accuracy on `test` of a linear probe of each stage: what can be read off it. All stages are computed at once.

    Args:
        train, test: images [N,H,W,C], as `preprocess` takes them, on the host, and labels i32[N].
        names: which stages, by names or glob patterns; each as `embed` gives it.

    Raises:
        InputError: as `linear_probe`, or a name that fits no stage.

    Source: Alain & Bengio 2016, "Understanding intermediate layers using linear classifier probes".
    """

    def look(variables, images):
        return stages(model, variables, preprocess(images), names=names)

    learned, tested = (_embedded(look, variables, images, batch_size) for images, _ in (train, test))
    probes = {stage: linear_probe(x, train[1], num_classes=num_classes) for stage, x in learned.items()}
    found = {}
    for stage, probe in probes.items():
        x, wanted = _checked("test", tested[stage], test[1], num_classes)
        found[stage] = float(np.mean(np.asarray(probe.scores(x).argmax(1) == wanted)))
    return found


def draw_balanced(key: jax.Array, labels: np.ndarray, *, shots: int) -> np.ndarray:
    """Rows of `shots` examples of each class, drawn without repetition: i32[classes · shots].

    Raises:
        InputError: a class has fewer, or none are to be drawn.
    """
    at_least_one(shots=shots)
    labels = np.asarray(labels)
    order = np.asarray(jax.random.permutation(key, len(labels)))
    chosen = []
    for label in np.unique(labels):
        rows = order[labels[order] == label][:shots]
        if len(rows) < shots:
            raise InputError(f"class {label} has {len(rows)} examples, fewer than the {shots} to draw")
        chosen.append(rows)
    return np.concatenate(chosen).astype(np.int32)


def _checked(role, features, labels, num_classes, *, least=1) -> tuple[jax.Array, jax.Array]:
    """Both as arrays; InputError where nothing can be learned or tested with them."""
    features, labels = jnp.asarray(features), jnp.asarray(labels)
    if features.ndim != 2 or labels.shape != features.shape[:1] or len(features) < least:
        raise InputError(
            f"{role} features have shape {features.shape} and labels {labels.shape}: expected (N, D) and (N,), N at "
            f"least {least}"
        )
    if any(isinstance(array, jax.core.Tracer) for array in (features, labels)):
        return features, labels  # values are not known yet
    if not jnp.isfinite(features).all():
        raise InputError(f"{role} features are not all finite")
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.min() < 0 or labels.max() >= num_classes:
        raise InputError(
            f"{role} labels of {labels.dtype} are from {labels.min()} to {labels.max()}: expected whole numbers from 0 "
            f"to {num_classes - 1}"
        )
    return features, labels


def _positive(strengths: Sequence[float]) -> jax.Array:
    if not len(strengths) or not all(0 < strength < math.inf for strength in strengths):
        raise InputError(f"strengths of regularisation {tuple(strengths)}: give at least one, all finite and above 0")
    return jnp.asarray(strengths, jnp.float32)


@partial(jax.jit, static_argnames="num_classes")
def _few_shot(features, labels, rows, test_features, test_labels, strengths, num_classes):
    def one(rows):
        probe = _fit(features[rows], labels[rows], strengths, num_classes)
        return jnp.mean(probe.scores(test_features).argmax(-1) == test_labels, dtype=jnp.float32)

    return jax.lax.map(one, rows)


@partial(jax.jit, static_argnames="num_classes")
def _fit(features, labels, strengths, num_classes):
    multiply = partial(jnp.matmul, precision="highest")
    count, dimensions = features.shape
    mean, std = features.mean(0, keepdims=True), features.std(0, keepdims=True)
    # A feature that never changes says nothing.
    scale = jnp.where(std > 1e-5 * std.max(), 1 / jnp.maximum(std, 1e-30), 0)
    x = (features - mean) * scale
    y = jax.nn.one_hot(labels, num_classes)
    centre = y.mean(0, keepdims=True)
    # XXᵀ or XᵀX, whichever is smaller: x = u·√e·vᵀ. What is zero but for rounding is left out.
    if count <= dimensions:
        e, u = jnp.linalg.eigh(multiply(x, x.T))
        u = u * (e > 1e-6 * e.max())[None]
    else:
        e, v = jnp.linalg.eigh(multiply(x.T, x))
        inverse_root = jnp.where(e > 1e-6 * e.max(), jax.lax.rsqrt(jnp.maximum(e, 1e-30)), 0)
        u = multiply(x, v) * inverse_root[None]
    e = jnp.maximum(e, 0)[:, None]
    ridges = strengths * count * dimensions / min(count - 1, dimensions)  # times the mean eigenvalue that is not zero
    projected = multiply(u.T, y - centre)

    def error(ridge):
        shrink = e / (e + ridge)
        # The diagonal of the map from labels to fitted values: how much an example sees of its own label.
        own = 1 / count + multiply(jnp.square(u), shrink)
        residual = y - centre - multiply(u, shrink * projected)
        return jnp.mean(jnp.square(residual / (1 - own)))

    errors = jax.lax.map(error, ridges)
    best = jnp.argmin(errors)
    kernel = multiply(x.T, multiply(u, projected / (e + ridges[best]))) * scale.T
    return Probe(kernel, (centre - multiply(mean, kernel))[0], strengths, errors, best)
