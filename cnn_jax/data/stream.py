"""Images that do not fit in memory: read and decoded by worker processes, a batch at a time."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cnn_jax.data import images
from cnn_jax.errors import InputError


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


def read_all(source: Source, image_shape: tuple[int, int, int], *, resize: bool) -> dict[str, np.ndarray]:
    """Reads a whole source: {"image": u8[N,H,W,C], "label": i32[N]}. By threads: the decoders let go of Python's lock.

    Raises:
        InputError: an image is missing, corrupt or of another size.
    """
    split = {"image": np.empty((len(source), *image_shape), np.uint8), "label": np.empty(len(source), np.int32)}

    def read(row: int) -> None:
        data, split["label"][row] = source[row]
        split["image"][row] = images.decode(data, image_shape, resize=resize, where=source.where(row))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for _ in pool.map(read, range(len(source))):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return split


@dataclass(frozen=True)
class _Read:
    """rows i32[B] → a batch. Runs in a worker."""

    source: Source
    image_shape: tuple[int, int, int]
    resize: bool
    num_classes: int

    def __call__(self, rows: np.ndarray) -> dict:
        batch = {
            "image": np.zeros((len(rows), *self.image_shape), np.uint8),
            "label": np.zeros(len(rows), np.int32),
            "mask": rows >= 0,
        }
        for place in np.flatnonzero(batch["mask"]):
            row = int(rows[place])
            data, label = self.source[row]
            where = self.source.where(row)
            if not 0 <= label < self.num_classes:
                raise InputError(f"{where}: label {label} is out of range: labels are 0 to {self.num_classes - 1}")
            batch["image"][place] = images.decode(data, self.image_shape, resize=self.resize, where=where)
            batch["label"][place] = label
        return batch

    def or_error(self, rows: np.ndarray) -> dict:
        """An exception that crosses processes loses its type: a bad input is handed over as its sentence instead."""
        try:
            return self(rows)
        except InputError as error:
            return {"error": str(error)}


class Stream:
    """A split whose images are read as they are needed.

    Attributes:
        labels: i32[N], or None where they are known only once the images are read.
        workers: processes that read and decode; 0 reads in this process.
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
        self._read = _Read(source, tuple(image_shape), resize, num_classes)

    def __len__(self) -> int:
        return len(self._read.source)

    def batches(self, rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """Reads S batches.

        A worker reads whole batches, so what comes depends on `rows` alone, not on the number of workers. The workers
        are started by each call, in a second or two: ask for an epoch at a time rather than for a step. Where they
        are used, a script needs its `if __name__ == "__main__":`, since each worker imports it.

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
        return self._batches(rows, workers) if workers else map(self._read, rows)

    def _batches(self, rows: np.ndarray, workers: int) -> Iterator[dict[str, np.ndarray]]:
        try:
            import grain
            from absl import flags
        except ImportError:
            raise InputError(
                "reading with workers needs Grain: pip install 'cnn_jax[data]', or take 0 workers"
            ) from None

        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads absl's flags, which only absl's own `app.run` parses.
        iterator = iter(
            # An element is a whole batch, so neither the order nor the batches depend on the number of workers.
            grain.MapDataset.source(rows)
            .map(self._read.or_error)
            .to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
            .mp_prefetch(
                grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2),
                worker_init_fn=_start_worker,
            )
        )
        try:
            for batch in iterator:
                if "error" in batch:
                    raise InputError(batch["error"])
                yield batch
        finally:
            iterator.close()


def _start_worker(index: int, count: int) -> None:
    """Runs first in each worker."""
    # Ctrl-C reaches the whole process group. It is for the parent to decide on, which then closes the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def follow():
        multiprocessing.parent_process().join()
        os._exit(1)  # A killed parent cannot close its workers: they end by themselves.

    threading.Thread(target=follow, daemon=True).start()
