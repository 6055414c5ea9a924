"""Segmentation from a folder: `images/NAME.*` and `masks/NAME.png`, where a pixel of a mask is a class."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cnn_jax.data import annotated, dataset
from cnn_jax.data.dataset import Dataset
from cnn_jax.data.images import EXTENSIONS
from cnn_jax.errors import InputError

SIZE = 256


def load(folder: Path, *, image_size: int | None = None, workers: int | None = None) -> Dataset:
    """Loads a folder with `images/` and `masks/`, letterboxed into squares.

    A mask is a grey or palette image of the size of its image; its values are classes from 0, and 255 where a pixel
    counts nowhere. `classes.txt` in the folder, in UTF-8, names the classes, one a line; without it they are numbers,
    none of which may be missing in the masks. `train/` and
    `val/` or `test/`, each with both folders, are the splits; otherwise a fifth of the images, chosen by name, is for
    testing.

    Args:
        image_size: side of the squares in pixels; 256 by default.

    Raises:
        InputError: an image without a mask or the other way round, a mask of another size, unknown values, one class
            alone in the training masks, a corrupt file.
    """
    size = SIZE if image_size is None else image_size
    test = next((folder / name for name in ("val", "test") if (folder / name).is_dir()), None)
    if (folder / "train").is_dir() and test:
        pairs = [_pairs(folder / "train"), _pairs(test)]
        how = f"split as its folders train and {test.name} say"
    else:
        every = _pairs(folder)
        rows = annotated.split_by_name([image.name for image, _ in every])
        pairs = [[every[i] for i in rows] for rows in rows]
        how = "a fifth of the images, chosen by their names, for testing"
    names = _class_names(folder, [mask for part in pairs for _, mask in part])
    readers = tuple(_Reader(tuple(part), size, len(names)) for part in pairs)
    source = f"Images and masks of the folder {folder}, letterboxed to {size}×{size}; {how}."
    files = dataset.digest(image.name for part in pairs for image, _ in part)
    return annotated.assemble(folder.resolve().name, readers, names, source, files=files, workers=workers)


@dataclass(frozen=True)
class _Reader:
    """See `stream.Reader`."""

    pairs: tuple[tuple[Path, Path], ...]
    size: int
    num_classes: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (self.size, self.size, 3)

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, row: int) -> dict[str, np.ndarray]:
        image_path, mask_path = self.pairs[row]
        classes = _mask(mask_path)
        annotated.check_map(classes, self.num_classes, mask_path)
        return annotated.with_map(annotated.decode(image_path, 3), classes, size=self.size, where=mask_path)

    def empty(self) -> dict[str, np.ndarray]:
        return annotated.empty("map", self.size)


def _pairs(folder: Path) -> list[tuple[Path, Path]]:
    files = {}
    for kind in ("images", "masks"):
        if not (folder / kind).is_dir():
            raise InputError(f"{folder} has no folder {kind}/: give a folder with images/ and masks/")
        files[kind] = {}
        for path in sorted((folder / kind).iterdir()):
            if path.suffix.lower() not in EXTENSIONS or path.name.startswith("."):
                continue
            if path.stem in files[kind]:
                raise InputError(
                    f"{path} and {files[kind][path.stem].name} have the same name: give one of them another"
                )
            files[kind][path.stem] = path
    if not files["images"]:
        raise InputError(f"{folder / 'images'} holds no images")
    for kind, other in (("images", "masks"), ("masks", "images")):
        alone = sorted(files[kind].keys() - files[other].keys())
        if alone:
            raise InputError(
                f"{files[kind][alone[0]]} has no file of that name in {other}/ (and {len(alone) - 1} more): give both"
            )
    return [(image, files["masks"][stem]) for stem, image in files["images"].items()]


def _mask(path: Path) -> np.ndarray:
    return annotated.decode_map(annotated.read_bytes(path), path)


def _class_names(folder: Path, masks: list[Path]) -> tuple[str, ...]:
    file = folder / "classes.txt"
    if not file.is_file():
        found = np.zeros(annotated.IGNORE + 1, bool)
        for mask in masks:
            found[_mask(mask)] = True
        values = np.flatnonzero(found[: annotated.IGNORE])
        names = annotated.names_of(values, folder)
        if len(values) < len(names):
            raise InputError(
                f"{folder}: its masks hold {len(values)} values with gaps, {_few(values)}: number the classes from 0 "
                f"without gaps, or name all {len(names)} in {file}"
            )
        return names
    try:
        # Some editors begin a file with a mark of its encoding, which is no part of the first name.
        names = tuple(line.strip() for line in file.read_text("utf-8-sig").splitlines() if line.strip())
    except UnicodeDecodeError:
        raise InputError(f"{file} is not in UTF-8: save it again in that encoding") from None
    if not 2 <= len(names) <= annotated.IGNORE:
        raise InputError(f"{file} names {len(names)} classes: segmentation needs 2 to {annotated.IGNORE}")
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise InputError(f"{file} names two classes {twice!r}: give each a name of its own")
    return names


def _few(values: np.ndarray) -> str:
    return ", ".join(map(str, values[:6])) + " …" * (len(values) > 6)
