"""Files that are either the old one or the new one, never half of one; and the folder of what can be had again."""

import contextlib
import os
import stat
from pathlib import Path

from cnn_jax.errors import InputError


def write_atomically(path, content: bytes | str) -> Path:
    r"""Writes a whole file (text as UTF-8) by way of a temporary one beside it, and returns its path.

    Whoever reads meanwhile, or after a crash, finds the old content or the new. Makes the folder if need be. Of a name
    that is no UTF-8 what cannot be written stands there as "\udcff", which JSON reads back as the name.
    Raises `OSError` when it cannot write, for instance on a full disk; the old file then is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the new name on an empty file
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    return path


def cache_folder() -> Path | None:
    """The cache folder, made if need be; None where there is to be none, or it cannot be used.

    Who can write there can have code run, so that it must be the user's alone.
    """
    chosen = os.environ.get("CNN_JAX_CACHE")
    if chosen == "":
        return None
    folder = Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "cnn_jax"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        if chosen:
            raise InputError(
                f"cache folder {folder} cannot be made: {error.strerror}. Set CNN_JAX_CACHE to another"
            ) from error
        return None
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise InputError(f"cache folder {folder} can be written by others: run chmod 700 on it, or set CNN_JAX_CACHE")
    return folder
