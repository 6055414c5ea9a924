"""What a script takes from an earlier run: a backbone that a classifier has trained."""

import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from cnn_jax import models, tasks, training
from cnn_jax.errors import InputError
from cnn_jax.models.resnet import ResNet
from cnn_jax.models.simple_cnn import SimpleCNN
from cnn_jax.models.unet import UNet
from experiments.runs import load_published, load_run, start, with_backbone

BACKBONE = {"depths": (1, 1), "block": "basic", "stem": "medium", "width": 8}
MODEL = UNet(**BACKBONE, num_classes=3, widths=(4, 8), convs=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder, variables) of a classifier of grey images, one step old."""
    folder = tmp_path_factory.mktemp("classifier")
    rng = np.random.default_rng(0)
    digits = {
        "image": rng.integers(0, 256, (8, 16, 16, 1)).astype(np.uint8),
        "label": np.arange(8, dtype=np.int32) % 3,
    }
    checkpoints = training.Checkpoints(folder / "checkpoints")
    model = ResNet(**BACKBONE, num_classes=3)
    fit = training.fit(model, tasks.classify(3), digits, steps=1, batch_size=8, checkpoints=checkpoints)
    checkpoints.close()
    about = {"task": "classify", "model": "resnet18", "options": {}, "class_names": ["a", "b", "c"]}
    about |= {"image_shape": [16, 16, 1], "mean": [0.5], "std": [0.5], "form": None}
    (folder / "model.json").write_text(json.dumps(about))
    return folder, fit.state.variables


@pytest.mark.parametrize("channels", [1, 3])
def test_the_backbone_is_the_classifiers(trained, channels):
    """Also for coloured images, of which a backbone of grey ones sees the mean."""
    folder, variables = trained
    found = with_backbone(MODEL, folder, (16, 16, channels), seed=1)
    drawn = jax.jit(MODEL.init)(jax.random.key(1), np.zeros((1, 16, 16, channels), np.float32))
    np.testing.assert_array_equal(found["params"]["logits"]["kernel"], drawn["params"]["logits"]["kernel"])
    images = np.random.default_rng(1).normal(size=(2, 16, 16, channels)).astype(np.float32)
    backbone = {kind: tree["backbone"] for kind, tree in found.items()}
    stages = ResNet(**BACKBONE, head=False).apply(backbone, images)
    kept = {kind: {k: v for k, v in tree.items() if k != "logits"} for kind, tree in variables.items()}
    expected = ResNet(**BACKBONE, head=False).apply(kept, images.mean(-1, keepdims=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), stages, expected)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (SimpleCNN(), "SimpleCNN has no backbone"),
        (
            UNet(**BACKBONE | {"width": 4}, widths=(4, 8), convs=1),
            "is not the backbone of this model: .* differ; it fits fcos_resnet18_fpn, unet_resnet18$",
        ),
    ],
)
def test_models_that_it_does_not_fit(trained, model, sentence):
    with pytest.raises(InputError, match=sentence):
        with_backbone(model, trained[0], (16, 16, 1), seed=0)


def test_a_network_that_nothing_is_built_on(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run")
    about = json.loads((trained[0] / "model.json").read_text())
    (tmp_path / "run" / "model.json").write_text(json.dumps(about | {"model": "simple_cnn"}))
    with pytest.raises(InputError, match=r"differ; train one with python -m experiments\.classify --model resnet18$"):
        with_backbone(UNet(**BACKBONE | {"width": 4}, widths=(4, 8), convs=1), tmp_path / "run", (16, 16, 1), seed=0)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{}", "lacks class_names, image_shape, mean, model, options, std, task: train again in another folder"),
        ("[]", "lacks class_names, image_shape"),
        ("1", "lacks class_names, image_shape"),
        ('{"task": "detect"}', "lacks .*std, task_options: train again"),
        ("{", "is damaged"),
    ],
)
def test_a_run_that_does_not_say_what_it_is(trained, tmp_path, content, sentence):
    shutil.copytree(trained[0], tmp_path / "run")
    (tmp_path / "run" / "model.json").write_text(content)
    with pytest.raises(InputError, match=rf"model\.json {sentence}"):
        load_run(tmp_path / "run")


def weights(path, name, *shape, **options):
    model = models.create(name, **options)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, *shape), np.float32))
    return models.save_pretrained(model, jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes), path)


def test_published_weights_say_what_images_they_are_for(tmp_path):
    path = str(weights(tmp_path / "g28.safetensors", "simple_cnn", 28, 28, 1))
    about, _, _ = load_published("simple_cnn", path, 28)
    assert (about["image_shape"], len(about["mean"]), len(about["std"])) == ([28, 28, 1], 1, 1)
    with pytest.raises(InputError, match=r"g28\.safetensors are for images of 28×28 and 1 channel, not 32×32 and 1 ch"):
        load_published("simple_cnn", path, 32)


def test_weights_of_another_network_are_no_start(tmp_path):
    options = {"num_classes": 3}
    model = models.create("fcos_small", **options)

    def begin(shape, **others):
        path = weights(tmp_path / "net.safetensors", "fcos_small", 64, 64, 3, **options | others)
        return start(SimpleNamespace(model="fcos_small", weights=path, backbone=None), model, options, shape)

    assert set(begin((64, 64, 3))["params"]) >= {"backbone", "logits"}
    with pytest.raises(InputError, match=r"net\.safetensors is of another network: norm is 'group', not 'batch'$"):
        begin((64, 64, 3), norm="group")
    with pytest.raises(InputError, match="are for images of 3 channels, not 64×64 and 1 channel"):
        begin((64, 64, 1))
