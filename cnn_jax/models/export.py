"""Networks for other programs: StableHLO with the weights in it, and weights under the names of PyTorch's libraries."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from cnn_jax.errors import InputError, unknown
from cnn_jax.files import write_atomically
from cnn_jax.models.platform import traced_for
from cnn_jax.models.sources import SOURCES

# What JAX exports for, and which of the forms of `traced_for` is the one for it.
PLATFORMS = {"cpu": "cpu", "cuda": "gpu", "rocm": "gpu", "tpu": "tpu"}

# Stands behind a program, before its SHA-256: a bit of its weights that is lost would be noticed by nobody.
_SEAL = b"\ncnn_jax SHA-256 "

# Of a network's attributes those that do not change what it computes, but how.
_MANNER = ("parent", "name", "dtype", "axis_name")


def export(
    function: Callable[[jax.Array], Any],
    path: str | Path,
    *,
    image_shape: tuple[int, int, int],
    dtype: Any = jnp.float32,
    platforms: Sequence[str] | None = None,
) -> Path:
    """Writes a function of images as a StableHLO program, which runs without this package and takes any batch size.

        models.export(partial(model.apply, variables), "net.jaxexport", image_shape=(224, 224, 3))
        logits = models.load_exported("net.jaxexport")(images)

    The file is that of `jax.export` with a checksum behind it: `jax.export.deserialize(bytes).call(images)` runs it
    too, in versions of JAX up to half a year apart. What the function holds, such as the weights, is in it.

    Networks are written in the form that is fast on the platform, or for several in the plain one; but a function that
    `jax.jit` has traced before keeps the form that it has.

    Args:
        function: of images `dtype`[N,H,W,C] to a tree of arrays; traceable.
        image_shape: (H,W,C).
        platforms: of "cpu", "cuda", "rocm" and "tpu"; None is the one that JAX runs on here.

    Raises:
        InputError: no such platform, or the file cannot be written.
    """
    for platform in platforms or ():
        if platform not in PLATFORMS:
            raise unknown("platform", platform, PLATFORMS)
    forms = {PLATFORMS[platform] for platform in platforms or ()} or {jax.default_backend()}
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *image_shape), dtype)
    with traced_for(forms.pop() if len(forms) == 1 else "tpu"):
        exported = jax.export.export(jax.jit(lambda images: function(images)), platforms=platforms or None)(images)
    program = bytes(exported.serialize())
    return _write(path, program + _SEAL + hashlib.sha256(program).hexdigest().encode())


def load_exported(path: str | Path) -> Callable[[jax.Array], Any]:
    """The function of images that `export` wrote.

    Raises:
        InputError: there is no such file, it is damaged, of another kind or for another platform; when called, images
            of another shape or dtype.
    """
    program, seal, digest = _read(path).rpartition(_SEAL)
    if not seal or digest != hashlib.sha256(program).hexdigest().encode():
        raise InputError(f"{path} is no program that models.export wrote, or is damaged")
    try:
        exported = jax.export.deserialize(bytearray(program))
    except Exception as error:  # another version of JAX may know the format no more
        raise InputError(f"this version of JAX ({jax.__version__}) cannot read {path} ({error})") from error
    here = jax.default_backend()
    if here not in {PLATFORMS[platform] for platform in exported.platforms}:
        raise InputError(f"the program in {path} is for {', '.join(exported.platforms)}, and JAX runs on {here} here")
    (expected,) = exported.in_avals

    def call(images):
        images = jnp.asarray(images)
        if images.shape[1:] != expected.shape[1:] or images.dtype != expected.dtype or not len(images):
            shape = ",".join(map(str, expected.shape[1:]))
            raise InputError(
                f"the program in {path} takes images {expected.dtype}[N,{shape}], N of 1 or more, not "
                f"{images.dtype}{[*images.shape]}"
            )
        return exported.call(images)

    return call


def save_pretrained(
    model: nn.Module,
    variables: Mapping[str, Any],
    path: str | Path,
    *,
    library: str | None = None,
    image_shape: tuple[int, int, int] | None = None,
) -> Path:
    """Writes a network's weights as safetensors under PyTorch's names and layouts, for `load_state_dict` there.

        models.save_pretrained(model, variables, "resnet18.safetensors")
        torchvision.models.resnet18().load_state_dict(safetensors.torch.load_file("resnet18.safetensors"))

    `create_pretrained` reads it back bit for bit, and knows the network's options: they are in the file too, but for
    `dtype` and `axis_name`.

    Args:
        variables: {"params", "batch_stats"}.
        library: whose names, such as "torchvision" or "timm"; None is the first of those that `sources` has.
        image_shape: (H,W,C) of the images, for a SimpleCNN trained on other than square ones.

    Raises:
        InputError: no names are known for the network, none of that library, the variables are not the model's, or
            the file cannot be written.
    """
    import safetensors.numpy

    family = type(model)
    if family not in SOURCES:
        raise InputError(f"save_pretrained: PyTorch's names for the tensors of {family.__name__} are not known")
    library = library or next(iter(SOURCES[family]))
    if library not in SOURCES[family]:
        raise unknown(f"library with a {family.__name__}", library, SOURCES[family])
    if not isinstance(variables, Mapping) or "params" not in variables:
        raise InputError('save_pretrained: the variables are no {"params", "batch_stats"}, as model.init returns them')
    source = SOURCES[family][library].of(model)
    arrays = {key: np.asarray(leaf) for key, leaf in flatten_dict(dict(variables), sep="/").items()}
    leaves = {key.split("/", 1)[1]: array for key, array in arrays.items()}
    shapes = {place: source.torch_shape(place, leaf.shape) for place, leaf in leaves.items()}
    about = _about(model) | ({"image_shape": list(image_shape)} if image_shape else {})
    if image_shape is None:  # shapes tell it, if it is a square
        try:
            _, image_shape = source.infer({source.name(place): np.broadcast_to(0, s) for place, s in shapes.items()})
        except LookupError as error:
            raise InputError(f"save_pretrained: the variables are not those of the model: {error} is missing") from None
    fresh = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    expected = flatten_dict(fresh, sep="/")
    if {key: leaf.shape for key, leaf in expected.items()} != {key: array.shape for key, array in arrays.items()}:
        hint = ": if its images are not square, give image_shape" if source.after_flatten else ""
        raise InputError(f"save_pretrained: the variables are not those of the model{hint}")
    tensors = {source.name(place): source.to_torch(place, leaf, image_shape[:2]) for place, leaf in leaves.items()}
    return _write(path, safetensors.numpy.save(tensors, metadata={"format": "pt", "cnn_jax": json.dumps(about)}))


def _about(model: nn.Module) -> dict[str, Any]:
    """What `create_pretrained` is to know of a network: its class, and the options that are not the class's defaults.

    The number of classes is always among them, if there is a head.
    """
    headed = getattr(model, "head", True)
    options = {
        field.name: getattr(model, field.name)
        for field in dataclasses.fields(model)
        if field.name not in _MANNER
        and (getattr(model, field.name) != field.default or (field.name == "num_classes" and headed))
    }
    return {"network": type(model).__name__, "options": options}


def _write(path: str | Path, data: bytes) -> Path:
    try:
        return write_atomically(path, data)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
