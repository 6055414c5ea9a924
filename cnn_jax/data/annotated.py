"""What sets with boxes and maps share: images laid into a square, and the split of a set that has none."""

import hashlib
from collections.abc import Sequence

import numpy as np

from cnn_jax.data import dataset, images
from cnn_jax.data.dataset import RESIDENT_BYTES, Dataset
from cnn_jax.data.stream import Reader, Stream, read_all
from cnn_jax.errors import InputError

# Beyond an image, the colour of the ground in images, and "counts nowhere" in maps.
PAD, IGNORE = 114, 255


def letterbox(image: np.ndarray, size: int, *, pad: int = PAD, nearest: bool = False) -> tuple[np.ndarray, float]:
    """An image [H,W] or [H,W,C] scaled to fit into a square, at its upper left, and the factor: ([size,size,…], scale).

    Images are interpolated, maps (`nearest`) are not.
    """
    height, width = image.shape[:2]
    scale = size / max(height, width)
    if scale != 1:
        try:
            import cv2
        except ImportError:
            raise InputError("resizing images needs OpenCV: pip install 'cnn_jax[data]'") from None
        shape = max(1, round(width * scale)), max(1, round(height * scale))
        how = cv2.INTER_NEAREST if nearest else cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        image = cv2.resize(image, shape, interpolation=how).reshape(shape[1], shape[0], *image.shape[2:])
    square = np.full((size, size, *image.shape[2:]), pad, image.dtype)
    square[: image.shape[0], : image.shape[1]] = image
    return square, scale


def decode(path, channels: int) -> np.ndarray:
    """An image file as u8[H,W,channels] of its own size."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise InputError(f"cannot read image {path}: {error.strerror}") from None
    image = images.pixels(data, channels, path)
    return image.reshape(*image.shape[:2], channels)


def split_by_name(names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(rows to train on, a fifth to test on), as their names' hashes fall."""
    keys = [hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest() for name in names]
    return dataset.split_rows(np.zeros(len(keys), np.int32), keys)


def assemble(
    name: str, readers: tuple[Reader, Reader], class_names: Sequence[str], source: str, *, workers: int | None = None
) -> Dataset:
    """The set of two readers, for training and for testing: in memory if it is small, otherwise as streams."""
    for split, reader in zip(("train", "test"), readers, strict=True):
        if not len(reader):
            raise InputError(f"{name}, split {split!r}: has no images: give at least one")
    shape = readers[0].image_shape
    if sum(map(len, readers)) * np.prod(shape) <= RESIDENT_BYTES:
        splits = [read_all(reader) for reader in readers]
        mean, std = dataset.moments(splits[0]["image"])
    else:
        splits = [Stream(reader, workers=workers) for reader in readers]
        mean = std = (0.5,) * shape[2]
    return Dataset(
        name=name,
        train=splits[0],
        test=splits[1],
        class_names=tuple(class_names),
        image_shape=shape,
        mean=mean,
        std=std,
        source=source,
    )
