import pytest
from torchvision_twins import assert_same

from cnn_jax.models.vgg import VGGS
from experiments.peers.torch_models import import_torchvision

pytestmark = pytest.mark.peers


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "vgg11" else pytest.mark.slow) for name in VGGS]
)
def test_logits_are_torchvisions(tmp_path, name):
    """Of 64×70 pixels the last stage has 2×2, which are spread to the 7×7 that the head takes."""
    assert_same(tmp_path, name, {"dropout": 0.0}, {"dropout": 0.0})


@pytest.mark.parametrize("name", ["vgg11", pytest.param("vgg13_bn", marks=pytest.mark.slow)])
def test_logits_are_timms(tmp_path, name):
    """Its dense layers are convolutions, the first of 7×7."""
    import_torchvision()  # which makes timm importable too
    timm = pytest.importorskip("timm")
    assert_same(tmp_path, name, {}, {"dropout": 0.0}, make=getattr(timm.models, name))
