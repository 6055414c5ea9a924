"""Sets with boxes or maps that tensorflow-datasets (TFDS) has prepared, read without TensorFlow.

COCO, VOC, the Oxford-IIIT pets, Cityscapes, and any other set that has the features these have.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cnn_jax.data import annotated, images, records
from cnn_jax.data.dataset import Dataset
from cnn_jax.errors import InputError

SIZE = 512
_UNKNOWN = -1
_RELATIVE = "REL_YXYX"  # TFDS's boxes as a rule: (top, left, bottom, right), shares of the image

# Sets whose truth of the split `test` was never published.
_HIDDEN_TEST = {"coco", "voc/2012", "cityscapes", "lvis"}

# What the pixels of a mask stand for: value → class, by its name, and the values that count nowhere. Of the pets TFDS
# hands on the authors' trimaps as they are (datasets/oxford_iiit_pet), whose README, in annotations.tar.gz, says "Pixel
# Annotations: 1: Foreground 2:Background 3: Not classified". Of Cityscapes' labels 19 are measured (`trainId` in
# cityscapesscripts/helpers/labels.py).
_CITYSCAPES = {
    **{7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light"},
    **{20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car"},
    **{27: "truck", 28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle"},
}
_VALUES = {
    "oxford_iiit_pet": ({2: "ground", 1: "pet"}, {3}),
    "cityscapes": (_CITYSCAPES, {*range(34)} - {*_CITYSCAPES}),
}


def load(
    name: str,
    truth: Literal["boxes", "map"],
    data_dir: Path,
    *,
    image_size: int | None = None,
    workers: int | None = None,
) -> Dataset | None:
    """Loads a set that is prepared in `data_dir`, letterboxed into squares; None if it is not. Uses no network.

    The test set is TFDS's split `test`, or `validation` where the truth of `test` is not published (COCO, VOC 2012,
    Cityscapes) or there is none, or else a fifth of `train`, chosen by the SHA-256 of the record number. VOC 2007 is
    trained on `train` and `validation`. What is wrong in a record is said when it is read: of a set that is resident
    once decoded, here.

    Args:
        name: as TFDS has it: `name`, `name/config`, `name:version`.
        truth: "boxes" for sets with the feature `objects` of `bbox` and `label`. Its `is_crowd`, or in its place
            `is_difficult`, becomes `crowd`; `area` is taken over (COCO's has lost its fractions in TFDS). VOC counts
            pixels from 1, and its boxes end with their last pixel: here all count from 0, and end behind it. An
            object without width or height is left out, and so are the smallest of more than `annotated.MOST`: said
            once, with the record's number, when it is first read.
            "map" for sets with an image `segmentation_mask` or `segmentation_label`. Pets: 0 is the ground, 1 the
            pet, and its rim counts nowhere. Cityscapes: the 19 classes that are measured; other labels count nowhere.
            Other sets: as their masks are, with 255 for pixels that count nowhere; where the set does not name the
            classes, all masks are read once to find how many there are.
        image_size: side of the squares in pixels; 512 by default.

    Raises:
        InputError: the set has no such truth; boxes outside the image or inside out, labels out of range, masks of
            another size than their image or with unknown values; see `records.open_builder`.
    """
    builder = records.open_builder(name, data_dir)
    if builder is None:
        return None
    import tensorflow_datasets as tfds

    size = SIZE if image_size is None else image_size
    features = builder.info.features
    features = dict(features) if isinstance(features, tfds.features.FeaturesDict) else {}
    image = next((k for k in ("image", "image_left") if isinstance(features.get(k), tfds.features.Image)), None)
    if image is None or (form := _FORMS[truth](name, builder.name, features)) is None:
        wanted = {"boxes": "`objects` with `bbox` and `label`", "map": "an image `segmentation_mask`"}[truth]
        json = ": give the path of COCO's own JSON file, which has them" * (builder.name == "coco")
        raise InputError(f"{name} has no {truth}: it lacks {wanted} among its features {', '.join(features)}{json}")

    of_config = f"{builder.name}/{builder.info.config_name}"
    hidden = builder.name in _HIDDEN_TEST or of_config in _HIDDEN_TEST
    held_out = [s for s in ("test", "validation") if s in builder.info.splits and not (s == "test" and hidden)]
    test = held_out[0] if held_out else None
    # What everyone trains on who reports VOC 2007.
    train = "train+validation" if of_config == "voc/2007" and len(held_out) == 2 else "train"
    decoders = {k: tfds.decode.SkipDecoding() for k, kind in features.items() if isinstance(kind, tfds.features.Image)}
    records_of = lambda split: builder.as_data_source(split, decoders=decoders)  # noqa: E731
    parts = [_Part(f"{name}, split {train!r}", records_of(train), None)]
    if test:
        parts.append(_Part(f"{name}, split {test!r}", records_of(test), None))
    else:
        rows = annotated.split_by_name([str(i) for i in range(len(parts[0]))])
        parts = [replace(parts[0], rows=rows) for rows in rows]
    names, truth_of, nothing = form(parts, size)
    source = (
        f"{builder.info.full_name} of tensorflow-datasets, letterboxed to {size}×{size}; trained on {train}, tested on "
        f"{test or 'a fifth of it'}; {builder.info.homepage or builder.data_dir}"
    )
    readers = tuple(_Reader(part, image, (size, size, 3), truth_of, nothing) for part in parts)
    return annotated.assemble(name, readers, names, source, workers=workers)


@dataclass(frozen=True)
class _Part:
    """Records of a split: all, or only those of `rows`."""

    name: str
    records: Any
    rows: np.ndarray | None

    def __len__(self) -> int:
        return len(self.records if self.rows is None else self.rows)

    def __getitem__(self, row: int) -> tuple[dict, str]:
        """A record, and its name for errors."""
        number = row if self.rows is None else int(self.rows[row])
        return self.records[number], f"{self.name}, record {number}"


@dataclass(frozen=True)
class _Reader:
    """See `stream.Reader`. `truth_of(record, image, where)` is what a batch holds of a record and its image."""

    part: _Part
    image: str
    image_shape: tuple[int, int, int]
    truth_of: Callable[[dict, np.ndarray, str], dict[str, np.ndarray]]
    nothing: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.part)

    def read(self, row: int) -> dict[str, np.ndarray]:
        record, where = self.part[row]
        return self.truth_of(record, images.pixels(record[self.image], 3, where), where)

    def empty(self) -> dict[str, np.ndarray]:
        return self.nothing


def _boxes_form(name: str, set_name: str, features: dict) -> Callable | None:
    """Of a set with boxes, a function (parts, size) → (class names, `_Reader.truth_of`, `_Reader.nothing`)."""
    from tensorflow_datasets import features as kinds

    inner = getattr(features.get("objects"), "feature", None)
    inner = dict(inner) if isinstance(inner, kinds.FeaturesDict) else {}
    box, label = inner.get("bbox"), inner.get("label")
    if not isinstance(box, kinds.BBoxFeature) or not isinstance(label, kinds.ClassLabel):
        return None
    # An old TFDS knows no other form, and writes none down.
    order = getattr(getattr(box, "bbox_format", None), "value", _RELATIVE)
    if order != _RELATIVE:
        raise InputError(f"{name} has boxes of the form {order}, expected {_RELATIVE}")
    names = label.names or [str(i) for i in range(label.num_classes)]

    def form(parts: list[_Part], size: int):
        most = annotated.MOST
        if annotated.is_small(sum(map(len, parts)), (size, size, 3)):
            counts = [len(part[i][0]["objects"]["label"]) for part in parts for i in range(len(part))]
            most = min(most, max(1, *counts, 0))
        truth_of = partial(_objects, size=size, most=most, num_classes=len(names), from_one=set_name == "voc")
        return names, truth_of, annotated.empty("boxes", size, most=most)

    return form


def _objects(record: dict, image: np.ndarray, where: str, *, size: int, most: int, num_classes: int, from_one: bool):
    objects, (height, width) = record["objects"], image.shape[:2]
    label = np.array(objects["label"], np.int32)
    shares = np.array(objects["bbox"], np.float64).reshape(-1, 4)  # (top, left, bottom, right) in [0,1]
    problems = {
        "lies outside its image": ~((shares > -1e-6) & (shares < 1 + 1e-6)).all(1),
        "is inside out": (shares[:, 2:] < shares[:, :2]).any(1),
        f"has a class that is none of 0 to {num_classes - 1}": (label < 0) | (label >= num_classes),
    }
    for problem, bad in problems.items():
        if bad.any():
            i = int(bad.argmax())
            box = ", ".join(f"{x:g}" for x in shares[i])
            raise InputError(
                f"{where}: object {i}, (top, left, bottom, right) = ({box}) of class {label[i]}, {problem} "
                f"(and {bad.sum() - 1} more): correct the set and prepare it again"
            )
    boxes = shares[:, [1, 0, 3, 2]] * [width, height, width, height]
    boxes[:, :2] -= from_one
    boxes = boxes.clip(0, [width, height, width, height]).astype(np.float32)
    crowd = np.array(objects.get("is_crowd", objects.get("is_difficult", np.zeros(len(boxes)))), bool)
    area = np.array(objects.get("area", (boxes[:, 2:] - boxes[:, :2]).prod(1)), np.float32)
    return annotated.with_objects(image, boxes, label, crowd=crowd, area=area, size=size, most=most, where=where)


def _map_form(name: str, set_name: str, features: dict) -> Callable | None:
    """The same of a set with maps."""
    from tensorflow_datasets import features as kinds

    key = next((k for k in ("segmentation_mask", "segmentation_label") if isinstance(features.get(k), kinds.Image)), "")
    if not key:
        return None

    def form(parts: list[_Part], size: int):
        classes = np.full(256, _UNKNOWN)
        if set_name in _VALUES:
            named, ignored = _VALUES[set_name]
            classes[list(named)], classes[list(ignored)] = np.arange(len(named)), annotated.IGNORE
            names = tuple(named.values())
        else:
            names = tuple(getattr(features[key], "names", None) or ())
            if not names:
                found = np.zeros(256, bool)
                for record, where in (part[i] for part in parts for i in range(len(part))):
                    found[annotated.decode_map(record[key], where)] = True
                names = annotated.names_of(np.flatnonzero(found), name)
            if not 2 <= len(names) <= annotated.IGNORE:
                raise InputError(f"{name} has {len(names)} classes: segmentation needs 2 to {annotated.IGNORE}")
            classes[: len(names)] = np.arange(len(names))
        classes[annotated.IGNORE] = annotated.IGNORE
        return names, partial(_map, key=key, classes=classes, size=size), annotated.empty("map", size)

    return form


def _map(record: dict, image: np.ndarray, where: str, *, key: str, classes: np.ndarray, size: int):
    values = annotated.decode_map(record[key], where)
    unknown = np.setdiff1d(values, np.flatnonzero(classes != _UNKNOWN)).tolist()
    if unknown:
        raise InputError(
            f"{where}: the mask has the values {unknown[:5]}, expected {np.flatnonzero(classes != _UNKNOWN).tolist()}: "
            "correct the set and prepare it again"
        )
    return annotated.with_map(image, classes[values].astype(np.uint8), size=size, where=where)


_FORMS = {"boxes": _boxes_form, "map": _map_form}
