import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import compiled, filled, outline

from cnn_jax import models
from cnn_jax.errors import InputError
from cnn_jax.models.mobilenet import InvertedResidual, rounded, units

# Published by torchvision (docs, "MobileNet_V2_Weights"), and for other widths by timm, in millions (results/).
PUBLISHED = 3_504_872
OTHER_WIDTHS = {0.5: 1.97, 1.4: 6.11}


def test_parameters_and_stages():
    parameters, stages, _ = outline(models.create("mobilenet_v2", num_classes=1000), 1, 224, 224, 3)
    assert parameters == PUBLISHED
    assert stages == {
        "stem": (112, 112, 32),
        "stage1": (112, 112, 16),
        "stage2": (56, 56, 24),
        "stage3": (28, 28, 32),
        "stage4": (14, 14, 64),
        "stage5": (14, 14, 96),
        "stage6": (7, 7, 160),
        "stage7": (7, 7, 320),
        "head": (7, 7, 1280),
        "pre_logits": (1280,),
        "logits": (1000,),
    }


@pytest.mark.parametrize("width", OTHER_WIDTHS)
def test_other_widths(width):
    parameters, _, _ = outline(models.create("mobilenet_v2", num_classes=1000, width=width), 1, 32, 32, 3)
    assert round(parameters / 1e6, 2) == OTHER_WIDTHS[width]


def test_channels_are_rounded_to_eights():
    # 11.9 is nearer to 8, 18 to 16 and 27 to 24, which would take away more than a tenth.
    assert [rounded(channels) for channels in (1, 11.9, 12, 18, 26, 27, 350)] == [8, 16, 16, 24, 24, 32, 352]
    assert rounded(17.7) == 16


def linen_block(variables, x, *, stride, groups, padding):
    """Inverted residual with squeeze and excitation, in evaluation, of Linen's own layers."""
    params, stats = variables["params"], variables["batch_stats"]

    def unit(x, name, side=1, **options):
        conv = nn.Conv(params[f"{name}_conv"]["kernel"].shape[-1], (side, side), use_bias=False, **options)
        norm = nn.BatchNorm(use_running_average=True, epsilon=1e-3)
        x = conv.apply({"params": params[f"{name}_conv"]}, x)
        return norm.apply({"params": params[f"{name}_norm"], "batch_stats": stats[f"{name}_norm"]}, x)

    x = nn.relu6(unit(x, "expand"))
    x = nn.relu6(unit(x, "depthwise", 3, strides=stride, feature_group_count=groups, padding=padding))
    weights = x.mean((1, 2))
    for name, activation in (("squeeze", nn.silu), ("excite", nn.sigmoid)):
        weights = activation(weights @ params[name]["kernel"][0, 0] + params[name]["bias"].reshape(1, -1))
    return unit(x * weights[:, None, None], "project")


@pytest.mark.parametrize(("stride", "padding"), [(1, "torch"), (2, "torch"), (2, "same")])
def test_an_inverted_residual(key, stride, padding):
    unit = units(False, "batch", "relu6", "max", None, jnp.float32, padding=padding, epsilon=1e-3)
    block = InvertedResidual(unit, features=8, expansion=3, stride=stride, squeeze=2)
    x = jax.random.normal(key, (2, 8, 10, 8))
    variables = filled(block, x)
    found = compiled(block.apply, variables, x)
    pads = {"torch": 1, "same": "SAME"}[padding]
    expected = linen_block(variables, x, stride=stride, groups=24, padding=pads)
    np.testing.assert_allclose(found, expected + x if stride == 1 else expected, atol=1e-5)


def test_stochastic_depth(key):
    """An example goes through the block, and is made up for those that do not, or around it."""
    unit = units(False, "group", "silu", "max", None, jnp.float32)
    block = InvertedResidual(unit, features=8, expansion=1, stride=1, drop=0.75)
    x = jax.random.normal(key, (64, 2, 2, 8))
    variables = filled(block, x)
    found = compiled(lambda v, x: block.apply(v, x, rngs={"dropout": key}), variables, x)
    whole = compiled(block.clone(drop=0.0).apply, variables, x)
    through = np.abs(found - x).max((1, 2, 3)) > 0
    assert 5 < through.sum() < 30
    np.testing.assert_allclose(found[through], (x + 4 * (whole - x))[through], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_training(key, norm):
    """In bfloat16 about the same as in float32; the running statistics move, and nothing else."""
    model = models.create("mobilenet_v2", norm=norm, width=0.25, activation="silu")
    # Of 32×32 pixels the last stages have one, whose groups are so few numbers that bfloat16's rounding grows there.
    images = jax.random.normal(key, (4, 64, 64, 1))
    variables = jax.jit(model.init).lower(key, images).compile({"xla_backend_optimization_level": "0"})(key, images)

    def train(dtype, dropout):
        run = model.clone(dtype=dtype, dropout=dropout).apply
        return compiled(
            lambda v, x: run(v, x, train=True, rngs={"dropout": key}, mutable=["batch_stats"]), variables, images
        )

    exact, state = train(jnp.float32, 0.0)
    assert exact.dtype == np.float32
    assert (set(state), "batch_stats" in variables) == (({"batch_stats"}, True) if norm == "batch" else (set(), False))
    if norm == "group":
        half, _ = train(jnp.bfloat16, 0.0)
        assert half.dtype == np.float32
        np.testing.assert_allclose(half, exact, atol=0.1 * np.abs(exact).max())
    else:
        dropped, _ = train(jnp.float32, 0.9)
        assert np.abs(dropped - exact).max() > 0.1 * np.abs(exact).max()


def test_what_is_refused():
    with pytest.raises(InputError, match="mobilenet: images of 28×28 are smaller than its stride of 32"):
        outline(models.create("mobilenet_v2"), 1, 28, 28, 1)
    with pytest.raises(InputError, match="unknown activation 'rleu6': did you mean 'relu6'"):
        models.create("mobilenet_v2", activation="rleu6")
    with pytest.raises(InputError, match="unknown norm 'layer'"):
        models.create("efficientnet_b0", norm="layer")
    with pytest.raises(InputError, match="a width of 0, expected one above 0"):
        models.create("mobilenet_v2", width=0)
