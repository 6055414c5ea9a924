"""Many images through a compiled function, in batches of one shape."""

from collections.abc import Iterator

import numpy as np

from cnn_jax.errors import InputError


def batches(images: np.ndarray, *, batch_size: int) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """(rows, batch, mask) of one batch after the other.

    Args:
        images: [N,H,W,C] of any dtype.

    Yields:
        The rows of the batch; [B,H,W,C], of which the last is filled up with its last image, B being `batch_size` or N,
        if that is less; and bool[B], False where it is filled up.

    Raises:
        InputError: no images, images of another shape, or no batch size.
    """
    images = np.asarray(images)
    if images.ndim != 4 or not len(images):
        raise InputError(f"images of shape {images.shape}: expected [N,H,W,C] with N of 1 or more")
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}: it must be 1 or more")
    size = min(batch_size, len(images))
    for first in range(0, len(images), size):
        batch = images[first : first + size]
        filled = np.pad(batch, ((0, size - len(batch)), (0, 0), (0, 0), (0, 0)), mode="edge")
        yield slice(first, first + len(batch)), filled, np.arange(size) < len(batch)
