import pytest
from torchvision_twins import assert_same

pytestmark = [pytest.mark.peers, pytest.mark.slow]


@pytest.mark.parametrize("name", ["vgg11", "vgg13_bn"])
def test_logits_are_torchvisions(tmp_path, name):
    """Of 64×70 pixels the last stage has 2×2, which are spread to the 7×7 that the head takes."""
    assert_same(tmp_path, name, {"dropout": 0.0}, {"dropout": 0.0})
