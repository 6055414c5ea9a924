import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import compiled, filled, outline

from cnn_jax import models
from cnn_jax.errors import InputError
from cnn_jax.models.resnet import ResNet

# Published for ImageNet by torchvision (docs, "Classification" table).
PUBLISHED = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext50_32x4d": 25_028_904,
    "wide_resnet50_2": 68_883_240,
}

# Millions in He et al. 2016, table 6, and in Zagoruyko & Komodakis 2016, table 5, as far as they are printed there.
OF_CIFAR = {"resnet20": (0.27, 2), "resnet56": (0.85, 2), "resnet110": (1.7, 1), "wide_resnet28_10": (36.5, 1)}


def tiny(**options):
    return ResNet(**{"depths": (1, 1, 1, 1), "block": "basic", "num_classes": 3, "width": 4, **options})


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name):
    parameters, _, _ = outline(models.create(name, num_classes=1000, stem="large"), 1, 64, 64, 3)
    assert parameters == PUBLISHED[name]


@pytest.mark.parametrize("name", OF_CIFAR)
def test_parameters_for_cifar_are_the_published_ones(name):
    parameters, _, _ = outline(models.create(name), 1, 32, 32, 3)
    millions, digits = OF_CIFAR[name]
    assert round(parameters / 1e6, digits) == millions


def test_stages_for_cifar():
    assert outline(models.create("wide_resnet16_4"), 1, 32, 32, 3)[1] == {
        "stem": (32, 32, 16),
        "stage1": (32, 32, 64),
        "stage2": (16, 16, 128),
        "stage3": (8, 8, 256),
        "pre_logits": (256,),
        "logits": (10,),
    }


def test_stages_of_both_stems():
    assert outline(models.create("resnet50", stem="large", num_classes=1000), 1, 224, 224, 3)[1] == {
        "stem": (56, 56, 64),
        "stage1": (56, 56, 256),
        "stage2": (28, 28, 512),
        "stage3": (14, 14, 1024),
        "stage4": (7, 7, 2048),
        "pre_logits": (2048,),
        "logits": (1000,),
    }
    _, small, _ = outline(models.create("resnet18"), 1, 32, 32, 3)
    assert (small["stem"], small["stage1"], small["stage4"]) == ((32, 32, 64), (32, 32, 64), (4, 4, 512))


def test_a_fresh_block_is_the_identity(key):
    images = jax.random.normal(key, (2, 4, 4, 3))

    def first_block(**options):
        model = ResNet((1,), "basic", width=4, head=False, **options)
        stages, variables = compiled(lambda: model.init_with_output(key, images))
        return stages, variables["params"]["stage1_block1"]["norm2"]["scale"]

    stages, scale = first_block()
    np.testing.assert_array_equal(stages["stage1"], stages["stem"])
    np.testing.assert_array_equal(scale, 0)
    stages, scale = first_block(zero_init=False)
    assert np.abs(stages["stage1"] - stages["stem"]).max() > 0.1
    np.testing.assert_array_equal(scale, 1)


def test_preactivated_blocks(key):
    """Zagoruyko & Komodakis 2016, figure 1: norm, ReLU, convolution; the way around begins behind the first."""
    model = ResNet((1, 1), "preactivated_x4", width=4, num_classes=3)
    images = jax.random.normal(key, (2, 8, 8, 3))
    variables = filled(model, images)

    def norm(x, *path):
        options = {kind: variables[kind] for kind in variables}
        for name in path:
            options = {kind: tree[name] for kind, tree in options.items()}
        return nn.relu(nn.BatchNorm(use_running_average=True).apply(options, x))

    def conv(x, params, stride=1):
        return jax.lax.conv_general_dilated(
            x, params["kernel"], (stride, stride), [(len(params["kernel"]) // 2,) * 2] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    def expected(images):
        params = variables["params"]
        x = conv(images, params["stem_conv"])
        for name, stride in (("stage1_block1", 1), ("stage2_block1", 2)):
            block = params[name]
            seen = norm(x, name, "norm1")
            inner = conv(norm(conv(seen, block["conv1"], stride), name, "norm2"), block["conv2"])
            x = inner + conv(seen, block["shortcut_conv"], stride)
        return norm(x, "norm").mean((1, 2)) @ params["logits"]["kernel"] + params["logits"]["bias"].reshape(1, -1)

    np.testing.assert_allclose(*compiled(lambda x: (model.apply(variables, x), expected(x)), images), atol=1e-4)


def test_padded_ways_around(key):
    """He et al. 2016, section 3.3, option A: every second pixel, and zeros for the new channels."""
    model = ResNet((1, 1), "basic_padded", width=4, head=False)
    images = jax.random.normal(key, (2, 8, 8, 3))
    variables = filled(model, images)
    block = variables["params"]["stage2_block1"]
    assert set(block) == {"conv1", "norm1", "conv2", "norm2"}
    block["norm2"] = jax.tree.map(np.zeros_like, block["norm2"])
    stages = compiled(lambda x: model.apply(variables, x), images)
    expected = np.pad(stages["stage1"][:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (0, 4)))
    np.testing.assert_array_equal(stages["stage2"], expected)


def test_small_images_are_refused():
    with pytest.raises(InputError, match="resnet: images of 31×31 are smaller than its stride of 32"):
        outline(models.create("resnet18", stem="large"), 1, 31, 31, 3)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_training_mode_and_bfloat16(norm):
    model = tiny(norm=norm, dtype=jnp.bfloat16, zero_init=False, depths=(1, 1))
    images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    variables = filled(model, images)

    def train(model):
        return compiled(lambda x: model.apply(variables, x, train=True, mutable=["batch_stats"]), images)

    logits, state = train(model)
    exact, _ = train(model.clone(dtype=jnp.float32))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, exact, atol=0.1 * float(jnp.abs(exact).max()))
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, state))} == {jnp.dtype("float32")}
    if norm == "group":
        assert "batch_stats" not in variables
        np.testing.assert_allclose(exact, compiled(model.clone(dtype=jnp.float32).apply, variables, images), atol=1e-5)
    else:
        # torch's momentum of 0.1: a tenth of the way to the batch's mean.
        stem = nn.Conv(4, (3, 3), use_bias=False, padding=1).apply({"params": variables["params"]["stem_conv"]}, images)
        before, mean = (tree["batch_stats"]["stem_norm"]["mean"] for tree in (variables, state))
        np.testing.assert_allclose(mean, 0.9 * before + 0.1 * stem.mean((0, 1, 2)), atol=1e-3)


def test_batch_norm_over_a_pmap_axis_is_that_of_the_whole_batch():
    model = tiny(axis_name="devices", depths=(1,), zero_init=False)
    images = jax.random.normal(jax.random.key(0), (2, 3, 8, 8, 3))
    variables = filled(model.clone(axis_name=None), images[0])

    def apply(model):
        return lambda x: model.apply(variables, x, train=True, mutable=["batch_stats"])[0]

    each = jax.pmap(apply(model), axis_name="devices")(images)
    whole = compiled(apply(model.clone(axis_name=None)), images.reshape(6, 8, 8, 3))
    np.testing.assert_allclose(each.reshape(6, 3), whole, atol=1e-5)
