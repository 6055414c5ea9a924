import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cnn_jax.errors import InputError
from cnn_jax.run import Run, default_path, environment

SETTINGS = {"dataset": "mnist_10k", "epochs": 12.0, "augment": ("shift",), "data_dir": None}


def contents(folder: Path) -> dict:
    """Everything that can be seen of a folder: names, bytes, and when each was last written."""
    return {
        str(path.relative_to(folder)): (path.read_bytes() if path.is_file() else None, path.stat().st_mtime_ns)
        for path in [folder, *sorted(folder.rglob("*"))]
    }


@pytest.fixture
def finished(tmp_path):
    """The folder of a run that has ended, with something in it."""
    run = Run(tmp_path / "run", SETTINGS)
    (run.path / "summary.json").write_text('{"test_accuracy": 0.9}')
    run.close()
    return run.path


def refused(folder: Path, settings=SETTINGS, *, resume: bool | None) -> str:
    """The sentence of the refusal; what is in the folder stays as it was to the byte."""
    before = contents(folder)
    with pytest.raises(InputError) as caught:
        Run(folder, settings, resume=resume)
    assert contents(folder) == before
    return str(caught.value)


def test_a_new_folder_says_what_made_it(tmp_path):
    run = Run(tmp_path / "some" / "run", SETTINGS | {"rate": np.float32(0.5), "out": Path("x")})
    assert not run.resumed
    config = json.loads((run.path / "config.json").read_text())
    assert config["settings"] == {
        "dataset": "mnist_10k", "epochs": 12.0, "augment": ["shift"], "data_dir": None, "rate": 0.5, "out": "x",
    }  # fmt: skip
    assert config["environment"]["platform"] == "cpu"
    assert config["environment"]["devices"].startswith("8 × ")
    assert config["environment"]["versions"]["numpy"] == np.__version__
    assert set(config["environment"]) == set(environment())


def test_an_empty_folder_is_as_good_as_none(tmp_path):
    assert not Run(tmp_path, SETTINGS).resumed
    assert (tmp_path / "config.json").exists()


def test_resume_takes_up_a_run_of_the_same_settings_and_changes_nothing(finished):
    before = contents(finished)
    run = Run(finished, dict(reversed(SETTINGS.items())), resume=True)
    assert run.resumed
    after = contents(finished)
    assert after.pop(".lock")[0] == f"process {os.getpid()}".encode()
    before.pop(".lock")
    assert after == before


def test_resume_begins_a_run_that_is_not_there(tmp_path):
    assert not Run(tmp_path / "run", SETTINGS, resume=True).resumed


@pytest.mark.parametrize("left", [[".lock"], [".lock", ".config.json.123.tmp"]])
def test_a_run_killed_in_its_first_moments_can_be_begun_again(tmp_path, left):
    for name in left:
        (tmp_path / name).write_text("half")
    assert not Run(tmp_path, SETTINGS, resume=True).resumed
    assert json.loads((tmp_path / "config.json").read_text())["settings"]["epochs"] == 12.0


def test_an_existing_run_is_not_overwritten(finished):
    assert refused(finished, resume=False) == (
        f"run folder {finished} holds a run: add --resume to go on with it, or choose another --out"
    )
    assert refused(finished, resume=None) == f"run folder {finished} holds a run: choose another --out"


def test_other_settings_are_named(finished):
    assert refused(finished, SETTINGS | {"epochs": 13.0}, resume=True) == (
        f"run folder {finished} is of a run with epochs 12.0, not 13.0: "
        "resume with the settings it began with, or choose another --out"
    )
    message = refused(finished, {"dataset": "mnist", "augment": (), "data_dir": None}, resume=True)
    assert "with dataset 'mnist_10k', not 'mnist' (and augment, epochs): resume" in message
    assert "with ema None, not 0.9" in refused(finished, SETTINGS | {"ema": 0.9}, resume=True)


def test_a_folder_in_use_names_who_holds_it(finished):
    code = (
        "import sys; from cnn_jax.run import Run; run = Run(sys.argv[1], eval(sys.argv[2]), resume=True);"
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(finished), repr(SETTINGS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        message = refused(finished, resume=True)
        assert message == (
            f"run folder {finished} is in use by process {other.pid}: wait for it, or choose another --out"
        )
        other.kill()  # the system lets go of the folder for it
        other.wait()
    assert Run(finished, SETTINGS, resume=True).resumed


def test_a_folder_that_cannot_be_locked_is_not_in_use(tmp_path, monkeypatch):
    """As on a network's file system without locks."""

    def fail(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(InputError, match=r"^run folder .* cannot be used: No locks available. Choose another --out$"):
        Run(tmp_path / "run", SETTINGS)


def test_a_run_of_data_that_are_named_in_any_bytes_can_be_taken_up(tmp_path):
    settings = SETTINGS | {"dataset": os.fsdecode(b"caf\xe9")}
    Run(tmp_path, settings).close()
    assert Run(tmp_path, settings, resume=True).resumed


def test_a_folder_is_named_in_utf_8(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    with pytest.raises(InputError, match=r"^run folder .* has a name that is not UTF-8: choose another --out$"):
        Run(folder, SETTINGS)
    assert not folder.exists()


def test_a_run_that_let_go_can_be_taken_up(finished):
    first = Run(finished, SETTINGS, resume=True)
    with pytest.raises(InputError, match="in use by process"):
        Run(finished, SETTINGS, resume=True)
    first.close()
    assert Run(finished, SETTINGS, resume=True).resumed


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_other_files_is_left_alone(tmp_path, resume):
    (tmp_path / "thesis.tex").write_text("x")
    assert refused(tmp_path, resume=resume) == (
        f"run folder {tmp_path} holds files that are no run: choose another --out"
    )


@pytest.mark.parametrize("resume", [False, True])
def test_a_file_is_no_folder(tmp_path, resume):
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(InputError, match=f"^run folder {path} is a file: choose another --out$"):
        Run(path, SETTINGS, resume=resume)
    with pytest.raises(InputError, match=f"^run folder {path}/run cannot be used: Not a directory. Choose another"):
        Run(path / "run", SETTINGS, resume=resume)
    assert contents(tmp_path)["file"][0] == b"mine"


@pytest.mark.parametrize("damage", ["", '{"settings": {"epo', "[]", "{}", '{"settings": 3}', "\x00\x00"])
def test_a_damaged_config_is_said_so(finished, damage):
    (finished / "config.json").write_text(damage)
    assert refused(finished, resume=True) == f"{finished / 'config.json'} is damaged: choose another --out"


def test_a_folder_that_cannot_be_made():
    with pytest.raises(InputError, match=r"^run folder /proc/cnn_jax/run cannot be used: No such file or directory\."):
        Run("/proc/cnn_jax/run", SETTINGS)


def test_a_folder_that_cannot_be_read(finished, monkeypatch):
    """By an ordinary user: the tests may run as root, who can read everything."""

    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", denied)
    with pytest.raises(InputError, match=r"cannot be used: Permission denied\. Choose another --out$"):
        Run(finished, SETTINGS, resume=True)


def test_the_default_folder_is_the_next_that_is_free_and_resume_takes_the_latest(tmp_path):
    path = tmp_path / "mnist"
    assert default_path(path, resume=True) == path
    for expected in (path, tmp_path / "mnist-2", tmp_path / "mnist-3"):
        assert default_path(path, resume=False) == expected
        expected.mkdir()
        assert default_path(path, resume=True) == expected
