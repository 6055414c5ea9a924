import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax import models
from cnn_jax.models.resnet import BLOCKS, Block, ResNet

# Published for ImageNet by torchvision (docs, "Classification" table).
PUBLISHED = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
}


def tiny(**options):
    return ResNet(**{"depths": (1, 1, 1, 1), "block": "basic", "num_classes": 3, "width": 4, **options})


def shapes(model, size, **call):
    images = jnp.ones((2, size, size, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    _, state = jax.eval_shape(lambda v: model.apply(v, images, mutable=["intermediates"], **call), variables)
    return {name: value[0].shape[1:] for name, value in state["intermediates"].items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name):
    model = models.create(name, num_classes=1000, stem="large")
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 64, 64, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == PUBLISHED[name]


def test_stages_of_both_stems():
    assert shapes(models.create("resnet50", stem="large", num_classes=1000), 224) == {
        "stem": (56, 56, 64),
        "stage1": (56, 56, 256),
        "stage2": (28, 28, 512),
        "stage3": (14, 14, 1024),
        "stage4": (7, 7, 2048),
        "pre_logits": (2048,),
        "logits": (1000,),
    }
    small = shapes(models.create("resnet18"), 32)
    assert (small["stem"], small["stage1"], small["stage4"]) == ((32, 32, 64), (32, 32, 64), (4, 4, 512))


@pytest.mark.parametrize("block", BLOCKS)
def test_a_fresh_block_is_the_identity(block):
    def norm(x, *, name, **options):
        return nn.BatchNorm(use_running_average=False, name=name, **options)(x)

    x = jax.random.uniform(jax.random.key(0), (2, 5, 5, 4 * BLOCKS[block][-1][1]))
    fresh = Block(BLOCKS[block], width=4, stride=1, dilation=1, norm=norm, zero_init=True, dtype=jnp.float32)
    out, _ = jax.jit(fresh.init_with_output)(jax.random.key(1), x)
    np.testing.assert_array_equal(out, x)
    other, _ = jax.jit(fresh.clone(zero_init=False).init_with_output)(jax.random.key(1), x)
    assert np.abs(other - x).max() > 0.1


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_training_mode_and_bfloat16(norm):
    model = tiny(norm=norm, dtype=jnp.bfloat16, zero_init=False, depths=(1, 1))
    images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    variables = jax.jit(model.init)(jax.random.key(1), images)

    def train(model):
        return jax.jit(lambda x: model.apply(variables, x, train=True, mutable=["batch_stats"]))(images)

    logits, state = train(model)
    exact, _ = train(model.clone(dtype=jnp.float32))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, exact, atol=0.1 * float(jnp.abs(exact).max()))
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, state))} == {jnp.dtype("float32")}
    if norm == "group":
        assert "batch_stats" not in variables
        np.testing.assert_allclose(exact, jax.jit(model.clone(dtype=jnp.float32).apply)(variables, images), atol=1e-5)
    else:
        # torch's momentum of 0.1: a tenth of the way from 0 to the batch's mean.
        stem = nn.Conv(4, (3, 3), use_bias=False, padding=1).apply({"params": variables["params"]["stem_conv"]}, images)
        mean = state["batch_stats"]["stem_norm"]["mean"]
        np.testing.assert_allclose(mean, 0.1 * stem.mean((0, 1, 2)), atol=1e-3)


def test_batch_norm_over_a_pmap_axis_is_that_of_the_whole_batch():
    model = tiny(axis_name="devices", depths=(1,), zero_init=False)
    images = jax.random.normal(jax.random.key(0), (2, 3, 8, 8, 3))
    variables = jax.jit(model.clone(axis_name=None).init)(jax.random.key(1), images[0])

    def apply(model):
        return lambda x: model.apply(variables, x, train=True, mutable=["batch_stats"])[0]

    each = jax.pmap(apply(model), axis_name="devices")(images)
    whole = jax.jit(apply(model.clone(axis_name=None)))(images.reshape(6, 8, 8, 3))
    np.testing.assert_allclose(each.reshape(6, 3), whole, atol=1e-5)
