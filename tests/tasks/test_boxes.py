"""Boxes against pixels, and suppression against a slow loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.tasks import boxes as bx

RNG = np.random.default_rng(0)


def whole_boxes(*shape, size=40):
    corner, extent = RNG.integers(0, size // 2, (*shape, 2)), RNG.integers(1, size // 2, (*shape, 2))
    return np.concatenate([corner, corner + extent], -1).astype(np.float32)


def pixels(box, size=40):
    grid = np.zeros((size, size), bool)
    left, top, right, bottom = box.astype(int)
    grid[top:bottom, left:right] = True
    return grid


def test_iou_counts_pixels():
    a, b = whole_boxes(50), whole_boxes(50)
    shared = [(pixels(x) & pixels(y)).sum() for x, y in zip(a, b, strict=True)]
    union = [(pixels(x) | pixels(y)).sum() for x, y in zip(a, b, strict=True)]
    np.testing.assert_array_equal(bx.intersection(a, b), shared)
    np.testing.assert_allclose(bx.iou(a, b), np.divide(shared, union), rtol=1e-6)
    hull = [np.prod(np.maximum(x[2:], y[2:]) - np.minimum(x[:2], y[:2])) for x, y in zip(a, b, strict=True)]
    expected = np.divide(shared, union) - (np.array(hull) - union) / hull
    np.testing.assert_allclose(bx.generalized_iou(a, b), expected, atol=1e-6)


def test_empty_boxes_overlap_nothing():
    nothing, inside_out = jnp.array([5.0, 5, 5, 5]), jnp.array([9.0, 9, 3, 3])
    assert bx.iou(nothing, nothing) == 0
    assert bx.area(inside_out) == 0
    gradient = jax.grad(lambda box: bx.generalized_iou(box, jnp.array([20.0, 20, 30, 30])))(jnp.array([1.0, 1, 4, 4]))
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0  # it draws boxes together that do not meet


def slow_nms(boxes, scores, labels, threshold):
    left = sorted(range(len(boxes)), key=lambda i: -scores[i])
    chosen = []
    while left:
        best, *left = left
        chosen.append(best)
        left = [i for i in left if labels[i] != labels[best] or bx.iou(boxes[best], boxes[i]) <= threshold]
    return chosen


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_nms_is_the_greedy_loop(threshold):
    boxes, scores, labels = whole_boxes(40), RNG.permutation(40).astype(np.float32), RNG.integers(0, 3, 40)
    rows, chosen = bx.nms(boxes, scores, labels, threshold=threshold, limit=40)
    assert rows[chosen].tolist() == slow_nms(boxes, scores, labels, threshold)
    fewer, found = bx.nms(boxes, scores, labels, threshold=threshold, limit=5)
    assert fewer.tolist() == rows[:5].tolist()
    assert found.all()


def test_nms_leaves_out_what_has_no_score():
    boxes = whole_boxes(4)
    rows, chosen = bx.nms(
        boxes, jnp.array([-jnp.inf, 0.5, -jnp.inf, -jnp.inf]), jnp.zeros(4, int), threshold=0.5, limit=3
    )
    assert chosen.tolist() == [True, False, False]
    assert rows[0] == 1
