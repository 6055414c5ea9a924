"""Segmentation's metrics equal scikit-learn's, its cross entropy torch's, and a whole DeepLabv3 torchvision's."""

import jax
import numpy as np
import pytest
import torch
from sklearn import metrics

from cnn_jax.tasks import segment
from experiments.peers import ours_parity, torch_parity
from experiments.peers.differences import compared
from experiments.peers.work import random_data

pytestmark = pytest.mark.peers

C = 5


def draw(seed=0, size=9):
    rng = np.random.default_rng(seed)
    maps = rng.integers(0, C, (3, size, size + 1)).astype(np.uint8)
    maps[rng.random(maps.shape) < 0.2] = 255
    return rng.normal(size=(*maps.shape, C)).astype(np.float32), maps


def test_metrics_are_scikit_learns():
    logits, maps = draw()
    found = segment(C).summarize([jax.jit(segment(C).measure)(logits, {"map": maps})])
    of = maps[maps < 255], logits.argmax(-1)[maps < 255]
    every = np.arange(C)
    np.testing.assert_array_equal(found["confusion"], metrics.confusion_matrix(*of, labels=every))
    np.testing.assert_allclose(found["pixel_accuracy"], metrics.accuracy_score(*of))
    np.testing.assert_allclose(found["iou_per_class"], metrics.jaccard_score(*of, labels=every, average=None))
    np.testing.assert_allclose(found["miou"], metrics.jaccard_score(*of, labels=every, average="macro"))
    values = metrics.precision_recall_fscore_support(*of, labels=every)
    for name, value in zip(("precision", "recall", "dice", "support"), values, strict=True):
        np.testing.assert_allclose(found[f"{name}_per_class"], value, err_msg=name)


@pytest.mark.parametrize("weights", [None, (1.0, 0.5, 2.0, 0.0, 3.0)])
def test_cross_entropy_and_its_gradient_are_torchs(weights):
    logits, maps = draw(1)
    x = torch.from_numpy(logits.transpose(0, 3, 1, 2).copy()).requires_grad_()
    weight = None if weights is None else torch.tensor(weights)
    targets = torch.from_numpy(maps).long()
    each = [
        torch.nn.functional.cross_entropy(x[i : i + 1], targets[i : i + 1], weight, ignore_index=255) for i in range(3)
    ]
    sum(each).backward()
    loss, pullback = jax.vjp(lambda z: segment(C, class_weights=weights).loss(z, {"map": maps})[0], logits)
    np.testing.assert_allclose(loss, [one.item() for one in each], rtol=1e-5)
    np.testing.assert_allclose(pullback(np.ones(3, np.float32))[0], x.grad.permute(0, 2, 3, 1), atol=1e-6)


def test_deeplab_is_torchvisions():
    name, side = "deeplabv3_resnet50", 64
    peer, batch = torch_parity.network(name, side), random_data(name, 1, side)
    outputs = ours_parity.evaluate(ours_parity.create(name, peer), batch)
    for what, values in torch_parity.evaluate(name, peer, batch).items():
        found = compared(outputs[what], values, 1e-4)
        assert found["difference"] <= found["bound"], what
