"""Classification's loss and metrics against hand values and slow loops; the peers are in test_classify_peers.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnn_jax.errors import InputError
from cnn_jax.tasks import check_labels, classify

C = 6
TASK = classify(C)
MEASURE = jax.jit(TASK.measure)


def draw(n=101, seed=0, classes=C):
    """Logits that know the label a little, with many ties (they are multiples of 1/4), and the labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n).astype(np.int32)
    logits = rng.normal(size=(n, classes)) * 1.5 + 1.2 * np.eye(classes)[labels]
    return (np.round(logits * 4) / 4).astype(np.float32), labels


def evaluate(logits, labels, mask=None, task=TASK):
    measure = MEASURE if task is TASK else jax.jit(task.measure)
    batch = {"label": labels} if mask is None else {"label": labels, "mask": mask}
    return task.summarize([measure(logits, batch)])


def same(a, b, tolerance=1e-6):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], atol=tolerance, rtol=0, err_msg=name)


# The loss


def test_loss_by_hand():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))
    labels = jnp.array([0, 2])
    loss, parts = classify(3).loss(logits, {"label": labels})
    np.testing.assert_allclose(loss, [np.log(2), np.log(10)], rtol=1e-6)
    np.testing.assert_array_equal(parts["accuracy"], [1, 0])

    # Targets under smoothing by 0.3: 0.8 on the label, 0.1 on the others.
    loss, _ = classify(3, label_smoothing=0.3).loss(logits, {"label": labels})
    by_hand = [-(0.8 * np.log(0.5) + 0.2 * np.log(0.25)), -(0.1 * np.log(0.1) + 0.1 * np.log(0.8) + 0.8 * np.log(0.1))]
    np.testing.assert_allclose(loss, by_hand, rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_labels_are_the_mixture_of_hard_losses(smoothing):
    task = classify(C, label_smoothing=smoothing)
    logits, first = draw(16)
    second = np.roll(first, 1)
    soft = 0.3 * jax.nn.one_hot(first, C) + 0.7 * jax.nn.one_hot(second, C)
    mixed, parts = task.loss(logits, {"label": soft})
    hard = [task.loss(logits, {"label": labels})[0] for labels in (first, second)]
    np.testing.assert_allclose(mixed, 0.3 * hard[0] + 0.7 * hard[1], rtol=1e-5)
    np.testing.assert_array_equal(parts["accuracy"], logits.argmax(1) == second)


def test_bfloat16_logits_give_the_float32_loss():
    logits, labels = draw(16)  # multiples of 1/4 below 32 are exact in bfloat16
    loss, _ = TASK.loss(jnp.asarray(logits, jnp.bfloat16), {"label": labels})
    assert loss.dtype == jnp.float32
    np.testing.assert_array_equal(loss, TASK.loss(logits, {"label": labels})[0])
    assert TASK.predict(jnp.asarray(logits, jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e4, 1e38])
@pytest.mark.parametrize("soft", [False, True])
def test_gradients_stay_finite(scale, soft):
    logits = scale * jnp.array([[1.0, -1.0, 0.5], [-1.0, -1.0, 1.0]])
    label = jnp.array([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]) if soft else jnp.array([1, 2])
    for smoothing in (0.0, 0.1):
        task = classify(3, label_smoothing=smoothing)
        gradient = jax.grad(lambda x, task=task: task.loss(x, {"label": label})[0].mean())(logits)
        assert np.isfinite(gradient).all()
        assert np.abs(gradient.sum(1)).max() < 1e-6


def test_a_class_ruled_out_by_an_infinite_logit():
    logits = jnp.array([[1.0, -jnp.inf, 1.0]])
    value, gradient = jax.value_and_grad(lambda x: classify(3).loss(x, {"label": jnp.array([0])})[0].sum())(logits)
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    np.testing.assert_allclose(gradient, [[-0.5, 0, 0.5]], atol=1e-6)


# The metrics


def test_metrics_by_hand():
    """Three classes, five examples: labels 0 0 1 1 2, predictions 0 1 1 1 0."""
    p = np.array([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.1, 0.8, 0.1], [0.1, 0.9, 0.0], [0.5, 0.3, 0.2]])
    with np.errstate(divide="ignore"):
        logits = np.log(p).astype(np.float32)
    task = classify(3, topk=(2, 5), bins=7)
    got = evaluate(logits, np.array([0, 0, 1, 1, 2]), task=task)

    np.testing.assert_array_equal(got["confusion"], [[1, 1, 0], [0, 2, 0], [1, 0, 0]])
    np.testing.assert_array_equal(got["support_per_class"], [2, 2, 1])
    np.testing.assert_allclose(got["precision_per_class"], [1 / 2, 2 / 3, 0])
    np.testing.assert_allclose(got["recall_per_class"], [1 / 2, 1, 0])
    np.testing.assert_allclose(got["f1_per_class"], [1 / 2, 4 / 5, 0])
    np.testing.assert_allclose(got["precision_macro"], 7 / 18)
    np.testing.assert_allclose(got["recall_weighted"], 3 / 5)
    np.testing.assert_allclose(got["f1_weighted"], (2 / 2 + 2 * 4 / 5) / 5)
    assert got["accuracy"] == got["precision_micro"] == got["recall_micro"] == got["f1_micro"] == 3 / 5
    assert got["top2_accuracy"] == 4 / 5
    assert "top5_accuracy" not in got
    assert got["count"] == 5
    np.testing.assert_allclose(got["loss"], -np.log([0.7, 0.3, 0.8, 0.9, 0.2]).mean(), rtol=1e-6)
    # Confidences 0.7 and 0.6 share a bin, (4/7, 5/7]; 0.8, 0.9 and 0.5 have their own. 0.6 and 0.5 are wrong.
    np.testing.assert_allclose(got["ece"], (abs(1 - 1.3) + 0.2 + 0.1 + 0.5) / 5, rtol=1e-6)
    # Class 0: positives 0.7, 0.3; negatives 0.1, 0.1, 0.5: five of six pairs in order. Class 2: 0.2 is above all.
    np.testing.assert_allclose(got["auroc_per_class"], [5 / 6, 1, 1])


def test_top_k_with_equal_logits_agrees_with_argmax():
    logits = np.zeros((3, 3), np.float32)
    task = classify(3, topk=(1, 2))
    got = evaluate(logits, np.arange(3), task=task)
    assert got["accuracy"] == np.diag(got["confusion"]).sum() / 3 == 1 / 3
    assert got["top2_accuracy"] == 2 / 3


def test_logits_that_saturate_the_softmax_are_still_ranked():
    logits = np.array([[-300.0, -200.0, 0.0, -400.0]], np.float32)  # all but one probability are 0 in float32
    task = classify(4, topk=(2, 3))
    got = evaluate(logits, np.array([0]), task=task)
    assert got["top2_accuracy"] == 0
    assert got["top3_accuracy"] == 1
    assert got["loss"] == 300


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_calibration_error_against_a_slow_loop(bins):
    logits, labels = draw(200, seed=1)
    task = classify(C, bins=bins)
    got = evaluate(logits, labels, task=task)
    p = np.asarray(task.predict(logits), np.float64)
    error, counts = 0.0, []
    for b in range(bins):
        inside = [i for i in range(200) if b / bins < p[i].max() <= (b + 1) / bins]
        counts.append(len(inside))
        if inside:
            accuracy = np.mean([p[i].argmax() == labels[i] for i in inside])
            confidence = np.mean([p[i].max() for i in inside])
            error += len(inside) / 200 * abs(accuracy - confidence)
            np.testing.assert_allclose(got["reliability_accuracy"][b], accuracy)
            np.testing.assert_allclose(got["reliability_confidence"][b], confidence)
        else:
            assert np.isnan(got["reliability_accuracy"][b])
    np.testing.assert_allclose(got["ece"], error, atol=1e-12)
    np.testing.assert_array_equal(got["reliability_count"], counts)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    task = classify(2, bins=2)
    got = evaluate(jnp.zeros((3, 2)), jnp.array([0, 0, 1]), task=task)
    np.testing.assert_array_equal(got["reliability_count"], [3, 0])
    np.testing.assert_allclose(got["ece"], 2 / 3 - 1 / 2)


def test_auroc_against_counting_pairs():
    logits, labels = draw(60, seed=2)
    logits[:20] = logits[20:40]  # ties across examples
    got = evaluate(logits, labels)
    p = np.asarray(TASK.predict(logits))
    for c in range(C):
        pairs = [(a, b) for a in p[labels == c, c] for b in p[labels != c, c]]
        np.testing.assert_allclose(got["auroc_per_class"][c], np.mean([(a > b) + 0.5 * (a == b) for a, b in pairs]))
    np.testing.assert_allclose(got["auroc_macro"], got["auroc_per_class"].mean())


def test_a_class_that_never_occurs():
    logits, labels = draw(50)
    labels = labels % 4  # classes 4 and 5 have no example
    logits[:, 5] = -50  # and class 5 is never predicted
    got = evaluate(logits, labels)
    assert np.isnan(got["auroc_per_class"][4:]).all()
    assert got["auroc_macro"] == got["auroc_per_class"][:4].mean()
    assert got["recall_per_class"][4] == got["precision_per_class"][5] == got["f1_per_class"][5] == 0
    np.testing.assert_allclose(got["f1_macro"], got["f1_per_class"][:5].mean())

    alone = evaluate(logits, np.zeros(50, np.int32))
    assert np.isnan(alone["auroc_macro"])


# What must not matter


def test_mask_is_the_same_as_the_subset():
    logits, labels = draw()
    mask = np.random.default_rng(3).random(len(labels)) < 0.6
    same(evaluate(logits, labels, mask), evaluate(logits[mask], labels[mask]))


FULL = draw(40, seed=4)
EXPECTED = evaluate(*FULL)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([1, 3, 7, 16, 64]), st.randoms(use_true_random=False), st.floats(0, 0.7))
def test_batch_size_order_and_padding_do_not_matter(size, random, padding):
    """The 40 examples in any order, in batches of any size, with rows of rubbish strewn in between."""
    logits, labels = FULL
    rows = list(range(40))
    random.shuffle(rows)
    slots = []
    while rows:
        slots.append(-1 if random.random() < padding else rows.pop())
    slots += [-1] * (-len(slots) % size)
    evidence = []
    for start in range(0, len(slots), size):
        index = np.array(slots[start : start + size])
        mask = index >= 0
        batch = {
            "label": np.where(mask, labels[index], random.choice([-1, 0, C])).astype(np.int32),
            "mask": mask,
        }
        rubbish = np.float32(random.choice([0.0, np.nan, np.inf]))
        evidence.append(MEASURE(np.where(mask[:, None], logits[index], rubbish), batch))
    same(TASK.summarize(evidence), EXPECTED)


def test_no_mask_means_all_rows_and_soft_labels_count_as_their_largest_class():
    logits, labels = FULL
    same(evaluate(logits, labels, np.ones(40, bool)), EXPECTED)
    soft = 0.9 * np.eye(C, dtype=np.float32)[labels] + np.float32(0.1 / C)
    got = evaluate(logits, soft)
    np.testing.assert_array_equal(got["confusion"], EXPECTED["confusion"])
    assert got["top5_accuracy"] == EXPECTED["top5_accuracy"]


def test_label_smoothing_does_not_enter_the_evaluation():
    smooth = classify(C, label_smoothing=0.4)
    same(evaluate(*FULL, task=smooth), EXPECTED)


def test_every_value_is_a_number_or_an_array():
    for name, value in EXPECTED.items():
        assert isinstance(value, int | float | np.ndarray), name


# What the user got wrong


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_classes": 1}, "num_classes is 1"),
        ({"num_classes": 3, "label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"num_classes": 3, "bins": 0}, "bins is 0"),
        ({"num_classes": 3, "topk": (0,)}, r"topk is \(0,\)"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(InputError, match=words):
        classify(**arguments)


def test_bad_shapes_and_labels():
    task = classify(3)
    with pytest.raises(InputError, match=r"outputs has shape \(2, 4\), but 3 classes"):
        task.loss(jnp.zeros((2, 4)), {"label": jnp.zeros(2, int)})
    with pytest.raises(InputError, match=r"label has shape \(2, 4\)"):
        task.measure(jnp.zeros((2, 3)), {"label": jnp.zeros((2, 4))})
    with pytest.raises(InputError, match="2 of 3 labels are out of range, the first of them 3: with 3 classes"):
        task.summarize([task.measure(jnp.zeros((3, 3)), {"label": jnp.array([3, 0, -1])})])
    with pytest.raises(InputError, match="nothing to summarize"):
        task.summarize([])
    with pytest.raises(InputError, match="nothing to summarize"):
        task.summarize([task.measure(jnp.zeros((1, 3)), {"label": jnp.array([0]), "mask": jnp.array([False])})])
    check_labels(np.arange(3), 3)


def test_a_non_finite_logit_is_not_counted_as_right():
    got = evaluate(np.full((2, C), np.nan, np.float32), np.array([0, 1]))
    assert got["accuracy"] == got["top5_accuracy"] == 0
    assert np.isnan(got["loss"])


@pytest.mark.parametrize(
    ("split", "sentence"),
    [
        ({"label": np.array([0, 3, -1, 2])}, "2 of 4 labels are out of range, the first of them 3: with 3 classes"),
        ({"label": np.array([0, 3, 1]), "mask": np.array([True, False, True])}, None),
        ({"label": np.full((4, 3), 1 / 3, np.float32)}, None),
        ({}, None),
    ],
)
def test_a_whole_split_is_looked_at(split, sentence):
    """Soft labels, and those that do not count, may be any."""
    check = classify(3).check
    if sentence is None:
        check(split)
        return
    with pytest.raises(InputError, match=sentence):
        check(split)
