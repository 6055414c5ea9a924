"""Weights that PyTorch trained, for the same network here.

A family of networks needs a `Source`: how PyTorch's names follow from ours, and what its tensors say of the network.
Layouts follow from the kind of parameter.
"""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cnn_jax.errors import InputError
from cnn_jax.models.catalogue import MODELS, create
from cnn_jax.models.deeplab import DeepLabV3
from cnn_jax.models.fcos import FCOS
from cnn_jax.models.resnet import ResNet
from cnn_jax.models.simple_cnn import SimpleCNN
from cnn_jax.models.torch_files import read_tensors


class Source(NamedTuple):
    """Where a family's weights come from.

    Attributes:
        names: pairs for `re.sub`, applied in turn to a path such as "stage1_block1/norm2/scale".
        infer: state dict -> (options of the network, shape (H,W,C) of an image that fits it).
        after_flatten: dense layers that take flattened images -> how many times smaller these are than the input.
    """

    names: tuple[tuple[str, str | Callable[[re.Match], str]], ...]
    infer: Callable[[dict[str, np.ndarray]], tuple[dict[str, object], tuple[int, int, int]]]
    after_flatten: dict[str, int] = {}  # noqa: RUF012


def _infer_simple_cnn(tensors):
    places = tensors["fc1.weight"].shape[1] // tensors["conv2.weight"].shape[0]
    side = 4 * math.isqrt(places)
    return {"num_classes": len(tensors["fc2.weight"])}, (side, side, tensors["conv1.weight"].shape[1])


def _infer_resnet(tensors):
    width, channels, side, _ = tensors["conv1.weight"].shape
    return {
        "num_classes": len(tensors["fc.weight"]),
        "stem": "large" if side == 7 else "small",
        "norm": "batch" if "bn1.running_mean" in tensors else "group",
        "width": width,
    }, (64, 64, channels)


def _infer_fcos(tensors):
    body = {key.removeprefix("backbone.body."): value for key, value in tensors.items()}
    options, shape = _infer_resnet(body | {"fc.weight": tensors["head.classification_head.cls_logits.weight"]})
    return options | {
        "channels": len(tensors["backbone.fpn.layer_blocks.0.0.weight"]),
        "extra_levels": sum(key.startswith("backbone.fpn.extra_blocks.p") for key in tensors) // 2,
        "depth": sum(key.startswith("head.classification_head.conv.") for key in tensors) // 4,
    }, shape


def _infer_deeplab(tensors):
    body = {key.removeprefix("backbone."): value for key, value in tensors.items()}
    options, shape = _infer_resnet(body | {"fc.weight": tensors["classifier.4.weight"]})
    return options | {"auxiliary": "aux_classifier.0.weight" in tensors}, shape


def _tower(match: re.Match) -> str:
    """A tower is a row of convolution, norm and ReLU, three of PyTorch's modules each time."""
    place = 3 * int(match[3]) - 3 + (match[2] == "norm")
    return f"head.{'classification' if match[1] == 'classes' else 'regression'}_head.conv.{place}/"


_RESNET = (
    (r"stem_(conv|norm)/", r"\g<1>1/"),
    (r"stage(\d)_block(\d+)/", lambda match: f"layer{match[1]}.{int(match[2]) - 1}/"),
    (r"shortcut_conv/", "downsample.0/"),
    (r"shortcut_norm/", "downsample.1/"),
    (r"norm(\d)/", r"bn\1/"),
)

SOURCES = {
    SimpleCNN: Source(
        names=((r"^logits/", "fc2/"),),
        infer=_infer_simple_cnn,
        after_flatten={"fc1": 4},
    ),
    # torchvision's names, which timm has for the ResNets too
    ResNet: Source(names=(*_RESNET, (r"^logits/", "fc/")), infer=_infer_resnet),
    FCOS: Source(
        names=(
            (r"^(classes|box)/(conv|norm)(\d)/", _tower),
            (r"^logits/", "head.classification_head.cls_logits/"),
            (r"^distances/", "head.regression_head.bbox_reg/"),
            (r"^centerness/", "head.regression_head.bbox_ctrness/"),
            (r"^pyramid/(inner|layer)(\d)/", lambda match: f"backbone.fpn.{match[1]}_blocks.{int(match[2]) - 1}.0/"),
            (r"^pyramid/extra(\d)/", lambda match: f"backbone.fpn.extra_blocks.p{int(match[1]) + 5}/"),
            *_RESNET,
            (r"^backbone/", "backbone.body/"),
        ),
        infer=_infer_fcos,
    ),
    DeepLabV3: Source(
        names=(
            (r"^aspp(\d)_(conv|norm)/", lambda m: f"classifier.0.convs.{int(m[1]) - 1}.{int(m[2] == 'norm')}/"),
            (r"^aspp_pool_(conv|norm)/", lambda m: f"classifier.0.convs.4.{1 + int(m[1] == 'norm')}/"),
            (r"^aspp_project_(conv|norm)/", lambda m: f"classifier.0.project.{int(m[1] == 'norm')}/"),
            (r"^head_(conv|norm)/", lambda m: f"classifier.{1 + int(m[1] == 'norm')}/"),
            (r"^logits/", "classifier.4/"),
            (r"^aux_(conv|norm)/", lambda m: f"aux_classifier.{int(m[1] == 'norm')}/"),
            (r"^aux_logits/", "aux_classifier.4/"),
            *_RESNET,
        ),
        infer=_infer_deeplab,
    ),
}

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


# Dimensions in the order in which we keep them: IO of a dense kernel's OI, HWIO of a convolution's OIHW.
_FROM_TORCH = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}


def load_pretrained(
    name: str, path: str | Path, *, image_shape: tuple[int, int, int] | None = None, **options
) -> dict[str, dict]:
    """The variables, as float32, of the network `name` from a PyTorch state dict of the same network.

        variables = models.load_pretrained("resnet50", "resnet50.pth")
        model = models.create("resnet50", stem="large", num_classes=1000)
        logits = model.apply(variables, images)

    The file is a `.pth` or `.pt` of `torch.save` or a `.safetensors`; see `torch_files.read_tensors`. Neither PyTorch
    nor code in the file is needed or run. ResNets have torchvision's names; SimpleCNN has conv1, conv2, fc1 and fc2.

    Args:
        name: as for `create`.
        path: the file.
        image_shape: (H,W,C) of the images, for a SimpleCNN trained on other than square ones.
        options: as for `create`. Where they do not say, the file does: `num_classes`, and `stem`, `norm`, `width`.

    Raises:
        InputError: no such network or option; the file cannot be read; or its tensors are not this network's.
    """
    create(name, **options)  # complains of a wrong name or option before anything is read
    family = MODELS[name].func
    if family not in SOURCES:
        raise InputError(f"load_pretrained: PyTorch's names for the tensors of {name} are not known")
    source = SOURCES[family]
    tensors = {key: value for key, value in read_tensors(path).items() if not key.endswith(".num_batches_tracked")}
    try:
        inferred, inferred_shape = source.infer(tensors)
    except (LookupError, ValueError, TypeError, ArithmeticError) as error:
        raise InputError(f"the tensors in {path} are not those of {name}; it has {_some(list(tensors))}") from error
    model = create(name, **{**inferred, **options})
    height, width, channels = image_shape or inferred_shape
    template = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, height, width, channels))))

    leaves = flatten_dict(template)
    keys = {path: _torch_name("/".join(path[1:]), source) for path in leaves}
    problems = {
        "missing": [key for key in keys.values() if key not in tensors],
        "left over": sorted(set(tensors) - set(keys.values())),
        "of another shape": [
            f"{key} {tensors[key].shape}, expected {_torch_shape(leaves[path].shape)}"
            for path, key in keys.items()
            if key in tensors and tensors[key].shape != _torch_shape(leaves[path].shape)
        ],
    }
    if any(problems.values()):
        listed = "; ".join(f"{kind}: {_some(found)}" for kind, found in problems.items() if found)
        hint = " (if its images are not square, give image_shape)" if source.after_flatten and not image_shape else ""
        raise InputError(f"the tensors in {path} are not those of {name}; {listed}{hint}")

    variables = {}
    for path, key in keys.items():
        tensor = tensors[key].astype(np.float32)
        if path[1] in source.after_flatten and path[-1] == "kernel":
            shrunk = source.after_flatten[path[1]]
            # PyTorch flattens [C,H,W], we flatten [H,W,C].
            tensor = tensor.reshape(len(tensor), -1, height // shrunk, width // shrunk).transpose(0, 2, 3, 1)
            tensor = tensor.reshape(len(tensor), -1)
        variables[path] = jnp.asarray(tensor.transpose(_FROM_TORCH[tensor.ndim]))
    return unflatten_dict(variables)


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[_FROM_TORCH[len(shape)].index(i)] for i in range(len(shape)))


def _torch_name(path: str, source: Source) -> str:
    for pattern, replacement in source.names:
        path = re.sub(pattern, replacement, path)
    *modules, leaf = path.split("/")
    return ".".join([*modules, LEAVES[leaf]])


def _some(items: list[str]) -> str:
    return ", ".join(items[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")
