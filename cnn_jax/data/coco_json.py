"""Sets in COCO's form: a JSON file of images, categories and annotations, beside a folder of images.

See https://cocodataset.org/#format-data. Boxes are (x, y, width, height); segmentations are polygons or run lengths,
plain or packed into COCO's text.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from cnn_jax.data import annotated
from cnn_jax.data.dataset import Dataset
from cnn_jax.errors import InputError

# Objects of one image that are kept at most.
MOST = 200
SIZE = 512


def load(
    path: Path, truth: Literal["boxes", "map"], *, image_size: int | None = None, workers: int | None = None
) -> Dataset:
    """Loads a set in COCO's form, letterboxed into squares.

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
    size = image_size or SIZE
    train = _read(path)
    other = next(
        (p for p in (path.with_name(path.name.replace("train", x)) for x in ("val", "test")) if p.exists()), None
    )
    if "train" in path.name and other:
        test = _read(other)
        if test.class_names != train.class_names:
            raise InputError(f"{path} and {other} have different categories: give both the same")
        how = f"split as {path.name} and {other.name} say"
    else:
        rows = annotated.split_by_name([Path(p).name for p in train.paths])
        train, test = (train.only(rows) for rows in rows)
        how = "a fifth of the images, chosen by their names, for testing"
    most = max(1, *(len(boxes) for part in (train, test) for boxes in part.boxes))
    if most > MOST:
        over = sum(len(boxes) > MOST for part in (train, test) for boxes in part.boxes)
        lost = sum(max(0, len(boxes) - MOST) for part in (train, test) for boxes in part.boxes)
        print(f"{path}: {over} images have more than {MOST} objects: the {lost} smallest beyond that are left out")
        most = MOST
    readers = tuple(_Reader(part, truth, size, most) for part in (train, test))
    names = train.class_names if truth == "boxes" else ("ground", *train.class_names)
    source = f"Images of {path}, letterboxed to {size}×{size}; {how}."
    return annotated.assemble(path.stem, readers, names, source, workers=workers)


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
        square, scale = annotated.letterbox(image, self.size)
        if self.truth == "map":
            classes = _classes(of, row)
            return {
                "image": square,
                "map": annotated.letterbox(classes, self.size, pad=annotated.IGNORE, nearest=True)[0],
            }
        keep = np.sort(np.argsort(-of.areas[row], kind="stable")[: self.most])
        count = len(keep)
        out = {"image": square, **{name: x for name, x in self.empty().items() if name != "image"}}
        out["boxes"][:count] = of.boxes[row][keep] * scale
        out["label"][:count], out["crowd"][:count] = of.labels[row][keep], of.crowds[row][keep]
        out["area"][:count], out["objects"][:count] = of.areas[row][keep], True
        return {**out, "scale": np.float32(scale)}

    def empty(self) -> dict[str, np.ndarray]:
        image = np.zeros(self.image_shape, np.uint8)
        if self.truth == "map":
            return {"image": image, "map": np.full(image.shape[:2], annotated.IGNORE, np.uint8)}
        most = self.most
        return {
            "image": image,
            "boxes": np.zeros((most, 4), np.float32),
            "label": np.zeros(most, np.int32),
            "objects": np.zeros(most, bool),
            "crowd": np.zeros(most, bool),
            "area": np.zeros(most, np.float32),
            "scale": np.float32(1),
        }


def _read(path: Path) -> _Annotations:
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path} is no JSON file: {error}") from None
    for part in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise InputError(f"{path} is not in COCO's form: it has no list {part!r}")
    try:
        return _checked(path, content)
    except KeyError as error:
        raise InputError(f"{path}: an image, category or annotation has no {error}") from None


def _checked(path: Path, content: dict) -> _Annotations:
    categories, images = (_by_id(path, content[part], part) for part in ("categories", "images"))
    _by_id(path, content["annotations"], "annotations")
    labels = {id_: i for i, id_ in enumerate(sorted(categories))}
    rows = {id_: i for i, id_ in enumerate(sorted(images))}
    objects = [[] for _ in rows]
    for one in content["annotations"]:
        where = f"{path}, annotation {one['id']}"
        if one["image_id"] not in rows:
            raise InputError(f"{where}: image_id is {one['image_id']}, which no image has")
        if one["category_id"] not in labels:
            raise InputError(f"{where}: category_id is {one['category_id']}, which no category has")
        image = images[one["image_id"]]
        x, y, width, height = one["bbox"] if len(one["bbox"]) == 4 else (0, 0, 0, 0)
        if not (width > 0 and height > 0):
            raise InputError(f"{where}: bbox is {one['bbox']}, expected [x, y, width, height] with both above 0")
        # COCO's own boxes stand over by fractions of a pixel.
        if x < -1 or y < -1 or x + width > image["width"] + 1 or y + height > image["height"] + 1:
            raise InputError(
                f"{where}: bbox is {one['bbox']}, outside {image['file_name']} of {image['width']}×{image['height']}"
            )
        objects[rows[one["image_id"]]].append(one)
    paths, sizes = [], []
    for id_ in rows:
        file = _find(path, images[id_]["file_name"])
        if file is None:
            raise InputError(
                f"{path}: image {images[id_]['file_name']} is not there: it is sought in {path.parent}, in images/ "
                f"there, and in {path.parent.parent / path.stem.split('_')[-1]}"
            )
        paths.append(str(file))
        sizes.append((int(images[id_]["height"]), int(images[id_]["width"])))

    def box(one, size):
        x, y, width, height = one["bbox"]
        return (max(x, 0), max(y, 0), min(x + width, size[1]), min(y + height, size[0]))

    each = list(zip(objects, sizes, strict=True))
    area = lambda one: one.get("area", one["bbox"][2] * one["bbox"][3])  # noqa: E731
    return _Annotations(
        paths=paths,
        sizes=sizes,
        boxes=[np.array([box(one, size) for one in of], np.float32).reshape(-1, 4) for of, size in each],
        labels=[np.array([labels[one["category_id"]] for one in of], np.int32) for of in objects],
        crowds=[np.array([bool(one.get("iscrowd")) for one in of], bool) for of in objects],
        areas=[np.array([area(one) for one in of], np.float32) for of in objects],
        segmentations=[[one.get("segmentation") for one in of] for of in objects],
        class_names=tuple(str(categories[id_]["name"]) for id_ in sorted(categories)),
    )


def _by_id(path: Path, entries: Sequence[Mapping], part: str) -> dict:
    found = {}
    for entry in entries:
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


def mask(segmentation, size: tuple[int, int], box: np.ndarray, *, where: str) -> np.ndarray:
    """A segmentation as COCO writes it, as bool[H,W]: polygons, run lengths, or the box where there is none.

    Run lengths are exact; a polygon takes the pixels whose centre lies in it, where COCO's own program differs by
    single pixels at the edge.
    """
    height, width = size
    if not segmentation:
        left, top, right, bottom = np.round(box).astype(int)
        filled = np.zeros(size, bool)
        filled[top:bottom, left:right] = True
        return filled
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        counts = _unpacked(counts) if isinstance(counts, str) else counts
        if sum(counts) != height * width:
            raise InputError(f"{where}: run lengths cover {sum(counts)} pixels of an image of {height}×{width}")
        values = np.arange(len(counts)) % 2 == 1
        return np.repeat(values, counts).reshape(width, height).T
    from PIL import Image, ImageDraw

    # Drawn four times as large and read in the middle of each pixel: Pillow fills the outline's pixels too.
    picture = Image.new("1", (4 * width, 4 * height))
    for polygon in segmentation:
        if len(polygon) < 6 or len(polygon) % 2:
            raise InputError(f"{where}: a polygon has {len(polygon)} numbers, expected x and y of 3 points or more")
        ImageDraw.Draw(picture).polygon([4 * value for value in polygon], fill=1)
    return np.asarray(picture)[2::4, 2::4]


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
