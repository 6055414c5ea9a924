"""Non-maximum suppression, a whole FCOS, its detections and its loss equal torchvision's."""

import jax
import numpy as np
import pytest

from experiments import parity
from experiments.peers import ours_parity, torch_parity
from experiments.peers.differences import compared
from experiments.peers.work import random_data

pytestmark = pytest.mark.peers


def test_nms_is_torchvisions():
    for name, found in parity.nms(tiny=True).items():
        assert found["difference"] == 0, name
        assert found["scale"] > 10


def test_fcos_is_torchvisions():
    name, side = "fcos_resnet50_fpn", 128
    peer, batch = torch_parity.network(name, side), random_data(name, 1, side)
    ours = ours_parity.create(name, peer)
    outputs = ours_parity.evaluate(ours, batch)
    theirs = torch_parity.evaluate(name, peer, batch)
    assert len(theirs["detected boxes"][0]) > 10
    for what, values in theirs.items():
        found = compared(outputs[what], values, 1e-4)
        assert found["difference"] <= found["bound"], what
    expected, _ = torch_parity.train(name, peer, batch, frozen=True)
    levels = jax.jit(ours.model.apply)(ours.variables, batch["image"] / np.float32(255))
    loss, _ = jax.jit(ours.task.loss)(levels, batch)
    np.testing.assert_allclose(loss, [expected], rtol=1e-4)
