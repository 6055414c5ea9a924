import pytest
from torchvision_twins import assert_same

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("name", ["resnext50_32x4d", pytest.param("wide_resnet50_2", marks=pytest.mark.slow)])
def test_logits_are_torchvisions(tmp_path, name):
    assert_same(tmp_path, name, {}, {"stem": "large"})
