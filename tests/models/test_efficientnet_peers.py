from functools import partial

import pytest
from torchvision_twins import assert_same

from experiments.peers.torch_models import import_torchvision

pytestmark = pytest.mark.peers

OURS = {"dropout": 0.0, "stochastic_depth": 0.0}


def test_logits_are_torchvisions(tmp_path):
    assert_same(tmp_path, "efficientnet_b0", {"dropout": 0.0, "stochastic_depth_prob": 0.0}, OURS)


def test_logits_are_timms(tmp_path):
    import_torchvision()  # which makes timm importable too
    timm = pytest.importorskip("timm")
    make = partial(timm.create_model, "tf_efficientnet_lite0")
    assert_same(tmp_path, "efficientnet_lite0", {"drop_rate": 0.0}, OURS, make=make)
