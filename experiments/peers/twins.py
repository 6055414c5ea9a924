"""Classifiers of the zoo beside torchvision's and timm's with the same random weights, for `experiments.parity`."""

import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
from torch import nn

from cnn_jax import models
from cnn_jax.models.convnext import CONVNEXTS
from cnn_jax.models.vgg import VGGS
from experiments.peers.torch_models import import_torchvision


class Twin(NamedTuple):
    """A network as another library has it."""

    library: str
    """torchvision or timm."""
    name: str
    """There."""
    theirs: dict[str, Any]
    """Options that leave nothing random in training…"""
    ours: dict[str, Any]
    """… and those of the same network here."""


def _torchvision(names, theirs=None, ours=None) -> dict[str, Twin]:
    return {name: Twin("torchvision", name, theirs or {}, ours or {}) for name in names}


_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d")
_SCALED = {"dropout": 0.0, "stochastic_depth": 0.0}
TWINS = {
    **_torchvision(VGGS, {"dropout": 0.0}, {"dropout": 0.0}),
    **_torchvision((*_RESNETS, "wide_resnet50_2"), {}, {"stem": "large"}),
    **_torchvision(CONVNEXTS, {"stochastic_depth_prob": 0.0}, {"stochastic_depth": 0.0}),
    **_torchvision(("mobilenet_v2",), {"dropout": 0.0}, {"dropout": 0.0}),
    **_torchvision(
        [f"efficientnet_b{i}" for i in range(8)], {"dropout": 0.0, "stochastic_depth_prob": 0.0}, _SCALED
    ),
    **{
        f"efficientnet_lite{i}": Twin("timm", f"tf_efficientnet_lite{i}", {}, _SCALED | {"padding": "same"})
        for i in range(5)
    },
}  # fmt: skip


def create(twin: Twin, *, num_classes: int) -> nn.Module:
    """The other library's, randomised."""
    torchvision = import_torchvision()
    if twin.library == "torchvision":
        network = getattr(torchvision.models, twin.name)(num_classes=num_classes, **twin.theirs)
    else:
        import timm  # it needs torchvision, as that is imported above

        network = timm.create_model(twin.name, num_classes=num_classes, **twin.theirs)
    return randomise(network)


def randomise(network: nn.Module) -> nn.Module:
    """Statistics, scales and biases as training might leave them, rather than zeros and ones.

    What a residual block adds is small beside what it is given: else 150 layers make any rounding a hundred thousand
    times as large, in either library.
    """
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
    for name, parameter in network.named_parameters():
        if name.endswith("layer_scale"):
            nn.init.uniform_(parameter, 0.2, 1)
        elif parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5) if name.endswith("weight") else nn.init.normal_(parameter, 0, 0.2)
    for block in network.modules():
        if hasattr(block, "downsample") and hasattr(block, "bn2"):  # of a ResNet
            with torch.no_grad():
                getattr(block, "bn3", block.bn2).weight *= 0.2
    return network


def converted(name: str, network: nn.Module, **options) -> dict:
    """Its weights as our variables, on the way that pretrained weights take: through a file."""
    with tempfile.TemporaryDirectory() as folder:
        torch.save(network.state_dict(), Path(folder, "weights.pth"))
        return models.load_pretrained(name, Path(folder, "weights.pth"), **options)


def logits(names: Iterable[str]) -> Iterator[tuple[tuple[str, str], tuple[np.ndarray, np.ndarray]]]:
    """((name, what), (ours, theirs)), f32[2,20] each, of `TWINS` in evaluation and in training.

    From 64 × 70 pixels the last stages get few, so that in training batch norm takes its statistics of a handful.
    """
    images = np.random.default_rng(0).normal(size=(2, 64, 70, 3)).astype(np.float32)
    theirs = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    options = {"xla_backend_optimization_level": "0"}  # each runs once, and compiles in a fraction of the time
    for name in names:
        network, ours = create(TWINS[name], num_classes=20), TWINS[name].ours
        model, variables = models.create(name, num_classes=20, **ours), converted(name, network, **ours)
        for train, what in ((False, "zoo logits"), (True, "zoo logits in training")):
            apply = jax.jit(partial(model.apply, train=train, mutable=["batch_stats"]))
            found, _ = apply.lower(variables, images).compile(options)(variables, images)
            with torch.no_grad():
                yield (name, what), (np.asarray(found), network.train(train)(theirs).numpy())
