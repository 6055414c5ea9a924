"""The networks by name."""

import dataclasses
from functools import partial

import flax.linen as nn

from cnn_jax.errors import InputError, unknown
from cnn_jax.models.convnext import CONVNEXTS, ConvNeXt
from cnn_jax.models.deeplab import DEEPLABS, DeepLabV3
from cnn_jax.models.efficientnet import EFFICIENTNETS, EfficientNet
from cnn_jax.models.fcos import DETECTORS, FCOS
from cnn_jax.models.mobilenet import MobileNetV2
from cnn_jax.models.resnet import CIFAR, FAMILY, RELATIVES, ResNet
from cnn_jax.models.resnet9 import ResNet9
from cnn_jax.models.simple_cnn import SimpleCNN
from cnn_jax.models.unet import UNETS, UNet
from cnn_jax.models.unet_guided import GUIDED, GuidedUNet
from cnn_jax.models.vgg import VGG, VGGS

# Name -> the class of the network and, for a member of a family, what makes it that member.
MODELS = {
    "simple_cnn": partial(SimpleCNN),
    "resnet9": partial(ResNet9),
    **{name: partial(VGG, **member) for name, member in VGGS.items()},
    **{name: partial(ResNet, **member) for name, member in (FAMILY | RELATIVES | CIFAR).items()},
    **{name: partial(ConvNeXt, **member) for name, member in CONVNEXTS.items()},
    "mobilenet_v2": partial(MobileNetV2),
    **{name: partial(EfficientNet, **member) for name, member in EFFICIENTNETS.items()},
    **{name: partial(FCOS, **member) for name, member in DETECTORS.items()},
    **{name: partial(UNet, **member) for name, member in UNETS.items()},
    **{name: partial(GuidedUNet, **member) for name, member in GUIDED.items()},
    **{name: partial(DeepLabV3, **member) for name, member in DEEPLABS.items()},
}


def names() -> list[str]:
    """The names that `create` knows, sorted."""
    return sorted(MODELS)


def options_of(name: str) -> set[str]:
    """The options that `create` takes for that network, such as "norm"; those that make it this member are none.

    Raises:
        InputError: no such network.
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    member = MODELS[name]
    return {field.name for field in dataclasses.fields(member.func)} - {"parent", "name", *member.keywords}


def create(name: str, **options) -> nn.Module:
    """The network of that name. Its options are the attributes of its class, such as `num_classes` and `dtype`.

    Raises:
        InputError: no such network, or it has no such option, or less than one class.
    """
    known = options_of(name)
    for option in options:
        if option not in known:
            raise unknown(f"option of {name}", option, known)
    if options.get("num_classes", 1) < 1:
        raise InputError(f"num_classes is {options['num_classes']}: it must be 1 or more")
    return MODELS[name](**options)
