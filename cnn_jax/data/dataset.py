"""What every source of data returns: a `Dataset`, checked once."""

import hashlib
from collections.abc import Iterable
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
    """A data set, for any of the tasks.

    `train` and `test` are either resident, a dict of arrays with one row an image, small enough to go to the device
    whole, or a `Stream`, whose images are read as they are needed. Beside `image` u8[N,H,W,C] a batch holds

    - for classification `label` i32[N];
    - for detection `boxes` f32[N,M,4], `label` i32[N,M] and `objects` bool[N,M], see `tasks.detect`;
    - for segmentation `map` u8[N,H,W], a class a pixel, or 255 for pixels that count nowhere.

    Attributes:
        name: as asked for.
        train: the images to learn from.
        test: the images to measure on.
        class_names: one for each label.
        image_shape: (H, W, C), C is 1 or 3.
        mean: of each channel, for images in [0,1].
        std: of each channel, for images in [0,1].
        source: where the images come from and under which licence, in a sentence or two.
        files: `digest` of the names of the image files, where they are files of the user's.

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
    files: str = ""

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
                f"{self.name}: all {self.size('train')} training images are of one class, "
                f"{self.class_names[present[0]]!r}: give at least two classes to tell apart"
            )

    def _check(self, split: str) -> None:
        where = f"{self.name}, split {split!r}"
        data, labels = getattr(self, split), self.labels(split)
        if self.size(split) == 0:
            raise InputError(f"{where}: has no images: give at least one")
        if isinstance(data, dict):
            image = data["image"]
            if image.dtype != np.uint8 or image.shape != (len(image), *self.image_shape):
                raise InputError(
                    f"{where}: images are {image.dtype}{list(image.shape)}, "
                    f"expected uint8{[len(image), *self.image_shape]}, one for each label"
                )
            for name, values in data.items():
                if len(values) != len(image):
                    raise InputError(f"{where}: {name} has {len(values)} rows for {len(image)} images")
            if "boxes" in data:
                check_boxes(data, self.class_names, where)
            if "map" in data:
                check_map(data["map"], self.class_names, where)
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
        return len(data["image"]) if isinstance(data, dict) else len(data)

    def labels(self, split: str) -> np.ndarray | None:
        """All labels of "train" or "test", i32[N]; None where an image has not one label, or it is not read yet."""
        data = getattr(self, split)
        if not isinstance(data, dict):
            return data.labels
        return None if "boxes" in data else data.get("label")

    def counts(self, split: str) -> np.ndarray | None:
        """The images (or objects) of each class in "train" or "test", i64[num_classes]; None where not known."""
        data, labels = getattr(self, split), self.labels(split)
        if isinstance(data, dict) and "boxes" in data:
            labels = data["label"][data["objects"]]
        return None if labels is None else np.bincount(labels, minlength=self.num_classes)

    def images(self, split: str, rows: np.ndarray) -> np.ndarray:
        """Some images of "train" or "test": u8[len(rows),H,W,C]."""
        return self.rows(split, rows)["image"]

    def samples(self, split: str, count: int) -> dict[str, np.ndarray]:
        """The first `count` images of "train" or "test", u8[count,H,W,C], and what is true of them."""
        return self.rows(split, np.arange(min(count, self.size(split))))

    def rows(self, split: str, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Some rows of "train" or "test", as a batch."""
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

    def fingerprint(self) -> str:
        """What must be as it was when a run is taken up again: sizes, classes, labels and files, but not the pixels."""
        found = [repr((self.class_names, self.files)).encode()]
        for split in ("train", "test"):
            data = getattr(self, split)
            truth = data if isinstance(data, dict) else {} if data.labels is None else {"label": data.labels}
            found += [truth[name].tobytes() for name in ("label", "boxes", "objects") if name in truth]
        sizes = f"{self.size('train')} train, {self.size('test')} test, {self.num_classes} classes"
        return f"{sizes}; names and labels {digest(found)[:12]}"

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


def digest(parts: Iterable[str | bytes]) -> str:
    """The SHA-256 of a sequence, which another sequence does not have."""
    whole = hashlib.sha256()
    for part in parts:
        part = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        whole.update(len(part).to_bytes(8, "big") + part)
    return whole.hexdigest()


def check_boxes(data: dict, class_names: tuple[str, ...], where: str) -> None:
    """Raises `InputError` for boxes outside the image, turned inside out or empty, and labels out of range."""
    height, width = data["image"].shape[1:3]
    boxes, label, objects = data["boxes"], data["label"], data["objects"]
    left, top, right, bottom = np.moveaxis(boxes, -1, 0)
    problems = {
        "is empty or inside out": (right <= left) | (bottom <= top),
        f"lies outside its image of {height}×{width}": (left < 0) | (top < 0) | (right > width) | (bottom > height),
        "is not finite": ~np.isfinite(boxes).all(-1),
        f"has a class that is none of 0 to {len(class_names) - 1}": (label < 0) | (label >= len(class_names)),
    }
    for problem, bad in problems.items():
        rows = np.argwhere(bad & objects)
        if len(rows):
            i, j = rows[0]
            box = ", ".join(f"{x:g}" for x in boxes[i, j])
            raise InputError(
                f"{where}: object {j} of image {i}, ({box}) of class {label[i, j]}, {problem} "
                f"(and {len(rows) - 1} more)"
            )


def check_map(classes: np.ndarray, class_names: tuple[str, ...], where: str) -> None:
    """Raises `InputError` for values of a map that are no class and not 255."""
    known = np.isin(np.arange(256), [*range(len(class_names)), 255])
    for i, values in enumerate(classes):
        if not known[values].all():
            found = sorted(set(np.unique(values).tolist()) - set(np.flatnonzero(known).tolist()))
            raise InputError(
                f"{where}: the map of image {i} has the values {found}: classes are 0 to {len(class_names) - 1}, and "
                "255 is for pixels that count nowhere"
            )


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
