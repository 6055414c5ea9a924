"""Sets in COCO's form: a JSON file of images, categories and annotations, beside a folder of images.

See https://cocodataset.org/#format-data. Boxes are (x, y, width, height); segmentations are polygons or run lengths,
plain or packed into COCO's text.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from cnn_jax.data import annotated, dataset
from cnn_jax.data.dataset import Dataset
from cnn_jax.errors import InputError

SIZE = 512
# What every entry of the file must have.
_KEYS = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("id", "image_id", "category_id"),
    "categories": ("id", "name"),
}
_NO_BOX = (0.0, 0.0, 0.0, 0.0)


def load(
    path: Path, truth: Literal["boxes", "map"], *, image_size: int | None = None, workers: int | None = None
) -> Dataset:
    """Loads a set in COCO's form, letterboxed into squares.

    For boxes, an object without width or height is left out, as COCO's own files have some, and so are the smallest of
    more than `annotated.MOST` in an image; how many are is printed.

    Images are sought beside the JSON file, in `images/` there, and in the folder that is called as the file ends
    (`annotations/instances_train2017.json` → `train2017/`). A file `…train…` is the training split if there is the same
    with `val` or `test` beside it, which then is the test split; otherwise a fifth of the images are, chosen by name.

    Args:
        truth: "boxes" for detection; "map" for segmentation, where later annotations cover earlier ones, class 0 is
            the ground, and crowds count nowhere.
        image_size: side of the squares in pixels; 512 by default.

    Raises:
        InputError: what is wrong in the file, and where: before any image is decoded.
    """
    size = SIZE if image_size is None else image_size
    train = _read(path, truth)
    other = next(
        (p for p in (path.with_name(path.name.replace("train", x)) for x in ("val", "test")) if p.exists()), None
    )
    if "train" in path.name and other:
        test = _read(other, truth)
        if test.class_names != train.class_names:
            raise InputError(f"{path} and {other} have different categories: give both the same")
        how = f"split as {path.name} and {other.name} say"
    else:
        rows = annotated.split_by_name([Path(p).name for p in train.paths])
        train, test = (train.only(rows) for rows in rows)
        how = "a fifth of the images, chosen by their names, for testing"
    counts = np.array([len(boxes) for part in (train, test) for boxes in part.boxes])
    most = min(annotated.MOST, max(1, counts.max(initial=0)))
    readers = tuple(_Reader(part, truth, size, most) for part in (train, test))
    names = train.class_names if truth == "boxes" else ("ground", *train.class_names)
    source = f"Images of {path}, letterboxed to {size}×{size}; {how}."
    files = dataset.digest(Path(p).name for part in (train, test) for p in part.paths)
    return annotated.assemble(path.stem, readers, names, source, files=files, workers=workers)


@dataclass(frozen=True)
class _Annotations:
    """What a JSON file says, a row an image; boxes are (left, top, right, bottom) in pixels of the file's images."""

    paths: list[str]
    sizes: list[tuple[int, int]]  # (height, width)
    boxes: list[np.ndarray]  # f32[objects,4]
    labels: list[np.ndarray]
    crowds: list[np.ndarray]
    areas: list[np.ndarray]
    segmentations: list[list]
    class_names: tuple[str, ...]

    def only(self, rows: np.ndarray) -> "_Annotations":
        lists = {name: [values[i] for i in rows] for name, values in vars(self).items() if name != "class_names"}
        return replace(self, **lists)


@dataclass(frozen=True)
class _Reader:
    """See `stream.Reader`."""

    annotations: _Annotations
    truth: str
    size: int
    most: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (self.size, self.size, 3)

    def __len__(self) -> int:
        return len(self.annotations.paths)

    def read(self, row: int) -> dict[str, np.ndarray]:
        of = self.annotations
        image = annotated.decode(of.paths[row], 3)
        if image.shape[:2] != of.sizes[row]:
            raise InputError(f"{of.paths[row]}: is {image.shape[:2]} high and wide, and its JSON says {of.sizes[row]}")
        if self.truth == "map":
            return annotated.with_map(image, _classes(of, row), size=self.size, where=of.paths[row])
        return annotated.with_objects(
            image,
            of.boxes[row],
            of.labels[row],
            crowd=of.crowds[row],
            area=of.areas[row],
            size=self.size,
            most=self.most,
            where=of.paths[row],
        )

    def empty(self) -> dict[str, np.ndarray]:
        return annotated.empty(self.truth, self.size, most=self.most)


def _read(path: Path, truth: str) -> _Annotations:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path} is no JSON file: {error}") from None
    except RecursionError:
        raise InputError(f"{path} is not in COCO's form: its lists lie too deep in each other") from None
    for part in _KEYS:
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise InputError(f"{path} is not in COCO's form: it has no list {part!r}")
    try:
        return _checked(path, content, truth)
    except InputError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{path} is not in COCO's form: an id, a size or a name is of a wrong type ({error})"
        ) from None


def _checked(path: Path, content: dict, truth: str) -> _Annotations:
    categories, images = (_by_id(path, content[part], part) for part in ("categories", "images"))
    _by_id(path, content["annotations"], "annotations")
    if truth == "map" and len(categories) >= annotated.IGNORE:
        raise InputError(
            f"{path} has {len(categories)} categories: a map holds {annotated.IGNORE - 1}, beside the ground and 255"
        )
    labels = {id_: i for i, id_ in enumerate(sorted(categories))}
    rows = {id_: i for i, id_ in enumerate(sorted(images))}
    names = [str(categories[id_]["name"]) for id_ in labels]
    _check_different(path, "categories", labels, names)
    paths, sizes, objects = [], [], [[] for _ in rows]
    for id_ in rows:
        file = _find(path, images[id_]["file_name"])
        if file is None:
            raise InputError(
                f"{path}: image {images[id_]['file_name']} is not there: it is sought in {path.parent}, in images/ "
                f"there, and in {path.parent.parent / path.stem.split('_')[-1]}"
            )
        paths.append(str(file))
        sizes.append((int(images[id_]["height"]), int(images[id_]["width"])))
    _check_different(path, "images", rows, paths)
    for one in content["annotations"]:
        where = f"{path}, annotation {one['id']}"
        if one["image_id"] not in rows:
            raise InputError(f"{where}: image_id is {one['image_id']}, which no image has")
        if one["category_id"] not in labels:
            raise InputError(f"{where}: category_id is {one['category_id']}, which no category has")
        row, segmentation = rows[one["image_id"]], one.get("segmentation") if truth == "map" else None
        crowd, box, area = one.get("iscrowd", 0), _NO_BOX, 0.0
        if crowd not in (0, 1):
            raise InputError(f"{where}: iscrowd is {crowd!r}, expected 0 or 1")
        if segmentation:
            check(segmentation, sizes[row], where=where)
        else:
            box = _box(one.get("bbox"), sizes[row], where, images[one["image_id"]]["file_name"])
            area = one.get("area", (box[2] - box[0]) * (box[3] - box[1]))
            if not _is_number(area) or area < 0:
                raise InputError(f"{where}: area is {area}, expected a number of pixels")
        objects[row].append((box, labels[one["category_id"]], bool(crowd), area, segmentation))

    def each(column, kind, shape=()):
        return [np.array([one[column] for one in of], kind).reshape(-1, *shape) for of in objects]

    return _Annotations(
        paths=paths,
        sizes=sizes,
        boxes=each(0, np.float32, (4,)),
        labels=each(1, np.int32),
        crowds=each(2, bool),
        areas=each(3, np.float32),
        segmentations=[[one[4] for one in of] for of in objects],
        class_names=tuple(names),
    )


def _check_different(path: Path, part: str, ids: Iterable, names: Sequence[str]) -> None:
    """Two entries of one picture could fall to training and testing, and two categories of one name tell nobody."""
    seen = {}
    for id_, name in zip(ids, names, strict=True):
        if name in seen:
            raise InputError(f"{path}: the {part} with the ids {seen[name]} and {id_} are both {name}: make them one")
        seen[name] = id_


def _box(bbox, size: tuple[int, int], where: str, file_name: str) -> tuple[float, ...]:
    """(left, top, right, bottom) inside the image; of one that is only a line or a point `_NO_BOX`, wherever it is."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)) or min(bbox[2:]) < 0:
        raise InputError(f"{where}: bbox is {bbox}, expected [x, y, width, height], none of both below 0")
    (x, y, width, height), (rows, columns) = bbox, size
    if not (width and height):
        return _NO_BOX
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + width, columns), min(y + height, rows)
    # COCO's own boxes stand over by fractions of a pixel.
    over = max(-x, -y, x + width - columns, y + height - rows)
    if over > 1 or left >= right or top >= bottom:
        raise InputError(f"{where}: bbox is {bbox}, outside {file_name} of {columns}×{rows}")
    return left, top, right, bottom


def _is_number(value) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e15  # which no nan is, and any int can be asked


def _by_id(path: Path, entries: Sequence[Mapping], part: str) -> dict:
    found = {}
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise InputError(f"{path}: {part} holds {entry!r}, expected objects with an id")
        for key in _KEYS[part]:
            if key not in entry:
                raise InputError(f"{path}: entry {i} of {part}, counted from 0, has no {key!r}")
        if entry["id"] in found:
            raise InputError(f"{path}: two {part} have the id {entry['id']}")
        found[entry["id"]] = entry
    return found


def _find(path: Path, name: str) -> Path | None:
    places = (path.parent, path.parent / "images", path.parent.parent / path.stem.split("_")[-1])
    return next((place / name for place in places if (place / name).is_file()), None)


def _classes(of: _Annotations, row: int) -> np.ndarray:
    """The map u8[H,W] of an image: 1 + the label where an object is, 255 where a crowd is."""
    classes = np.zeros(of.sizes[row], np.uint8)
    for shape, label, crowd, box in zip(
        of.segmentations[row], of.labels[row], of.crowds[row], of.boxes[row], strict=True
    ):
        classes[mask(shape, of.sizes[row], box, where=of.paths[row])] = annotated.IGNORE if crowd else label + 1
    return classes


def mask(segmentation, size: tuple[int, int], box: Sequence[float], *, where: str) -> np.ndarray:
    """A segmentation as COCO writes it, as bool[H,W]: polygons, run lengths, or the box where there is none.

    Run lengths are exact; a polygon takes the pixels whose centre lies in it, where COCO's own program differs by
    single pixels at the edge.
    """
    height, width = size
    check(segmentation, size, where=where)
    if not segmentation:
        left, top, right, bottom = np.round(box).astype(int)
        filled = np.zeros(size, bool)
        filled[top:bottom, left:right] = True
        return filled
    if isinstance(segmentation, dict):
        counts = _counts(segmentation)
        values = np.arange(len(counts)) % 2 == 1
        return np.repeat(values, counts).reshape(width, height).T
    return np.logical_or.reduce([_polygon(np.reshape(polygon, (-1, 2)), size) for polygon in segmentation])


def _polygon(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The pixels whose centre lies in a polygon of points (x, y): bool[H,W]. What it crosses twice is outside."""
    (height, width), (x, y) = size, points.T
    next_x, next_y = np.roll(x, -1), np.roll(y, -1)
    centre = np.arange(height)[:, None] + 0.5
    row, side = np.nonzero((y > centre) != (next_y > centre))
    slope = (next_x - x)[side] / (next_y - y)[side]
    crossing = x[side] + (centre[row, 0] - y[side]) * slope
    # Along a row a pixel is inside after an odd number of crossings.
    crossings = np.zeros((height, width + 1), np.int32)
    np.add.at(crossings, (row, np.ceil(crossing - 0.5).clip(0, width).astype(int)), 1)
    return np.cumsum(crossings[:, :-1], axis=1) % 2 == 1


def check(segmentation, size: tuple[int, int], *, where: str) -> None:
    """Raises `InputError` for a segmentation that `mask` cannot draw."""
    if not segmentation:
        return
    height, width = size
    if isinstance(segmentation, dict):
        try:
            counts = list(_counts(segmentation))
            sound = all(isinstance(count, int) and 0 <= count <= height * width for count in counts)
        except (KeyError, IndexError, TypeError):
            sound = False
        if not sound:
            raise InputError(f"{where}: the run lengths are damaged, expected COCO's counts") from None
        if sum(counts) != height * width or list(segmentation.get("size", size)) != [height, width]:
            raise InputError(
                f"{where}: run lengths cover {sum(counts)} pixels of size {segmentation.get('size')}, and the image "
                f"is of {height}×{width}"
            )
        return
    for polygon in segmentation if isinstance(segmentation, list) else [segmentation]:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2 or not all(map(_is_number, polygon)):
            raise InputError(f"{where}: a polygon is {str(polygon)[:60]}, expected x and y of 3 points or more in turn")


def _counts(segmentation: Mapping) -> Sequence[int]:
    counts = segmentation["counts"]
    return _unpacked(counts) if isinstance(counts, str) else counts


def _unpacked(text: str) -> list[int]:
    """COCO's packed run lengths: five bits a character, the sixth says that more follow; from the third on they are
    differences to the one before the last."""
    counts: list[int] = []
    place = 0
    while place < len(text):
        value = shift = 0
        more = True
        while more:
            bits = ord(text[place]) - 48
            value |= (bits & 31) << 5 * shift
            more = bool(bits & 32)
            place, shift = place + 1, shift + 1
        if bits & 16:
            value -= 1 << 5 * shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
    return counts
