"""How alike what networks compute is: centred kernel alignment, between stages, networks and seeds."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.analysis.activations import outline, stages
from cnn_jax.errors import InputError


@jax.jit
def cka(x: jax.Array, y: jax.Array) -> jax.Array:
    """Linear centred kernel alignment of two sets of features of the same examples: f32[], from 0 to 1; NaN where one
    of them does not vary.

    ‖YᵀX‖² / (‖XᵀX‖·‖YᵀY‖) of the centred features, with Frobenius norms. Neither turning, mirroring nor scaling all
    features of a set changes it. With few examples for the features' dimensions it is too high: see `compare`.

    Args:
        x: f32[N,…], all axes but the first being features; y: the same, of other features.

    Raises:
        InputError: another number of examples.

    Source: Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited", section 3.
    """
    if x.ndim < 2 or y.ndim < 2 or len(x) != len(y):
        raise InputError(f"features have shapes {x.shape} and {y.shape}: expected [N,…] and [N,…]")

    def grams(features):
        features = features.astype(jnp.float32).reshape(len(features), -1)
        features = features - features.mean(0, keepdims=True)
        return features / jnp.maximum(jnp.linalg.norm(features), 1e-30)  # its size does not matter, its overflow would

    def norm(a, b):  # ‖aᵀb‖², by whichever of the two products is smaller
        if max(a.shape[1], b.shape[1]) <= len(a):
            return jnp.square(jnp.matmul(a.T, b, precision="highest")).sum()
        return (jnp.matmul(a, a.T, precision="highest") * jnp.matmul(b, b.T, precision="highest")).sum()

    x, y = grams(x), grams(y)
    return norm(x, y) / jnp.sqrt(norm(x, x) * norm(y, y))


class Similarity(NamedTuple):
    """The similarity of each stage of one network to each of another."""

    first: tuple[str, ...]
    """The A stages of the first network."""
    second: tuple[str, ...]
    """The B stages of the second."""
    values: np.ndarray
    """f32[A,B]: 1 where they are alike up to a rotation and a factor, around 0 where they have nothing in common; not a
    number for a stage that does not vary."""


def compare(
    first: tuple[nn.Module, Any],
    second: tuple[nn.Module, Any],
    images: np.ndarray,
    *,
    names: str | Sequence[str] = "*",
    preprocess: Callable[[jax.Array], jax.Array] = lambda images: images,
    batch_size: int = 256,
) -> Similarity:
    """Linear centred kernel alignment of all stages of two networks, with one batch in memory at a time.

    Its three terms are estimated without bias on each batch (Song et al. 2012), and averaged over the batches before
    they are divided, so that the size of a batch changes the noise alone.

    Args:
        first: a model and its variables; twice the same for the stages of one network.
        images: [N,H,W,C], as `preprocess` takes them, on the host, N of 4 or more.
        names: which stages, of both.
        preprocess: images of a batch to what the models take; traceable.
        batch_size: 8 or more. The images are spread evenly over the batches.

    Raises:
        InputError: fewer images, a smaller batch, or a name that fits no stage.

    Source: Nguyen et al. 2021, "Do Wide and Deep Networks Learn the Same Things?".
    """
    if len(images) < 4 or batch_size < 8:
        raise InputError(
            f"{len(images)} images in batches of {batch_size}: estimates without bias need 4 images and batches of 8"
        )

    def looks(variables, batch):
        seen = preprocess(batch)
        return [
            stages(model, values, seen, names=names)
            for (model, _), values in zip((first, second), variables, strict=True)
        ]

    @jax.jit
    def step(variables, batch, mask):
        x, y = (
            jnp.stack([_centred_products(value, mask) for value in found.values()]) for found in looks(variables, batch)
        )
        return jnp.matmul(x, y.T, precision="highest"), jnp.square(x).sum(1), jnp.square(y).sum(1)

    count = -(-len(images) // batch_size)
    size = -(-len(images) // count)
    ends = [len(images) * part // count for part in range(count + 1)]
    variables = (first[1], second[1])
    orders, sums = None, (0, 0, 0)
    for start, end in pairwise(ends):
        batch = np.asarray(images[start:end])
        batch = np.pad(batch, ((0, size - len(batch)), *((0, 0),) * (batch.ndim - 1)), mode="edge")
        orders = orders or [tuple(outline(lambda v, b, i=i: looks(v, b)[i], variables, batch)) for i in (0, 1)]
        found = step(variables, batch, np.arange(size) < end - start)
        sums = tuple(total + np.asarray(part) for total, part in zip(sums, found, strict=True))
    both, x, y = sums
    with np.errstate(invalid="ignore", divide="ignore"):
        return Similarity(*orders, both / np.sqrt(x[:, None] * y[None]))


def _centred_products(value: jax.Array, mask: jax.Array) -> jax.Array:
    """The products of all pairs of examples, so centred that the product of two such rows estimates HSIC: f32[B·B].

    Székely & Rizzo 2014, "Partial distance correlation with methods for dissimilarities": U-centred matrices.
    """
    count = mask.sum()
    features = value.astype(jnp.float32).reshape(len(value), -1)
    features = jnp.where(mask[:, None], features, 0)
    # Takes nothing from the result but large numbers' rounding.
    features = jnp.where(mask[:, None], features - features.sum(0, keepdims=True) / count, 0)
    products = jnp.matmul(features, features.T, precision="highest")
    pairs = mask[:, None] & mask[None] & ~jnp.eye(len(mask), dtype=bool)
    products = jnp.where(pairs, products, 0)
    rows = products.sum(1) / (count - 2)
    whole = products.sum() / ((count - 1) * (count - 2))
    centred = jnp.where(pairs, products - rows[:, None] - rows[None] + whole, 0)
    return centred.reshape(-1) * jax.lax.rsqrt(count * (count - 3.0))
