"""A folder of images, one sub-folder a class."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cnn_jax.data import dataset, images
from cnn_jax.data.dataset import Dataset
from cnn_jax.data.stream import Files, Labelled, Stream, read_all
from cnn_jax.errors import InputError

TEST_FOLDERS = ("test", "val", "validation", "valid")
PROBED = 2_000  # files whose header is read to learn size and colour; of more, so many, evenly spread


def load(path: str | Path, *, image_size: int | None = None, workers: int | None = None) -> Dataset:
    """Loads a folder that holds `train/CLASS/IMAGE` and `test/CLASS/IMAGE`, or just `CLASS/IMAGE`.

    `val`, `validation` and `valid` stand for `test`. Without them a fifth of each class becomes the test set, chosen
    by the SHA-256 of `CLASS/IMAGE`: see `dataset.split_rows`. Images are in the order of these too, so classes are
    mixed. Classes are numbered in the order of their names. The images are grey if all files are (of `PROBED`, evenly
    spread), otherwise in colour. Mean and std are those of the training images, or 0.5 where they are streamed. Sets of
    up to `dataset.RESIDENT_BYTES` once decoded are resident, larger ones are streams.

    Args:
        path: the folder.
        image_size: side of the images in pixels; others are resized (short side) and cut (centre). None takes them as
            they are, if all have one size.
        workers: processes that read a stream; None takes one a core, at most 8.

    Raises:
        InputError: no such folder, no images, a single class, no test images, a corrupt image, images of several sizes.
        OSError: a folder that may not be read.
    """
    root = Path(path)
    if not root.is_dir():
        raise InputError(f"no such folder: {root}")
    test = next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), None)
    if (root / "train").is_dir():
        if test is None:
            raise InputError(f"{root} has a folder train, but none of {', '.join(TEST_FOLDERS)}: add one of them")
        class_names = _class_names(root / "train")
        extra = sorted(set(_class_names(test)) - set(class_names))
        if extra:
            raise InputError(
                f"{test / extra[0]}: this class is not in {root / 'train'}: add it there, or remove it here"
            )
        parts = _files(root / "train", class_names), _files(test, class_names, may_lack=True)
        splits, keys = [files for files, _ in parts], [key for _, keys in parts for key in keys]
        how = f"split as its folders train and {test.name} say"
    else:
        class_names = _class_names(root)
        files, keys = _files(root, class_names)
        splits = [
            Files(tuple(files.paths[i] for i in rows), files.labels[rows])
            for rows in dataset.split_rows(files.labels, keys)
        ]
        how = "a fifth of each class, chosen by its file names, for testing"

    if len(class_names) < 2:
        raise InputError(
            f"{root} holds one class only, {class_names[0]!r}: make a sub-folder for each class, at least two"
        )
    if not len(splits[1]):
        where = f"{test} has" if test else f"{root} has one image of each class, so"
        raise InputError(f"{where} no image to test on: give two images of a class, or folders train and test")
    image_shape = _image_shape([*splits[0].paths, *splits[1].paths], image_size)
    size, colour = f"{image_shape[0]} high and {image_shape[1]} wide", "grey" if image_shape[2] == 1 else "in colour"
    resize = image_size is not None
    if sum(map(len, splits)) * np.prod(image_shape) <= dataset.RESIDENT_BYTES:
        splits = [read_all(Labelled(files, image_shape, len(class_names), resize)) for files in splits]
        mean, std = dataset.moments(splits[0]["image"])
    else:
        splits = [
            Stream(Labelled(files, image_shape, len(class_names), resize), labels=files.labels, workers=workers)
            for files in splits
        ]
        mean = std = (0.5,) * image_shape[2]
    return Dataset(
        name=root.resolve().name,
        train=splits[0],
        test=splits[1],
        class_names=class_names,
        image_shape=image_shape,
        mean=mean,
        std=std,
        source=f"Images of the folder {root}, {colour}, {size}; {how}.",
        files=dataset.digest(keys),
    )


def _class_names(folder: Path) -> tuple[str, ...]:
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        found = "has images, but no sub-folders" if any(map(_is_image, folder.iterdir())) else "is empty"
        raise InputError(f"{folder} {found}: put the images of each class into a sub-folder of its name")
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise InputError(f"{folder} has a sub-folder whose name is not UTF-8, {name!a}: rename it") from None
    return tuple(names)


def _files(folder: Path, class_names: tuple[str, ...], *, may_lack: bool = False) -> tuple[Files, list[str]]:
    """The images of all classes in the order of their keys, and the keys: the SHA-256 of `CLASS/IMAGE`."""
    rows = []
    for label, name in enumerate(class_names):
        inside = folder / name
        found = [p for p in inside.iterdir() if _is_image(p)] if inside.is_dir() or not may_lack else []
        if not found and not may_lack:
            raise InputError(f"{inside} has no images ({', '.join(sorted(images.EXTENSIONS))}): add some, or remove it")
        for path in found:
            key = hashlib.sha256(f"{name}/{path.name}".encode("utf-8", "surrogateescape")).hexdigest()
            rows.append((key, str(path), label))
    rows.sort()
    keys, paths, labels = ([row[i] for row in rows] for i in range(3))
    return Files(tuple(paths), np.array(labels, np.int32)), keys


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in images.EXTENSIONS and not path.name.startswith(".")


def _image_shape(paths: list[str], image_size: int | None) -> tuple[int, int, int]:
    if image_size is not None and image_size < 1:
        raise InputError(f"image_size is {image_size}: give the side of the images in pixels, 1 or more")
    probed = paths[:: max(1, -(-len(paths) // PROBED))]
    with ThreadPoolExecutor() as pool:
        heights, widths, coloured = zip(*pool.map(images.probe, probed), strict=True)
    channels = 3 if any(coloured) else 1
    if image_size is not None:
        return image_size, image_size, channels
    for path, height, width in zip(probed, heights, widths, strict=True):
        if (height, width) != (heights[0], widths[0]):
            raise InputError(
                f"images have different sizes: {probed[0]} is {heights[0]} high and {widths[0]} wide, "
                f"{path} is {height} and {width}: give an image size (--image-size) to bring all to one"
            )
    return heights[0], widths[0], channels
