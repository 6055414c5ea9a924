import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import compiled, filled, outline

from cnn_jax import models
from cnn_jax.errors import InputError
from cnn_jax.models.efficientnet import depths

# Published by torchvision (docs, "Classification" table), and for the Lite forms by timm, in millions (results/).
PUBLISHED = {
    "efficientnet_b0": 5_288_548,
    "efficientnet_b1": 7_794_184,
    "efficientnet_b2": 9_109_994,
    "efficientnet_b3": 12_233_232,
    "efficientnet_b4": 19_341_616,
    "efficientnet_b5": 30_389_784,
    "efficientnet_b6": 43_040_704,
    "efficientnet_b7": 66_347_960,
    "efficientnet_lite0": 4.65,
    "efficientnet_lite1": 5.42,
    "efficientnet_lite2": 6.09,
    "efficientnet_lite3": 8.20,
    "efficientnet_lite4": 13.01,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name):
    parameters, _, _ = outline(models.create(name, num_classes=1000), 1, 32, 32, 3)
    assert PUBLISHED[name] == (round(parameters / 1e6, 2) if "lite" in name else parameters)


def test_stages():
    _, stages, variables = outline(models.create("efficientnet_lite2"), 1, 224, 260, 3)
    assert stages == {
        "stem": (112, 130, 32),
        "stage1": (112, 130, 16),
        "stage2": (56, 65, 24),
        "stage3": (28, 33, 48),
        "stage4": (14, 17, 88),
        "stage5": (14, 17, 120),
        "stage6": (7, 9, 208),
        "stage7": (7, 9, 352),
        "head": (7, 9, 1280),
        "pre_logits": (1280,),
        "logits": (10,),
    }
    assert not any("squeeze" in block for block in variables["params"].values())
    assert (depths(1.2, lite=True), depths(1.2, lite=False)) == ((1, 3, 3, 4, 4, 5, 1), (2, 3, 3, 4, 4, 5, 2))


@pytest.mark.slow
def test_drop_rates_are_off_in_evaluation_and_at_zero(key):
    images = jax.random.normal(key, (3, 32, 32, 3))
    model = models.create("efficientnet_lite0", norm="group")  # whose training differs by the drops alone
    variables = filled(model, images)

    def run(v, x):
        train = {"train": True, "rngs": {"dropout": key}}
        return (
            model.apply(v, x),
            model.apply(v, x, **train),
            model.clone(dropout=0.0).apply(v, x, **train),
            model.clone(dropout=0.0, stochastic_depth=0.0).apply(v, x, train=True),
        )

    plain, dropped, deep, none = compiled(run, variables, images)
    np.testing.assert_allclose(none, plain, atol=1e-4 * np.abs(plain).max())
    assert all(np.abs(logits - plain).max() > 0.01 * np.abs(plain).max() for logits in (dropped, deep, dropped - deep))
    assert plain.dtype == jnp.float32


def test_small_images_are_refused():
    with pytest.raises(InputError, match="efficientnet: images of 224×31 are smaller than its stride of 32"):
        outline(models.create("efficientnet_b3"), 1, 224, 31, 3)
