"""`python -m experiments.classify` with other networks than SimpleCNN, and with weights to start from."""

import re
from functools import partial
from types import SimpleNamespace

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from cnn_jax import models
from cnn_jax.models.catalogue import MODELS
from cnn_jax.models.resnet import ResNet
from cnn_jax.reporting import plots
from experiments import classify, predict
from experiments.runs import load_run


@pytest.fixture
def small_resnet(monkeypatch):
    """The name of a ResNet of one block, which compiles in a moment."""
    monkeypatch.setitem(MODELS, "small_resnet", partial(ResNet, depths=(1,), block="basic", width=8))
    return "small_resnet"


@pytest.mark.usefixtures("undrawn")
def test_a_resnet_from_a_folder_to_a_prediction(pictures, small_resnet, tmp_path, monkeypatch):
    drawn, filters = [], plots.filters
    monkeypatch.setattr(plots, "filters", lambda kernel, **options: drawn.append(kernel) or filters(kernel, **options))
    # Pictures in a folder of this name are none of MNIST's digits.
    pictures = pictures.rename(tmp_path / "mnist")
    folder = tmp_path / "run"
    flags = ("--model", small_resnet, "--norm", "group", "--look", 3, 1, "--out", folder)
    commands.succeeds(classify, "--tiny", "--dataset", pictures, *flags)
    about, variables = load_run(folder)
    assert about["options"] == {"num_classes": 2, "dtype": "float32", "norm": "group", "stem": "small"}
    assert about["form"] is None
    assert not variables["batch_stats"]
    # The first convolution is the one that sees the images; it is not the first by name.
    np.testing.assert_array_equal(drawn[0], variables["params"]["stem_conv"]["kernel"])
    figures = {path.stem for path in (folder / "figures").iterdir()}
    assert {name for name in figures if re.fullmatch(r"feature_maps_\d", name)} == {"feature_maps_0", "feature_maps_1"}
    printed = commands.succeeds(predict, folder, pictures / "light" / "0.png")
    assert printed.startswith(f"{pictures / 'light' / '0.png'}\n")  # nothing was done to it


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet9", "vgg11", "convnext_tiny"])
def test_the_first_convolution_sees_the_image(name):
    model, shape = models.create(name), (64, 64, 3)
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    assert classify.first_kernel(params, models.describe(model, shape)).shape[2] == 3


@pytest.mark.parametrize(
    ("name", "side", "norm", "expected"),
    [
        ("resnet18", 64, None, {"stem": "small"}),
        ("resnext50_32x4d", 224, None, {"stem": "large"}),
        ("wide_resnet50_2", 224, "group", {"stem": "large", "norm": "group"}),
        ("resnet9", 224, None, {}),
        ("simple_cnn", 28, "batch", {"norm": "batch"}),
    ],
)
def test_options_are_those_that_the_network_has(name, side, norm, expected):
    images = SimpleNamespace(num_classes=2, image_shape=(side, side, 3))
    model, options, variables = classify.network(classify.Config(model=name, norm=norm), images)
    assert options == {"num_classes": 2, "dtype": "float32"} | expected
    assert {option: getattr(model, option) for option in expected} == expected
    assert variables is None


@pytest.mark.parametrize("classes", [5, 3])
def test_weights_start_a_run_with_a_new_head_for_other_classes(small_resnet, key, tmp_path, capsys, classes):
    model = models.create(small_resnet, num_classes=5, stem="medium", norm="group")
    saved = model.init(key, jnp.zeros((1, 32, 32, 1)))
    weights = models.save_pretrained(model, saved, tmp_path / "net.safetensors")
    images = SimpleNamespace(num_classes=classes, image_shape=(32, 32, 1))
    config = classify.Config(model=small_resnet, weights=str(weights))
    found, options, variables = classify.network(config, images)
    assert models.create(small_resnet, **options) == found  # as predict will make it
    assert (found.stem, found.norm, found.num_classes) == ("medium", "group", classes)
    first = ("params", "stem_conv", "kernel")
    np.testing.assert_array_equal(*(flatten_dict(tree)[first] for tree in (variables, saved)))
    assert variables["params"]["logits"]["kernel"].shape[-1] == classes
    assert ("logits/kernel" in capsys.readouterr().out) == (classes == 3)  # drawn anew, and said so
    with pytest.raises(ValueError, match="for images of 1 channel, not 32×32 and 3 channels"):
        classify.network(config, SimpleNamespace(num_classes=classes, image_shape=(32, 32, 3)))
