"""Streams, against Pillow's decoding of the same files; and what becomes of the workers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cnn_jax
from cnn_jax.data import stream
from cnn_jax.data.stream import Files, Labelled, Stream
from cnn_jax.errors import InputError


@pytest.fixture(autouse=True)
def _workers_for_few_images_too(monkeypatch):
    monkeypatch.setattr(stream, "FEW", 0)


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    paths = [str(tmp_path / f"{i}.{'png' if i == 3 else 'jpg'}") for i in range(10)]
    for path in paths:
        small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        small.resize((40, 32)).save(path)
    return Files(tuple(paths), np.arange(10, dtype=np.int32) % 3)


ROWS = np.array([[3, 1, 9], [0, 0, 5], [2, -1, 4], [7, 8, 6], [-1, -1, -1]], np.int32)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_equal_for_any_number_of_workers(files, workers):
    """The truth is Pillow's, so the three are equal to each other bit for bit."""
    batches = list(Stream(Labelled(files, (32, 40, 3), 3, False), workers=workers).batches(ROWS))
    assert len(batches) == len(ROWS)
    for rows, batch in zip(ROWS, batches, strict=True):
        assert (batch["image"].dtype, batch["label"].dtype, batch["mask"].dtype) == (np.uint8, np.int32, bool)
        for place, row in enumerate(rows):
            truth = np.zeros((32, 40, 3)) if row < 0 else np.asarray(Image.open(files.paths[row]).convert("RGB"))
            np.testing.assert_array_equal(batch["image"][place], truth)
            assert batch["mask"][place] == (row >= 0)
            assert batch["label"][place] == (row % 3 if row >= 0 else 0)


def test_head(files):
    labels = np.arange(10, dtype=np.int32) % 3
    head = Stream(Labelled(files, (32, 40, 3), 3, False), labels=labels, workers=0).head(4)
    assert (len(head), head.image_shape, head.labels.tolist()) == (4, (32, 40, 3), [0, 1, 2, 0])
    (batch,) = head.batches(np.array([[3]]))
    np.testing.assert_array_equal(batch["image"][0], np.asarray(Image.open(files.paths[3]).convert("RGB")))
    with pytest.raises(InputError, match="rows go from 4 to 4, expected -1"):
        head.batches(np.array([[4]]))


def test_short_side_resized_and_centre_cut(files):
    (batch,) = Stream(Labelled(files, (16, 16, 3), 3), workers=0).batches(np.array([[0]]))
    whole = np.asarray(Image.open(files.paths[0])).astype(float)
    halved = whole.reshape(16, 2, 20, 2, 3).mean((1, 3))[:, 2:18]
    assert np.abs(batch["image"][0] - halved).max() <= 0.5


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_name_the_file(files, workers):
    def read(shape=(32, 40, 3), num_classes=3):
        return list(Stream(Labelled(files, shape, num_classes, False), workers=workers).batches(ROWS))

    with pytest.raises(InputError, match=r"\.(jpg|png): label 2 is out of range: labels are 0 to 1"):
        read(num_classes=2)
    if workers:
        return
    with pytest.raises(InputError, match=r"3.png: the image is 32 high and 40 wide, others are 30 and 40"):
        read(shape=(30, 40, 3))
    Path(files.paths[9]).write_bytes(Path(files.paths[9]).read_bytes()[:100])
    with pytest.raises(InputError, match=r"9.jpg: corrupt image"):
        read()
    Path(files.paths[9]).unlink()
    with pytest.raises(InputError, match=r"cannot read image .*9.jpg: No such file"):
        read()


@pytest.mark.parametrize(
    ("rows", "says"), [([0, 1], r"int64\[2\]"), ([[0.0]], "float64"), ([[10]], "10 to 10"), ([[-2, 3]], "-2 to 3")]
)
def test_rows_are_checked_at_once(files, rows, says):
    with pytest.raises(InputError, match=says):
        Stream(Labelled(files, (32, 40, 3), 3)).batches(np.array(rows))


def test_no_rows_and_bad_workers(files):
    assert list(Stream(Labelled(files, (32, 40, 3), 3)).batches(np.zeros((0, 4), np.int32))) == []
    with pytest.raises(InputError, match="workers is -1"):
        Stream(Labelled(files, (32, 40, 3), 3), workers=-1)


def test_workers_are_not_used_where_shared_memory_is_short(files, monkeypatch):
    def workers(*_):
        raise AssertionError("workers were started")

    monkeypatch.setattr(Stream, "_by_workers", workers)
    monkeypatch.setattr(stream, "_free_shared_memory", lambda: 1000)
    assert len(list(Stream(Labelled(files, (32, 40, 3), 3), workers=2).batches(ROWS))) == len(ROWS)


class DevicesInWorker:
    """A source whose labels are the number of devices that JAX has taken in the worker."""

    def __init__(self, path):
        self.path = path

    def __len__(self):
        return 1

    def __getitem__(self, row):
        from jax._src import xla_bridge

        return Path(self.path).read_bytes(), len(xla_bridge._backends)

    def where(self, row):
        return "row"


def test_workers_take_no_device(files):
    (batch,) = Stream(Labelled(DevicesInWorker(files.paths[0]), (32, 40, 3), 3, False), workers=1).batches(
        np.array([[0]])
    )
    assert batch["label"].tolist() == [0]


SCRIPT = """
import time
from pathlib import Path
import numpy as np
from cnn_jax.data import stream
stream.FEW = 0
if __name__ == "__main__":
    files = stream.Files(({path!r},), np.zeros(1, np.int32))
    images = stream.Stream(stream.Labelled(files, (32, 40, 3), 3), workers=1)
    for batch in images.batches(np.zeros((9999, 2), np.int32)):
        print("read", flush=True)
        time.sleep(0.05)
"""


def children(pid):
    """The processes whose parent is `pid`, from /proc."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            if f"\nPPid:\t{pid}\n" in status.read_text():
                found.append(int(status.parent.name))
        except OSError:
            pass  # it has just ended
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks into /proc")
def test_workers_of_a_killed_program_end(tmp_path, files):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(path=files.paths[0]))
    environment = os.environ | {"PYTHONPATH": str(Path(cnn_jax.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    ) as program:
        assert program.stdout.readline() == b"read\n"
        workers = children(program.pid)
        assert workers
        os.kill(program.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
