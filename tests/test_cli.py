import errno
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from cnn_jax import cli
from cnn_jax.errors import InputError, unknown
from cnn_jax.training import Interrupted, NonFinite


@dataclass(frozen=True)
class Config:
    """What a script takes."""

    dataset: str = "mnist_10k"
    epochs: float = 12
    batch_size: int = 128
    schedule: Literal["constant", "cosine"] = "constant"
    platform: Literal["cpu", "gpu"] | None = None
    clip_norm: float | None = None
    augment: tuple[Literal["shift", "flip"], ...] = ()
    sizes: tuple[int, int] = (1, 2)
    out: Path | None = None
    tiny: bool = False


BOX = """\
╭─ Value error ────────╮
│ Two words            │
│ and more.            │
│ ──────────────────── │
│ hint                 │
╰──────────────────────╯
"""
BOX_IN_ASCII = (
    " Value error \n ----------- \n  Two words  \n  and more.  \n  -----------\n  hint       \n             \n"
)


@pytest.mark.parametrize("box", [BOX, BOX_IN_ASCII])
def test_boxes_become_a_line(box):
    """tyro draws them by the encoding of the terminal."""
    assert cli._unboxed(box) == "Two words and more."


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs a script with flags: (exit code, stdout, stderr)."""

    def start(*flags: str, run=print, config_class=Config):
        monkeypatch.setattr(sys, "argv", ["script", *flags])
        try:
            cli.main(run, config_class, "What is asked?")
        except SystemExit as end:
            return (end.code, *capsys.readouterr())
        return (0, *capsys.readouterr())

    return start


def test_flags_become_a_config(command):
    seen = []
    flags = "--epochs 0.5 --batch_size=8 --schedule cosine --platform None --augment shift flip --sizes 3 4 --out a/b"
    assert command(*flags.split(), "--tiny", run=seen.append) == (0, "", "")
    expected = Config("mnist_10k", 0.5, 8, "cosine", None, None, ("shift", "flip"), (3, 4), Path("a/b"), True)
    assert seen == [expected]
    command("--clip-norm", "-1", "--no-tiny", "--platform", "cpu", "--dataset=-", run=seen.append)
    assert seen[1:] == [Config("-", platform="cpu", clip_norm=-1.0)]


def test_help(command):
    code, out, err = command("--help")
    assert (code, err) == (0, "")
    assert "What is asked?" in out
    assert "--batch-size" in out
    assert "{constant,cosine}" in out


FLAGS = "--augment, --batch-size, --clip-norm, --dataset, --epochs, --out, --platform, --schedule, --sizes, --tiny"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--batch-sise 8", f"unknown flag '--batch-sise': did you mean '--batch-size'? Choices: {FLAGS}"),
        ("--Tiny", f"unknown flag '--Tiny': did you mean '--tiny'? Choices: {FLAGS}"),
        ("--qqq=3", f"unknown flag '--qqq': Choices: {FLAGS}"),
        ("--schedule cosin", "unknown --schedule 'cosin': did you mean 'cosine'? Choices: constant, cosine"),
        ("--platform=cpuu", "unknown --platform 'cpuu': did you mean 'cpu'? Choices: cpu, gpu"),
        ("--augment flip shft", "unknown --augment 'shft': did you mean 'shift'? Choices: flip, shift"),
        ("--schedule None", "unknown --schedule 'None': did you mean 'cosine'? Choices: constant, cosine"),
        ("--epochs twelve", "--epochs is 'twelve': it must be a number"),
        ("--batch-size 2.5", "--batch-size is '2.5': it must be a whole number"),
        ("--sizes 1 x", "--sizes is 'x': it must be a whole number"),
        ("--batch-size", "Missing value for argument '--batch-size'. Expected 1 values (--help lists the flags)"),
        ("digits", "Unrecognized options: digits (--help lists the flags)"),
        ("--tiny yes", "Unrecognized options: yes (--help lists the flags)"),
    ],
)
def test_a_wrong_flag_or_value_is_one_sentence_with_the_nearest_choice(command, flags, sentence):
    def never(config):
        raise AssertionError

    assert command(*flags.split(), run=never) == (2, "", f"error: {sentence}\n")


class OfOrbax(Exception):
    """As Orbax and TensorStore wrap what the system says."""


def full_disk():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/runs/a")


def full_disk_in_a_library():
    try:
        full_disk()
    except OSError as error:
        raise OfOrbax("could not write") from error


def full_quota():
    raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "/runs/a")


def full_disk_in_tensorstore():
    raise ValueError(
        'RESOURCE_EXHAUSTED: Error writing "params/0" in OCDBT database at local file "/runs/a/checkpoints/2.orbax-'
        "checkpoint-tmp/\": Failed to write 6680576 bytes to file 4: No space left on device [os_error_code='28']"
    )


@pytest.mark.parametrize("fail", [full_disk, full_disk_in_a_library, full_quota, full_disk_in_tensorstore])
def test_a_full_disk(command, fail):
    sentence = "error: the disk is full: what was saved before is whole. Free some space and start again\n"
    assert command(run=lambda config: fail()) == (2, "", sentence)


@pytest.mark.parametrize(
    ("error", "code", "err"),
    [
        (unknown("model", "resnet19", ["resnet18"]), 2, "error: unknown model 'resnet19': did you mean 'resnet18'? "),
        (InputError("labels are out of range"), 2, "error: labels are out of range\n"),
        (NonFinite("the loss is not finite"), 1, "error: the loss is not finite\n"),
        (Interrupted(signal.SIGINT, 7, True), 130, "stopped by SIGINT after step 7: saved; go on with --resume\n"),
        (Interrupted(signal.SIGTERM, 7, False), 143, "stopped by SIGTERM after step 7: nothing saved\n"),
    ],
)
def test_errors_with_an_exit_code_are_one_sentence(command, error, code, err):
    def run(config):
        print("half a", end="")
        raise error

    found = command(run=run)
    assert found[:2] == (code, "half a")
    assert found[2].startswith(err)
    assert found[2].count("\n") == 1


@pytest.mark.parametrize("error", [ValueError("ours"), OSError(errno.EACCES, "denied"), AssertionError(), KeyError(1)])
def test_a_mistake_of_ours_keeps_its_traceback(command, error):
    def run(config):
        raise error

    with pytest.raises(type(error)) as caught:
        command(run=run)
    assert caught.value is error


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_outside_training(command, number, code):
    before = signal.getsignal(number)
    found = command(run=lambda config: signal.raise_signal(number))
    assert found == (code, "", f"stopped by {number.name}: what was saved before is whole\n")
    assert signal.getsignal(number) is before


@dataclass(frozen=True)
class Resumable(Config):
    """What a script takes that can go on."""

    resume: bool = False


def test_scripts_that_can_go_on_say_how(command):
    found = command(run=lambda config: signal.raise_signal(signal.SIGTERM), config_class=Resumable)
    assert found[2] == (
        "stopped by SIGTERM: what was saved before is whole; a run that had begun goes on with --resume\n"
    )
    assert command(run=lambda config: full_disk(), config_class=Resumable)[2].endswith("space and add --resume\n")


@pytest.mark.parametrize(("lines", "unbuffered"), [(3, ""), (3, "1"), (10**6, "")])
def test_who_reads_the_output_may_stop(lines, unbuffered):
    """As `head -1` does; Unix knows 141 as the end by SIGPIPE."""
    script = f"""
from dataclasses import dataclass
from cnn_jax import cli

@dataclass(frozen=True)
class Config:
    pass

def run(config):
    for _ in range({lines}):
        print("a line")

cli.main(run, Config, "")
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen([sys.executable, "-c", script], env=environment, **pipes) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_another_pipe_that_breaks_is_a_mistake_of_ours(command):
    def run(config):
        raise BrokenPipeError(errno.EPIPE, "of a worker")

    with pytest.raises(BrokenPipeError):
        command(run=run)


def test_home_is_found_in_any_flag(command, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    seen = []
    command("--out=~/runs/a", run=seen.append)
    command("--out", "b~", run=seen.append)
    assert [config.out for config in seen] == [Path("/home/me/runs/a"), Path("b~")]


def test_a_name_of_any_bytes_can_be_printed(command):
    assert command(run=lambda config: print(os.fsdecode(b"caf\xe9"))) == (0, "caf\\udce9\n", "")


def test_least_values():
    @dataclass(frozen=True)
    class Counts:
        seeds: int = 2
        image_size: int | None = None
        shots: tuple[int, ...] = (1, 5)

    least = {"seeds": 2, "image_size": 1, "shots": 1}
    cli.at_least(Counts(), **least)
    for wrong, sentence in (
        (Counts(seeds=1), "--seeds is 1: it must be 2 or more"),
        (Counts(image_size=0), "--image-size is 0: it must be 1 or more"),
        (Counts(shots=(1, 0)), r"--shots is \(1, 0\): it must be 1 or more"),
        (Counts(shots=()), r"--shots is \(\): it must be 1 or more"),
    ):
        with pytest.raises(InputError, match=f"^{sentence}$"):
            cli.at_least(wrong, **least)


@pytest.mark.parametrize(
    ("started_by", "before", "after"),
    [
        ("-m", "default_int_handler", signal.SIG_DFL),
        ("-m", "SIG_IGN", signal.SIG_IGN),  # of a program in the background
        ("x.py", "default_int_handler", signal.default_int_handler),
    ],
)
def test_ctrl_c_ends_a_script_that_still_imports(started_by, before, after):
    """Python's own exception may be lost; who imports `experiments` from elsewhere keeps it."""
    code = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.{before})
sys.argv[0] = {started_by!r}
import experiments
print(signal.getsignal(signal.SIGINT))"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == str(after)
