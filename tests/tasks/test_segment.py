"""Segmentation's losses and metrics by hand and by slow loops; scikit-learn and torch are in test_segment_peers.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.errors import InputError
from cnn_jax.tasks import Averaged, segment

C = 3
TASK = segment(C)
MEASURE = jax.jit(TASK.measure)
RNG = np.random.default_rng(0)


def case(n=3, size=12):
    maps = RNG.integers(0, C, (n, size, size)).astype(np.uint8)
    maps[:, :2] = 255
    return RNG.normal(size=(n, size, size, C)).astype(np.float32), {"map": maps}


def slow(logits, maps):
    """Counts a pixel at a time."""
    confusion = np.zeros((C, C), int)
    for true, scores in zip(maps.ravel(), logits.reshape(-1, C), strict=True):
        if true != 255:
            confusion[true, scores.argmax()] += 1
    return confusion


def test_metrics_count_pixels():
    logits, batch = case()
    metrics = TASK.summarize([MEASURE(logits, batch)])
    confusion = slow(logits, batch["map"])
    np.testing.assert_array_equal(metrics["confusion"], confusion)
    losses = np.asarray(TASK.loss(logits, batch)[0])
    assert metrics["loss"] == pytest.approx(losses.sum() / 3, rel=1e-6)
    for c in range(C):
        union = confusion[c].sum() + confusion[:, c].sum() - confusion[c, c]
        assert metrics["iou_per_class"][c] == pytest.approx(confusion[c, c] / union)
        assert metrics["dice_per_class"][c] == pytest.approx(2 * confusion[c, c] / (union + confusion[c, c]))
    assert metrics["miou"] == pytest.approx(metrics["iou_per_class"].mean())
    assert metrics["pixel_accuracy"] == pytest.approx(np.trace(confusion) / confusion.sum())


def test_batches_and_padding_change_nothing():
    logits, batch = case()
    whole = TASK.summarize([MEASURE(logits, batch)])
    parts = [MEASURE(logits[i : i + 1], {"map": batch["map"][i : i + 1]}) for i in range(3)]
    padded = MEASURE(np.concatenate([logits, logits]), {"map": np.concatenate([batch["map"]] * 2)})
    padded["mask"] = np.arange(6) < 3
    for other in (parts, [padded]):
        again = TASK.summarize(other)
        for name in whole:
            np.testing.assert_allclose(again[name], whole[name], rtol=1e-6, err_msg=name)


def test_a_class_that_occurs_nowhere_is_left_out():
    logits = np.zeros((1, 4, 4, C), np.float32)
    logits[..., 0] = 1
    metrics = TASK.summarize([MEASURE(logits, {"map": np.zeros((1, 4, 4), np.uint8)})])
    assert metrics["miou"] == 1
    assert np.isnan(metrics["iou_per_class"][1:]).all()


def test_cross_entropy_by_hand():
    logits = jnp.log(jnp.array([[[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]]]))
    maps = jnp.array([[[0, 1]]], jnp.uint8)
    loss, parts = TASK.loss(logits, {"map": maps})
    np.testing.assert_allclose(loss, [-(np.log(0.5) + np.log(0.8)) / 2], rtol=1e-6)
    assert parts["accuracy"] == 1
    weighted, _ = segment(C, class_weights=(1, 3, 1)).loss(logits, {"map": maps})
    np.testing.assert_allclose(weighted, [-(np.log(0.5) + 3 * np.log(0.8)) / 4], rtol=1e-6)
    ignored, _ = TASK.loss(logits, {"map": jnp.array([[[0, 255]]], jnp.uint8)})
    np.testing.assert_allclose(ignored, [-np.log(0.5)], rtol=1e-6)
    focal, _ = segment(C, losses={"focal": 1}).loss(logits, {"map": maps})
    np.testing.assert_allclose(focal, [-(0.25 * np.log(0.5) + 0.04 * np.log(0.8)) / 2], rtol=1e-5)
    # Dice of class 0: 2·0.5 / (0.6 + 1); of class 1: 2·0.8 / (1.05 + 1).
    dice, _ = segment(C, losses={"dice": 1}).loss(logits, {"map": maps})
    np.testing.assert_allclose(dice, [1 - (1 / 1.6 + 1.6 / 2.05) / 2], rtol=1e-5)
    both, _ = segment(C, losses={"cross_entropy": 2, "dice": 0.5}).loss(logits, {"map": maps})
    np.testing.assert_allclose(both, 2 * TASK.loss(logits, {"map": maps})[0] + 0.5 * dice, rtol=1e-5)


def test_the_auxiliary_loss_is_added():
    logits, batch = case()
    other = logits[::-1]
    value, _ = segment(C, auxiliary=0.3).loss({"logits": logits, "aux": other}, batch)
    np.testing.assert_allclose(value, TASK.loss(logits, batch)[0] + 0.3 * TASK.loss(other, batch)[0], rtol=1e-5)


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "dice"])
def test_gradients_are_finite_even_where_nothing_counts(name):
    task = segment(C, losses={name: 1})
    logits, batch = case()
    both = jax.jit(jax.value_and_grad(lambda x, maps: task.loss(x, {"map": maps})[0].sum()))
    for maps in (batch["map"], np.full_like(batch["map"], 255)):
        value, grads = both(logits * 50, maps)
        assert np.isfinite(value)
        assert np.isfinite(grads).all()


def test_boundaries():
    truth = np.zeros((1, 12, 12), np.uint8)
    truth[0, 3:9, 3:9] = 1
    for shift, tolerance, right in ((0, 0, 1), (2, 2, 1), (2, 1, None)):
        logits = np.asarray(jax.nn.one_hot(np.roll(truth, shift, axis=2), C)) * 9
        task = segment(C, boundary=tolerance)
        found = task.summarize([task.measure(logits, {"map": truth})])["boundary_f1_per_class"][1]
        assert found == pytest.approx(1) if right else found < 1


def test_several_looks():
    class Edge:
        def apply(self, variables, images, *, train=False):
            return jnp.concatenate([images, 2 * jnp.roll(images, 1, axis=2)], axis=-1)

    images = jnp.asarray(RNG.normal(size=(1, 64, 96, 1)), jnp.float32)
    once = Averaged(Edge(), flip=False).apply({}, images)
    np.testing.assert_allclose(once, jax.nn.log_softmax(Edge().apply({}, images)), atol=1e-5)
    twice = Averaged(Edge()).apply({}, images)
    mirrored = Averaged(Edge()).apply({}, images[:, :, ::-1])[:, :, ::-1]
    np.testing.assert_allclose(twice, mirrored, atol=1e-5)

    sizes = []

    class Pointwise:
        def apply(self, variables, images, *, train=False):
            sizes.append(images.shape[1:3])
            return jnp.concatenate([images, -images], axis=-1)

    windows = Averaged(Pointwise(), flip=False, window=32).apply({}, images)
    np.testing.assert_allclose(windows, jax.nn.log_softmax(jnp.concatenate([images, -images], -1)), atol=1e-5)
    assert set(sizes) == {(32, 32)}
    assert len(sizes) <= 2  # of fifteen windows: the program holds the network once, however many they are


def test_what_lies_in_several_windows_is_their_mean():
    """By hand: a model that says where in its window a pixel is, of 4 columns and windows of 2 at 0, 1 and 2."""

    class Place:
        def apply(self, variables, images, *, train=False):
            place = jnp.broadcast_to(jnp.arange(images.shape[2]) == 0, images.shape[:3])
            return {"logits": jnp.stack([place, ~place], axis=-1) * jnp.log(3.0)}

    found = Averaged(Place(), flip=False, window=2).apply({}, jnp.zeros((2, 2, 4, 1)))
    first = np.array([0.75, 0.5, 0.5, 0.25])  # the middle ones are second in one window and first in another
    np.testing.assert_allclose(
        np.exp(found), np.broadcast_to(np.stack([first, 1 - first], -1), (2, 2, 4, 2)), rtol=1e-6
    )


def test_looks_at_several_scales():
    """A model whose answer is the size that it sees, and the colour: by hand."""

    class Size:
        def apply(self, variables, images, *, train=False):
            height, width = images.shape[1:3]
            same = jnp.zeros(images.shape[:3])
            return jnp.stack([same + height / 32, same + width / 32, images[..., 0]], axis=-1)

    images = jnp.zeros((1, 32, 64, 1)).at[:, :, 32:].set(4.0)
    found = np.exp(Averaged(Size(), flip=False, scales=(0.5, 1.0, 1.6), multiple=16).apply({}, images))
    # 16×32, 32×64 and, to multiples of 16, 48×96; far from the edge between the colours no resizing blurs.
    for columns, colour in ((slice(0, 26), 0), (slice(38, 64), 4)):
        looks = [jax.nn.softmax(jnp.array([h / 32, w / 32, colour])) for h, w in ((16, 32), (32, 64), (48, 96))]
        expected = np.broadcast_to(np.mean(looks, axis=0), found[:, :, columns].shape)
        np.testing.assert_allclose(found[:, :, columns], expected, atol=1e-5)


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_scales_that_cannot_be(scale):
    with pytest.raises(InputError, match=r"give one or more, each a number above 0"):
        Averaged(None, scales=(1.0, scale)).apply({}, jnp.zeros((1, 8, 8, 1)))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_classes": 1}, "at least 2 classes"),
        ({"losses": {"hinge": 1}}, "expected weights of 0 or more for cross_entropy"),
        ({"class_weights": (1, 2)}, "give 3 numbers"),
        ({"class_weights": (float("nan"), 1, 1)}, "give 3 numbers of 0 or more"),
        ({"class_weights": (0, 0, 0)}, "not all of them 0"),
        ({"losses": {"dice": float("nan")}}, "losses has 'dice': nan; expected weights of 0 or more"),
        ({"losses": {"dice": 0.0}}, "at least one weight must be above 0"),
        ({"gamma": float("nan")}, "gamma nan, boundary 2: each must be 0 or more"),
    ],
)
def test_bad_arguments(options, sentence):
    with pytest.raises(InputError, match=sentence):
        segment(**{"num_classes": C} | options)


def test_wrong_shapes():
    logits, batch = case()
    with pytest.raises(InputError, match="map has shape"):
        TASK.loss(logits, {"map": batch["map"][:, :-1]})
    with pytest.raises(InputError, match="expected logits"):
        TASK.predict(logits[..., :2])
    with pytest.raises(InputError, match="this task needs `map` in a batch, which has mask"):
        TASK.measure(logits, {"mask": np.ones(2, bool)})


def test_maps_of_other_classes():
    """Pixels of which nothing is known, and images that do not count, may be any."""
    few = np.array([[[0, C - 1, 255]], [[0, 0, 0]]], np.uint8)
    TASK.check({})
    TASK.check({"map": few})
    TASK.check({"map": np.where(few == 255, 200, few), "mask": np.array([False, True])})
    with pytest.raises(InputError, match=f"^1 of 5 pixels of `map` that are not 255 are out of range, .* of them {C}:"):
        TASK.check({"map": np.where(few == C - 1, C, few)})
