"""MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100 from the files that their authors publish, without TensorFlow.

`prepare` reads those files once and keeps the arrays as `DATA_DIR/NAME/cnn_jax.npz`. Loading that takes 0.1 s, where
the same images through TFDS records, a PNG each, take five to nine; and it needs no package but NumPy.
"""

import gzip
import hashlib
import http.client
import io
import math
import os
import pickle
import struct
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cnn_jax.data.dataset import Dataset
from cnn_jax.errors import InputError

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
TIMEOUT_S = 10

_IDX = {split: (f"{split}-images-idx3-ubyte.gz", f"{split}-labels-idx1-ubyte.gz") for split in ("train", "t10k")}
_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def read_idx(folder: Path) -> dict[str, np.ndarray]:
    """The four idx.gz files of the MNIST family: "train_image" u8[N,H,W,1], "train_label" i32[N], and so for "test"."""
    arrays = {}
    for split, (images, labels) in zip(("train", "test"), _IDX.values(), strict=True):
        arrays[f"{split}_image"] = _idx_array(folder / images, 3)[..., None]
        arrays[f"{split}_label"] = _idx_array(folder / labels, 1).astype(np.int32)
    return arrays


def _idx_array(path: Path, ndim: int) -> np.ndarray:
    # Big-endian: two zero bytes, the type (8 is u8), the number of dimensions, each dimension as u32, then the data.
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {path} ({error}): get the file again") from None
    start = 4 + 4 * ndim
    shape = struct.unpack(f">{ndim}I", data[4:start]) if len(data) >= start else ()
    if data[:4] != bytes([0, 0, 8, ndim]) or len(data) - start != math.prod(shape):
        raise InputError(f"{path} is not an idx file of unsigned bytes with {ndim} dimensions: get the file again")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def read_cifar(folder: Path, archive: str) -> dict[str, np.ndarray]:
    """The "python version" of CIFAR-10 or CIFAR-100: as `read_idx`, u8[N,32,32,3], and "class_names" too."""
    path = folder / archive
    try:
        # Unpacked whole, since tarfile stops before the end, where gzip keeps its checksum.
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(path.read_bytes()))) as tar:
            files = {
                Path(m.name).name: _Unpickler.read(tar.extractfile(m), path) for m in tar if m.isfile() and _wanted(m)
            }
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise InputError(f"cannot read {path} ({error}): get the file again") from None
    try:
        meta = files.get("batches.meta") or files["meta"]
        parts = {"train": [v for k, v in sorted(files.items()) if k in ("train", *_BATCHES)]}
        parts["test"] = [files.get("test_batch") or files["test"]]
        arrays = {"class_names": np.array([n.decode() for n in meta.get(b"label_names") or meta[b"fine_label_names"]])}
        for split, dicts in parts.items():
            # A row is a plane of red, one of green, one of blue.
            image = np.concatenate([d[b"data"] for d in dicts]).reshape(-1, 3, 32, 32)
            arrays[f"{split}_image"] = np.ascontiguousarray(image.transpose(0, 2, 3, 1))
            labels = [d[b"labels"] if b"labels" in d else d[b"fine_labels"] for d in dicts]
            arrays[f"{split}_label"] = np.concatenate(labels).astype(np.int32)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not laid out as CIFAR's python version ({error!r}): get the file again") from None
    return arrays


_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))


def _wanted(member: tarfile.TarInfo) -> bool:
    return Path(member.name).name in (*_BATCHES, "test_batch", "batches.meta", "train", "test", "meta")


class _Unpickler(pickle.Unpickler):
    """Unpickles arrays, and nothing that could run code."""

    def find_class(self, module: str, name: str):
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np._core.multiarray._reconstruct
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    @classmethod
    def read(cls, file, path: Path) -> dict:
        try:
            return cls(file, encoding="bytes").load()
        except (pickle.UnpicklingError, EOFError, ValueError, IndexError, AttributeError, TypeError) as error:
            raise InputError(f"{path} holds a pickle that is not of CIFAR ({error}): get the file again") from None


class _Original(NamedTuple):
    title: str
    read: Callable[[Path], dict[str, np.ndarray]]
    url: str
    files: dict[str, str]  # name → published checksum, "sha256:…" or "md5:…"
    class_names: tuple[str, ...]  # empty where the files name them
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str


ORIGINALS = {
    "mnist": _Original(
        "MNIST",
        read_idx,
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        {
            _IDX["train"][0]: "sha256:440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            _IDX["train"][1]: "sha256:3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            _IDX["t10k"][0]: "sha256:8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            _IDX["t10k"][1]: "sha256:f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
        tuple("0123456789"),
        (0.5,),
        (0.5,),
        "MNIST: LeCun, Cortes, Burges; CC BY-SA 3.0.",
    ),
    "fashion_mnist": _Original(
        "Fashion-MNIST",
        read_idx,
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            _IDX["train"][0]: "sha256:3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            _IDX["train"][1]: "sha256:a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            _IDX["t10k"][0]: "sha256:346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            _IDX["t10k"][1]: "sha256:67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
        _FASHION,
        (0.28604,),
        (0.35302,),
        "Fashion-MNIST: Xiao, Rasul, Vollgraf (Zalando, arXiv:1708.07747); MIT.",
    ),
    "cifar10": _Original(
        "CIFAR-10",
        lambda folder: read_cifar(folder, "cifar-10-python.tar.gz"),
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-10-python.tar.gz": "md5:c58f30108f718f92721af3b95e74349a"},
        (),
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
        "CIFAR-10: Krizhevsky, Learning multiple layers of features from tiny images, 2009; no licence stated.",
    ),
    "cifar100": _Original(
        "CIFAR-100",
        lambda folder: read_cifar(folder, "cifar-100-python.tar.gz"),
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-100-python.tar.gz": "md5:eb9058c3a382ffc7106e4002c42a8d85"},
        (),
        (0.5071, 0.4865, 0.4409),
        (0.2673, 0.2564, 0.2762),
        "CIFAR-100: Krizhevsky, Learning multiple layers of features from tiny images, 2009; no licence stated.",
    ),
}


def load(name: str, data_dir: Path) -> Dataset | None:
    """One of `ORIGINALS`, if it was prepared, or Debian's package holds it; otherwise None. Uses no network."""
    path = _prepared(name, data_dir)
    if path.exists():
        try:
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                return _dataset(name, dict(file))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} is damaged ({error}): remove it, and prepare {name} again") from None
    if name == "fashion_mnist" and DEBIAN_FASHION_MNIST.is_dir():
        return _dataset(name, read_idx(DEBIAN_FASHION_MNIST))
    return None


def prepare(name: str, data_dir: Path, *, files: Path | None = None) -> Path:
    """Reads the original files of `name`, from the folder `files` or downloaded, and keeps their arrays.

    Downloads must have the published checksum. Files of one's own must only be whole and of the right layout, since
    they may have been packed again (Debian's are).

    Returns:
        The file that was written.

    Raises:
        InputError: a file is missing, damaged or of another layout; no network; the disk is full.
    """
    original = ORIGINALS[name]
    path = _prepared(name, data_dir)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
            if files is None:
                files = Path(temporary)
                for file, checksum in original.files.items():
                    _download(original.url + file, files / file, checksum)
            missing = [file for file in original.files if not (files / file).is_file()]
            if missing:
                raise InputError(
                    f"{files} lacks {', '.join(missing)}: give the folder with the files of {original.title}"
                )
            arrays = original.read(files)
            _dataset(name, arrays)  # checks them
            np.savez(Path(temporary) / path.name, **arrays)
            os.replace(Path(temporary) / path.name, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None
    return path


def _prepared(name: str, data_dir: Path) -> Path:
    return data_dir / name / "cnn_jax.npz"


def _dataset(name: str, arrays: dict[str, np.ndarray]) -> Dataset:
    original = ORIGINALS[name]
    train, test = ({"image": arrays[f"{s}_image"], "label": arrays[f"{s}_label"]} for s in ("train", "test"))
    return Dataset(
        name=name,
        train=train,
        test=test,
        class_names=original.class_names or tuple(arrays["class_names"].tolist()),
        image_shape=train["image"].shape[1:],
        mean=original.mean,
        std=original.std,
        source=original.source,
    )


def _download(url: str, path: Path, checksum: str) -> None:
    algorithm, expected = checksum.split(":")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response, path.open("wb") as file:
            while block := response.read(2**20):
                digest.update(block)
                file.write(block)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise InputError(
            f"cannot download {url} ({reason}): get the file elsewhere, and give its folder with --files"
        ) from None
    if digest.hexdigest() != expected:
        raise InputError(
            f"{url} has the {algorithm} checksum {digest.hexdigest()}, published is {expected}: "
            "do not use it; get the file elsewhere, and give its folder with --files"
        )
