"""The same logits as PyTorch, with PyTorch's own files."""

import jax
import numpy as np
import pytest
import torch
from networks import compiled
from safetensors.torch import load_file, save_file
from torch import nn

from cnn_jax import models
from cnn_jax.errors import InputError
from cnn_jax.models.torch_files import read_tensors
from experiments.peers.torch_models import import_torchvision
from experiments.peers.twins import randomise

pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def torchvision():
    return import_torchvision()


class SimpleCNN(nn.Module):
    def __init__(self, height=28, width=28, channels=1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.fc1 = nn.Linear(64 * (height // 4) * (width // 4), 128)
        self.fc2 = nn.Linear(128, 10)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        for conv in (self.conv1, self.conv2):
            x = nn.functional.max_pool2d(nn.functional.relu(conv(x)), 2)
        x = self.dropout(nn.functional.relu(self.fc1(x.flatten(1))))
        return self.fc2(x)


def save(network, path):
    if path.suffix == ".safetensors":
        save_file(network.state_dict(), path)
    else:
        torch.save(network.state_dict(), path, _use_new_zipfile_serialization=path.suffix == ".pth")
    return path


def images(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def in_torch(network, x):
    with torch.no_grad():
        return network(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()


def run(model, variables, x, **call):
    return compiled(lambda variables, x: model.apply(variables, x, **call), variables, x)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("shape", [(28, 28, 1), (20, 31, 3)])
def test_simple_cnn(tmp_path, shape, suffix):
    torch.manual_seed(0)
    network = SimpleCNN(*shape).eval()
    variables = models.load_pretrained("simple_cnn", save(network, tmp_path / f"w{suffix}"), image_shape=shape)
    x = images(8, *shape)
    logits = models.create("simple_cnn").apply(variables, x)
    np.testing.assert_allclose(logits, in_torch(network, x), atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_resnets(tmp_path, torchvision, name):
    network = randomise(getattr(torchvision.models, name)(num_classes=20)).eval()
    variables = models.load_pretrained(name, save(network, tmp_path / "weights.pth"))
    x = images(2, 64, 64, 3)
    logits = run(models.create(name, num_classes=20, stem="large"), variables, x)
    expected = in_torch(network, x)
    # Relative to the logits, as every block that has no zero scale adds to their size.
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_training_mode(tmp_path, torchvision):
    network = randomise(torchvision.models.resnet18(num_classes=20))
    variables = models.load_pretrained("resnet18", save(network, tmp_path / "weights.pth"))
    x = images(4, 64, 64, 3)
    model = models.create("resnet18", num_classes=20, stem="large")
    logits, state = run(model, variables, x, train=True, mutable=["batch_stats"])
    expected = in_torch(network.train(), x)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    mine, theirs = state["batch_stats"]["stem_norm"], network.bn1
    np.testing.assert_allclose(mine["mean"], theirs.running_mean, atol=1e-5)
    # PyTorch keeps the unbiased variance of these 4·32·32 numbers, Flax the biased one.
    np.testing.assert_allclose(mine["var"], theirs.running_var, rtol=1e-3)


def test_group_norm(tmp_path, torchvision):
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=20, norm_layer=lambda c: nn.GroupNorm(32, c)).eval()
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, 0, 0.2)
    variables = models.load_pretrained("resnet18", save(network, tmp_path / "weights.pth"))
    x = images(2, 64, 64, 3)
    logits = run(models.create("resnet18", num_classes=20, stem="large", norm="group"), variables, x)
    expected = in_torch(network, x)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("zipped", [True, False])
def test_every_kind_of_tensor_that_torch_writes(tmp_path, zipped):
    base = torch.arange(24.0)
    state = {
        "whole": base,
        "transposed": base.view(4, 6).t(),
        "part": base.view(4, 6)[1:3, 1::2],
        "expanded": base[:2].expand(3, 2),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "parameter": nn.Parameter(base[3:7]),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        **{
            str(dtype): base.to(dtype)
            for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.bool)
        },
    }
    network = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    checkpoint = {"epoch": 3, "model": {f"module.{k}": v for k, v in state.items()}, "opt": optimizer.state_dict()}
    torch.save(checkpoint, tmp_path / "all.pth", _use_new_zipfile_serialization=zipped)
    tensors = read_tensors(tmp_path / "all.pth")
    assert list(tensors) == list(state)
    for name, tensor in state.items():
        np.testing.assert_array_equal(tensors[name].astype(np.float64), tensor.detach().double().numpy())


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_module_is_refused(tmp_path, zipped):
    torch.save(SimpleCNN(), tmp_path / "module.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"it holds a pickled \S*\.SimpleCNN, .*save the model's state_dict\(\) alone"):
        models.load_pretrained("simple_cnn", tmp_path / "module.pth")


@pytest.mark.parametrize("name", ["resnet18", "fcos_resnet50_fpn", "deeplabv3_resnet50"])
def test_torchvision_takes_our_weights(tmp_path, torchvision, key, name):
    """`load_state_dict(strict=True)`, and then it is the same network."""
    options = {"resnet18": {"stem": "large", "num_classes": 7}, "fcos_resnet50_fpn": {"num_classes": 7}}
    model = models.create(name, **options.get(name, {"num_classes": 7}))
    shapes = jax.eval_shape(model.init, key, np.zeros((1, 64, 64, 3), np.float32))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.uniform(0.01, 0.03, leaf.shape).astype(np.float32), shapes)
    path = models.save_pretrained(model, variables, tmp_path / "weights.safetensors")
    builders = {
        "resnet18": torchvision.models.resnet18,
        "fcos_resnet50_fpn": lambda num_classes: torchvision.models.detection.fcos_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=num_classes
        ),
        "deeplabv3_resnet50": lambda num_classes: torchvision.models.segmentation.deeplabv3_resnet50(
            weights=None, weights_backbone=None, num_classes=num_classes, aux_loss=True
        ),
    }
    network = builders[name](num_classes=7).eval()
    network.load_state_dict(load_file(path), strict=True)
    back = models.load_pretrained(name, path)
    jax.tree.map(np.testing.assert_array_equal, back, variables)
    theirs = {key: value.numpy() for key, value in network.state_dict().items() if "num_batches" not in key}
    assert set(theirs) == set(read_tensors(path))
    if name == "resnet18":
        x = images(2, 64, 64, 3)
        expected = in_torch(network, x)
        np.testing.assert_allclose(run(model, variables, x), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
