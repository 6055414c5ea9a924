"""Detection's losses and decoding by hand and by slow loops; torchvision is in experiments.parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.errors import InputError
from cnn_jax.tasks import detect

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


def test_the_smaller_of_two_objects_is_learned_where_both_are():
    from cnn_jax.tasks.detect import _assign

    centers, sizes = jnp.array([[10.0, 11.0]]), jnp.array([4.0])
    boxes = jnp.array([[3.0, 5, 17, 20], [8, 8, 12, 14]])
    there, which = _assign(centers, sizes, boxes, jnp.array([True, True]), STRIDES, 1.5)
    assert (bool(there[0]), int(which[0])) == (True, 1)
    there, which = _assign(centers, sizes, boxes, jnp.array([True, False]), STRIDES, 1.5)
    assert (bool(there[0]), int(which[0])) == (True, 0)
