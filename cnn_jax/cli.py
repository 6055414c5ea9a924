"""From a dataclass to a command: flags, one-sentence errors, exit codes."""

import contextlib
import errno
import io
import os
import select
import shlex
import signal
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cnn_jax.errors import InputError, unknown


def command(script: str) -> str:
    """What was typed to start a script of `experiments`, for its report."""
    return shlex.join(["python", "-m", f"experiments.{script}", *sys.argv[1:]])


def main(run: Callable, config_class: type, description: str) -> None:
    """Parses the flags that `config_class` (a frozen dataclass) describes, and calls `run(config)`.

    Exits with 0; with 2 and one sentence for bad input and a full disk; with 130 or 143 when SIGINT or SIGTERM stopped
    it, and without a word with 141 when whoever reads its output has ended; with 1 when training failed. A mistake of
    ours keeps its traceback.
    """
    from absl import logging

    logging.set_verbosity(logging.FATAL)  # Orbax logs at length what it then raises
    resumes = "resume" in config_class.__dataclass_fields__
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be of any bytes
    try:
        with _stoppable():
            run(_parse(config_class, description))
            sys.stdout.flush()
    except _Stopped as stop:
        what = "what was saved before is whole" + "; a run that had begun goes on with --resume" * resumes
        _leave(f"stopped by {signal.Signals(stop.number).name}: {what}", 128 + stop.number)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            raise SystemExit(128 + signal.SIGPIPE) from None
        code = 2 if isinstance(error, InputError) else getattr(error, "exit_code", None)
        if code is None and _disk_is_full(error):
            again = "add --resume" if resumes else "start again"
            _leave(f"error: the disk is full: what was saved before is whole. Free some space and {again}", 2)
        if code is None:
            raise
        _leave(f"error: {error}" if code in (1, 2) else str(error), code)


def at_least(config: Any, **least: int) -> None:
    """Raises InputError for a flag below its least value, such as `seeds=2`. None is not looked at.

    Of a flag that takes several numbers each counts, and there must be one.
    """
    for name, enough in least.items():
        value = getattr(config, name)
        numbers = value if isinstance(value, tuple) else (value,)
        if value is not None and not (numbers and min(numbers) >= enough):
            raise InputError(f"--{name.replace('_', '-')} is {value}: it must be {enough} or more")


def _parse(config_class: type, description: str):
    import tyro

    arguments = sys.argv[1:]
    spec = sys.modules["__main__"].__spec__
    prog = f"python -m {spec.name}" if spec else None  # as it was typed
    _check(config_class, arguments)
    written = io.StringIO()
    try:
        with contextlib.redirect_stderr(written):
            config = tyro.cli(config_class, prog=prog, description=description, args=arguments)
    except SystemExit as end:
        if end.code in (0, None):
            raise
        raise InputError(f"{_unboxed(written.getvalue()).rstrip('.')} (--help lists the flags)") from None
    paths = {name: value for name, value in vars(config).items() if isinstance(value, Path)}
    # A shell does so for `--out ~/runs`, not for `--out=~/runs`.
    return replace(config, **{name: Path(os.path.expanduser(path)) for name, path in paths.items()})


def _unboxed(text: str) -> str:
    """What tyro's box says, on one line: without its frame, its title and the hints after the next rule."""
    frame = "─-╭╮╰╯│ "
    parts = [""]
    for line in text.splitlines():
        if line.strip(frame):
            parts[-1] += f" {line.strip(frame[4:])}" if not line.startswith("╭") else ""
        elif line.strip():
            parts.append("")
    said = [" ".join(part.split()) for part in parts if part.strip()]
    return said[0] if text.startswith("╭") else said[min(1, len(said) - 1)]


def _check(config_class: type, arguments: Sequence[str]) -> None:
    """Finds wrong names and values where tyro would not say the nearest right one."""
    flags = {f"--{name.replace('_', '-')}": kind for name, kind in typing.get_type_hints(config_class).items()}
    known = {"--help": bool, **flags, **{f"--no-{name[2:]}": bool for name, kind in flags.items() if kind is bool}}
    kind = None
    for argument in arguments:
        value = argument
        if argument.startswith("--"):
            flag, has_value, value = argument.partition("=")
            flag = flag.replace("_", "-")
            if flag not in known:
                raise unknown("flag", flag, flags)
            kind = known[flag]
            if not has_value:
                continue
        if kind is None or argument == "-h":
            continue
        choices, number = [], None
        for leaf in _leaves(kind):
            choices += typing.get_args(leaf) if typing.get_origin(leaf) is typing.Literal else []
            number = leaf if leaf in (int, float) else number
        if type(None) in _leaves(kind) and value == "None":
            continue
        if choices and value not in choices:
            raise unknown(flag, value, choices)
        if number:
            try:
                number(value)
            except ValueError:
                whole = "a whole number" if number is int else "a number"
                raise InputError(f"{flag} is {value!r}: it must be {whole}") from None
        if not _takes_many(kind):
            kind = None  # what follows is an argument without a flag


def _leaves(kind) -> list:
    """The types in a union or a tuple; a single type alone."""
    if typing.get_origin(kind) is typing.Literal or not typing.get_args(kind):
        return [kind]
    return [leaf for part in typing.get_args(kind) for leaf in _leaves(part)]


def _takes_many(kind) -> bool:
    return any(typing.get_origin(part) is tuple for part in (kind, *typing.get_args(kind)))


class _Stopped(BaseException):
    def __init__(self, number: int):
        self.number = number


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGINT and SIGTERM raise `_Stopped`, wherever training does not take care of them itself."""

    def stop(number, frame):
        raise _Stopped(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _nobody_reads() -> bool:
    """Whether our output is a pipe that nobody reads any more; what is still to be written then goes nowhere."""
    with contextlib.suppress(OSError):  # no file of the system's
        output = select.poll()
        output.register(sys.stdout.fileno(), 0)  # errors are told without being asked for
        if output.poll(0):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return True
    return False


def _leave(sentence: str, code: int) -> None:
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    print(sentence, file=sys.stderr, flush=True)
    raise SystemExit(code)


def _disk_is_full(error: BaseException | None) -> bool:
    """Or the user's share of it is."""
    # Orbax and TensorStore raise errors of their own, from the system's or with its words in them.
    while error is not None:
        for number in (errno.ENOSPC, errno.EDQUOT):
            if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
                return True
        error = error.__cause__ or error.__context__
    return False
