"""From a dataclass to a command: flags, one-sentence errors, exit codes."""

import contextlib
import errno
import sys
from collections.abc import Callable

from cnn_jax.errors import InputError


def main(run: Callable, config_class: type, description: str | None = None) -> None:
    """Parses the flags that `config_class` (a frozen dataclass) describes, and calls `run(config)`.

    Exits with 0; with 2 and one sentence for bad input and a full disk; with 130 or 143 when SIGINT or SIGTERM stopped
    it; with 1 when training failed. A mistake of ours keeps its traceback.
    """
    import tyro

    config = tyro.cli(config_class, description=description)
    try:
        run(config)
    except KeyboardInterrupt:
        _leave("stopped before training began: nothing was saved", 130)
    except Exception as error:
        code = 2 if isinstance(error, InputError) else getattr(error, "exit_code", None)
        if code is None and _disk_is_full(error):
            message = f"the disk is full ({error}): what was saved before is whole. Free some space and add --resume"
            _leave(f"error: {message}", 2)
        if code is None:
            raise
        _leave(f"error: {error}" if code in (1, 2) else str(error), code)


def _leave(sentence: str, code: int) -> None:
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    print(sentence, file=sys.stderr, flush=True)
    raise SystemExit(code)


def _disk_is_full(error: BaseException) -> bool:
    # Orbax and TensorStore raise an error of their own with the system's words in it.
    return getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error)
