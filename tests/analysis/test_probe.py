"""Probes against ridge regression solved and left out by hand, in float64."""

import jax
import numpy as np
import pytest

from cnn_jax import analysis, models
from cnn_jax.errors import InputError

CLASSES = 3


def examples(count, dimensions, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    centres = 2 * np.random.default_rng(9).normal(size=(CLASSES, dimensions))
    features = centres[labels] + rng.normal(size=(count, dimensions)) * np.linspace(0.5, 3, dimensions) + 5
    return features.astype(np.float32), labels.astype(np.int32)


def ridge_by_hand(x, y, ridge):
    """(kernel, bias) that minimise Σ|y - x·kernel - bias|² + ridge·|kernel|²; the bias is free."""
    centred = x - x.mean(0)
    kernel = np.linalg.solve(centred.T @ centred + ridge * np.eye(x.shape[1]), centred.T @ (y - y.mean(0)))
    return kernel, y.mean(0) - x.mean(0) @ kernel


def standardised(features):
    x = features.astype(np.float64)
    return (x - x.mean(0)) / x.std(0)


@pytest.mark.parametrize(("count", "dimensions"), [(12, 40), (60, 7)])  # either Gram matrix
def test_the_probe_is_ridge_regression_and_its_errors_those_of_examples_left_out(count, dimensions):
    features, labels = examples(count, dimensions)
    strengths = (0.01, 0.1, 1.0, 10.0)
    probe = analysis.linear_probe(features, labels, num_classes=CLASSES, strengths=strengths)
    x, y = standardised(features), np.eye(CLASSES)[labels]
    mean_eigenvalue = count * dimensions / min(count - 1, dimensions)
    np.testing.assert_allclose(np.trace(x.T @ x), count * dimensions)
    expected = []
    for strength in strengths:
        residuals = []
        for i in range(count):
            rest = np.arange(count) != i
            kernel, bias = ridge_by_hand(x[rest], y[rest], strength * mean_eigenvalue)
            residuals.append(y[i] - x[i] @ kernel - bias)
        expected.append(np.mean(np.square(residuals)))
    np.testing.assert_allclose(probe.errors, expected, rtol=1e-3)
    assert probe.best == np.argmin(expected)
    kernel, bias = ridge_by_hand(x, y, strengths[int(probe.best)] * mean_eigenvalue)
    other, _ = examples(5, dimensions, seed=1)
    seen = (other - features.mean(0)) / features.std(0)
    np.testing.assert_allclose(probe.scores(other), seen @ kernel + bias, atol=1e-3)


def test_constant_features_and_other_units_change_nothing():
    features, labels = examples(30, 6)
    dead = np.concatenate([features, np.full((30, 2), 7, np.float32)], axis=1)
    plain = analysis.linear_probe(features, labels, num_classes=CLASSES)
    scaled = analysis.linear_probe(features * np.float32(1000), labels, num_classes=CLASSES)
    padded = analysis.linear_probe(dead, labels, num_classes=CLASSES)
    np.testing.assert_allclose(scaled.scores(features * 1000), plain.scores(features), atol=1e-3)
    assert (np.asarray(padded.scores(dead)).argmax(-1) == np.asarray(plain.scores(features)).argmax(-1)).all()
    assert np.isfinite(padded.kernel).all()
    np.testing.assert_array_equal(padded.kernel[6:], 0)


def test_few_shot_is_a_probe_for_each_selection(key):
    features, labels = examples(60, 10)
    test, test_labels = examples(30, 10, seed=2)
    rows = np.stack([analysis.draw_balanced(k, labels, shots=4) for k in jax.random.split(key, 3)])
    accuracies = analysis.few_shot(features, labels, rows, test, test_labels, num_classes=CLASSES)
    alone = [analysis.linear_probe(features[r], labels[r], num_classes=CLASSES) for r in rows]
    expected = [np.mean(np.asarray(probe.scores(test)).argmax(-1) == test_labels) for probe in alone]
    np.testing.assert_allclose(accuracies, expected, atol=1e-6)
    assert accuracies.mean() > 0.6


def test_balanced_draws(key):
    labels = np.repeat([0, 1, 2], [50, 9, 4])
    rows = analysis.draw_balanced(key, labels, shots=4)
    assert len(set(rows.tolist())) == 12
    np.testing.assert_array_equal(np.bincount(labels[rows]), [4, 4, 4])
    assert (rows != analysis.draw_balanced(jax.random.key(1), labels, shots=4)).any()
    with pytest.raises(InputError, match="class 2 has 4 examples, fewer than the 5 to draw"):
        analysis.draw_balanced(key, labels, shots=5)


def test_embedding_is_the_stage_of_every_image(key):
    model = models.create("simple_cnn")
    images = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 1), np.uint8)
    variables = model.init(key, np.zeros((1, 8, 8, 1), np.float32))
    stages = analysis.capture(model, variables, images / np.float32(255))

    def embed(stage):
        return analysis.embed(model, variables, images, stage=stage, preprocess=lambda x: x / 255.0, batch_size=3)

    np.testing.assert_allclose(embed("fc1"), stages["fc1"], atol=1e-5)
    np.testing.assert_allclose(embed("conv2"), stages["conv2"].mean((1, 2)), atol=1e-5)
    with pytest.raises(InputError, match="unknown stage 'fc': did you mean 'fc1'"):
        embed("fc")


def test_probes_of_all_stages_are_those_of_each(key):
    model = models.create("simple_cnn")
    rng, labels = np.random.default_rng(0), np.arange(24, dtype=np.int32) % 2
    images = (rng.integers(0, 128, (24, 8, 8, 1)) + 60 * labels[:, None, None, None]).astype(np.uint8)
    variables = model.init(key, np.zeros((1, 8, 8, 1), np.float32))
    options = {"preprocess": lambda x: x / 255.0, "batch_size": 5}
    train, test = (images[:14], labels[:14]), (images[14:], labels[14:])
    found = analysis.probe_stages(model, variables, train, test, num_classes=2, names=["fc1", "conv*"], **options)
    assert list(found) == ["conv1", "conv2", "fc1"]
    features = [analysis.embed(model, variables, of, stage="conv2", **options) for of, _ in (train, test)]
    scores = analysis.linear_probe(features[0], train[1], num_classes=2).scores(features[1])
    assert found["conv2"] == np.mean(np.asarray(scores).argmax(1) == test[1])
    assert min(found.values()) > 0.7


def test_probes_of_several_sets_at_once():
    sets = [examples(12, 4, seed) for seed in range(3)]
    many = jax.vmap(lambda x, y: analysis.linear_probe(x, y, num_classes=CLASSES).kernel)
    alone = [analysis.linear_probe(*of, num_classes=CLASSES).kernel for of in sets]
    np.testing.assert_allclose(many(*map(np.stack, zip(*sets, strict=True))), alone, rtol=1e-3, atol=1e-4)


def test_one_example_is_enough_to_test_with():
    features, labels = examples(12, 4)
    rows = np.arange(12)[None]
    accuracy = analysis.few_shot(features, labels, rows, features[:1], labels[:1], num_classes=CLASSES)
    assert accuracy.tolist() == [1.0]


def test_bad_arguments(key):
    features, labels = examples(6, 4)
    broken = features.copy()
    broken[4, 1] = np.nan

    def probe(features=features, labels=labels, **options):
        return analysis.linear_probe(features, labels, num_classes=CLASSES, **options)

    def few(rows, test_features=features, test_labels=labels):
        return analysis.few_shot(features, labels, np.array(rows), test_features, test_labels, num_classes=CLASSES)

    for call, sentence in [
        (lambda: probe(labels=labels[:5]), r"training features have shape \(6, 4\) and labels \(5,\): expected"),
        (lambda: probe(features[:1], labels[:1]), "N at least 2"),
        (lambda: probe(broken), "training features are not all finite"),
        (
            lambda: probe(labels=labels + 2),
            "training labels of int32 are from 2 to 4: expected whole numbers from 0 to 2",
        ),
        (lambda: probe(labels=labels - 1), "from -1 to 1"),
        (lambda: probe(labels=labels / 2), "training labels of float32"),
        (lambda: probe(strengths=(0, 1)), "all finite and above 0"),
        (lambda: probe(strengths=(1, np.nan)), "all finite and above 0"),
        (lambda: probe(strengths=()), "give at least one"),
        (lambda: probe().scores(features[:, :3]), r"features have shape \(6, 3\), and the probe is of \(N, 4\)"),
        (lambda: few([[0]]), r"shape \(1, 1\): expected whole numbers \(R, n\), n at least 2"),
        (lambda: few([0, 1]), r"shape \(2,\): expected"),
        (lambda: few([[0.0, 1.0]]), "rows of float32"),
        (lambda: few([[0, 1, 6]]), "rows from 0 to 6: there are 0 to 5"),
        (lambda: few([[0, -1]]), "rows from -1 to 0: there are 0 to 5"),
        (lambda: few([[0, 1]], features[:, :3]), r"features have shape \(6, 3\), and the probe is of \(N, 4\)"),
        (lambda: few([[0, 1]], broken), "test features are not all finite"),
        (lambda: few([[0, 1]], features, labels + 2), "test labels of int32 are from 2 to 4"),
        (lambda: few([[0, 1]], features[:0], labels[:0]), "test features .* N at least 1"),
        (lambda: analysis.draw_balanced(key, labels, shots=-1), "shots is -1: expected 1 or more"),
    ]:
        with pytest.raises(InputError, match=sentence):
            call()
