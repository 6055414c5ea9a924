"""Classification's metrics equal scikit-learn's and torch's."""

import warnings

import jax
import numpy as np
import pytest
import torch
from sklearn import metrics

from cnn_jax.tasks import classify

pytestmark = pytest.mark.peers


def draw(n, classes, absent, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes - absent, n).astype(np.int32)
    logits = rng.normal(size=(n, classes)).astype(np.float32) * 2
    logits[np.arange(n), labels] += 1.5
    return logits, labels


@pytest.mark.parametrize(("n", "classes", "absent"), [(500, 10, 0), (40, 12, 3), (300, 2, 0), (7, 10, 4)])
def test_equal_to_scikit_learn(n, classes, absent):
    logits, labels = draw(n, classes, absent, seed=classes)
    task = classify(classes)
    got = task.summarize([jax.jit(task.measure)(logits, {"label": labels})])
    p = np.asarray(task.predict(logits), np.float64)
    p /= p.sum(axis=1, keepdims=True)
    predicted, every = logits.argmax(1), np.arange(classes)

    def equal(name, value):
        np.testing.assert_allclose(got[name], value, atol=1e-6, rtol=1e-6, err_msg=name)

    equal("accuracy", metrics.accuracy_score(labels, predicted))
    equal("confusion", metrics.confusion_matrix(labels, predicted, labels=every))
    equal("loss", metrics.log_loss(labels, p, labels=every))
    if classes > 5:
        equal("top5_accuracy", metrics.top_k_accuracy_score(labels, logits, k=5, labels=every))
    for average in ("macro", "micro", "weighted"):
        # Without `labels`, scikit-learn averages over the classes that occur among the labels or the predictions.
        values = metrics.precision_recall_fscore_support(labels, predicted, average=average, zero_division=0)
        for name, value in zip(("precision", "recall", "f1"), values, strict=False):
            equal(f"{name}_{average}", value)
    values = metrics.precision_recall_fscore_support(labels, predicted, labels=every, zero_division=0)
    for name, value in zip(("precision", "recall", "f1", "support"), values, strict=True):
        equal(f"{name}_per_class", value)

    # Of the same float32 numbers, so that ties are the same.
    scores = np.asarray(jax.jit(task.predict)(logits))
    auroc = [metrics.roc_auc_score(labels == c, scores[:, c]) if 0 < (labels == c).sum() < n else np.nan for c in every]
    equal("auroc_per_class", auroc)
    equal("auroc_macro", np.nanmean(auroc))
    if absent == 0:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whole = metrics.roc_auc_score(labels, p if classes > 2 else p[:, 1], multi_class="ovr")
        equal("auroc_macro", whole)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradient_equal_torch(smoothing):
    logits, labels = draw(32, 10, 0, seed=5)
    soft = np.random.default_rng(6).dirichlet(np.ones(10), 32).astype(np.float32)
    task = classify(10, label_smoothing=smoothing)
    for label, their_label in ((labels, torch.from_numpy(labels).long()), (soft, torch.from_numpy(soft))):
        x = torch.from_numpy(logits).requires_grad_()
        theirs = torch.nn.functional.cross_entropy(x, their_label, label_smoothing=smoothing, reduction="none")
        theirs.sum().backward()
        ours, pullback = jax.vjp(lambda z, label=label: task.loss(z, {"label": label})[0], logits)
        np.testing.assert_allclose(ours, theirs.detach(), atol=1e-5)
        np.testing.assert_allclose(pullback(np.ones(32, np.float32))[0], x.grad, atol=1e-6)
