"""What every source of data returns: a `Dataset`, checked once."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.errors import InputError

if TYPE_CHECKING:
    from cnn_jax.data.stream import Stream

# A set that takes no more, once decoded, is resident: the host keeps it whole, and the device does too.
RESIDENT_BYTES = 512 * 2**20


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A data set for image classification.

    `train` and `test` are either resident, a dict `{"image": u8[N,H,W,C], "label": i32[N]}` small enough to go to the
    device whole, or a `Stream`, whose images are read as they are needed.

    Attributes:
        name: as asked for.
        train: the images to learn from.
        test: the images to measure on.
        class_names: one for each label.
        image_shape: (H, W, C), C is 1 or 3.
        mean: of each channel, for images in [0,1].
        std: of each channel, for images in [0,1].
        source: where the images come from and under which licence, in a sentence or two.

    Raises:
        InputError: shapes that disagree, labels out of range, a split that is empty, or only one class to learn.
    """

    name: str
    train: "dict[str, np.ndarray] | Stream"
    test: "dict[str, np.ndarray] | Stream"
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str

    def __post_init__(self):
        channels = self.image_shape[-1]
        if len(self.image_shape) != 3 or channels not in (1, 3):
            raise InputError(f"{self.name}: image_shape is {self.image_shape}, expected (H, W, C) with C of 1 or 3")
        if not len(self.mean) == len(self.std) == channels or min(self.std) <= 0:
            raise InputError(
                f"{self.name}: mean {self.mean} and std {self.std} must have {channels} entries each, std above zero"
            )
        for split in ("train", "test"):
            self._check(split)
        if self.labels("train") is None:
            return
        present = np.flatnonzero(self.counts("train"))
        if len(present) < 2:
            raise InputError(
                f"{self.name}: all training images are of one class, {self.class_names[present[0]]!r}: "
                "give at least two classes to tell apart"
            )

    def _check(self, split: str) -> None:
        where = f"{self.name}, split {split!r}"
        data, labels = getattr(self, split), self.labels(split)
        if self.size(split) == 0:
            raise InputError(f"{where}: has no images: give at least one")
        if labels is None:
            return
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise InputError(f"{where}: labels are {labels.dtype}{list(labels.shape)}, expected one integer an image")
        bad = np.flatnonzero((labels < 0) | (labels >= self.num_classes))
        if len(bad):
            raise InputError(
                f"{where}: label {labels[bad[0]]} of image {bad[0]} is out of range (and {len(bad) - 1} more): "
                f"with {self.num_classes} classes, labels are 0 to {self.num_classes - 1}"
            )
        if not isinstance(data, dict):
            return
        image = data["image"]
        if image.dtype != np.uint8 or image.shape != (len(labels), *self.image_shape):
            raise InputError(
                f"{where}: images are {image.dtype}{list(image.shape)}, "
                f"expected uint8{[len(labels), *self.image_shape]}, one for each label"
            )

    def __repr__(self) -> str:
        h, w, c = self.image_shape
        sizes = f"{self.size('train')} train, {self.size('test')} test"
        return f"Dataset({self.name!r}, {sizes}, {self.num_classes} classes, {h}x{w}x{c})"

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def size(self, split: str) -> int:
        """The number of images in "train" or "test"."""
        data = getattr(self, split)
        return len(data["label"]) if isinstance(data, dict) else len(data)

    def labels(self, split: str) -> np.ndarray | None:
        """All labels of "train" or "test", i32[N]; None for a stream that knows them only once it is read."""
        data = getattr(self, split)
        return data["label"] if isinstance(data, dict) else data.labels

    def counts(self, split: str) -> np.ndarray | None:
        """The images of each class in "train" or "test", i64[num_classes]; None where `labels` is None."""
        labels = self.labels(split)
        return None if labels is None else np.bincount(labels, minlength=self.num_classes)

    def images(self, split: str, rows: np.ndarray) -> np.ndarray:
        """Some images of "train" or "test": u8[len(rows),H,W,C]."""
        return self._rows(split, rows)["image"]

    def samples(self, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The first `count` images of "train" or "test", u8[count,H,W,C], and their labels."""
        batch = self._rows(split, np.arange(min(count, self.size(split))))
        return batch["image"], batch["label"]

    def _rows(self, split: str, rows: np.ndarray) -> dict[str, np.ndarray]:
        data, rows = getattr(self, split), np.asarray(rows, np.int32)
        if isinstance(data, dict):
            return {name: values[rows] for name, values in data.items()}
        (batch,) = data.batches(rows[None])
        return batch

    def head(self, *, train: int, test: int) -> "Dataset":
        """The set cut down to its first images, for trying things out."""
        cut = {"train": train, "test": test}
        for split, count in cut.items():
            data = getattr(self, split)
            resident = isinstance(data, dict)
            cut[split] = {name: values[:count] for name, values in data.items()} if resident else data.head(count)
        return replace(self, **cut)

    def preprocess(self, images: jax.Array) -> jax.Array:
        """What a network sees: (images in [0,1] − mean) / std. Traceable.

        Args:
            images: u8[...,C] in 0..255, or floating [...,C] in [0,1].

        Returns:
            f32[...,C].
        """
        images = jnp.asarray(images)
        if images.dtype == jnp.uint8:
            images = images.astype(jnp.float32) / 255
        elif not jnp.issubdtype(images.dtype, jnp.floating):
            raise InputError(f"preprocess: images are {images.dtype}, expected uint8 or floating in [0,1]")
        if images.shape[-1:] != self.image_shape[-1:]:
            raise InputError(
                f"preprocess: images have shape {images.shape}, expected {self.image_shape[-1]} channels last"
            )
        axes = (1,) * (images.ndim - 1) + (-1,)
        mean, std = (jnp.asarray(x, jnp.float32).reshape(axes) for x in (self.mean, self.std))
        return (images.astype(jnp.float32) - mean) / std


def split_rows(labels: np.ndarray, keys: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Splits a set that has no split of its own: a fixed, stratified fifth of it becomes the test set.

    The rows of each class are ordered by their keys, and of every five the third is for testing, which takes a fifth
    of the class, rounded (of two rows the second; a single row is for training). With a hash for a key the rows are
    mixed, and the split is the same in any language, on any machine, for ever.

    Args:
        labels: i32[N].
        keys: N strings that do not repeat within a class.

    Returns:
        (train, test): rows, i64, each in the order of the keys, so the classes are mixed.
    """
    order = np.array(sorted(range(len(labels)), key=keys.__getitem__), np.int64)
    is_test = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        if len(rows) > 1:
            is_test[rows[min(2, len(rows) - 1) :: 5]] = True
    return order[~is_test[order]], order[is_test[order]]


def moments(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and standard deviation of each channel of u8[N,H,W,C], for images in [0,1]; exact, from the histogram.

    A channel that is constant is given a deviation of 1, to divide by.
    """
    levels = np.arange(256) / 255
    means, stds = [], []
    for channel in range(images.shape[-1]):
        share = np.bincount(images[..., channel].ravel(), minlength=256) / max(images[..., channel].size, 1)
        mean = float(share @ levels)
        means.append(mean)
        stds.append(float(np.sqrt(share @ (levels - mean) ** 2)) or 1.0)
    return tuple(means), tuple(stds)
