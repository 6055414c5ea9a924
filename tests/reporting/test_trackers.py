import json
import math
import os
import sys

import numpy as np
import pytest

from cnn_jax import files
from cnn_jax.errors import InputError
from cnn_jax.files import write_atomically
from cnn_jax.reporting import Tracker, read_metrics, trackers, write_json


def test_metrics_round_trip(tmp_path):
    with Tracker(tmp_path / "run") as tracker:
        tracker.log(1, {"loss": np.float32(0.5), "norms": {"conv1": np.nan, "fc1": 1}}, split="train", epoch=0.5)
        # Flushed: another reader sees the line while the run goes on.
        assert len(read_metrics(tracker.path)) == 1
        tracker.log(2, {"loss": math.nan, "top": math.inf})
    first, second = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert first == '{"step": 1, "split": "train", "epoch": 0.5, "loss": 0.5, "norms": {"conv1": null, "fc1": 1}}'
    assert second == '{"step": 2, "loss": null, "top": null}'
    one, two = read_metrics(tracker.path)
    assert math.isnan(one["norms"].pop("conv1"))
    assert one == {"step": 1, "split": "train", "epoch": 0.5, "loss": 0.5, "norms": {"fc1": 1}}
    assert math.isnan(two["loss"])


def test_resume_drops_what_comes_after_the_step_and_half_a_line(tmp_path):
    with Tracker(tmp_path) as tracker:
        for step in range(1, 6):
            tracker.log(step, {"loss": 1 / step})
    with open(tracker.path, "ab") as file:
        file.write(b'{"step": 6, "lo')
    assert [r["step"] for r in read_metrics(tracker.path)] == [1, 2, 3, 4, 5]
    with Tracker(tmp_path) as tracker:
        assert tracker.path.read_bytes().endswith(b"0.2}\n")
        tracker.truncate_after(3)
        tracker.log(4, {"loss": 9.0})
    assert [(r["step"], r["loss"]) for r in read_metrics(tracker.path)] == [(1, 1), (2, 1 / 2), (3, 1 / 3), (4, 9)]


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(InputError, match=r"line 2.*'nonsense': remove this line$"):
        read_metrics(path)


def test_a_record_without_a_step_is_kept(tmp_path):
    with Tracker(tmp_path) as tracker:
        tracker.log(7, {"loss": 1})
        with open(tracker.path, "a") as file:
            file.write('{"note": "mine"}\n')
        tracker.truncate_after(3)
    assert read_metrics(tracker.path) == [{"note": "mine"}]


def test_json_is_sorted_and_knows_numpy(tmp_path):
    content = {"b": np.float32(0.5), "a": np.array([[1, 2]]), "path": tmp_path, "nan": np.nan, "flag": np.bool_(True)}
    path = write_json(tmp_path / "deep/er/summary.json", content)
    assert json.loads(path.read_text()) == {"a": [[1, 2]], "b": 0.5, "flag": True, "nan": None, "path": str(tmp_path)}
    assert path.read_text().index('"a"') < path.read_text().index('"b"')
    assert path.read_text().endswith("}\n")


def test_a_name_of_any_bytes_is_written_and_read_back(tmp_path):
    """In JSON for machines, in a page for people."""
    name = os.fsdecode(b"caf\xe9")
    assert json.loads(write_json(tmp_path / "a.json", {"classes": [name]}).read_text()) == {"classes": [name]}
    assert write_atomically(tmp_path / "a.html", f"<p>{name}é").read_text() == "<p>caf\\udce9é"


@pytest.mark.parametrize("broken", ["open", "fsync", "replace"])
def test_a_failing_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, broken):
    path = write_atomically(tmp_path / "a.txt", "old")

    def fail(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files if broken == "open" else os, broken, fail, raising=False)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_tensorboard_events(tmp_path):
    with Tracker(tmp_path, tensorboard=True) as tracker:
        tracker.log(7, {"loss": 0.25, "note": "text is left out", "grad_norm": {"conv1": 0.75}}, split="train")
    (events,) = (tmp_path / "tensorboard").iterdir()
    for name, value in ((b"train/loss", 0.25), (b"train/grad_norm/conv1", 0.75)):
        assert name in events.read_bytes()
        assert np.float32(value).tobytes() in events.read_bytes()
    assert b"note" not in events.read_bytes()


def test_tensorboard_missing_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(InputError, match="pip install tensorboardX"):
        Tracker(tmp_path, tensorboard=True)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_plain_goes_deep():
    assert trackers.plain({1: (np.int64(2), {3.0}), "t": None}) == {"1": [2, [3.0]], "t": None}
