"""The folder of a run: whose it is, what made it, and that nobody else writes there."""

import fcntl
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from cnn_jax.errors import InputError
from cnn_jax.reporting import write_json
from cnn_jax.reporting.trackers import plain


class Run:
    """A run's folder, held by this process as long as the `Run` lives.

        run = Run("runs/mnist", {"dataset": "mnist_10k", "epochs": 12}, resume=True)
        run.path / "summary.json"

    A new folder gets a `config.json`: the settings, and the versions, devices and commit that they ran with. With
    `resume` an existing run of the same settings is taken up again; otherwise an existing folder is left as it is. None
    is for programs that take up none.

    Raises:
        InputError: the folder holds a run and `resume` is not True; or a run of other settings; or files that are no
            run; another process holds it; it cannot be used. What is there stays as it is.
    """

    def __init__(self, path: str | Path, settings: Mapping, *, resume: bool | None = None):
        self.path = Path(path)
        self.config_path = self.path / "config.json"
        settings = plain(settings)
        try:
            self.resumed = self._check(settings, resume)
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / ".lock", "a+")  # noqa: SIM115  held until `close`
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "another process"
            raise InputError(
                f"run folder {self.path} is in use by {holder}: wait for it, or choose another --out"
            ) from None
        except OSError as error:
            raise InputError(
                f"run folder {self.path} cannot be used: {error.strerror}. Choose another --out"
            ) from error
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()}")
        self._lock.flush()
        if not self.resumed:
            write_json(self.config_path, {"settings": settings, "environment": environment()})

    def _check(self, settings: dict, resume: bool | None) -> bool:
        """Whether the folder holds a run to take up again. Changes nothing."""
        try:
            str(self.path.absolute()).encode()
        except UnicodeEncodeError:  # TensorStore cannot write there
            raise InputError(f"run folder {self.path} has a name that is not UTF-8: choose another --out") from None
        if not self.path.exists():
            return False
        if not self.path.is_dir():
            raise InputError(f"run folder {self.path} is a file: choose another --out")
        if not self.config_path.exists():
            # A run that was killed in its first moments has left no more than these.
            ours = (".lock", f".{self.config_path.name}.")
            if not all(entry.name.startswith(ours) for entry in self.path.iterdir()):
                raise InputError(f"run folder {self.path} holds files that are no run: choose another --out")
            return False
        if not resume:
            way = "choose another --out" if resume is None else "add --resume to go on with it, or choose another --out"
            raise InputError(f"run folder {self.path} holds a run: {way}")
        try:
            before = dict(json.loads(self.config_path.read_text())["settings"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.config_path} is damaged: choose another --out") from error
        changed = [name for name in {**settings, **before} if before.get(name) != settings.get(name)]
        if changed:
            name = changed[0]
            others = f" (and {', '.join(changed[1:])})" if changed[1:] else ""
            raise InputError(
                f"run folder {self.path} is of a run with {name} {before.get(name)!r}, "
                f"not {settings.get(name)!r}{others}: "
                "resume with the settings it began with, or choose another --out"
            )
        return True

    def close(self) -> None:
        """Lets go of the folder."""
        if hasattr(self, "_lock"):
            self._lock.close()

    def __del__(self):
        self.close()


def default_path(path: Path, *, resume: bool = False) -> Path:
    """The first of `path`, `path-2`, `path-3`, … that does not exist; with `resume` the one before it, if any does."""
    number, free, last = 1, path, path
    while free.exists():
        number, last = number + 1, free
        free = path.with_name(f"{path.name}-{number}")
    return last if resume else free


def environment() -> dict:
    """Versions, devices, commit and date: what a number must be quoted with."""
    import jax

    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent,
            timeout=5,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = ""
    device = jax.devices()[0]
    return {
        "versions": {name: version(name) for name in ("jax", "flax", "optax", "orbax-checkpoint", "numpy")},
        "python": platform.python_version(),
        "platform": device.platform,
        "devices": f"{jax.device_count()} × {_processor() if device.platform == 'cpu' else device.device_kind}",
        "cores": os.cpu_count(),
        "commit": commit or None,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "CPU"
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "CPU")
