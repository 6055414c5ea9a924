"""What a script takes from an earlier run: a backbone that a classifier has trained."""

import json

import jax
import numpy as np
import pytest

from cnn_jax import tasks, training
from cnn_jax.errors import InputError
from cnn_jax.models.resnet import ResNet
from cnn_jax.models.simple_cnn import SimpleCNN
from cnn_jax.models.unet import UNet
from experiments.runs import with_backbone

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
    (folder / "model.json").write_text(json.dumps({"model": "resnet", "image_shape": [16, 16, 1]}))
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
        (UNet(**BACKBONE | {"width": 4}, widths=(4, 8), convs=1), "is not the backbone of this model"),
    ],
)
def test_models_that_it_does_not_fit(trained, model, sentence):
    with pytest.raises(InputError, match=sentence):
        with_backbone(model, trained[0], (16, 16, 1), seed=0)
