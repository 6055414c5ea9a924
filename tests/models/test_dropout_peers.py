"""How often networks leave something out in training, beside torchvision's: no logits tell it where all is kept."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
import torch

from cnn_jax import models
from experiments.peers.torch_models import import_torchvision

pytestmark = pytest.mark.peers


def rates(model):
    """Those of the dropouts that a training step goes through, in their order."""
    found = []

    def note(call, args, kwargs, context):
        if isinstance(context.module, nn.Dropout):
            found.append(context.module.rate)
        return call(*args, **kwargs)

    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    with nn.intercept_methods(note):
        jax.eval_shape(lambda: model.init(keys, jnp.zeros((1, 64, 64, 3)), train=True))
    return [rate for rate in found if rate]


def torchvision_rates(name):
    with torch.device("meta"):
        network = getattr(import_torchvision().models, name)()
    found = []
    for module in network.modules():
        if hasattr(module, "stochastic_depth"):
            found += [module.stochastic_depth.p] * getattr(module, "use_res_connect", True)
        elif isinstance(module, torch.nn.Dropout):
            found.append(module.p)
    return [rate for rate in found if rate]


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_b0", "efficientnet_b3", "convnext_tiny", "vgg11"])
def test_rates_are_torchvisions(name):
    assert rates(models.create(name)) == pytest.approx(torchvision_rates(name))


@pytest.mark.parametrize("member", range(8))
def test_rates_before_the_logits_are_torchvisions(member):
    name = f"efficientnet_b{member}"
    assert models.create(name).published_dropout == torchvision_rates(name)[-1]
