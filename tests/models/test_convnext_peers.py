import pytest
from torchvision_twins import assert_same

from cnn_jax.models.convnext import CONVNEXTS
from experiments.peers.torch_models import import_torchvision

pytestmark = pytest.mark.peers


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "convnext_tiny" else pytest.mark.slow) for name in CONVNEXTS]
)
def test_logits_are_torchvisions(tmp_path, name):
    assert_same(tmp_path, name, {"stochastic_depth_prob": 0.0}, {"stochastic_depth": 0.0})


def test_logits_are_timms(tmp_path):
    import_torchvision()  # which makes timm importable too
    timm = pytest.importorskip("timm")
    assert_same(tmp_path, "convnext_tiny", {}, {"stochastic_depth": 0.0}, make=timm.models.convnext_tiny)
