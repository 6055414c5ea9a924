"""Sets with boxes and maps that tensorflow-datasets has prepared: small ones with the features of the real ones."""

import io
import pickle
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnn_jax import data
from cnn_jax.data import annotated, annotated_records, dataset, stream
from cnn_jax.errors import InputError

sys.path.insert(0, str(Path(__file__).parent))
from test_records import prepare, tfds

F = tfds.features
COCO = {
    "image": F.Image(encoding_format="jpeg"),
    "image/filename": F.Text(),
    "image/id": np.int64,
    "objects": F.Sequence(
        {
            "id": np.int64,
            "area": np.int64,
            "bbox": F.BBoxFeature(),
            "label": F.ClassLabel(names=["person", "bicycle", "car"]),
            "is_crowd": np.bool_,
        }
    ),
}
VOC = {
    "image": F.Image(),
    "image/filename": F.Text(),
    "objects": F.Sequence(
        {
            "label": F.ClassLabel(names=["aeroplane", "bicycle"]),
            "bbox": F.BBoxFeature(),
            "pose": F.ClassLabel(names=["frontal", "rear"]),
            "is_truncated": np.bool_,
            "is_difficult": np.bool_,
        }
    ),
    "labels": F.Sequence(F.ClassLabel(names=["aeroplane", "bicycle"])),
    "labels_no_difficult": F.Sequence(F.ClassLabel(names=["aeroplane", "bicycle"])),
}
PETS = {
    "image": F.Image(encoding_format="jpeg"),
    "label": F.ClassLabel(names=["Abyssinian", "pug"]),
    "species": F.ClassLabel(names=["Cat", "Dog"]),
    "file_name": F.Text(),
    "segmentation_mask": F.Image(shape=(None, None, 1), use_colormap=True),
    "head_bbox": F.BBoxFeature(),
}
CITYSCAPES = {
    "image_id": F.Text(),
    "image_left": F.Image(shape=(8, 16, 3), encoding_format="png"),
    "segmentation_label": F.Image(shape=(8, 16, 1), encoding_format="png", use_colormap=True),
}


def encoded(pixels, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(buffer, kind)
    buffer.seek(0)
    return buffer


def grey(i, height=10, width=20):
    return np.full((height, width, 3), 10 * i, np.uint8)


def config(name, version="1.1.0"):
    return {"config": tfds.core.BuilderConfig(name=name, version=version)}


def coco_example(i):
    """Image i of 10×20 is of grey 10·i and has i objects: [2, 3, 4, 5] pixels from the left, top, … in COCO's form."""
    boxes = [F.BBox(ymin=(3 + j % 3) / 10, xmin=2 / 20, ymax=(8 + j % 3) / 10, xmax=6 / 20) for j in range(i)]
    objects = [{"id": j, "area": 17.6, "bbox": box, "label": j % 3, "is_crowd": j == 1} for j, box in enumerate(boxes)]
    return {"image": encoded(grey(i), "JPEG"), "image/filename": f"{i}.jpg", "image/id": i, "objects": objects}


def by_grey(part):
    """Rows in the order in which their images were made; TFDS shuffles them."""
    return np.argsort(part["image"][:, 0, 0, 0])


def test_coco(tmp_path):
    prepare("coco", tmp_path, {"train": 3, "validation": 1, "test": 1}, COCO, coco_example, **config("2017"))
    d = data.load_annotated("coco/2017", "boxes", data_dir=tmp_path, image_size=40)
    assert d.class_names == ("person", "bicycle", "car")
    assert d.size("test") == 1  # COCO's split test has no truth
    assert "tested on validation" in d.source
    train = {name: values[by_grey(d.train)] for name, values in d.train.items()}
    assert train["image"].shape == (3, 40, 40, 3)
    assert (train["image"][2, :20] == 20).all()
    assert (train["image"][2, 20:] == annotated.PAD).all()
    assert train["boxes"].shape == (3, 3, 4)  # the split validation has an image with three objects
    assert train["objects"].tolist() == [[False] * 3, [True, False, False], [True, True, False]]
    np.testing.assert_allclose(train["boxes"][2], [[4, 6, 12, 16], [4, 8, 12, 18], [0, 0, 0, 0]], atol=1e-5)
    assert train["label"][2].tolist() == [0, 1, 0]
    assert train["crowd"][2].tolist() == [False, True, False]
    assert train["area"][2].tolist() == [17, 17, 0]  # as TFDS keeps it, in pixels of the original
    assert (train["scale"] == 2).all()
    assert "tensorflow" not in sys.modules
    with pytest.raises(InputError, match=r"coco/2017 has no map: it lacks an image .*COCO's own JSON file"):
        data.load_annotated("coco/2017", "map", data_dir=tmp_path)
    absolute = COCO | {
        "objects": F.Sequence({"bbox": F.BBoxFeature(bbox_format="XYXY"), "label": F.ClassLabel(num_classes=2)})
    }
    make = lambda i: coco_example(i) | {"objects": [{"bbox": F.BBox(0.0, 0.0, 3.0, 3.0), "label": 0}]}  # noqa: E731
    prepare("absolute", tmp_path, {"train": 1, "test": 1}, absolute, make)
    with pytest.raises(InputError, match="absolute has boxes of the form XYXY, expected REL_YXYX"):
        data.load_annotated("absolute", "boxes", data_dir=tmp_path)
    with pytest.raises(InputError, match="unknown data set 'coco': did you mean 'coco/20"):
        data.load_annotated("coco", "boxes", data_dir=tmp_path)


def voc_example(i):
    """One object whose pixels, counted from 1, are 1 to 5 of x and 4 to 10 of y; a difficult one of a single pixel."""
    boxes = [F.BBox(ymin=4 / 10, xmin=1 / 20, ymax=10 / 10, xmax=5 / 20), F.BBox(0.2, 0.2, 0.2, 0.2)]
    objects = [
        {"label": j, "bbox": box, "pose": "rear", "is_truncated": False, "is_difficult": j == 1}
        for j, box in enumerate(boxes)
    ]
    image = encoded(grey(i), "JPEG")
    return {"image": image, "image/filename": "x", "objects": objects, "labels": [0, 1], "labels_no_difficult": [0]}


def test_voc_counts_from_one_and_has_difficult_objects(tmp_path):
    splits = {"train": 2, "validation": 1, "test": 3}
    for year in ("2007", "2012"):
        prepare("voc", tmp_path, splits, VOC, voc_example, **config(year, "5.0.0"))
    d = data.load_annotated("voc/2007", "boxes", data_dir=tmp_path, image_size=20)
    assert (d.size("train"), d.size("test")) == (3, 3)  # train and validation, test
    np.testing.assert_allclose(d.train["boxes"][0], [[0, 3, 5, 10], [3, 1, 4, 2]], atol=1e-5)
    assert d.train["crowd"].tolist() == [[False, True]] * 3
    np.testing.assert_allclose(d.train["area"][0], [35, 1], atol=1e-4)
    later = data.load_annotated("voc/2012", "boxes", data_dir=tmp_path, image_size=20)
    assert (later.size("train"), later.size("test")) == (2, 1)  # of its split test nothing is known


def test_a_stream_gives_the_same_by_workers_and_without(tmp_path, monkeypatch):
    prepare("coco", tmp_path, {"train": 6, "validation": 1}, COCO, coco_example, **config("2017"))
    load = lambda workers: annotated_records.load("coco/2017", "boxes", tmp_path, image_size=20, workers=workers)  # noqa: E731
    resident = load(0).train
    monkeypatch.setattr(dataset, "RESIDENT_BYTES", 0)
    monkeypatch.setattr(stream, "FEW", 0)
    for workers in (0, 1):
        d = load(workers)
        assert isinstance(d.train, data.Stream)
        first, second = d.train.batches(np.array([[4, 1], [0, -1]], np.int32))
        assert first["boxes"].shape == (2, annotated.MOST, 4)  # how many there are is not known before
        for name in ("image", "boxes", "label", "objects", "crowd", "area", "scale"):
            wide = resident[name][[4, 1]]
            found = first[name][:, : wide.shape[1]] if wide.ndim > 1 else first[name]
            np.testing.assert_array_equal(found, wide, err_msg=name)
        assert second["mask"].tolist() == [True, False]
        assert not second["objects"][1].any()


def test_no_split_of_its_own(tmp_path):
    prepare("own", tmp_path, {"train": 10}, COCO, coco_example)
    d = data.load_annotated("own", "boxes", data_dir=tmp_path, image_size=10)
    assert (d.size("train"), d.size("test")) == (8, 2)
    both = np.concatenate([d.train["objects"].sum(1), d.test["objects"].sum(1)])
    assert sorted(both) == list(range(10))


def test_what_is_left_out_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(annotated, "MOST", 2)

    def make(i):
        sides = [0.1, 0.4, 0.3, 0.0][: i + 1]
        objects = [
            {"id": j, "area": 200 * side**2, "bbox": F.BBox(0.0, 0.0, side, 0.5), "label": j % 3, "is_crowd": False}
            for j, side in enumerate(sides)
        ]
        return coco_example(i) | {"objects": objects}

    prepare("crowded", tmp_path, {"train": 4, "test": 1}, COCO, make)
    capsys.readouterr()
    d = data.load_annotated("crowded", "boxes", data_dir=tmp_path, image_size=20)
    rows = by_grey(d.train)
    assert d.train["label"][rows[3]].tolist() == [1, 2]  # the two greatest, in their order
    said = capsys.readouterr().out
    assert f"crowded, split 'train', record {rows[2]}: has 3 objects: the 1 smallest are left out" in said
    assert f"record {rows[3]}: 1 of 4 objects have no width or no height, and are left out; has 3 objects" in said
    monkeypatch.setattr(dataset, "RESIDENT_BYTES", 0)
    monkeypatch.setattr(stream, "FEW", 0)
    d = data.load_annotated("crowded", "boxes", data_dir=tmp_path, image_size=20, workers=1)
    for _ in range(2):  # epochs, each with a worker of its own
        assert sum(len(batch["mask"]) for batch in d.train.batches(np.arange(4)[None])) == 4
    assert capsys.readouterr().out.count("are left out") == 3  # once of each record, whatever the epochs


def record(boxes=((0.1, 0.2, 0.5, 0.6),), label=(0,)):
    return {"image": encoded(grey(1)).getvalue(), "objects": {"bbox": list(boxes), "label": list(label)}}


def read(records, **options):
    options = {"size": 20, "most": 3, "num_classes": 2, "from_one": False} | options
    part = annotated_records._Part("s, split 'train'", records, np.array([1]))
    reader = annotated_records._Reader(part, "image", (20, 20, 3), partial(annotated_records._objects, **options), {})
    return pickle.loads(pickle.dumps(reader)).read(0)


@pytest.mark.parametrize(
    ("boxes", "label", "sentence"),
    [
        ([(0.1, 0.2, 0.5, 1.2)], [0], r"object 0, .* = \(0.1, 0.2, 0.5, 1.2\) of class 0, lies outside its image"),
        ([(-0.1, 0.2, 0.5, 0.6)], [0], "lies outside its image"),
        ([(np.nan, 0.2, 0.5, 0.6)], [0], "lies outside its image"),
        ([(0.1, 0.2, 0.5, 0.6), (0.5, 0.2, 0.1, 0.6)], [0, 0], r"object 1, .* is inside out \(and 0 more\)"),
        ([(0.1, 0.2, 0.5, 0.6)] * 2, [2, -1], r"of class 2, has a class that is none of 0 to 1 \(and 1 more\)"),
    ],
)
def test_objects_that_cannot_be(boxes, label, sentence):
    with pytest.raises(InputError, match=f"^s, split 'train', record 1: .*{sentence}"):
        read([None, record(boxes, label)])
    assert read([None, record()])["objects"].tolist() == [True, False, False]


def test_a_corrupt_image_is_named():
    broken = record() | {"image": b"\xff\xd8 nonsense"}
    with pytest.raises(InputError, match=r"^s, split 'train', record 1: corrupt image"):
        read([None, broken])


def pet(i):
    """Left a pet, right the ground, a rim between."""
    mask = np.full((10, 20), 1, np.uint8)
    mask[:, 8:10], mask[:, 10:] = 3, 2
    return {
        "image": encoded(grey(i), "JPEG"),
        "label": 0,
        "species": 0,
        "file_name": f"{i}.jpg",
        "segmentation_mask": encoded(mask),
        "head_bbox": F.BBox(0.0, 0.0, 0.0, 0.0),
    }


def test_pets(tmp_path):
    prepare("oxford_iiit_pet", tmp_path, {"train": 3, "test": 2}, PETS, pet)
    d = data.load_annotated("oxford_iiit_pet", "map", data_dir=tmp_path, image_size=20)
    assert d.class_names == ("ground", "pet")
    assert (d.size("train"), d.size("test")) == (3, 2)
    row = [1] * 8 + [255] * 2 + [0] * 10
    assert (d.train["map"][:, :10] == row).all()
    assert (d.train["map"][:, 10:] == 255).all()
    with pytest.raises(InputError, match="oxford_iiit_pet has no boxes: it lacks `objects` with `bbox` and `label`"):
        data.load_annotated("oxford_iiit_pet", "boxes", data_dir=tmp_path)


def test_cityscapes(tmp_path):
    ids = np.resize(np.arange(34), (8, 16))

    def make(i):
        label = np.where(np.arange(16) == i, 7, ids)
        return {"image_id": str(i), "image_left": encoded(grey(i, 8, 16)), "segmentation_label": encoded(label)}

    splits = {"train": 2, "validation": 1, "test": 4}
    prepare("cityscapes", tmp_path, splits, CITYSCAPES, make, **config("semantic_segmentation", "1.0.0"))
    d = data.load_annotated("cityscapes", "map", data_dir=tmp_path, image_size=16)
    assert d.num_classes == 19
    assert (d.size("train"), d.size("test")) == (2, 1)
    assert [d.class_names[i] for i in (0, 4, 10, 11, 16, 18)] == ["road", "fence", "sky", "person", "train", "bicycle"]
    found = d.test["map"][0, :8]
    label = np.where(np.arange(16) == 2, 7, ids)
    for id_, class_ in {7: 0, 8: 1, 13: 4, 17: 5, 23: 10, 28: 15, 31: 16, 33: 18, 0: 255, 9: 255, 18: 255}.items():
        assert (found[label == id_] == class_).all(), id_
    assert sorted({*np.unique(found).tolist()}) == [*range(19), 255]


def test_maps_of_other_sets(tmp_path):
    features = {"image": F.Image(), "segmentation_label": F.LabeledImage(labels=["sea", "land", "sky"])}

    def make(i, value=2):
        mask = np.full((4, 6), i % 2, np.uint8)
        mask[0], mask[1] = value, 255
        return {"image": encoded(grey(i, 4, 6)), "segmentation_label": encoded(mask)}

    prepare("named", tmp_path, {"train": 2, "test": 1}, features, make)
    d = data.load_annotated("named", "map", data_dir=tmp_path, image_size=6)
    assert d.class_names == ("sea", "land", "sky")
    assert sorted(np.unique(d.train["map"])) == [0, 1, 2, 255]
    prepare("wrong", tmp_path, {"train": 1, "test": 1}, features, lambda i: make(i, 3 + i))
    with pytest.raises(InputError, match=r"wrong, split 'train', record 0: the mask has the values \[3\], expected "):
        data.load_annotated("wrong", "map", data_dir=tmp_path, image_size=6)
    features["segmentation_label"] = F.Image(shape=(None, None, 1))
    prepare("numbers", tmp_path, {"train": 2, "test": 1}, features, make)
    assert data.load_annotated("numbers", "map", data_dir=tmp_path, image_size=6).class_names == ("0", "1", "2")
    prepare(
        "sizes",
        tmp_path,
        {"train": 1, "test": 1},
        features,
        lambda i: make(i) | {"image": encoded(grey(i, 4, 5))},
    )
    with pytest.raises(InputError, match=r"record 0: the mask is \(4, 6\) high and wide, its image \(4, 5\)"):
        data.load_annotated("sizes", "map", data_dir=tmp_path, image_size=6)


@pytest.mark.parametrize(
    ("name", "truth", "sentence"),
    [
        ("coco/2017", "boxes", r"coco/2017 is not prepared in .*needs TensorFlow.*`tfds build coco/2017 --file_format"),
        (
            "cityscapes",
            "map",
            r"not prepared in .*gtFine_trainvaltest, come from cityscapes-dataset.com by registration",
        ),
        ("lvis", "boxes", "lvis is not prepared"),
        ("voc", "boxes", "unknown data set 'voc': .*voc/2007"),
        ("coco/2071", "boxes", "coco/2071 is not prepared"),
        ("cityscape", "map", "did you mean 'cityscapes'.*or a folder with images/ and masks/"),
        ("fashion_mnist", "boxes", "did you mean 'scenes/fashion_mnist'"),
    ],
)
def test_names_that_are_not_there(tmp_path, name, truth, sentence):
    with pytest.raises(InputError, match=sentence):
        data.load_annotated(name, truth, data_dir=tmp_path)


def test_arguments(tmp_path):
    with pytest.raises(InputError, match="image_size is 0"):
        data.load_annotated("coco/2017", "boxes", image_size=0)
    with pytest.raises(InputError, match="unknown truth 'box': did you mean 'boxes'"):
        data.load_annotated("coco/2017", "box")
    with pytest.raises(InputError, match="is a path, but not of a JSON file"):
        data.load_annotated(tmp_path, "boxes")
