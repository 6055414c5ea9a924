"""Mapping of names and layouts, without PyTorch: against convolutions and products written out in its layouts."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from cnn_jax import models
from cnn_jax.errors import InputError
from cnn_jax.models.resnet import ResNet
from cnn_jax.models.sources import SOURCES
from cnn_jax.models.vgg import VGG


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


def test_torchvision_counts_vggs_layers():
    """As `print(torchvision.models.vgg16_bn().features)` has them."""
    names = {"vgg16": ["0", "5", "12", "28"], "vgg16_bn": ["0", "7", "17", "40"]}
    for name, numbers in names.items():
        source = SOURCES[VGG]["torchvision"].of(models.create(name))
        found = [source.name(f"stage{stage}_conv{i}/kernel") for stage, i in ((1, 1), (2, 1), (3, 2), (5, 3))]
        assert found == [f"features.{number}.weight" for number in numbers]
    assert source.name("stage3_norm2/mean") == "features.18.running_mean"


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
    refuses(
        "simple_cnn", good, r"for 3 classes, not 5: .*experiments\.transfer .*\(in Python give new_head", num_classes=5
    )
    refuses("simple_cnn", simple_cnn(8, 12), r"fc1\.weight \(128, 384\), expected \(128, 256\) .*give image_shape")
    refuses("resnet18", good, r"not those of resnet18")
    refuses("simple_cnn", resnet(width=4)[0], r"not those of simple_cnn; it has bn1\.bias, .* and \d+ more")
    refuses("resnet34", resnet(width=4)[0], r"missing: layer1\.2\.\S+, .* and \d+ more")
    refuses("simple_cnn", {}, r"weights\.safetensors holds no tensors$")
    refuses(
        "simple_cnn", {**good, "fc2.weight": np.zeros((0, 128), np.float32)}, r"without numbers .* fc2\.weight \(0, 128"
    )
    for dtype in (np.int8, bool):
        whole = {**good, "fc1.weight": good["fc1.weight"].astype(dtype)}
        refuses("simple_cnn", whole, r"no floating-point numbers: fc1\.weight \((int8|bool)\); give the weights as")
    for count in (0, -1):
        refuses("simple_cnn", good, f"num_classes is {count}: it must be 1 or more", num_classes=count)
    refuses("simple_cnn", good, r"new_head is 0, expected a key, such as jax\.random\.key\(0\)", new_head=0)
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
    # Also where the file's is for as many classes, and where it has none.
    again = models.create_pretrained("resnet18", path, new_head=key)
    assert again.fresh == ["logits/bias", "logits/kernel"]
    assert again.variables["params"]["logits"]["kernel"].shape == (32, 3)
    save_file({name: value for name, value in tensors.items() if not name.startswith("fc.")}, path)
    headless = models.load_pretrained("resnet18", path, num_classes=5, new_head=key)
    np.testing.assert_array_equal(headless["params"]["logits"]["kernel"], head["kernel"])


@pytest.mark.parametrize(("channels", "grey"), [(1, True), (3, False)])
def test_the_images_that_weights_are_for(tmp_path, channels, grey):
    path = tmp_path / "weights.safetensors"
    save_file(simple_cnn(12, 12, channels), path)
    net = models.create_pretrained("simple_cnn", path)
    assert net.image_shape == (12, 12, channels)
    net.check_images((12, 12, channels))
    net.check_images((15, 14, channels))  # of which the poolings leave as much
    for shape in ((16, 16, channels), (12, 12, 4 - channels)):
        with pytest.raises(InputError, match=rf"are for images of 12×12 and {channels} channels?, not {shape[0]}×"):
            net.check_images(shape)
    assert len(net.mean) == len(net.std) == channels
    np.testing.assert_allclose(net.mean, [0.449] if grey else [0.485, 0.456, 0.406], atol=1e-3)
    tensors, _ = resnet(width=4, num_classes=3)
    save_file(tensors, path)
    anywhere = models.create_pretrained("resnet18", path)
    assert anywhere.image_shape == (None, None, 3)
    anywhere.check_images((9, 20, 3))
    with pytest.raises(InputError, match="are for images of 3 channels, not 9×20 and 1 channel"):
        anywhere.check_images((9, 20, 1))


def timms(name, folder, file="model.safetensors", card=None):
    """A network's weights as a file of timm's, which says nothing of padding."""
    model = models.create(name, num_classes=2)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    folder.mkdir(exist_ok=True)
    path = models.save_pretrained(model, variables, folder / file, library="timm")
    save_file(load_file(path), path)
    if card is not None:
        (folder / "config.json").write_text(card if isinstance(card, str) else json.dumps(card))
    return path


SAME, TORCH = {"padding": "same", "epsilon": 1e-3}, {"padding": "torch", "epsilon": 1e-5}
LITE, CLASSIC = ((127 / 255,) * 3, (128 / 255,) * 3), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
INCEPTION, HALF = {"mean": [0.5] * 3, "std": [0.25] * 3}, ((0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize(
    ("name", "folder", "file", "card", "given", "found", "normalised"),
    [
        ("efficientnet_b0", "a", "model.safetensors", {"architecture": "tf_efficientnet_b0"}, {}, SAME, CLASSIC),
        ("efficientnet_b0", "tf_efficientnet_b0.x", "w.pt", {"architecture": "efficientnet_b0"}, {}, TORCH, CLASSIC),
        ("efficientnet_lite0", "a", "model.safetensors", {"architecture": "efficientnet_lite0"}, {}, TORCH, CLASSIC),
        ("efficientnet_lite0", "a", "tf_efficientnet_lite0-aa.safetensors", "[]", {}, SAME, LITE),
        ("efficientnet_b0", "timm_tf_efficientnet_b0.in1k", "model.safetensors", "no json", {}, SAME, CLASSIC),
        ("efficientnet_b0", "a", "model.safetensors", {"mean": 3}, {"padding": "torch"}, TORCH, CLASSIC),
        (
            "efficientnet_b0", "a", "model.safetensors", {"architecture": "tf_efficientnet_b0"},
            {"padding": "circular"}, SAME | {"padding": "circular"}, CLASSIC,
        ),
        ("efficientnet_b0", "a", "m.safetensors", None, {"padding": "same", "epsilon": 0.1}, {"epsilon": 0.1}, CLASSIC),
        ("efficientnet_b0", "a", "m.safetensors", {"pretrained_cfg": INCEPTION}, {"padding": "same"}, SAME, HALF),
    ],
)  # fmt: skip
def test_how_timms_networks_are_padded(tmp_path, name, folder, file, card, given, found, normalised):
    net = models.create_pretrained(name, timms(name, tmp_path / folder, file, card), **given)
    assert {option: getattr(net.model, option) for option in found} == found
    assert (net.mean, net.std) == normalised


def test_what_does_not_tell_how_it_is_padded_is_refused(tmp_path):
    path = timms("efficientnet_lite0", tmp_path / "a")
    with pytest.raises(
        InputError, match=r'give padding="same" if its name there .* tf_efficientnet, else padding="torch"$'
    ):
        models.create_pretrained("efficientnet_lite0", path)
