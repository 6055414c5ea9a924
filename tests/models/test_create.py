import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax import models
from cnn_jax.errors import InputError


def test_names_are_sorted_and_hold_the_family():
    assert models.names() == sorted(models.names())
    assert {"simple_cnn", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"} <= set(models.names())


# One of each family: what differs between its members is a table.
FAMILIES = {(type(models.create(name)), "lite" in name): name for name in models.names()}


@pytest.mark.parametrize("name", FAMILIES.values())
def test_every_family_keeps_the_contract(name):
    model = models.create(name, num_classes=7, dtype=jnp.bfloat16)
    assert isinstance(model, nn.Module)
    images = jnp.ones((2, 32, 32, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    assert set(variables) <= {"params", "batch_stats"}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    outputs, state = jax.eval_shape(lambda v, x: model.apply(v, x, mutable=["intermediates"]), variables, images)
    assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {jnp.dtype("float32")}
    if name.startswith("fcos"):
        sides = [-(-32 // stride) for stride in model.strides]
        assert [level["logits"].shape for level in outputs] == [(2, side, side, 7) for side in sides]
        assert [level["distances"].shape for level in outputs] == [(2, side, side, 4) for side in sides]
        assert [level["centerness"].shape for level in outputs] == [(2, side, side) for side in sides]
    else:
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs
        shape = (2, 32, 32, 7) if name.startswith(("unet", "deeplab")) else (2, 7)
        assert logits.shape == state["intermediates"]["logits"][0].shape == shape
        if shape == (2, 7):  # README says so of all classifiers
            assert {"num_classes", "activation", "pooling", "padding", "dtype"} <= models.options_of(name)
    train = inspect.signature(type(model).__call__).parameters["train"]
    assert (train.kind, train.default) == (inspect.Parameter.KEYWORD_ONLY, False)


def test_unknown_names_and_options_name_the_nearest():
    with pytest.raises(InputError, match="unknown model 'resnt50': did you mean 'resnet50'"):
        models.create("resnt50")
    with pytest.raises(InputError, match="unknown option of resnet18 'num_class': did you mean 'num_classes'"):
        models.create("resnet18", num_class=3)
    with pytest.raises(InputError, match="unknown option of resnet18 'depths'"):
        models.create("resnet18", depths=(1, 1))
    with pytest.raises(InputError, match=r"unknown stem 'big'.*large, medium, small"):
        models.create("resnet18", stem="big")
    with pytest.raises(InputError, match="unknown norm 'bath': did you mean 'batch'"):
        models.create("resnet18", norm="bath")


def test_the_textbooks_network_with_a_norm_and_another_activation(key):
    """What tanh saw has a mean of 0 and a deviation of 1 in each channel, over the batch or over the image."""
    images = jax.random.normal(key, (4, 12, 12, 2))
    for norm, axes in (("batch", (0, 1, 2)), ("group", (1, 2))):
        net = models.create("simple_cnn", norm=norm, activation="tanh", dropout=0.0)
        variables = net.init(key, images)
        _, seen = net.apply(variables, images, train=True, mutable=["batch_stats", "intermediates"])
        before = np.arctanh(np.asarray(seen["intermediates"]["conv1"][0], np.float64))
        np.testing.assert_allclose(before.mean(axes), 0, atol=1e-4)
        np.testing.assert_allclose(before.std(axes), 1, atol=1e-2)
    with pytest.raises(InputError, match="norm 'bath': did you mean 'batch'"):
        models.create("simple_cnn", norm="bath")
