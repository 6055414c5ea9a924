"""Images that do not fit in memory: read and decoded by worker processes, a batch at a time."""

import math
import multiprocessing
import os
import shutil
import signal
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

import jax
import numpy as np

from cnn_jax.data import images
from cnn_jax.errors import InputError

# So many images are decoded sooner than workers are started.
FEW = 2_000


class Source(Protocol):
    """Encoded images by row. It is sent to the workers, so it must pickle."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> tuple[bytes, int]:
        """The bytes of an image file, and its label."""

    def where(self, row: int) -> str:
        """Names the row in errors."""


@dataclass(frozen=True)
class Files:
    """A `Source` of image files; `labels` is i32[N]."""

    paths: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[bytes, int]:
        try:
            with open(self.paths[row], "rb") as file:
                return file.read(), int(self.labels[row])
        except OSError as error:
            raise InputError(f"cannot read image {self.paths[row]}: {error.strerror}") from None

    def where(self, row: int) -> str:
        return self.paths[row]


class Reader(Protocol):
    """Rows of a set, read and decoded one at a time, in whichever process: it must pickle."""

    image_shape: tuple[int, int, int]

    def __len__(self) -> int: ...

    def read(self, row: int) -> dict[str, np.ndarray]:
        """What a batch holds of one row, without leading N: `image` u8[H,W,C] and what is true of it.

        Beside it there may be `said`, a sentence about the row for the user, which a stream prints once.
        """

    def empty(self) -> dict[str, np.ndarray]:
        """The same of a row that only fills up a batch."""


@dataclass(frozen=True)
class Labelled:
    """A `Reader` of images with a label each."""

    source: Source
    image_shape: tuple[int, int, int]
    num_classes: int
    resize: bool = True  # scale until the image just covers H×W and cut out the centre; otherwise all must be H×W

    def __len__(self) -> int:
        return len(self.source)

    def read(self, row: int) -> dict[str, np.ndarray]:
        data, label = self.source[row]
        where = self.source.where(row)
        if not 0 <= label < self.num_classes:
            raise InputError(f"{where}: label {label} is out of range: labels are 0 to {self.num_classes - 1}")
        return {
            "image": images.decode(data, self.image_shape, resize=self.resize, where=where),
            "label": np.int32(label),
        }

    def empty(self) -> dict[str, np.ndarray]:
        return {"image": np.zeros(self.image_shape, np.uint8), "label": np.int32(0)}


def read_all(reader: Reader) -> dict[str, np.ndarray]:
    """A whole set as a dict of arrays with one row an image."""
    (batch,) = Stream(reader, workers=0).batches(np.arange(len(reader))[None])
    return {name: values for name, values in batch.items() if name != "mask"}


def _batch(reader: Reader, rows: np.ndarray, map_rows=map) -> dict:
    """rows i32[B] → a batch, and the sentences `said`. `map_rows` may be that of a pool of threads: the decoders let go
    of Python's lock."""
    mask = rows >= 0
    batch = {name: np.stack([np.asarray(values)] * len(rows)) for name, values in reader.empty().items()}
    said = []
    for place, read in zip(np.flatnonzero(mask), map_rows(reader.read, rows[mask].tolist()), strict=True):
        for name, values in read.items():
            if name == "said":
                said.append(values)
            else:
                batch[name][place] = values
    return {**batch, "mask": mask, "said": said}


@dataclass(frozen=True)
class _BatchOrError:
    """An exception that crosses processes loses its type: bad input is handed over as its sentence instead."""

    reader: Reader

    def __call__(self, rows: np.ndarray) -> dict:
        try:
            return _batch(self.reader, rows)
        except InputError as error:
            return {"error": str(error)}


class Stream:
    """A split whose images are read as they are needed.

    Attributes:
        labels: i32[N], or None where an image has not one label, or they are known only once the images are read.
        workers: processes that read and decode; 0 reads in this process, with a thread a core.
    """

    def __init__(
        self, reader: Reader, *, labels: np.ndarray | None = None, count: int | None = None, workers: int | None = None
    ):
        """
        Args:
            reader: of the rows.
            labels: i32[N], if known without reading.
            count: only the first rows of the reader.
            workers: processes; None takes one a core, at most 8.
        """
        self.workers = min(os.cpu_count() or 1, 8) if workers is None else workers
        if self.workers < 0:
            raise InputError(f"workers is {workers}: give 0 or more")
        self._reader, self._count = reader, len(reader) if count is None else min(count, len(reader))
        self.labels = None if labels is None else labels[: self._count]
        self._said: set[str] = set()

    def __len__(self) -> int:
        return self._count

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the decoded images."""
        return self._reader.image_shape

    def head(self, count: int) -> "Stream":
        """The stream of the first `count` images."""
        return Stream(self._reader, labels=self.labels, count=min(count, len(self)), workers=self.workers)

    def batches(self, rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """Reads S batches.

        What comes depends on `rows` alone, not on the number of workers. Each call starts the workers, which takes
        seconds: ask for an epoch at a time, not for a step. Up to `FEW` images are read without them, by threads, and
        so are all where shared memory (/dev/shm) is too small for workers. A script that has workers needs its
        `if __name__ == "__main__":`, since each worker imports it.

        Args:
            rows: i32[S,B], each in [0, N), or −1 for padding.

        Yields:
            S dicts: "image" u8[B,H,W,C], what is true of it, and "mask" bool[B]; where padded, zeros and False.

        Raises:
            InputError: a row out of range; a file that is missing or corrupt, or of another size, naming it.
        """
        rows = np.asarray(rows)
        if rows.ndim != 2 or not np.issubdtype(rows.dtype, np.integer):
            raise InputError(f"rows are {rows.dtype}{list(rows.shape)}, expected integers [S,B]")
        if rows.size and not -1 <= rows.min() <= rows.max() < len(self):
            raise InputError(f"rows go from {rows.min()} to {rows.max()}, expected -1 (padding) to {len(self) - 1}")
        workers = min(self.workers, len(rows))
        # Workers hand over by shared memory. Where that is full (in a Docker container it is 64 MB) they are killed.
        in_flight = 4 * (workers + 1) * rows.shape[1] * int(np.prod(self._reader.image_shape))
        if workers == 0 or rows.size <= FEW or in_flight > _free_shared_memory():
            return self._saying(self._here(rows))
        return self._saying(self._by_workers(rows, workers))

    def _saying(self, batches: Iterator[dict]) -> Iterator[dict[str, np.ndarray]]:
        """Prints what is said of the rows: once, whatever the number of epochs, and workers know only of their own."""
        with closing(batches):
            for batch in batches:
                for sentence in batch.pop("said"):
                    if sentence not in self._said:
                        self._said.add(sentence)
                        print(sentence)
                yield batch

    def _here(self, rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        pool = ThreadPoolExecutor(os.cpu_count())
        try:
            for batch_rows in rows:
                yield _batch(self._reader, batch_rows, pool.map)
        finally:
            pool.shutdown(cancel_futures=True)

    def _by_workers(self, rows: np.ndarray, workers: int) -> Iterator[dict[str, np.ndarray]]:
        try:
            import grain
            from absl import flags
        except ImportError:
            raise InputError(
                "reading with workers needs Grain: pip install 'cnn_jax[data]', or take 0 workers"
            ) from None

        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads absl's flags, which only absl's own `app.run` parses.
        # An element is a whole batch, so neither the order nor the batches depend on the number of workers.
        batches = grain.MapDataset.source(rows).map(_BatchOrError(self._reader))
        batches = batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        iterator = iter(batches.mp_prefetch(options, worker_init_fn=_start_worker))
        close = weakref.finalize(iterator, iterator.close)  # at the latest on exit, while Python's modules are whole
        try:
            for batch in iterator:
                if "error" in batch:
                    raise InputError(batch["error"])
                yield batch
        finally:
            close()


def _free_shared_memory() -> float:
    return shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else math.inf


def _start_worker(index: int, count: int) -> None:
    """Runs first in each worker."""
    # It has no use for JAX, but imports it: should it touch a device after all, it must not be the accelerator.
    jax.config.update("jax_platforms", "cpu")
    # Ctrl-C, and a cluster's SIGTERM, reach the whole group. They are for the parent, which then closes its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def follow():
        multiprocessing.parent_process().join()
        os._exit(1)  # A killed parent cannot close its workers: they end by themselves.

    threading.Thread(target=follow, daemon=True).start()
