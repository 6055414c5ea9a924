import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import compiled, filled, outline

from cnn_jax import models
from cnn_jax.errors import InputError
from cnn_jax.models.vgg import VGG

# Published for ImageNet by torchvision (docs, "Classification" table).
PUBLISHED = {
    "vgg11": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "vgg11_bn": 132_868_840,
    "vgg13_bn": 133_053_736,
    "vgg16_bn": 138_365_992,
    "vgg19_bn": 143_678_248,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name):
    parameters, stages, _ = outline(models.create(name, num_classes=1000), 1, 224, 224, 3)
    assert parameters == PUBLISHED[name]
    assert stages == {
        "stage1": (224, 224, 64),
        "stage2": (112, 112, 128),
        "stage3": (56, 56, 256),
        "stage4": (28, 28, 512),
        "stage5": (14, 14, 512),
        "pre_logits": (4096,),
        "logits": (1000,),
    }


def test_the_head_for_small_images():
    _, stages, variables = outline(models.create("vgg16", head="average", norm="group"), 2, 32, 40, 1)
    params = variables["params"]
    assert stages["pre_logits"] == (512,)
    assert params["logits"]["kernel"].shape == (512, 10)
    assert sum("norm" in name for name in params) == 13
    plain = outline(models.create("vgg16", head="average"), 1, 32, 40, 1)[2]["params"]
    assert set(plain) == {name for name in params if "norm" not in name} >= {"stage1_conv1", "stage3_conv3"}
    assert "fc1" not in params


def test_a_stage_in_training(key):
    images = jax.random.normal(key, (4, 8, 8, 3))
    model = VGG((1,), norm="batch", head="average", activation="tanh")
    variables = filled(model, images)
    logits, state = compiled(lambda x: model.apply(variables, x, train=True, mutable=["batch_stats"]), images)
    conv, norm, dense = (variables["params"][name] for name in ("stage1_conv1", "stage1_norm1", "logits"))
    x = nn.Conv(64, (3, 3), padding=1).apply({"params": conv}, images)
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    x = (x - mean.reshape(1, 1, 1, -1)) / jnp.sqrt(var + 1e-5).reshape(1, 1, 1, -1)
    x = jnp.tanh(x * norm["scale"].reshape(1, 1, 1, -1) + norm["bias"].reshape(1, 1, 1, -1))
    x = x.reshape(4, 4, 2, 4, 2, 64).max((2, 4)).mean((1, 2))
    np.testing.assert_allclose(logits, x @ dense["kernel"] + dense["bias"].reshape(1, -1), atol=1e-4)
    before, after = (tree["batch_stats"]["stage1_norm1"]["mean"] for tree in (variables, state))
    np.testing.assert_allclose(after, 0.9 * before + 0.1 * mean, atol=1e-5)


def test_errors():
    model = models.create("vgg11")
    with pytest.raises(InputError, match="vgg: images of 31×40 are smaller than its stride of 32: use larger images"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 31, 40, 3)))
    with pytest.raises(InputError, match=r"vgg: images of shape \(32, 32, 3\), expected \[N,H,W,C\]"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.ones((32, 32, 3)))
    with pytest.raises(InputError, match="unknown activation 'rellu': did you mean 'relu'"):
        models.create("vgg11", activation="rellu")
    with pytest.raises(InputError, match="unknown option of vgg11_bn 'norm'"):
        models.create("vgg11_bn", norm="group")
