"""What a run leaves behind in numbers: `metrics.jsonl`, `summary.json`, TensorBoard events by wish.

JSON knows no NaN and no infinity; both are written as null, and null is read back as NaN.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from cnn_jax.errors import InputError
from cnn_jax.files import write_atomically


def plain(value):
    """`value` in JSON's own types: NumPy numbers and arrays become numbers and lists, NaN and infinities None.

    Dicts, lists, tuples and sets go deep; any other type becomes its `str` (a path, a dtype).
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return [plain(item) for item in sorted(value)]
    if isinstance(value, np.generic | np.ndarray) or hasattr(value, "__array__"):
        array = np.asarray(value)
        # JAX's small floats (bfloat16 …) are no subtype of np.floating, but become float32 without loss.
        return plain((array.astype(np.float32) if array.dtype.kind == "V" else array).tolist())
    return str(value)


def write_json(path, content) -> Path:
    """Writes anything `plain` understands as JSON with sorted keys, atomically; returns the path."""
    return write_atomically(path, json.dumps(plain(content), indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_metrics(path) -> list[dict]:
    """The records of a `metrics.jsonl`, in the order of writing; null becomes NaN.

    A last line without its end, left by a kill in mid-write, is passed over. Raises `InputError` for any other line
    that is not a JSON object, `FileNotFoundError` without the file.
    """
    records = []
    for number, line in enumerate(Path(path).read_bytes().split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            shown = line[:60].decode(errors="replace")
            raise InputError(f"{path}, line {number}: expected a JSON object, got {shown!r}: remove this line")
        records.append(_null_to_nan(record))
    return records


def _null_to_nan(value):
    if isinstance(value, dict):
        return {key: _null_to_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_null_to_nan(item) for item in value]
    return math.nan if value is None else value


class Tracker:
    """Appends a run's numbers to `folder/metrics.jsonl`, one JSON object a line, on disk after each line.

        with Tracker("runs/mnist") as tracker:
            tracker.log(100, {"loss": 0.31, "accuracy": 0.92}, split="train", epoch=1.6)

    writes `{"step": 100, "split": "train", "epoch": 1.6, "loss": 0.31, "accuracy": 0.92}`. Lines of an earlier run in
    the folder are kept (a half-written last one is cut off): call `truncate_after` on resuming.

    tensorboard: also write events under `folder/tensorboard`, as "split/name", of a dict as "split/name/key". Needs the
        extra of that name, and raises `InputError` without it.
    """

    def __init__(self, folder, *, tensorboard: bool = False):
        self.path = Path(folder) / "metrics.jsonl"
        self._events_class = _summary_writer() if tensorboard else None
        self._events = None
        self._purge_step = None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = _open_to_append(self.path)

    def log(self, step: int, values: Mapping, *, split: str | None = None, **extra) -> None:
        """Writes one record: the step, the split ("train", "test" …), anything `extra`, and the numbers in `values`."""
        values = plain(dict(values))
        head = {"step": int(step)} | ({} if split is None else {"split": split}) | plain(extra)
        self._file.write(json.dumps(head | values, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        if self._events_class is not None:
            if self._events is None:
                self._events = self._events_class(str(self.path.parent / "tensorboard"), purge_step=self._purge_step)
            for name, value in _numbers(values, f"{split}/" if split else ""):
                self._events.add_scalar(name, value, int(step))

    def truncate_after(self, step: int) -> None:
        """Drops the records of steps later than `step`, atomically: a resumed run writes them again."""
        self._file.close()
        lines = self.path.read_bytes().split(b"\n")[:-1]
        kept = [
            line for line, record in zip(lines, read_metrics(self.path), strict=True) if record.get("step", 0) <= step
        ]
        if len(kept) < len(lines):
            write_atomically(self.path, b"".join(line + b"\n" for line in kept))
        self._purge_step = step + 1  # TensorBoard hides what earlier event files hold from there on
        self._file = _open_to_append(self.path)

    def close(self) -> None:
        """Closes the files; more than once does no harm."""
        self._file.close()
        if self._events is not None:
            self._events.close()
            self._events = None

    def __enter__(self):
        return self

    def __exit__(self, *_error) -> None:
        self.close()


def _numbers(values: Mapping, prefix: str) -> Iterator[tuple[str, float]]:
    """The numbers in a dict and in the dicts in it, each with its path."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", value


def _open_to_append(path: Path):
    """Opens a file of lines for appending; a last line without its end is cut off first."""
    file = open(path, "ab")  # noqa: SIM115  the tracker closes it
    content = path.read_bytes()
    file.truncate(content.rfind(b"\n") + 1)
    return file


def _summary_writer():
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise InputError(
            "TensorBoard events need tensorboardX, which is not installed: pip install tensorboardX"
        ) from error
    return SummaryWriter
