"""Data sets: `load(name)` for image classification, `load_annotated(name, truth)` for detection and segmentation.

`python -m cnn_jax.data` lists the names, and `python -m cnn_jax.data prepare NAME` prepares one.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

from cnn_jax.data.dataset import Dataset
from cnn_jax.data.imagenet import imagenet_classes
from cnn_jax.data.stream import Stream
from cnn_jax.errors import InputError, unknown

__all__ = ["Dataset", "Stream", "imagenet_classes", "load", "load_annotated", "names", "prepare"]

_NAMES = ("mnist_10k", "faces", "mnist", "fashion_mnist", "cifar10", "cifar100", "svhn", "imagenet2012")
_TFDS_NAMES = {"svhn": "svhn_cropped"}
_TFDS_NAME = re.compile(r"\w+(/[\w.,=+-]+)*(:[\d.*]+)?")  # name, name/config, name:version
_ANNOTATED = {
    "boxes": ("scenes/mnist_10k", "scenes/fashion_mnist", "coco/2014", "coco/2017", "voc/2007", "voc/2012"),
    "map": ("scenes/mnist_10k", "scenes/fashion_mnist", "nuclei", "oxford_iiit_pet", "cityscapes"),
}


def names() -> list[str]:
    """The sets known by name. `load` also takes any other image-classification set by its TFDS name, and a folder."""
    return list(_NAMES)


def load(
    name: str, *, data_dir: str | Path | None = None, image_size: int | None = None, workers: int | None = None
) -> Dataset:
    """Loads a data set. Uses no network: what is not on this machine fails at once.

    Args:
        name: one of `names()`; or the name of any other image-classification set of tensorflow-datasets, prepared in
            `data_dir` as array_record (`name`, `name/config`, `name:version`); or the path of a folder of images, one
            sub-folder a class (see `folder.load`), which begins with "/", "." or "~", or exists and is no known name.
        data_dir: where prepared sets are; None takes $TFDS_DATA_DIR, or ~/tensorflow_datasets.
        image_size: side of the images in pixels: they are scaled until they cover the square, and its centre is cut
            out. None keeps their size; the images of imagenet2012 become 224.
        workers: processes that read and decode a set too large for memory; None takes one a core, at most 8.

    Raises:
        InputError: unknown name; a set that is not prepared; a damaged file; see `folder.load` for folders.
    """
    name = _checked(name, image_size)
    if name not in _NAMES and (name.startswith(("/", ".", "~")) or os.path.isdir(name)):
        from cnn_jax.data import folder

        with _readable():
            return folder.load(_expanded(name), image_size=image_size, workers=workers)
    if name == "mnist_10k":
        from cnn_jax.data import mnist_10k

        return _resized(mnist_10k.load(), image_size)
    if name == "faces":
        from cnn_jax.data import faces

        return _resized(faces.load(), image_size)

    from cnn_jax.data import originals, records

    data_dir = _data_dir(data_dir)
    if name in originals.ORIGINALS and (found := originals.load(name, data_dir)):
        return _resized(found, image_size)
    found = records.load(_TFDS_NAMES.get(name, name), data_dir, image_size=image_size, workers=workers)
    if found is None:
        raise _not_prepared(name, data_dir)
    return replace(found, name=name)


def load_annotated(
    name: str,
    truth: Literal["boxes", "map"],
    *,
    data_dir: str | Path | None = None,
    image_size: int | None = None,
    workers: int | None = None,
    scenes: int = 6000,
    seed: int = 0,
) -> Dataset:
    """Loads a data set for detection ("boxes") or segmentation ("map").

    Args:
        name: `scenes/NAME`, scenes made of the items of the classification set NAME, see `scenes.load`; a JSON file in
            COCO's form, see `coco_json.load`; for segmentation also `nuclei`, or a folder with `images/` and `masks/`,
            see `mask_folder.load`; or the name of a set of tensorflow-datasets that is prepared in `data_dir` as
            array_record: `coco/2017`, `voc/2007`, `voc/2012` (boxes), `oxford_iiit_pet`, `cityscapes` (maps), and any
            with the same features, see `annotated_records.load`.
        data_dir: where prepared sets are; as for `load`.
        image_size: side of the images in pixels.
        workers: processes that read and decode a set too large for memory, as for `load`.
        scenes, seed: how many scenes to train on, and their seed.

    Raises:
        InputError: unknown name, a set that is not prepared, or a mistake in the set; says what and where.
    """
    if truth not in _ANNOTATED:
        raise unknown("truth", truth, _ANNOTATED)
    name = _checked(name, image_size)
    path = _expanded(name)
    if name == "nuclei" and truth == "map":
        from cnn_jax.data import nuclei

        return nuclei.load(image_size=image_size)
    if name.startswith("scenes/"):
        from cnn_jax.data import scenes as made

        size = 64 if image_size is None else image_size
        items = load(name.removeprefix("scenes/"), data_dir=data_dir)
        return made.load(items, truth, train=scenes, size=size, seed=seed)
    if path.suffix == ".json":
        from cnn_jax.data import coco_json

        with _readable():
            return coco_json.load(path, truth, image_size=image_size, workers=workers)
    is_path = name.startswith(("/", ".", "~")) or (os.path.isdir(path) and name not in _ANNOTATED[truth])
    if is_path and truth == "map":
        from cnn_jax.data import mask_folder

        with _readable():
            return mask_folder.load(path, image_size=image_size, workers=workers)
    if is_path:
        raise InputError(f"{name} is a path, but not of a JSON file: give one in COCO's form, beside its images")
    from cnn_jax.data import annotated_records

    data_dir = _data_dir(data_dir)
    found = annotated_records.load(name, truth, data_dir, image_size=image_size, workers=workers)
    if found is None:
        more = "scenes/NAME, a JSON file in COCO's form" + ", or a folder with images/ and masks/" * (truth == "map")
        raise _not_prepared(name, data_dir, choices=_ANNOTATED[truth], more=more)
    return found


def prepare(name: str, *, data_dir: str | Path | None = None, files: str | Path | None = None) -> Path:
    """Makes `mnist`, `fashion_mnist`, `cifar10` or `cifar100` ready for `load`, without TensorFlow.

    Args:
        name: the set.
        data_dir: where to keep it; None as for `load`.
        files: a folder with the files as their authors publish them (four idx.gz, or cifar-10-python.tar.gz). None
            downloads them and verifies their published checksums.

    Returns:
        The file that was written.

    Raises:
        InputError: another set, saying what preparing it needs; a missing or damaged file; no network; a full disk.
    """
    from cnn_jax.data import originals

    data_dir = _data_dir(data_dir)
    if name == "mnist_10k":
        raise InputError("mnist_10k comes with cnn_jax: there is nothing to prepare")
    if name not in originals.ORIGINALS:
        raise _not_prepared(name, data_dir)
    return originals.prepare(name, data_dir, files=None if files is None else _expanded(files))


def _checked(name: str | Path, image_size: int | None) -> str:
    if image_size is not None and image_size < 1:
        raise InputError(f"image_size is {image_size}: give the side of the images in pixels, 1 or more")
    if not str(name):
        raise InputError("the name of the data set is empty: `python -m cnn_jax.data` lists those that are known")
    return str(name)


def _expanded(path: str | Path) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"{path}: this machine knows no such user, nor a home folder; give the whole path") from None


@contextmanager
def _readable() -> Iterator[None]:
    """Turns the system's word on a file or folder of the user's into a sentence."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from None


def _data_dir(data_dir: str | Path | None) -> Path:
    return _expanded(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def _resized(dataset: Dataset, image_size: int | None) -> Dataset:
    if image_size in (None, *{dataset.image_shape[0]}):
        return dataset
    from cnn_jax.data import images

    train, test = ({**s, "image": images.resize_all(s["image"], image_size)} for s in (dataset.train, dataset.test))
    return replace(dataset, train=train, test=test, image_shape=train["image"].shape[1:])


def _not_prepared(
    name: str, data_dir: Path, *, choices: tuple[str, ...] = _NAMES, more: str = "a folder of images"
) -> InputError:
    """The error for a set that `choices` name, or TFDS; or for one that neither knows, which `more` could be too."""
    from cnn_jax.data import originals, records

    where = f"data set {name} is not prepared in {data_dir}"
    if name in originals.ORIGINALS and name in choices:
        files = ", ".join(originals.ORIGINALS[name].files)
        debian = ", or install Debian's package dataset-fashion-mnist" if name == "fashion_mnist" else ""
        return InputError(
            f"{where}: run `python -m cnn_jax.data prepare {name}`, which downloads it, "
            f"or with `--files DIR` where DIR has {files}{debian}"
        )
    tfds_name = _TFDS_NAMES.get(name, name)
    base = tfds_name.split("/")[0].split(":")[0]
    # A set of which only a part can be taken, as "coco" is, or one for another task.
    other = any(choice.startswith(f"{name}/") for choice in choices) or name in {*_NAMES} - {*choices}
    if name not in choices and (other or not _TFDS_NAME.fullmatch(name) or base not in records.known()):
        return InputError(
            f"{unknown('data set', name, choices)}; or the name of a set of tensorflow-datasets, or {more}"
        )
    folder = "; or give the path of a folder with its images, train/CLASS/*.JPEG and val/CLASS/*.JPEG"
    by_hand = (
        f"; its two zips, leftImg8bit_trainvaltest and gtFine_trainvaltest, come from cityscapes-dataset.com by "
        f"registration and belong into {data_dir / 'downloads' / 'manual'}"
    )
    return InputError(
        f"{where}: preparing it needs TensorFlow; where that is installed, run `tfds build {tfds_name} "
        f"--file_format=array_record --data_dir={data_dir}` (reading it needs none){folder * (name == 'imagenet2012')}"
        f"{by_hand * (base == 'cityscapes')}"
    )
