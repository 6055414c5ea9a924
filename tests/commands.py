"""Runs the scripts of `experiments` as their users do, but in this process."""

import contextlib
import io
import sys
from types import ModuleType

from cnn_jax import cli


def run(script: ModuleType, *flags) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `python -m experiments.NAME FLAGS`."""
    arguments, sys.argv = sys.argv, [f"{script.__name__.replace('.', '/')}.py", *map(str, flags)]
    try:
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            try:
                cli.main(script.main, script.Config, script.__doc__)
                code = 0
            except SystemExit as end:
                code = end.code
    finally:
        sys.argv = arguments
    return code, out.getvalue(), err.getvalue()


def succeeds(script: ModuleType, *flags) -> str:
    """What it prints."""
    code, out, err = run(script, *flags)
    assert (code, err) == (0, "")
    return out


def fails(script: ModuleType, *flags) -> str:
    """The one sentence with which it refuses its arguments."""
    code, _, err = run(script, *flags)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    return err[len("error: ") : -1]
