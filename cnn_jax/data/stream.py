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


@dataclass(frozen=True)
class _Head:
    """The first rows of a `Source`."""

    source: Source
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> tuple[bytes, int]:
        return self.source[row]

    def where(self, row: int) -> str:
        return self.source.where(row)


@dataclass(frozen=True)
class _Reader:
    """Reads and decodes images, in whichever process."""

    source: Source
    image_shape: tuple[int, int, int]
    resize: bool
    num_classes: int

    def image(self, row: int) -> tuple[np.ndarray, int]:
        data, label = self.source[row]
        where = self.source.where(row)
        if not 0 <= label < self.num_classes:
            raise InputError(f"{where}: label {label} is out of range: labels are 0 to {self.num_classes - 1}")
        return images.decode(data, self.image_shape, resize=self.resize, where=where), label

    def batch(self, rows: np.ndarray, map_rows=map) -> dict[str, np.ndarray]:
        """rows i32[B] → a batch. `map_rows` may be that of a pool of threads: the decoders let go of Python's lock."""
        mask = rows >= 0
        batch = {
            "image": np.zeros((len(rows), *self.image_shape), np.uint8),
            "label": np.zeros(len(rows), np.int32),
            "mask": mask,
        }
        for place, (image, label) in zip(np.flatnonzero(mask), map_rows(self.image, rows[mask].tolist()), strict=True):
            batch["image"][place], batch["label"][place] = image, label
        return batch

    def batch_or_error(self, rows: np.ndarray) -> dict:
        """An exception that crosses processes loses its type: bad input is handed over as its sentence instead."""
        try:
            return self.batch(rows)
        except InputError as error:
            return {"error": str(error)}


def read_all(
    source: Source, image_shape: tuple[int, int, int], num_classes: int, *, resize: bool
) -> dict[str, np.ndarray]:
    """Reads a whole source: {"image": u8[N,H,W,C], "label": i32[N]}; see `Stream` for arguments and errors."""
    (batch,) = Stream(source, image_shape, num_classes, resize=resize, workers=0).batches(np.arange(len(source))[None])
    return {"image": batch["image"], "label": batch["label"]}


class Stream:
    """A split whose images are read as they are needed.

    Attributes:
        labels: i32[N], or None where they are known only once the images are read.
        workers: processes that read and decode; 0 reads in this process, with a thread a core.
    """

    def __init__(
        self,
        source: Source,
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        labels: np.ndarray | None = None,
        resize: bool = True,
        workers: int | None = None,
    ):
        """
        Args:
            source: the encoded images.
            image_shape: (H, W, C) of the decoded ones.
            num_classes: labels must be below.
            labels: i32[N], if known without reading.
            resize: scale each image until it just covers H×W and cut out the centre; otherwise all must be H×W.
            workers: processes; None takes one a core, at most 8.
        """
        self.workers = min(os.cpu_count() or 1, 8) if workers is None else workers
        if self.workers < 0:
            raise InputError(f"workers is {workers}: give 0 or more")
        self.labels = labels
        self._reader = _Reader(source, tuple(image_shape), resize, num_classes)

    def __len__(self) -> int:
        return len(self._reader.source)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the decoded images."""
        return self._reader.image_shape

    def head(self, count: int) -> "Stream":
        """The stream of the first `count` images."""
        reader = self._reader
        labels = None if self.labels is None else self.labels[:count]
        return Stream(
            _Head(reader.source, min(count, len(self))), reader.image_shape, reader.num_classes,
            labels=labels, resize=reader.resize, workers=self.workers,
        )  # fmt: skip

    def batches(self, rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """Reads S batches.

        What comes depends on `rows` alone, not on the number of workers. Each call starts the workers, which takes
        seconds: ask for an epoch at a time, not for a step. Up to `FEW` images are read without them, by threads, and
        so are all where shared memory (/dev/shm) is too small for workers. A script that has workers needs its
        `if __name__ == "__main__":`, since each worker imports it.

        Args:
            rows: i32[S,B], each in [0, N), or −1 for padding.

        Yields:
            S dicts: "image" u8[B,H,W,C], "label" i32[B], "mask" bool[B]; where padded, zeros and False.

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
            return self._here(rows)
        return self._by_workers(rows, workers)

    def _here(self, rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        pool = ThreadPoolExecutor(os.cpu_count())
        try:
            for batch_rows in rows:
                yield self._reader.batch(batch_rows, pool.map)
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
        batches = grain.MapDataset.source(rows).map(self._reader.batch_or_error)
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
