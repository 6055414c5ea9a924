"""Detection's losses and decoding by hand and by slow loops; torchvision is in test_detect_peers.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.errors import InputError
from cnn_jax.tasks import detect
from cnn_jax.tasks.detect import _assign, focal_loss

C, STRIDES = 3, (4, 8)
TASK = detect(C, strides=STRIDES)
LOSS, PREDICT, MEASURE = (jax.jit(function) for function in (TASK.loss, TASK.predict, TASK.measure))


def outputs(rng, n=2, size=32):
    levels = []
    for stride in STRIDES:
        h = size // stride
        levels.append(
            {
                "logits": rng.normal(size=(n, h, h, C)).astype(np.float32),
                "distances": rng.uniform(0, 3, (n, h, h, 4)).astype(np.float32),
                "centerness": rng.normal(size=(n, h, h)).astype(np.float32),
            }
        )
    return levels


def batch(n=2, m=4):
    boxes = np.zeros((n, m, 4), np.float32)
    boxes[0, :2] = [[3, 5, 17, 20], [20, 20, 26, 28]]
    boxes[1, :1] = [[0, 0, 31, 30]]
    label = np.zeros((n, m), np.int32)
    label[0, :2], label[1, 0] = (1, 2), 0
    return {"boxes": boxes, "label": label, "objects": boxes[..., 2] > 0}


def perfect(batch, size=32, sure=20.0):
    """Outputs that say at each object's middle, on the level that learns it, exactly what is there."""
    n = len(batch["boxes"])
    levels = [
        {
            "logits": np.full((n, size // s, size // s, C), -sure, np.float32),
            "distances": np.ones((n, size // s, size // s, 4), np.float32),
            "centerness": np.full((n, size // s, size // s), -sure, np.float32),
        }
        for s in STRIDES
    ]
    for i, j in zip(*np.nonzero(batch["objects"]), strict=True):
        left, top, right, bottom = batch["boxes"][i, j]
        level = 0 if max(right - left, bottom - top) < 28 else 1
        stride = STRIDES[level]
        x, y = round((left + right) / 2 / stride), round((top + bottom) / 2 / stride)
        sides = np.array([x * stride - left, y * stride - top, right - x * stride, bottom - y * stride]) / stride
        levels[level]["logits"][i, y, x, batch["label"][i, j]] = sure
        levels[level]["distances"][i, y, x], levels[level]["centerness"][i, y, x] = sides, sure
    return levels


def test_perfect_outputs_are_found_exactly():
    truth = batch()
    found = PREDICT(perfect(truth))
    for i in range(2):
        got, want = (
            sorted((int(of["label"][i, j]), *np.round(of["boxes"][i, j], 3)) for j in np.flatnonzero(of["objects"][i]))
            for of in (found, truth)
        )
        np.testing.assert_allclose(got, want, atol=2e-3)
    metrics = TASK.summarize([MEASURE(perfect(truth), truth)])
    assert [metrics["ap"], metrics["f1"]] == pytest.approx([1, 1])


def test_the_number_of_objects_does_not_recompile_and_padding_is_nothing():
    traces = []

    @jax.jit
    def loss(out, truth):
        traces.append(1)
        return TASK.loss(out, truth)

    out, truth = outputs(np.random.default_rng(0)), batch()
    value, _ = loss(out, truth)
    padded = truth | {"boxes": np.where(truth["objects"][..., None], truth["boxes"], 7), "label": truth["label"] + 0}
    np.testing.assert_array_equal(loss(out, padded)[0], value)
    none = truth | {"objects": np.zeros_like(truth["objects"])}
    empty, parts = loss(out, none)
    assert np.isfinite(empty).all()
    assert not np.asarray(parts["box"]).any()
    assert len(traces) == 1


def test_crowds_are_not_learned():
    out, truth = outputs(np.random.default_rng(1)), batch()
    crowd = np.zeros_like(truth["objects"])
    crowd[0, 1] = True
    without = truth | {"objects": truth["objects"] & ~crowd}
    np.testing.assert_array_equal(LOSS(out, truth | {"crowd": crowd})[0], LOSS(out, without)[0])


def test_gradients_are_finite_without_objects_and_with():
    out, truth = outputs(np.random.default_rng(2)), batch()
    gradients = jax.jit(jax.grad(lambda out, objects: TASK.loss(out, truth | {"objects": objects})[0].sum()))
    for objects in (truth["objects"], np.zeros_like(truth["objects"])):
        grads = gradients(out, objects)
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_scale_brings_boxes_back_to_the_original_image():
    truth = batch()
    half = truth | {"scale": np.full(2, 0.5, np.float32)}
    a = TASK.summarize([MEASURE(perfect(truth), truth)])
    b = TASK.summarize([MEASURE(perfect(truth), half)])
    assert a["ap"] == b["ap"]
    assert (np.isnan(a["ap_medium"]), np.isnan(b["ap_medium"])) == (True, False)  # 31×30 is small, 62×60 is not
    # One of that size in the first image too, where nothing is: it counts as wrong among the medium ones.
    twice = {name: np.repeat(values[1:], 2, axis=0) for name, values in truth.items()}
    alone = twice | {"scale": half["scale"], "objects": twice["objects"] & np.array([[False], [True]])}
    assert TASK.summarize([MEASURE(perfect(twice), alone)])["ap_medium"] == pytest.approx(0.5)


def test_what_is_found_ends_where_the_picture_does():
    """A wide picture in a square: a box that stands over into the ground below it is cut off before it is measured."""
    truth = batch() | {"inside": np.array([[32, 16]] * 2, np.float32)}
    out = outputs(np.random.default_rng(5))
    measured, predicted = MEASURE(out, truth)["predicted"], PREDICT(out)
    low = np.asarray(predicted["boxes"])
    assert low[..., 3].max() > 16
    np.testing.assert_array_equal(measured["boxes"], np.minimum(low, [32, 16, 32, 16]))
    np.testing.assert_array_equal(MEASURE(out, batch())["predicted"]["boxes"], low)


def test_masked_rows_count_nowhere():
    truth, rng = batch(), np.random.default_rng(3)
    out = outputs(rng)
    both = MEASURE(out, truth)
    first = {**both, "mask": np.array([True, False])}
    alone = MEASURE(jax.tree.map(lambda x: x[:1], out), jax.tree.map(lambda x: x[:1], truth))
    a, b = TASK.summarize([first]), TASK.summarize([alone])
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_classes": 0}, "needs at least one class"),
        ({"strides": (4, 12)}, "twice the one before"),
        ({"detections": 0}, "must be at least 1"),
        ({"nms_threshold": float("nan")}, "nms_threshold nan: both must be from 0 to 1"),
        ({"score_threshold": -5}, "score_threshold is -5 and"),
        ({"center_radius": float("nan")}, "center_radius is nan: it must be above 0"),
    ],
)
def test_bad_arguments(options, sentence):
    with pytest.raises(InputError, match=sentence):
        detect(**{"num_classes": 2, "strides": (4, 8)} | options)


def test_outputs_of_another_model():
    with pytest.raises(InputError, match="expected 2 levels with 3 classes"):
        TASK.predict(outputs(np.random.default_rng(0))[:1])
    with pytest.raises(InputError, match="nothing to summarize"):
        TASK.summarize([{**MEASURE(perfect(batch()), batch()), "mask": np.zeros(2, bool)}])


def test_a_batch_without_boxes():
    given = {name: values for name, values in batch().items() if name != "boxes"}
    for function in (TASK.loss, TASK.measure):
        with pytest.raises(InputError, match="this task needs `boxes` in a batch, which has label, objects"):
            function(perfect(batch()), given)


def test_labels_of_other_classes():
    """Where no object is a label may be any."""
    split = batch()
    TASK.check({})
    TASK.check(split | {"label": np.where(split["objects"], split["label"], 99)})
    with pytest.raises(InputError, match=r"^1 of 3 labels of objects are out of range, the first of them 3: with 3"):
        TASK.check(split | {"label": np.where(split["label"] == 2, 3, split["label"])})


def test_focal_loss_by_hand():
    # p = 0.8 for a target of 1: 0.25 · 0.2² · −log 0.8; for a target of 0: 0.75 · 0.8² · −log 0.2.
    logits = jnp.log(jnp.array([4.0, 4.0, 0.25]))  # p of 0.8, 0.8, 0.2
    expected = [-0.01 * np.log(0.8), -0.48 * np.log(0.2), -0.16 * np.log(0.2)]
    np.testing.assert_allclose(focal_loss(logits, jnp.array([1.0, 0.0, 1.0])), expected, rtol=1e-5)


def test_the_parts_of_the_loss_by_hand():
    """One object of 8×12 around one place; the outputs there say 0.5 for everything, and a box of 12×12."""
    boxes = np.zeros((1, 2, 4), np.float32)
    boxes[0, 0] = [6, 4, 14, 16]  # its centre is (10, 10); of the places every 8 pixels, (8, 8) is the nearest
    truth = {"boxes": boxes, "label": np.array([[1, 0]], np.int32), "objects": np.array([[True, False]])}
    shape = (1, 3, 3)
    out = [
        {
            "logits": jnp.full((*shape, 2), -30.0).at[0, 1, 1].set(0.0),
            "distances": jnp.ones((*shape, 4)).at[0, 1, 1].set(jnp.array([0.5, 0.5, 1.0, 1.0])),
            "centerness": jnp.zeros(shape),
        }
    ]
    _, parts = detect(2, strides=(8,), center_radius=0.5).loss(out, truth)
    # Focal loss: class 1 is there, 0.25 · 0.5² · log 2, class 0 is not, 0.75 · 0.5² · log 2.
    np.testing.assert_allclose(parts["classes"], [0.25 * np.log(2)], rtol=1e-5)
    # The box is (4, 4, 16, 16): it holds the object's 96 pixels of its 144, and is the smallest around both.
    np.testing.assert_allclose(parts["box"], [1 - 96 / 144], rtol=1e-5)
    # The place is 2 and 6 from left and right, 4 and 8 from top and bottom; a logit of 0 costs log 2 whatever it is.
    np.testing.assert_allclose(parts["centerness"], [np.log(2)], rtol=1e-5)
    out[0]["centerness"] = out[0]["centerness"].at[0, 1, 1].set(2.0)
    _, parts = detect(2, strides=(8,), center_radius=0.5).loss(out, truth)
    target = np.sqrt(2 / 6 * 4 / 8)
    expected = target * np.log1p(np.exp(-2)) + (1 - target) * np.log1p(np.exp(2))
    np.testing.assert_allclose(parts["centerness"], [expected], rtol=1e-5)
    # Far from the object, apart: no overlap, 48 pixels between 6 and 14, and a hull that neither fills.
    out[0]["distances"] = jnp.ones((*shape, 4)).at[0, 1, 1].set(jnp.array([2.0, 0.5, -1.5, 1.0]))  # (-8, 4, -4, 16)
    _, parts = detect(2, strides=(8,), center_radius=0.5).loss(out, truth)
    hull, union = 22 * 12, 8 * 12 + 4 * 12
    np.testing.assert_allclose(parts["box"], [1 + (hull - union) / hull], rtol=1e-5)


@pytest.mark.parametrize(
    ("box", "level"),
    [
        ((20, 20, 44, 44), 0),  # 12 to each side of (32, 32)
        ((1, 1, 63, 63), 0),  # 31: less than 8 strides of 4
        ((-1, -1, 65, 65), 1),  # 33: more than 4 strides of 8
        ((-1, 24, 65, 40), 1),  # the farthest side decides
        ((32 - 63, 0, 32 + 63, 64), 1),
        ((32 - 65, 0, 32 + 65, 64), 2),
        ((32 - 999, 0, 32 + 999, 64), 2),  # the last has no limit
    ],
)
def test_an_object_is_learned_at_the_level_of_its_size(box, level):
    """The middle of all boxes is (32, 32), a place of each level."""
    strides = (4, 8, 16)
    centers, sizes = jnp.full((3, 2), 32.0), jnp.array(strides, jnp.float32)
    there, _ = _assign(centers, sizes, jnp.array([box], jnp.float32), jnp.array([True]), strides, 1.5)
    assert there.tolist() == [i == level for i in range(3)]


def test_an_object_is_learned_near_its_centre():
    """Places closer than 1.5 strides to it in both directions, and inside the object."""
    x = jnp.array([32.0 - 6, 32 - 5.9, 32, 32 + 5.9, 32 + 6])
    centers = jnp.stack(jnp.meshgrid(x, x), -1).reshape(-1, 2)
    assign = lambda box: _assign(  # noqa: E731
        centers, jnp.full(25, 4.0), jnp.array([box], jnp.float32), jnp.array([True]), (4, 8), 1.5
    )[0].reshape(5, 5)
    np.testing.assert_array_equal(assign((20, 20, 44, 44)), np.outer([0, 1, 1, 1, 0], [0, 1, 1, 1, 0]))
    np.testing.assert_array_equal(assign((30, 20, 34, 44)), np.outer([0, 1, 1, 1, 0], [0, 0, 1, 0, 0]))


def test_the_smaller_of_two_objects_is_learned_where_both_are():
    centers, sizes = jnp.array([[10.0, 11.0]]), jnp.array([4.0])
    boxes = jnp.array([[3.0, 5, 17, 20], [8, 8, 12, 14]])
    there, which = _assign(centers, sizes, boxes, jnp.array([True, True]), STRIDES, 1.5)
    assert (bool(there[0]), int(which[0])) == (True, 1)
    there, which = _assign(centers, sizes, boxes, jnp.array([True, False]), STRIDES, 1.5)
    assert (bool(there[0]), int(which[0])) == (True, 0)
