from functools import partial

import pytest
from torchvision_twins import assert_same

from experiments.peers.torch_models import import_torchvision

pytestmark = pytest.mark.peers


def test_logits_are_torchvisions(tmp_path):
    assert_same(tmp_path, "mobilenet_v2", {"dropout": 0.0, "width_mult": 0.5}, {"dropout": 0.0, "width": 0.5})


def test_logits_are_timms(tmp_path):
    import_torchvision()  # which makes timm importable too
    timm = pytest.importorskip("timm")
    assert_same(tmp_path, "mobilenet_v2", {}, {"dropout": 0.0}, make=partial(timm.create_model, "mobilenetv2_100"))
