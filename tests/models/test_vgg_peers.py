import pytest
from torchvision_twins import assert_same

from cnn_jax.models.vgg import VGGS

pytestmark = pytest.mark.peers


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "vgg11" else pytest.mark.slow) for name in VGGS]
)
def test_logits_are_torchvisions(tmp_path, name):
    """Of 64×70 pixels the last stage has 2×2, which are spread to the 7×7 that the head takes."""
    assert_same(tmp_path, name, {"dropout": 0.0}, {"dropout": 0.0})
