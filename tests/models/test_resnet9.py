import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import compiled, filled, outline

from cnn_jax import models
from cnn_jax.errors import InputError
from cnn_jax.models.resnet9 import ResNet9


def test_layers_and_stages():
    parameters, stages, _ = outline(models.create("resnet9"), 2, 32, 32, 3)
    # Kernels of 3·3·3·64, …, two numbers for each channel of eight norms, and 512·10.
    pairs = ((3, 64), (64, 128), (128, 128), (128, 128), (128, 256), (256, 512), (512, 512), (512, 512))
    expected = sum(9 * a * b + 2 * b for a, b in pairs) + 512 * 10
    assert parameters == expected == 6_573_120
    assert stages == {
        "stem": (32, 32, 64),
        "stage1": (16, 16, 128),
        "stage2": (8, 8, 256),
        "stage3": (4, 4, 512),
        "pre_logits": (512,),
        "logits": (10,),
    }


def test_logits_are_scaled_maxima(key):
    model = ResNet9(width=4, scale=0.5)
    images = jax.random.normal(key, (2, 8, 8, 3))
    variables = filled(model, images)
    logits, state = compiled(lambda x: model.apply(variables, x, mutable=["intermediates"]), images)
    stages = {name: value[0] for name, value in state["intermediates"].items()}
    np.testing.assert_array_equal(stages["pre_logits"], stages["stage3"].max((1, 2)))
    expected = 0.5 * stages["pre_logits"] @ variables["params"]["logits"]["kernel"]
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_with_group_norm_an_image_does_not_see_the_others(key):
    model = models.create("resnet9", width=4, norm="group")
    images = jax.random.normal(key, (3, 8, 8, 3))
    variables = filled(model, images)
    assert set(variables) == {"params"}

    def logits(images):
        return compiled(lambda x: model.apply(variables, x, train=True), images)

    np.testing.assert_allclose(logits(images)[:2], logits(images[:2]), rtol=1e-5, atol=1e-5)


def test_errors():
    with pytest.raises(InputError, match="resnet9: images of 7×7 are smaller than its stride of 8"):
        jax.eval_shape(ResNet9().init, jax.random.key(0), jnp.ones((1, 7, 7, 3)))
    with pytest.raises(InputError, match="unknown activation"):
        models.create("resnet9", activation="swish2")
    with pytest.raises(InputError, match="unknown norm 'layer'"):
        models.create("resnet9", norm="layer")
