"""Sets in COCO's form, made by hand: boxes and masks against values worked out by hand, and each mistake's sentence."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cnn_jax import data
from cnn_jax.data import annotated, coco_json, dataset
from cnn_jax.errors import InputError


def packed(counts):
    """Run lengths as COCO packs them into text, written out from its format, bit by bit."""
    text = ""
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        while True:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr((bits | 32 * more) + 48)
            if not more:
                break
    return text


def annotation(id_, image_id=1, bbox=(2, 3, 4, 5), category_id=7, **more):
    return {"id": id_, "image_id": image_id, "category_id": category_id, "bbox": list(bbox), **more}


def make(folder, annotations, *, count=5, size=(10, 20), name="set.json", beside="images", **changed):
    """A JSON file beside images 1 to `count`, of grey 20·id, and the categories 7 and 3."""
    height, width = size
    (folder / beside).mkdir(parents=True, exist_ok=True)
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": height, "width": width} for i in range(1, count + 1)],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": annotations,
    } | changed
    for i in range(1, count + 1):
        Image.fromarray(np.full((*size, 3), 20 * i, np.uint8)).save(folder / beside / f"{i}.png")
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    return folder / name


def row_of(d, i):
    """The row of image i, wherever it fell."""
    for split in ("train", "test"):
        part = getattr(d, split)
        found = np.flatnonzero(part["image"][:, 0, 0, 0] == 20 * i)
        if len(found):
            return {name: values[found[0]] for name, values in part.items()}
    raise AssertionError(i)


def test_boxes(tmp_path):
    path = make(
        tmp_path,
        [
            annotation(10, area=11.5),
            annotation(11, bbox=(0, 0, 20, 10), category_id=3, iscrowd=1),
            annotation(12, bbox=(-0.4, 9.5, 3, 1)),  # over the edge by fractions, as COCO's own are
            annotation(13, image_id=2),
        ],
    )
    d = data.load_annotated(path, "boxes", image_size=40)
    assert d.class_names == ("cat", "dog")  # in the order of their ids
    assert (d.size("train"), d.size("test")) == (4, 1)
    one = row_of(d, 1)
    assert one["image"].shape == (40, 40, 3)
    assert (one["image"][:20] == 20).all()
    assert (one["image"][20:] == annotated.PAD).all()
    np.testing.assert_allclose(one["boxes"], [[4, 6, 12, 16], [0, 0, 40, 20], [0, 19, 5.2, 20]], rtol=1e-6)
    assert one["label"].tolist() == [1, 0, 1]
    assert one["crowd"].tolist() == [False, True, False]
    np.testing.assert_allclose(one["area"], [11.5, 200, 2.6 * 0.5], rtol=1e-6)  # in pixels of the original
    assert one["scale"] == 2
    assert row_of(d, 2)["objects"].tolist() == [True, False, False]
    assert not row_of(d, 3)["objects"].any()


def test_an_edge_of_the_image_stays_inside_the_square(tmp_path):
    """In 32 bits 1276 · (640 / 1276) is more than 640."""
    path = make(tmp_path, [annotation(1, bbox=(0, 0, 1276, 10))], size=(10, 1276))
    assert row_of(data.load_annotated(path, "boxes", image_size=640), 1)["boxes"].max() == 640


def test_maps(tmp_path):
    square = [[2, 3, 6, 3, 6, 8, 2, 8]]
    whole = {"size": [10, 20], "counts": [0, 200]}
    some = {"size": [10, 20], "counts": packed([20, 10, 170])}  # columns come first: all of column 2
    path = make(
        tmp_path,
        [
            annotation(1, segmentation=square),
            annotation(2, category_id=3, segmentation=[[4, 3, 8, 3, 8, 8, 4, 8]]),  # later ones cover earlier ones
            annotation(3, image_id=2, iscrowd=1, segmentation=some),
            annotation(4, image_id=3, segmentation=whole),
            annotation(5, image_id=4, bbox=(2.4, 3, 4.2, 5)),  # no segmentation: its box
            annotation(
                6, image_id=4, category_id=3, segmentation=[[10, 0, 12, 0, 12, 2, 10, 2], [14, 4, 15, 4, 15, 8]]
            ),
        ],
    )
    d = data.load_annotated(path, "map", image_size=20)
    assert d.class_names == ("ground", "cat", "dog")
    expected = {i: np.zeros((20, 20), int) for i in range(1, 6)}
    expected[1][3:8, 2:4], expected[1][3:8, 4:8] = 2, 1
    expected[2][:, 2] = 255
    expected[3][:] = 2
    expected[4][3:8, 2:7], expected[4][0:2, 10:12], expected[4][4:6, 14] = 2, 1, 1
    for i in range(1, 6):
        expected[i][10:] = annotated.IGNORE
        found = row_of(d, i)["map"].astype(int)
        np.testing.assert_array_equal(found, expected[i], err_msg=str(i))


@pytest.mark.parametrize("bbox", [{}, {"bbox": [0, 0, 0, 0]}, {"bbox": [50, 50, 3, 3]}])
def test_a_map_needs_no_box_where_there_is_a_shape(tmp_path, bbox):
    shape = {"segmentation": [[2, 3, 6, 3, 6, 8, 2, 8]]}
    some = [{"id": i, "image_id": i, "category_id": 7} | shape | bbox for i in range(1, 6)]
    found = row_of(data.load_annotated(make(tmp_path, some), "map", image_size=20), 1)["map"]
    assert (found[:10] == 2).sum() == 4 * 5


def test_run_lengths_by_hand():
    # The published example of COCO's packing: 6, 1, 40, 4, 5, 4, 5, 4, 21 of 9×10 pixels.
    counts = [6, 1, 40, 4, 5, 4, 5, 4, 21]
    assert packed(counts) == "61X13mN000`0"
    for form in (counts, "61X13mN000`0"):
        found = coco_json.mask({"size": [9, 10], "counts": form}, (9, 10), np.zeros(4), where="here")
        assert found.dtype == bool
        assert found.sum() == 1 + 4 + 4 + 4
        assert found.T.ravel()[[5, 6, 7, 46, 47, 50, 51]].tolist() == [False, True, False, False, True, True, False]


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_packed_run_lengths_are_those_that_were_packed(given):
    height, width = given.draw(st.integers(1, 40)), given.draw(st.integers(1, 40))
    share = given.draw(st.sampled_from([0.02, 0.5, 0.98]))
    filled = np.random.default_rng(given.draw(st.integers(0, 99))).random((height, width)) < share
    flat = np.concatenate([[False], filled.T.ravel()])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.r_[0, changes, height * width]).tolist()
    for form in (counts, packed(counts)):
        found = coco_json.mask({"counts": form}, (height, width), np.zeros(4), where="here")
        np.testing.assert_array_equal(found, filled)


@pytest.mark.parametrize(
    ("points", "area"),
    [
        ([0, 0, 30, 0, 30, 20, 0, 20], 600),  # all
        ([3.5, 2, 13.5, 2, 13.5, 12, 3.5, 12], 100),
        ([5, 5, 25, 5, 5, 15], 100),  # a triangle
        ([15, 0, 30, 10, 15, 20, 0, 10], 300),  # a rhombus
        ([2, 2, 22, 2, 22, 6, 6, 6, 6, 18, 2, 18], 20 * 4 + 4 * 12),  # an L
        ([-10, -10, 10, -10, 10, 10, -10, 10], 100),  # over the edge
        ([-9, -9, -3, -9, -3, -3], 0),  # beyond it
    ],
)
def test_polygons_cover_their_area(points, area):
    found = coco_json.mask([points], (20, 30), np.zeros(4), where="here")
    assert found.shape == (20, 30)
    assert found.sum() == area


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.1, 0.9), min_size=3, max_size=8), st.floats(0, 6))
def test_a_pixel_is_in_where_its_centre_is(radii, turn):
    """Of polygons around a point: the centre is in where it is nearer than the side in its direction."""
    angles = turn + np.arange(len(radii)) * 2 * np.pi / len(radii)
    points = 16 + 16 * np.stack([np.cos(angles), np.sin(angles)], 1) * np.array(radii)[:, None]
    found = coco_json.mask([points.ravel().tolist()], (32, 32), np.zeros(4), where="here")
    y, x = np.mgrid[:32, :32] + 0.5
    inside, near = np.zeros((32, 32), bool), np.full((32, 32), np.inf)
    for (ax, ay), (bx, by) in zip(points, np.roll(points, -1, 0), strict=True):
        crosses = (ay > y) != (by > y)
        inside ^= crosses & (x < ax + (bx - ax) * (y - ay) / np.where(by == ay, 1, by - ay))
        along = ((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / ((bx - ax) ** 2 + (by - ay) ** 2)
        along = along.clip(0, 1)
        near = np.minimum(near, np.hypot(x - ax - along * (bx - ax), y - ay - along * (by - ay)))
    clear = near > 1e-6
    np.testing.assert_array_equal(found[clear], inside[clear])


def test_splits_of_files_beside_each_other(tmp_path):
    for split, count in (("train", 3), ("val", 2)):
        make(
            tmp_path,
            [annotation(1)],
            count=count,
            name=f"annotations/instances_{split}2017.json",
            beside=f"{split}2017",
        )
    d = data.load_annotated(tmp_path / "annotations" / "instances_train2017.json", "boxes", image_size=20)
    assert (d.size("train"), d.size("test")) == (3, 2)
    assert "split as instances_train2017.json and instances_val2017.json say" in d.source
    path = tmp_path / "annotations" / "instances_val2017.json"
    path.write_text(path.read_text().replace("dog", "dingo"))
    with pytest.raises(InputError, match="different categories: give both the same"):
        data.load_annotated(tmp_path / "annotations" / "instances_train2017.json", "boxes")


def test_what_is_left_out_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(annotated, "MOST", 2)
    wide = [annotation(i, bbox=(0, 0, i, 1), category_id=(3, 7)[i % 2]) for i in (1, 4, 3)]
    flat = [annotation(8, bbox=(2, 3, 4, 0)), annotation(9, bbox=(15, 3, 1e-7, 4))]  # COCO's own train2017 has two
    path = make(tmp_path, [*wide, *flat])
    one = row_of(data.load_annotated(path, "boxes", image_size=20), 1)
    assert one["boxes"][:, 2].tolist() == [4, 3]  # the greatest, in their order
    assert one["label"].tolist() == [0, 1]
    said = capsys.readouterr().out
    left_out = "2 of 5 objects have no width or no height, and are left out; has 3 objects: the 1 smallest are left out"
    assert said.count(f"images/1.png: {left_out}") == 1
    assert row_of(data.load_annotated(path, "map", image_size=20), 1)["map"][0].tolist() == [2, 2, 2, 1] + [0] * 16
    assert "objects" not in capsys.readouterr().out  # a map holds all


def test_a_large_set_is_a_stream(tmp_path, monkeypatch):
    path = make(tmp_path, [annotation(1), annotation(2, image_id=3)])
    resident = data.load_annotated(path, "boxes", image_size=20).train
    monkeypatch.setattr(dataset, "RESIDENT_BYTES", 0)
    d = coco_json.load(path, "boxes", image_size=20, workers=0)
    (batch,) = d.train.batches(np.array([[2, 0, -1]]))
    for name, values in resident.items():
        np.testing.assert_array_equal(batch[name][:2], values[[2, 0]], err_msg=name)
    assert batch["mask"].tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("annotations", "changed", "sentence"),
    [
        ([annotation(5, image_id=9)], {}, "annotation 5: image_id is 9, which no image has"),
        ([annotation(5, category_id=4)], {}, "annotation 5: category_id is 4, which no category has"),
        ([annotation(5), annotation(5)], {}, "two annotations have the id 5"),
        ([], {"categories": [{"id": 1, "name": "a"}] * 2}, "two categories have the id 1"),
        ([annotation(5, bbox=(15, 0, 7, 2))], {}, r"annotation 5: bbox is \[15, 0, 7, 2\], outside 1.png of 20×10"),
        ([annotation(5, bbox=(-1, 2, 0.5, 2))], {}, "bbox is .* outside 1.png"),
        ([annotation(5, bbox=(4, 4, -2, 2))], {}, r"annotation 5: bbox is \[4, 4, -2, 2\], expected \[x, y, width,"),
        ([annotation(5, bbox=(4, 4, 2))], {}, r"bbox is \[4, 4, 2\], expected"),
        ([annotation(5, bbox=(float("nan"), 4, 2, 2))], {}, r"bbox is \[nan, 4, 2, 2\], expected"),
        ([annotation(5, bbox=("4", 4, 2, 2))], {}, "expected"),
        ([annotation(5, area=None)], {}, "annotation 5: area is None, expected a number of pixels"),
        ([{"id": 5, "image_id": 1, "category_id": 3}], {}, r"annotation 5: bbox is None, expected \[x"),
        ([annotation(1), {"id": 5, "image_id": 1}], {}, "entry 1 of annotations, counted from 0, has no 'category_id'"),
        ([], {"images": [{"id": 1}]}, "entry 0 of images, counted from 0, has no 'file_name'"),
        ([], {"categories": [{"id": i, "name": "a"} for i in (3, 8)]}, "categories with the ids 3 and 8 are both a"),
        (
            [],
            {"images": [{"id": i, "file_name": "1.png", "height": 10, "width": 20} for i in (4, 2)]},
            r"images with the ids 2 and 4 are both .*1.png: make them one",
        ),
        ([annotation(5, iscrowd="0")], {}, "annotation 5: iscrowd is '0', expected 0 or 1"),
        ([annotation(5, bbox=(10**400, 4, 2, 2))], {}, r"annotation 5: bbox is .*, expected \[x"),
        ([annotation(5, area=-(10**400))], {}, "annotation 5: area is"),
        ([], {"images": [{"id": 1, "file_name": "1.png", "height": 1e999, "width": 1}]}, "of a wrong type"),
        (
            [],
            {"images": [{"id": 1, "file_name": "1.png", "height": 10, "width": 20}]},
            "set: has 1 images to train on and 0 to test on: give at least one for each, so two in all",
        ),
        ([], {}, "set: none of its 4 training images has an object that is not a crowd: give at least one"),
        (
            [annotation(i, image_id=i, iscrowd=1) for i in range(1, 6)],
            {},
            "none of its 4 training images has an object",
        ),
        (["text"], {}, "annotations holds 'text', expected objects with an id"),
        (
            [],
            {"categories": [{"id": 1, "name": "a"}, {"id": "2", "name": "b"}]},
            "COCO's form: an id, a size or a name",
        ),
        ([], {"images": [{"id": 1, "file_name": 3, "height": 1, "width": 1}]}, "a name is of a wrong type"),
        ([], {"categories": None}, "is not in COCO's form: it has no list 'categories'"),
        ([], {"images": []}, "has 0 images to train on and 0 to test on"),
        (
            [],
            {"images": [{"id": 1, "file_name": "no.png", "height": 1, "width": 1}]},
            r"image no.png is not there: it is sought in .*, in images/",
        ),
        (
            [],
            {"images": [{"id": i, "file_name": f"{i}.png", "height": 11, "width": 20} for i in (1, 2)]},
            r"png: is \(10, 20\) high and wide, and its JSON says \(11, 20\)",
        ),
    ],
)
def test_mistakes(tmp_path, annotations, changed, sentence):
    path = make(tmp_path, annotations, **changed)
    with pytest.raises(InputError, match=sentence):
        data.load_annotated(path, "boxes", image_size=20)


@pytest.mark.parametrize(
    ("segmentation", "sentence"),
    [
        ([[1, 1, 2, 2]], r"annotation 5: a polygon is \[1, 1, 2, 2\], expected x and y of 3 points or more"),
        ([[1, 1, 2, 2, 3, 3, 4]], "a polygon is"),
        ([1, 1, 2, 1, 2, 2], "a polygon is 1, expected"),
        ({"size": [10, 20], "counts": [100, 99]}, r"annotation 5: run lengths cover 199 pixels .* is of 10×20"),
        ({"size": [10, 20], "counts": [300, -100]}, "the run lengths are damaged"),
        ({"size": [10, 20], "counts": [10**30, 1]}, "the run lengths are damaged"),
        ({"size": [10, 20], "counts": "o" * 30 + "0"}, "the run lengths are damaged"),
        ({"size": [20, 10], "counts": [0, 200]}, r"of size \[20, 10\], and the image is of 10×20"),
        ({"size": [10, 20], "counts": "61X1Q"}, "annotation 5: the run lengths are damaged"),
        ({"size": [10, 20]}, "the run lengths are damaged"),
    ],
)
def test_segmentations_that_cannot_be_are_found_before_anything_is_decoded(
    tmp_path, monkeypatch, segmentation, sentence
):
    path = make(
        tmp_path, [annotation(5, segmentation=segmentation), *(annotation(i, image_id=i) for i in (1, 2, 3, 4))]
    )
    data.load_annotated(path, "boxes", image_size=20)  # which has no use for them
    monkeypatch.setattr(annotated, "decode", None)
    with pytest.raises(InputError, match=sentence):
        data.load_annotated(path, "map", image_size=20)


def test_more_categories_than_a_map_holds(tmp_path):
    path = make(
        tmp_path,
        [annotation(i, image_id=i) for i in (1, 2)],
        categories=[{"id": i, "name": str(i)} for i in range(255)],
    )
    assert data.load_annotated(path, "boxes", image_size=20).num_classes == 255
    with pytest.raises(InputError, match="has 255 categories: a map holds 254"):
        data.load_annotated(path, "map", image_size=20)


def test_files_that_are_not_json(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*none.json: No such file"):
        data.load_annotated(tmp_path / "none.json", "boxes")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(InputError, match=r"bad.json is no JSON file"):
        data.load_annotated(tmp_path / "bad.json", "boxes")
    (tmp_path / "deep.json").write_text("[" * 10**5)
    with pytest.raises(InputError, match=r"deep.json is not in COCO's form: its lists lie too deep"):
        data.load_annotated(tmp_path / "deep.json", "boxes")
