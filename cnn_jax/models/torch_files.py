"""Reads the tensors of a PyTorch or safetensors file into NumPy, without PyTorch and without running the file's code.

PyTorch writes a pickle that refers to raw storages: as a zip of both (`torch.save` since 1.6), or, in the older format,
the storages behind the pickle. A pickle is a program. Here it may build dicts, lists, strings, numbers and
descriptions of tensors, and nothing else: any other name that it asks for ends the reading.
"""

import collections
import functools
import io
import json
import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from cnn_jax.errors import InputError

_TORCH_TYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}

_SAFETENSORS_TYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}

# Where a checkpoint keeps its state dict.
_WRAPPERS = ("state_dict", "model", "model_state_dict", "model_state", "net")

_PREFIXES = ("module.", "_orig_mod.")

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """The state dict in a file of `torch.save` or of safetensors: name -> array, in the dtypes of the file.

    The file holds the state dict itself, or a checkpoint with it under a usual name, such as `state_dict` or `model`.
    The prefixes of `DataParallel` ("module.") and `torch.compile` ("_orig_mod.") are removed, in either order. Entries
    of the state dict that are not tensors are left out.

    Raises:
        InputError: no such file, not a file of these kinds, a damaged one, or one that holds more than data.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    try:
        tensors = _read(data)
    except _Foreign as error:
        raise InputError(f"cannot load weights from {path}: {error}") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(f"cannot load weights from {path}: it is damaged ({type(error).__name__}: {error})") from error
    while all(name.startswith(_PREFIXES) for name in tensors) and len({name.split(".")[0] for name in tensors}) == 1:
        tensors = {name.partition(".")[2]: tensor for name, tensor in tensors.items()}
    return tensors


def read_metadata(path: str | Path) -> dict[str, str]:
    """What a whole file of safetensors says of itself beside its tensors; {} of a file of another kind."""
    with Path(path).open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if file.read(1) != b"{":
            return {}
        return json.loads(b"{" + file.read(size - 1)).get("__metadata__", {})


class _Foreign(Exception):
    """The file may be whole, but it is none that we read."""


def _read(data: bytes) -> dict[str, np.ndarray]:
    if data[:4] == b"PK\x03\x04":
        return _read_zip(data)
    if data[8:9] == b"{":
        return _read_safetensors(data)
    if data[:1] == b"\x80":
        return _read_legacy(data)
    raise _Foreign("it is neither a file of torch.save nor one of safetensors")


class _Storage(NamedTuple):
    dtype: np.dtype
    key: str
    numbers: int


class _Tensor(NamedTuple):
    """What a pickle says of a tensor: where its numbers lie. They are read afterwards."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self, data: bytes) -> np.ndarray:
        numbers = np.frombuffer(data, self.storage.dtype)
        end = self.offset + 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        # as_strided itself does not look where it reads.
        if min(self.offset, *self.shape, *self.strides, 0) < 0 or (math.prod(self.shape) and end > numbers.size):
            raise ValueError("a tensor reaches beyond its storage")
        strides = [stride * numbers.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, strides, writeable=False)


def _unpickle(file: io.BytesIO) -> tuple[object, list[_Storage]]:
    """The next object pickled in the file, with a `_Tensor` for every tensor; and the storages that it refers to."""
    storages = []

    # These are made afresh for each file: a pickle can set attributes, and so can spoil only its own.
    def tensor(storage, offset, size, stride, *requires_grad_and_hooks):
        return _Tensor(_Storage(*storage), int(offset), tuple(map(int, size)), tuple(map(int, stride)))

    def parameter(data, *requires_grad_and_hooks):
        return data

    known = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): tensor,
        ("torch._utils", "_rebuild_tensor"): tensor,
        ("torch._utils", "_rebuild_parameter"): parameter,
        ("torch", "Size"): tuple,
        **{("torch", name): name for name in _TORCH_TYPES},
    }

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            if module == "torch" and name.endswith("Storage") and name not in _TORCH_TYPES:
                raise _Foreign(f"it holds tensors of type {name.removesuffix('Storage')}, which is not read")
            if (module, name) not in known:
                raise _Foreign(
                    f"it holds a pickled {module}.{name}, which is not loaded because that could run code; "
                    "save the model's state_dict() alone"
                )
            return known[module, name]

        def persistent_load(self, pid):
            _, storage_type, key, _device, numbers, *view = pid
            if any(view):
                raise _Foreign("it was written by a PyTorch older than 0.4")
            storages.append(_Storage(np.dtype(_TORCH_TYPES[storage_type]), key, int(numbers)))
            return storages[-1]

    return Unpickler(file).load(), storages


def _read_zip(data: bytes) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:  # verifies the checksum of what it reads
        names = archive.namelist()
        root = next((name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")), None)
        if root is None:
            raise _Foreign("it is a zip file, but not one of torch.save")
        if root + "constants.pkl" in names:
            raise _Foreign("it is a TorchScript program; save the model's state_dict() instead")
        if root + "byteorder" in names and archive.read(root + "byteorder") != b"little":
            raise _Foreign("it was written on a big-endian machine")
        tree, _ = _unpickle(io.BytesIO(archive.read(root + "data.pkl")))
        return _arrays(tree, lambda storage: archive.read(f"{root}data/{storage.key}"))


def _read_legacy(data: bytes) -> dict[str, np.ndarray]:
    """Five pickles (magic number, protocol, system, tree, keys), and for each key a count and the raw numbers."""
    file = io.BytesIO(data)
    if _unpickle(file)[0] != _LEGACY_MAGIC or _unpickle(file)[0] != _LEGACY_PROTOCOL:
        raise _Foreign("it is a pickle, but not one of torch.save")
    if not _unpickle(file)[0]["little_endian"]:
        raise _Foreign("it was written on a big-endian machine")
    tree, storages = _unpickle(file)
    dtypes = {storage.key: storage.dtype for storage in storages}
    raw = {}
    for key in _unpickle(file)[0]:
        size = int.from_bytes(file.read(8), "little") * dtypes[key].itemsize
        raw[key] = file.read(size)
        if len(raw[key]) != size:
            raise EOFError("it ends too early")
    return _arrays(tree, lambda storage: raw[storage.key])


def _arrays(tree: object, read: Callable[[_Storage], bytes]) -> dict[str, np.ndarray]:
    """The tensors of the state dict that `tree` is or holds; `read` gives the bytes of a storage."""
    if isinstance(tree, dict):
        tree = next((tree[name] for name in _WRAPPERS if isinstance(tree.get(name), dict)), tree)
    tensors = {name: leaf for name, leaf in tree.items() if isinstance(leaf, _Tensor)} if isinstance(tree, dict) else {}
    if not tensors or not all(isinstance(name, str) for name in tensors):
        raise _Foreign("it holds no state dict, that is, no dict of named tensors")
    read = functools.cache(read)  # tensors can share a storage
    return {name: tensor.array(read(tensor.storage)) for name, tensor in tensors.items()}


def _read_safetensors(data: bytes) -> dict[str, np.ndarray]:
    import safetensors

    tensors = {}
    for name, entry in sorted(safetensors.deserialize(data)):
        if entry["dtype"] not in _SAFETENSORS_TYPES:
            raise _Foreign(f"its tensor {name} has the type {entry['dtype']}, which is not read")
        dtype = np.dtype(_SAFETENSORS_TYPES[entry["dtype"]])
        tensors[name] = np.frombuffer(entry["data"], dtype).reshape(entry["shape"])
    return tensors
