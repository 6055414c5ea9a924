"""What sets with boxes and maps share: images laid into a square, what a batch holds, a split where there is none."""

import hashlib
import io
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from cnn_jax.data import dataset, images
from cnn_jax.data.dataset import Dataset
from cnn_jax.data.stream import Reader, Stream, read_all
from cnn_jax.errors import InputError

# Beyond an image, the colour of the ground in images, and "counts nowhere" in maps.
PAD, IGNORE = 114, 255
# Objects of one image that are kept at most.
MOST = 200


def letterbox(image: np.ndarray, size: int, *, pad: int = PAD, nearest: bool = False) -> tuple[np.ndarray, float]:
    """An image [H,W] or [H,W,C] scaled to fit into a square, at its upper left, and the factor: ([size,size,…], scale).

    Images are interpolated; maps (`nearest`) are not: a pixel takes the value at its centre.
    """
    height, width = image.shape[:2]
    scale = size / max(height, width)
    if scale != 1 and nearest:
        # OpenCV's nearest takes the pixel at the upper left, and moves a map against its image; its exact one errs.
        rows, columns = (
            (2 * np.arange(new) + 1) * old // (2 * new)
            for old, new in ((old, max(1, round(old * scale))) for old in (height, width))
        )
        image = image[rows[:, None], columns]
    elif scale != 1:
        try:
            import cv2
        except ImportError:
            raise InputError("resizing images needs OpenCV: pip install 'cnn_jax[data]'") from None
        shape = max(1, round(width * scale)), max(1, round(height * scale))
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        image = cv2.resize(image, shape, interpolation=how).reshape(shape[1], shape[0], *image.shape[2:])
    square = np.full((size, size, *image.shape[2:]), pad, image.dtype)
    square[: image.shape[0], : image.shape[1]] = image
    return square, scale


def decode(path, channels: int) -> np.ndarray:
    """An image file as u8[H,W,channels] of its own size."""
    image = images.pixels(read_bytes(path), channels, path)
    return image.reshape(*image.shape[:2], channels)


def decode_map(data: bytes, where: object) -> np.ndarray:
    """The bytes of a grey or palette image whose pixels are classes, as u8[H,W] of its own size."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode not in ("L", "P", "1") or image.format == "JPEG":
                raise InputError(
                    f"{where}: the mask is a {image.format} of mode {image.mode}: give a grey or palette PNG of 8 bits"
                )
            stretch = {"L;2": 85, "L;4": 17}.get(image.tile[0][3] if image.tile else None, 1)
            return np.asarray(image).astype(np.uint8) // stretch  # Pillow stretches few grey levels to 0..255
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise images.corrupt(where, error) from None


def check_map(classes: np.ndarray, num_classes: int, where: object) -> None:
    """Raises `InputError` for values of a map u8[H,W] that are no class and not 255."""
    unknown = sorted({*np.unique(classes).tolist()} - {*range(num_classes), IGNORE})
    if unknown:
        raise InputError(
            f"{where}: the mask has the values {unknown[:5]}: classes are 0 to {num_classes - 1}, and 255 is for "
            "pixels that count nowhere"
        )


def names_of(values: np.ndarray, where: object) -> tuple[str, ...]:
    """Numbers for names, of the classes of a set that names none, from the values that occur in its maps."""
    values = np.setdiff1d(values, IGNORE)
    if values.max(initial=0) < 1:
        raise InputError(
            f"{where}: its masks hold the values {values.tolist()}, beside 255, which counts nowhere: segmentation "
            "needs at least 2 classes, numbered from 0"
        )
    return tuple(str(i) for i in range(values.max() + 1))


def read_bytes(path) -> bytes:
    """The bytes of a file."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise InputError(f"cannot read image {path}: {error.strerror}") from None


def with_map(image: np.ndarray, classes: np.ndarray, *, size: int, where: object) -> dict[str, np.ndarray]:
    """What a batch holds of an image u8[H,W,3] and its map u8[H,W]: both letterboxed."""
    if image.shape[:2] != classes.shape:
        raise InputError(f"{where}: the mask is {classes.shape} high and wide, its image {image.shape[:2]}")
    return {
        "image": letterbox(image, size)[0],
        "map": letterbox(classes, size, pad=IGNORE, nearest=True)[0],
    }


def with_objects(
    image: np.ndarray,
    boxes: np.ndarray,
    label: np.ndarray,
    *,
    crowd: np.ndarray,
    area: np.ndarray,
    size: int,
    most: int,
    where: object,
) -> dict[str, Any]:
    """What a batch holds of an image u8[H,W,3] and its n objects, see `tasks.detect`: the `most` of greatest area.

    An object without width or height is left out. How many are left out is `said`, see `stream.Reader`.

    Args:
        boxes: f32[n,4], (left, top, right, bottom) in pixels of the image, inside it.
        label, crowd, area: i32[n], bool[n], f32[n].
    """
    square, scale = letterbox(image, size)
    # In 32 bits an edge of the image may come to lie beyond the square's.
    boxes = np.minimum(boxes * np.float32(scale), size)
    whole = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(1))
    keep = np.sort(whole[np.argsort(-area[whole], kind="stable")[:most]])
    count = len(keep)
    said = []
    if len(whole) < len(boxes):
        said.append(f"{len(boxes) - len(whole)} of {len(boxes)} objects have no width or no height, and are left out")
    if count < len(whole):
        said.append(f"has {len(whole)} objects: the {len(whole) - count} smallest are left out")
    out = empty("boxes", size, most=most)
    for name, values in (("boxes", boxes), ("label", label), ("crowd", crowd), ("area", area)):
        out[name][:count] = values[keep]
    out["objects"][:count] = True
    inside = np.minimum(np.float32(scale) * np.float32(image.shape[1::-1]), size)
    out |= {"image": square, "scale": np.float32(scale), "inside": inside}
    return out | ({"said": f"{where}: {'; '.join(said)}"} if said else {})


def empty(truth: Literal["boxes", "map"], size: int, *, most: int = 0) -> dict[str, np.ndarray]:
    """What a batch holds of a row that only fills it up."""
    image = np.zeros((size, size, 3), np.uint8)
    if truth == "map":
        return {"image": image, "map": np.full((size, size), IGNORE, np.uint8)}
    return {
        "image": image,
        "boxes": np.zeros((most, 4), np.float32),
        "label": np.zeros(most, np.int32),
        "objects": np.zeros(most, bool),
        "crowd": np.zeros(most, bool),
        "area": np.zeros(most, np.float32),
        "scale": np.float32(1),
        "inside": np.full(2, size, np.float32),
    }


def split_by_name(names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(rows to train on, a fifth to test on), as their names' hashes fall."""
    keys = [hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest() for name in names]
    return dataset.split_rows(np.zeros(len(keys), np.int32), keys)


def is_small(count: int, shape: tuple[int, int, int]) -> bool:
    """Whether so many decoded images are kept in memory."""
    return count * int(np.prod(shape)) <= dataset.RESIDENT_BYTES


def _check_something_to_learn(name: str, reader: Reader) -> None:
    """Raises `InputError` for a training set without any object, or with maps of one class. Stops at the first images
    that have what is needed, which are the first of all as a rule."""
    values = set()
    for row in map(reader.read, range(len(reader))):
        if "map" not in row and (row["objects"] & ~row["crowd"]).any():
            return
        if "map" in row:
            values |= {*np.unique(row["map"]).tolist()} - {IGNORE}
            if len(values) > 1:
                return
    if "map" not in row:
        raise InputError(
            f"{name}: none of its {len(reader)} training images has an object that is not a crowd: give at least one"
        )
    raise InputError(
        f"{name}: its training maps hold the values {sorted(values)} alone, beside 255, which says that a pixel counts "
        "nowhere: segmentation needs at least 2 classes, numbered from 0 (of black and white, 0 and 1)"
    )


def assemble(
    name: str,
    readers: tuple[Reader, Reader],
    class_names: Sequence[str],
    source: str,
    *,
    files: str = "",
    workers: int | None = None,
) -> Dataset:
    """The set of two readers, for training and for testing: in memory if it is small, otherwise as streams."""
    train, test = map(len, readers)
    if not train or not test:
        raise InputError(
            f"{name}: has {train} images to train on and {test} to test on: give at least one for each, so two in all"
        )
    _check_something_to_learn(name, readers[0])
    shape = readers[0].image_shape
    if is_small(sum(map(len, readers)), shape):
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
        files=files,
    )
