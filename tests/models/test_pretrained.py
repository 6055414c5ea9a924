"""Mapping of names and layouts, without PyTorch: against convolutions and products written out in its layouts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from cnn_jax import models
from cnn_jax.errors import InputError
from cnn_jax.models.resnet import ResNet
from cnn_jax.models.sources import SOURCES


def simple_cnn(height=8, width=8, channels=1, classes=3):
    key = np.random.default_rng(0)
    shapes = {
        "conv1": (32, channels, 3, 3),
        "conv2": (64, 32, 3, 3),
        "fc1": (128, 4 * height * width),
        "fc2": (classes, 128),
    }
    weights = {f"{name}.weight": key.normal(size=shape) * np.prod(shape[1:]) ** -0.5 for name, shape in shapes.items()}
    biases = {f"{name}.bias": key.normal(size=shape[0]) for name, shape in shapes.items()}
    return {name: value.astype(np.float32) for name, value in (weights | biases).items()}


def in_torch_layout(tensors, images):
    """SimpleCNN in NCHW, written out in float64."""

    def conv(x, weight, bias):
        _, _, h, w = x.shape
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.stack([padded[:, :, i : i + h, j : j + w] for i in range(3) for j in range(3)], axis=2)
        return np.einsum("ncthw,oct->nohw", windows, weight.reshape(*weight.shape[:2], 9)) + bias[:, None, None]

    x = images.transpose(0, 3, 1, 2).astype(np.float64)
    for name in ("conv1", "conv2"):
        x = np.maximum(conv(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"]), 0)
        n, c, h, w = x.shape
        x = x.reshape(n, c, h // 2, 2, w // 2, 2).max((3, 5))
    x = np.maximum(x.reshape(len(x), -1) @ tensors["fc1.weight"].T + tensors["fc1.bias"], 0)
    return x @ tensors["fc2.weight"].T + tensors["fc2.bias"]


@pytest.mark.parametrize("shape", [(8, 8, 1), (4, 12, 3)])
def test_simple_cnn_has_the_logits_of_its_source(tmp_path, shape):
    height, width, channels = shape
    tensors = simple_cnn(height, width, channels)
    save_file(tensors, tmp_path / "weights.safetensors")
    options = {} if height == width else {"image_shape": shape}
    variables = models.load_pretrained("simple_cnn", tmp_path / "weights.safetensors", **options)
    images = np.random.default_rng(1).normal(size=(2, *shape)).astype(np.float32)
    logits = models.create("simple_cnn", num_classes=3).apply(variables, images)
    np.testing.assert_allclose(logits, in_torch_layout(tensors, images), atol=1e-5)


def resnet(**options):
    """A state dict of random float16 numbers with torchvision's names, and the model's own variables."""
    model = models.create("resnet18", **options)
    template = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    key = np.random.default_rng(0)
    tensors = {}
    for path, leaf in flatten_dict(template).items():
        torch_shape = tuple(leaf.shape[i] for i in {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}[leaf.ndim])
        name = SOURCES[ResNet]["torchvision"].name("/".join(path[1:]))
        tensors[name] = key.uniform(size=torch_shape).astype(np.float16)
    return tensors, template


def test_torchvision_names():
    names = set(resnet(width=4, num_classes=3)[0])
    assert {
        "conv1.weight",
        "bn1.weight",
        "bn1.running_var",
        "layer1.0.conv1.weight",
        "layer1.1.bn2.bias",
        "layer2.0.downsample.0.weight",
        "layer4.0.downsample.1.running_mean",
        "fc.weight",
        "fc.bias",
    } <= names
    assert len(names) == 20 + 4 * 20 + 2  # convolutions, norms with two parameters and two statistics, the head


@pytest.mark.parametrize("options", [{"stem": "large"}, {"norm": "group"}])
def test_resnet_options_come_from_the_file(tmp_path, options):
    tensors, template = resnet(width=4, num_classes=3, **options)
    if "norm" not in options:
        tensors["bn1.num_batches_tracked"] = np.array(7)
    save_file(tensors, tmp_path / "weights.safetensors")
    variables = models.load_pretrained("resnet18", tmp_path / "weights.safetensors")
    assert jax.tree.map(lambda x: (x.shape, x.dtype), variables) == jax.tree.map(lambda x: (x.shape, x.dtype), template)
    kernel = variables["params"]["stage2_block1"]["shortcut_conv"]["kernel"]
    np.testing.assert_array_equal(kernel[0, 0].T, tensors["layer2.0.downsample.0.weight"][:, :, 0, 0])
    np.testing.assert_array_equal(variables["params"]["logits"]["kernel"].T, tensors["fc.weight"])


def test_what_does_not_fit_is_named(tmp_path):
    path = tmp_path / "weights.safetensors"

    def refuses(name, tensors, sentence, **options):
        save_file(tensors, path)
        with pytest.raises(InputError, match=sentence):
            models.load_pretrained(name, path, **options)

    good = simple_cnn()
    refuses("simple_cnn", {**good, "fc3.weight": good["fc2.weight"]}, r"left over: fc3\.weight")
    refuses("simple_cnn", {name: good[name] for name in good if name != "fc1.bias"}, r"missing: fc1\.bias")
    refuses("simple_cnn", good, "tell 3 classes apart, not 5: leave num_classes out, or give new_head", num_classes=5)
    refuses("simple_cnn", simple_cnn(8, 12), r"fc1\.weight \(128, 384\), expected \(128, 256\) .*give image_shape")
    refuses("resnet18", good, r"not those of resnet18")
    refuses("simple_cnn", resnet(width=4)[0], r"not those of simple_cnn; it has bn1\.bias, .* and \d+ more")
    refuses("resnet34", resnet(width=4)[0], r"missing: layer1\.2\.\S+, .* and \d+ more")
    refuses("resnet18", good, "unknown option of resnet18 'stm'", stm="small")
    refuses("resnet", good, "unknown model 'resnet'")


def test_a_new_head_is_drawn_and_said(tmp_path, key):
    tensors, _ = resnet(width=4, num_classes=3)
    tensors["bn1.num_batches_tracked"] = np.array(7)
    path = tmp_path / "weights.safetensors"
    save_file(tensors, path)
    whole = models.create_pretrained("resnet18", path)
    assert whole.model.num_classes == 3
    assert whole.report == f"102 tensors (names: torchvision) from {path}; left over: counters of batches (1)"
    net = models.create_pretrained("resnet18", path, num_classes=5, new_head=key)
    assert net.report == (
        f"100 tensors (names: torchvision) from {path}; logits/bias, logits/kernel drawn anew; "
        "left over: fc.bias, fc.weight, counters of batches (1)"
    )
    head, body = net.variables["params"].pop("logits"), net.variables
    assert head["kernel"].shape == (32, 5)
    np.testing.assert_allclose(head["kernel"].std(), 32**-0.5, rtol=0.2)  # LeCun's, Linen's default
    del whole.variables["params"]["logits"]
    jax.tree.map(np.testing.assert_array_equal, body, whole.variables)
    other = models.load_pretrained("resnet18", path, num_classes=5, new_head=jax.random.key(1))
    assert (other["params"]["logits"]["kernel"] != head["kernel"]).all()
