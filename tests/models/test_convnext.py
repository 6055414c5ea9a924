import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import compiled, filled, outline

from cnn_jax import models
from cnn_jax.errors import InputError
from cnn_jax.models.convnext import Block, ConvNeXt

# Published for ImageNet by torchvision (docs, "Classification" table).
PUBLISHED = {
    "convnext_tiny": 28_589_128,
    "convnext_small": 50_223_688,
    "convnext_base": 88_591_464,
    "convnext_large": 197_767_336,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name):
    model = models.create(name, num_classes=1000)
    parameters, stages, _ = outline(model, 1, 224, 224, 3)
    assert parameters == PUBLISHED[name]
    width = model.width
    assert stages == {
        "stem": (56, 56, width),
        "stage1": (56, 56, width),
        "stage2": (28, 28, 2 * width),
        "stage3": (14, 14, 4 * width),
        "stage4": (7, 7, 8 * width),
        "pre_logits": (8 * width,),
        "logits": (1000,),
    }


def test_stochastic_depth_drops_whole_examples(key):
    x = jax.random.normal(key, (32, 2, 2, 4))
    block = Block(nn.relu, "torch", 0.0, 1.0, jnp.float32)
    variables = filled(block, x)
    drops = block.clone(rate=0.25)
    whole, added = compiled(
        lambda x: (block.apply(variables, x) - x, drops.apply(variables, x, rngs={"dropout": key}) - x), x
    )
    dropped = np.abs(added).max((1, 2, 3)) == 0
    assert 0 < dropped.sum() < 16
    # What is kept is scaled up, so that the mean stays.
    np.testing.assert_allclose(added[~dropped], whole[~dropped] / 0.75, atol=1e-4)


def test_training_is_evaluation_without_stochastic_depth(key):
    model = ConvNeXt((1, 1), 4, stochastic_depth=0.0)
    images = jax.random.normal(key, (2, 8, 12, 3))
    variables = filled(model, images)
    evaluated, trained, rough = compiled(
        lambda x: (
            model.apply(variables, x),
            model.apply(variables, x, train=True),
            model.clone(dtype=jnp.bfloat16).apply(variables, x),
        ),
        images,
    )
    np.testing.assert_array_equal(evaluated, trained)
    assert rough.dtype == np.float32
    np.testing.assert_allclose(rough, evaluated, atol=0.05 * np.abs(evaluated).max())


def test_errors():
    with pytest.raises(InputError, match="convnext: images of 28×28 are smaller than its stride of 32"):
        jax.eval_shape(models.create("convnext_tiny").init, jax.random.key(0), jnp.ones((1, 28, 28, 1)))
    with pytest.raises(InputError, match="unknown activation 'gelo': did you mean 'gelu'"):
        models.create("convnext_tiny", activation="gelo")
