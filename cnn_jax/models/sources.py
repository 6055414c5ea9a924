"""What PyTorch's libraries call the tensors of each family of networks here, by rules instead of lists.

A family needs a `Source` for each library whose weights it is to take: how the library's names follow from ours, and
what the shapes of its tensors say of the network. Layouts follow from the kind of parameter.
"""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import numpy as np

from cnn_jax.models.convnext import ConvNeXt
from cnn_jax.models.deeplab import DeepLabV3
from cnn_jax.models.efficientnet import EfficientNet, depths
from cnn_jax.models.fcos import FCOS
from cnn_jax.models.mobilenet import STAGES as MOBILE_STAGES
from cnn_jax.models.mobilenet import MobileNetV2
from cnn_jax.models.resnet import ResNet
from cnn_jax.models.resnet9 import ResNet9
from cnn_jax.models.simple_cnn import SimpleCNN
from cnn_jax.models.vgg import VGG

Rules = tuple[tuple[str, str | Callable[[re.Match], str]], ...]


class Source(NamedTuple):
    """Names and layouts of a family's tensors, as one library has them.

    Attributes:
        names: pairs for `re.sub`, applied in turn to a path of ours, such as "stage1_block1/norm2/scale". Its last part
            becomes one of PyTorch's by `LEAVES` where no rule has changed it. Where they depend on the network's
            attributes, a function of the network.
        infer: state dict -> (options of the network that it or the library tells, shape (H,W,C) of an image that fits
            it). A state dict of another family or library makes it raise LookupError or ValueError.
        after_flatten: path of a dense layer that takes flattened images -> how many times smaller these are than the
            input, or their size (h, w).
        behind: pairs (pattern that a name of theirs is searched for, sizes into which its last dimension is cut there
            behind what is left of it): a dense layer may be a convolution, whose kernel covers the whole map.
        by_padding: where the library has networks of either `padding` with the same tensors: padding -> the options
            that go with it there.
    """

    names: Rules | Callable[[nn.Module], Rules]
    infer: Callable[[dict[str, np.ndarray]], tuple[dict[str, object], tuple[int, int, int]]]
    after_flatten: dict[str, int | tuple[int, int]] = {}  # noqa: RUF012
    behind: tuple[tuple[str, tuple[int, int]], ...] = ()
    by_padding: dict[str, dict[str, object]] = {}  # noqa: RUF012

    def of(self, model: nn.Module) -> "Source":
        """The names and layouts for one network of the family."""
        names = self.names(model) if callable(self.names) else self.names
        flattens = getattr(model, "head", None) == "flatten"
        return self._replace(names=names, after_flatten=self.after_flatten if flattens else {})

    def name(self, path: str) -> str:
        """The name there of our parameter or statistic "module/…/leaf"."""
        for pattern, replacement in self.names:
            path = re.sub(pattern, replacement, path)
        *modules, leaf = path.split("/")
        return ".".join([*modules, LEAVES.get(leaf, leaf)])

    def torch_shape(self, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape there of our array of that path and shape."""
        order = _FROM_TORCH[len(shape)]
        return self._cut(path, tuple(shape[order.index(i)] for i in range(len(shape))))

    def from_torch(self, path: str, tensor: np.ndarray, image: tuple[int, int]) -> np.ndarray:
        """A tensor of theirs in our layout, for images of height and width `image`."""
        if behind := self._behind(path):
            tensor = tensor.reshape(*tensor.shape[: -len(behind) - 1], -1)
        if size := self._flattened(path, image):
            # PyTorch flattens [C,H,W], we flatten [H,W,C].
            tensor = tensor.reshape(len(tensor), -1, *size).transpose(0, 2, 3, 1).reshape(len(tensor), -1)
        return tensor.transpose(_FROM_TORCH[tensor.ndim])

    def to_torch(self, path: str, array: np.ndarray, image: tuple[int, int]) -> np.ndarray:
        """The inverse of `from_torch`."""
        tensor = array.transpose(np.argsort(_FROM_TORCH[array.ndim]))
        if size := self._flattened(path, image):
            tensor = tensor.reshape(len(tensor), *size, -1).transpose(0, 3, 1, 2).reshape(len(tensor), -1)
        return np.ascontiguousarray(tensor.reshape(self._cut(path, tensor.shape)))

    def _behind(self, path: str) -> tuple[int, ...]:
        name = self.name(path)
        return next((sizes for pattern, sizes in self.behind if re.search(pattern, name)), ())

    def _cut(self, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        behind = self._behind(path)
        return (*shape[:-1], shape[-1] // math.prod(behind), *behind) if behind else shape

    def _flattened(self, path: str, image: tuple[int, int]) -> tuple[int, int] | None:
        """The size of what a dense layer's kernel takes flattened; None of all other arrays."""
        module, _, leaf = path.rpartition("/")
        size = self.after_flatten.get(module) if leaf == "kernel" else None
        return (image[0] // size, image[1] // size) if isinstance(size, int) else size


LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}

# Dimensions in the order in which we keep them: IO of a dense kernel's OI, HWIO of a convolution's OIHW.
_FROM_TORCH = {0: (), 1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}


def _classes(tensors, head):
    return {"num_classes": len(tensors[head])} if head in tensors else {}


def _norm(tensors):
    return "batch" if any(name.endswith(".running_mean") for name in tensors) else "group"


def _infer_simple_cnn(tensors):
    places = tensors["fc1.weight"].shape[1] // tensors["conv2.weight"].shape[0]
    side = 4 * math.isqrt(places)
    norm = _norm(tensors) if "norm1.weight" in tensors else "none"
    return _classes(tensors, "fc2.weight") | {"norm": norm}, (side, side, tensors["conv1.weight"].shape[1])


def _infer_resnet(tensors, prefix="", head="fc.weight"):
    width, channels, side, _ = tensors[f"{prefix}conv1.weight"].shape
    return {
        **_classes(tensors, head),
        "stem": "large" if side == 7 else "small",
        "norm": _norm({name: None for name in tensors if name.startswith(prefix)}),
        "width": width,
    }, (64, 64, channels)


def _infer_resnet9(tensors):
    width, channels, _, _ = tensors["stem_conv.weight"].shape
    return _classes(tensors, "logits.weight") | {"width": width}, (64, 64, channels)


def _infer_vgg(head: str):
    """`infer` of VGG, by its head; torchvision has none that averages, whose one layer here is its `classifier`."""

    def infer(tensors):
        averages = "classifier.weight" in tensors
        norm = _norm(tensors) if tensors.get("features.1.weight", np.zeros((1, 1))).ndim == 1 else "none"
        options = {"head": "average" if averages else "flatten", "norm": norm}
        classes = _classes(tensors, "classifier.weight" if averages else head)
        return classes | options, (64, 64, tensors["features.0.weight"].shape[1])

    return infer


def _infer_convnext(first: str, head: str):
    return lambda tensors: (_classes(tensors, head), (64, 64, tensors[first].shape[1]))


def _infer_mobile(first: str, head: str, last: str | None = None, **options):
    """`infer` of a family of inverted residuals, by its first convolution and its head.

    `last` is MobileNetV2's last convolution that the width multiplies, of 320 channels. `options` are the library's.
    """

    def infer(tensors):
        width = {"width": len(tensors[last]) / 320} if last else {}
        channels = tensors[first].shape[1]
        return _classes(tensors, head) | {"norm": _norm(tensors)} | width | options, (64, 64, channels)

    return infer


def _infer_fcos(tensors):
    options, shape = _infer_resnet(tensors, "backbone.body.", "head.classification_head.cls_logits.weight")
    return options | {
        "channels": len(tensors["backbone.fpn.layer_blocks.0.0.weight"]),
        "extra_levels": sum(key.startswith("backbone.fpn.extra_blocks.p") for key in tensors) // 2,
        "depth": sum(key.startswith("head.classification_head.conv.") for key in tensors) // 4,
    }, shape


def _infer_deeplab(tensors):
    options, shape = _infer_resnet(tensors, "backbone.", "classifier.4.weight")
    return options | {"auxiliary": "aux_classifier.0.weight" in tensors}, shape


def _pair(name: str) -> Callable[[re.Match], str]:
    """A convolution and its norm are modules 0 and 1 of one of PyTorch's; the first group is which of both."""
    return lambda match: f"{name}.{int(match[1] == 'norm')}/"


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

# The parts of an inverted residual in their order, and of each the convolution or the norm.
_PARTS = ("expand", "depthwise", "project")
_UNIT = r"stage(\d)_block(\d+)/(expand|depthwise|project)_(conv|norm)/"
_EXCITATION = {"squeeze": "reduce", "excite": "expand"}  # in all libraries but torchvision
_SQUEEZE = r"stage(\d)_block(\d+)/(squeeze|excite)/"


def _in_features(match: re.Match) -> str:
    """In torchvision's MobileNetV2 blocks are counted on from stage to stage, and the first has nothing to expand."""
    stage, norm = int(match[1]), match[4] == "norm"
    block = sum(depth for *_, depth, _ in MOBILE_STAGES[: stage - 1]) + int(match[2])
    place = _PARTS.index(match[3]) - (stage == 1)
    return f"features.{block}.conv.{place + norm if match[3] == 'project' else f'{place}.{int(norm)}'}/"


def _in_block(match: re.Match) -> str:
    """In torchvision's EfficientNet squeeze and excitation stand between what is depthwise and what projects."""
    order = ("expand", "depthwise", ("squeeze", "excite"), "project")
    place = next(i for i, part in enumerate(order) if match[3] in part) - (match[1] == "1")
    inner = {"squeeze": "fc1", "excite": "fc2"}.get(match[3]) or int(match[4] == "norm")
    return f"features.{match[1]}.{int(match[2]) - 1}.block.{place}.{inner}/"


def _in_timm(match: re.Match) -> str:
    first = match[1] == "1"  # has nothing to expand
    place = _PARTS.index(match[3])
    conv = {"expand": "conv_pw", "depthwise": "conv_dw", "project": "conv_pw" if first else "conv_pwl"}[match[3]]
    return f"blocks.{int(match[1]) - 1}.{int(match[2]) - 1}.{conv if match[4] == 'conv' else f'bn{place + 1 - first}'}/"


_TIMM_MOBILE = (
    (_UNIT, _in_timm),
    (_SQUEEZE, lambda m: f"blocks.{int(m[1]) - 1}.{int(m[2]) - 1}.se.conv_{_EXCITATION[m[3]]}/"),
    (r"^(stem|head)_conv/", r"conv_\1/"),
    (r"^(stem|head)_norm/", lambda m: f"bn{1 + (m[1] == 'head')}/"),
    (r"^logits/", "classifier/"),
)
_ENDS_IN_FEATURES = (
    (r"^stem_(conv|norm)/", _pair("features.0")),
    (r"^logits/", "classifier.1/"),
)


def _efficientnet_pytorch(model: EfficientNet) -> Rules:
    """The names of the package, where blocks are counted on from stage to stage."""
    counts = depths(model.depth, lite=model.lite)

    def block(match):
        return f"_blocks.{sum(counts[: int(match[1]) - 1]) + int(match[2]) - 1}.{match[3]}/"

    return (
        (r"/(expand|depthwise|project)_conv/", r"/_\1_conv/"),
        (r"/(expand|depthwise|project)_norm/", lambda m: f"/_bn{_PARTS.index(m[1])}/"),
        (r"/(squeeze|excite)/", lambda m: f"/_se_{_EXCITATION[m[1]]}/"),
        (r"stage(\d)_block(\d+)/(\w+)/", block),
        (r"^(stem|head)_conv/", r"_conv_\1/"),
        (r"^(stem|head)_norm/", lambda m: f"_bn{int(m[1] == 'head')}/"),
        (r"^logits/", "_fc/"),
    )


def _vgg(model: VGG) -> Rules:
    """Layers are counted in a row in which activations and poolings count too."""
    step = 2 if model.norm == "none" else 3

    def layer(match):
        stage = int(match[1])
        before = sum(model.depths[: stage - 1]) + int(match[3]) - 1
        return f"features.{step * before + stage - 1 + (match[2] == 'norm')}/"

    return ((r"^stage(\d)_(conv|norm)(\d)/", layer),)


def _torchvision_vgg(model: VGG) -> Rules:
    return (
        *_vgg(model),
        (r"^fc1/", "classifier.0/"),
        (r"^fc2/", "classifier.3/"),
        (r"^logits/", "classifier.6/" if model.head == "flatten" else "classifier/"),
    )


def _timm_vgg(model: VGG) -> Rules:
    return (*_vgg(model), (r"^fc(\d)/", r"pre_logits.fc\1/"), (r"^logits/", "head.fc/"))


# For each family its dialects by the library that has them; the first is the one that weights are written in.
SOURCES: dict[type, dict[str, Source]] = {
    SimpleCNN: {
        "torch": Source(names=((r"^logits/", "fc2/"),), infer=_infer_simple_cnn, after_flatten={"fc1": 4}),
    },
    # timm has the same names for the ResNets
    ResNet: {"torchvision": Source(names=(*_RESNET, (r"^logits/", "fc/")), infer=_infer_resnet)},
    ResNet9: {"cnn_jax": Source(names=(), infer=_infer_resnet9)},  # no library has it: these are our names
    VGG: {
        "torchvision": Source(
            names=_torchvision_vgg, infer=_infer_vgg("classifier.6.weight"), after_flatten={"fc1": (7, 7)}
        ),
        "timm": Source(
            names=_timm_vgg,
            infer=_infer_vgg("head.fc.weight"),
            after_flatten={"fc1": (7, 7)},
            behind=((r"fc1\.weight$", (7, 7)), (r"fc2\.weight$", (1, 1))),
        ),
    },
    ConvNeXt: {
        "torchvision": Source(
            names=(
                (r"^stem_(conv|norm)/", _pair("features.0")),
                (r"^down(\d)_(conv|norm)/", lambda m: f"features.{2 * int(m[1]) - 2}.{int(m[2] == 'conv')}/"),
                (r"^stage(\d)_block(\d+)/", lambda m: f"features.{2 * int(m[1]) - 1}.{int(m[2]) - 1}/"),
                (r"/conv/", ".block.0/"),
                (r"/norm/", ".block.2/"),
                (r"/expand/", ".block.3/"),
                (r"/project/", ".block.5/"),
                (r"^norm/", "classifier.0/"),
                (r"^logits/", "classifier.2/"),
            ),
            infer=_infer_convnext("features.0.0.weight", "classifier.2.weight"),
            behind=((r"\.layer_scale$", (1, 1)),),
        ),
        "timm": Source(
            names=(
                (r"^stem_(conv|norm)/", _pair("stem")),
                (r"^down(\d)_(conv|norm)/", lambda m: f"stages.{int(m[1]) - 1}.downsample.{int(m[2] == 'conv')}/"),
                (r"^stage(\d)_block(\d+)/", lambda m: f"stages.{int(m[1]) - 1}.blocks.{int(m[2]) - 1}/"),
                (r"/conv/", ".conv_dw/"),
                (r"/expand/", ".mlp.fc1/"),
                (r"/project/", ".mlp.fc2/"),
                (r"layer_scale$", "gamma"),
                (r"^norm/", "head.norm/"),
                (r"^logits/", "head.fc/"),
            ),
            infer=_infer_convnext("stem.0.weight", "head.fc.weight"),
        ),
    },
    MobileNetV2: {
        "torchvision": Source(
            names=(
                (_UNIT, _in_features),
                (r"^head_(conv|norm)/", _pair("features.18")),
                *_ENDS_IN_FEATURES,
            ),
            infer=_infer_mobile("features.0.0.weight", "classifier.1.weight", "features.17.conv.2.weight"),
        ),
        "timm": Source(
            names=_TIMM_MOBILE,
            infer=_infer_mobile("conv_stem.weight", "classifier.weight", "blocks.6.0.conv_pwl.weight"),
        ),
    },
    EfficientNet: {
        "torchvision": Source(
            names=(
                (_UNIT, _in_block),
                (_SQUEEZE, _in_block),
                (r"^head_(conv|norm)/", _pair("features.8")),
                *_ENDS_IN_FEATURES,
            ),
            infer=_infer_mobile("features.0.0.weight", "classifier.1.weight"),
        ),
        "timm": Source(
            names=_TIMM_MOBILE,
            infer=_infer_mobile("conv_stem.weight", "classifier.weight", momentum=0.1),
            by_padding={"same": {"epsilon": 1e-3}, "torch": {"epsilon": 1e-5}},  # tf_efficientnet_…, and the others
        ),
        "efficientnet_pytorch": Source(
            names=_efficientnet_pytorch,
            infer=_infer_mobile("_conv_stem.weight", "_fc.weight", padding="same", epsilon=1e-3, momentum=0.01),
        ),
    },
    FCOS: {
        "torchvision": Source(
            names=(
                (r"^(classes|box)/(conv|norm)(\d)/", _tower),
                (r"^logits/", "head.classification_head.cls_logits/"),
                (r"^distances/", "head.regression_head.bbox_reg/"),
                (r"^centerness/", "head.regression_head.bbox_ctrness/"),
                (r"^pyramid/(inner|layer)(\d)/", lambda m: f"backbone.fpn.{m[1]}_blocks.{int(m[2]) - 1}.0/"),
                (r"^pyramid/extra(\d)/", lambda m: f"backbone.fpn.extra_blocks.p{int(m[1]) + 5}/"),
                *_RESNET,
                (r"^backbone/", "backbone.body/"),
            ),
            infer=_infer_fcos,
        ),
    },
    DeepLabV3: {
        "torchvision": Source(
            names=(
                (r"^aspp(\d)_(conv|norm)/", lambda m: f"classifier.0.convs.{int(m[1]) - 1}.{int(m[2] == 'norm')}/"),
                (r"^aspp_pool_(conv|norm)/", lambda m: f"classifier.0.convs.4.{1 + int(m[1] == 'norm')}/"),
                (r"^aspp_project_(conv|norm)/", _pair("classifier.0.project")),
                (r"^head_(conv|norm)/", lambda m: f"classifier.{1 + int(m[1] == 'norm')}/"),
                (r"^logits/", "classifier.4/"),
                (r"^aux_(conv|norm)/", _pair("aux_classifier")),
                (r"^aux_logits/", "aux_classifier.4/"),
                *_RESNET,
            ),
            infer=_infer_deeplab,
        ),
    },
}
