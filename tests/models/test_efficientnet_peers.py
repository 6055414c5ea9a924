import json

import numpy as np
import pytest
import torch
from networks import compiled
from safetensors.torch import save_file
from torchvision_twins import assert_same

from cnn_jax import models
from cnn_jax.models.torch_files import read_tensors
from experiments.peers.torch_models import import_torchvision
from experiments.peers.twins import randomise

pytestmark = pytest.mark.peers

OURS = {"dropout": 0.0, "stochastic_depth": 0.0}


def test_logits_are_torchvisions(tmp_path):
    assert_same(tmp_path, "efficientnet_b0", {"dropout": 0.0, "stochastic_depth_prob": 0.0}, OURS)


def same_in_timm(architecture, training=False):
    """(state dict of timm's network with random weights, what holds a network of ours to its logits)."""
    import_torchvision()  # which makes timm importable too
    network = randomise(pytest.importorskip("timm").create_model(architecture, num_classes=20))
    images = np.random.default_rng(0).normal(size=(2, 64, 70, 3)).astype(np.float32)

    def check(net):
        model = net.model.clone(**OURS)
        for train in (False, True)[: 1 + training]:
            with torch.no_grad():
                expected = network.train(train)(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
            found, _ = compiled(
                lambda v, x: model.apply(v, x, train=train, mutable=["batch_stats"]),  # noqa: B023
                net.variables,
                images,
            )
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())

    return network.state_dict(), check


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_b0"])
@pytest.mark.parametrize("prefix", ["", "tf_"])
def test_logits_are_timms(tmp_path, name, prefix):
    """Which has the same tensors for either padding and epsilon."""
    tensors, check = same_in_timm(prefix + name, training=prefix + name == "tf_efficientnet_lite0")
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": prefix + name}))
    check(models.create_pretrained(name, tmp_path / "model.safetensors"))


def test_logits_of_efficientnet_pytorch_are_those_of_tensorflow(tmp_path):
    """The package has the weights of TensorFlow's networks under names of its own."""
    tensors, check = same_in_timm("tf_efficientnet_b0")
    ours = models.create_pretrained("efficientnet_b0", saved(tensors, tmp_path / "timm.pth"), padding="same")
    path = models.save_pretrained(
        ours.model, ours.variables, tmp_path / "net.safetensors", library="efficientnet_pytorch"
    )
    renamed = read_tensors(path)
    assert {"_conv_stem.weight", "_blocks.15._bn2.running_var", "_blocks.3._se_reduce.bias", "_fc.bias"} <= set(renamed)
    bare = saved({key: torch.tensor(value) for key, value in renamed.items()}, tmp_path / "bare.pth")
    net = models.create_pretrained("efficientnet_b0", bare)
    assert (net.library, net.model.momentum) == ("efficientnet_pytorch", 0.01)
    check(net)


def saved(tensors, path):
    torch.save(tensors, path)
    return path
