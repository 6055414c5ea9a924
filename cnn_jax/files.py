"""Files that are either the old one or the new one, never half of one."""

import contextlib
import os
from pathlib import Path


def write_atomically(path, content: bytes | str) -> Path:
    """Writes a whole file (text as UTF-8) by way of a temporary one beside it, and returns its path.

    Whoever reads meanwhile, or after a crash, finds the old content or the new. Makes the folder if need be.
    Raises `OSError` when it cannot write, for instance on a full disk; the old file then is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the new name on an empty file
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    return path
