"""Many images through a compiled function, in batches of one shape."""

from collections.abc import Iterator

import numpy as np

from cnn_jax.errors import InputError


def batches(images: np.ndarray, *, batch_size: int) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """(place, batch, mask) of one batch after the other.

    Args:
        images: [N,H,W,C] of any dtype.

    Yields:
        The place of the batch; [B,H,W,C], of which the last is filled up with its last image, B being `batch_size` or
        N, if that is less; and bool[B], False where it is filled up.

    Raises:
        InputError: no images, images of another shape, or no batch size.
    """
    images = np.asarray(images)
    if images.ndim != 4 or not len(images):
        raise InputError(f"images of shape {images.shape}: expected [N,H,W,C] with N of 1 or more")
    for place, rows in row_batches(len(images), batch_size):
        yield place, images[rows], np.arange(place.start, place.start + len(rows)) < place.stop


def row_batches(count: int, batch_size: int) -> Iterator[tuple[slice, np.ndarray]]:
    """(place, rows) of one batch after the other: the slice of `count` rows that it is, and their numbers i64[B].

    B is `batch_size`, or `count`, if that is less. The last batch is filled up with the last row.

    Raises:
        InputError: no batch size.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}: it must be 1 or more")
    size = min(batch_size, count)
    for first in range(0, count, size):
        yield slice(first, min(first + size, count)), np.minimum(np.arange(first, first + size), count - 1)
