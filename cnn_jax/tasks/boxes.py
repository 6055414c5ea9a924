"""Boxes as numbers: overlap, and the choice of the best among many.

A box is (left, top, right, bottom) in pixels, f32[4]; its right and lower edge lie outside, so its width is
right − left. All functions are traceable, with shapes that do not depend on how many boxes there are.
"""

import jax
import jax.numpy as jnp


def area(boxes: jax.Array) -> jax.Array:
    """[...,4] → [...]; 0 for a box turned inside out."""
    return jnp.prod(jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0), axis=-1)


def intersection(a: jax.Array, b: jax.Array) -> jax.Array:
    """The area that boxes [...,4] and [...,4] share: [...], by broadcasting."""
    top_left = jnp.maximum(a[..., :2], b[..., :2])
    return area(jnp.concatenate([top_left, jnp.minimum(a[..., 2:], b[..., 2:])], axis=-1))


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Intersection over union, in [0,1]: [...] of boxes [...,4], [...,4], by broadcasting; 0 where both are empty."""
    shared = intersection(a, b)
    union = area(a) + area(b) - shared
    return jnp.where(union > 0, shared / jnp.where(union > 0, union, 1), 0)


def generalized_iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """In (−1,1]: the IoU, less the share of the smallest box around both that neither fills (Rezatofighi et al. 2019).

    As a loss, 1 − generalized_iou, it has a gradient where the boxes do not meet. Shapes as for `iou`.
    """
    shared = intersection(a, b)
    union = area(a) + area(b) - shared
    around = jnp.concatenate([jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:])], axis=-1)
    hull = area(around)
    return shared / (union + 1e-7) - (hull - union) / (hull + 1e-7)


def nms(
    boxes: jax.Array, scores: jax.Array, labels: jax.Array, *, threshold: float, limit: int
) -> tuple[jax.Array, jax.Array]:
    """Non-maximum suppression: the best box, then the best of those that do not overlap it too much, and so on.

    Only boxes of the same label suppress each other. Equal scores are taken in the order of their rows.

    Args:
        boxes: f32[K,4].
        scores: f32[K]; −inf leaves a row out.
        labels: i32[K].
        threshold: an IoU above it is too much.
        limit: how many rows to choose at most.

    Returns:
        (rows i32[limit] by falling score, chosen bool[limit]), False where nothing was left to choose.
    """

    boxes, labels = jnp.asarray(boxes), jnp.asarray(labels)

    def choose(left, _):
        best = jnp.argmax(left)
        chosen = left[best] > -jnp.inf
        near = (iou(boxes[best][None], boxes) > threshold) & (labels == labels[best])
        left = jnp.where(near | (jnp.arange(len(left)) == best), -jnp.inf, left)
        return left, (best.astype(jnp.int32), chosen)

    return jax.lax.scan(choose, jnp.asarray(scores), None, length=limit)[1]
