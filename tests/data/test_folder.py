"""Folders of images, against Pillow's decoding of the same files."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnn_jax import data
from cnn_jax.data import dataset, images
from cnn_jax.errors import InputError

RNG = np.random.default_rng(0)


def picture(path, height=6, width=8, mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 256, (height, width, len(mode)), dtype=np.uint8)
    Image.fromarray(pixels[..., 0] if mode == "L" else pixels).save(path, **options)
    return pixels


def pillow(path, mode="RGB"):
    with Image.open(path) as image:
        return np.asarray(image.convert(mode)).reshape(image.height, image.width, len(mode))


@pytest.mark.parametrize(
    ("mode", "extension"), [("RGB", "png"), ("L", "png"), ("RGB", "jpg"), ("L", "jpg"), ("RGB", "bmp")]
)
def test_round_trip_with_folders_of_its_own(tmp_path, mode, extension):
    for split, count in (("train", 5), ("val", 2)):
        for name in ("cat", "dog"):
            for i in range(count):
                picture(tmp_path / split / name / f"{i}.{extension}", mode=mode)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    d = data.load(tmp_path)
    assert d.class_names == ("cat", "dog")
    assert d.image_shape == (6, 8, len(mode))
    assert ("grey" if mode == "L" else "in colour") in d.source
    for split, count in (("train", 5), ("val", 2)):
        names = [f"{name}/{i}.{extension}" for name in d.class_names for i in range(count)]
        names.sort(key=lambda name: hashlib.sha256(name.encode()).hexdigest())
        found = d.train if split == "train" else d.test
        assert found["label"].tolist() == [name.startswith("dog") for name in names]
        np.testing.assert_array_equal(found["image"], [pillow(tmp_path / split / name, mode) for name in names])
    np.testing.assert_allclose(d.mean, (d.train["image"] / 255).mean((0, 1, 2)))
    np.testing.assert_allclose(d.std, (d.train["image"] / 255).std((0, 1, 2)))


def test_without_them_a_fifth_of_each_class_is_for_testing(tmp_path):
    values = {}
    for name, count in (("a", 10), ("b", 5)):
        for i in range(count):
            values[f"{name}/{i}.png"] = len(values)
            path = tmp_path / name / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.full((3, 3), len(values) - 1, np.uint8)).save(path)
    d = data.load(tmp_path)
    test = []
    for name in "ab":
        ordered = sorted((k for k in values if k[0] == name), key=lambda k: hashlib.sha256(k.encode()).hexdigest())
        test += [values[k] for k in ordered[2::5]]
    assert sorted(d.test["image"][:, 0, 0, 0].tolist()) == sorted(test)
    assert sorted([*d.train["image"][:, 0, 0, 0], *test]) == list(range(15))


def test_classes_are_mixed_so_that_the_first_images_are_of_all(tmp_path):
    for name, count in (("train/a", 260), ("train/b", 12), ("test/a", 1), ("test/b", 1)):
        for i in range(count):
            path = tmp_path / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (2, 2)).save(path)
    d = data.load(tmp_path)
    assert min(d.head(train=256, test=2).counts("train")) >= 8
    assert set(d.samples("train", 40)["label"].tolist()) == {0, 1}


def test_sizes_are_brought_to_one(tmp_path):
    for i, (height, width) in enumerate([(20, 30), (30, 20), (25, 25), (10, 10)]):
        path = tmp_path / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        y, x = np.mgrid[:height, :width]
        Image.fromarray((y * 8 if height < width else x * 8).astype(np.uint8)).save(path)
    with pytest.raises(InputError, match=r"different sizes: .*png is \d+ high and \d+ wide, .*png is .*--image-size"):
        data.load(tmp_path)
    d = data.load(tmp_path, image_size=10)
    assert d.image_shape == (10, 10, 1)
    halved = images.read(tmp_path / "a" / "0.png", (10, 10, 1))
    # 20×30: halved, and 5 of its 15 columns cut off. Along y the values rise by 16 from 4.
    np.testing.assert_array_equal(halved[:, 0, 0], 4 + 16 * np.arange(10))


def test_modes_that_are_neither_grey_nor_rgb(tmp_path):
    clear = np.zeros((4, 4, 4), np.uint8)
    clear[0] = [255, 0, 0, 255]
    Image.fromarray(clear).save(tmp_path / "clear.png")
    read = images.read(tmp_path / "clear.png", (4, 4, 3))
    assert read[0, 0].tolist() == [255, 0, 0]
    assert read[1, 0].tolist() == [255, 255, 255]  # transparent lies on white
    Image.fromarray(np.array([[0, 256, 65535]], np.uint16)).save(tmp_path / "deep.png")
    assert images.read(tmp_path / "deep.png", (1, 3, 1)).ravel().tolist() == [0, 1, 255]
    picture(tmp_path / "p.jpg")
    with Image.open(tmp_path / "p.jpg") as image:
        image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    np.testing.assert_allclose(images.read(tmp_path / "cmyk.jpg", (6, 8, 3)), pillow(tmp_path / "cmyk.jpg"), atol=1.01)


def test_one_image_in_colour_makes_the_set_so(tmp_path):
    for i in range(3):
        picture(tmp_path / "a" / f"{i}.png", mode="L")
        picture(tmp_path / "b" / f"{i}.png", mode="RGB" if i == 1 else "L")
    assert data.load(tmp_path).image_shape == (6, 8, 3)


def test_a_large_set_is_a_stream(tmp_path, monkeypatch):
    for i in range(8):
        picture(tmp_path / "ab"[i % 2] / f"{i}.png")
    resident = data.load(tmp_path)
    monkeypatch.setattr(dataset, "RESIDENT_BYTES", 8 * 6 * 8 * 3 - 1)
    d = data.load(tmp_path, workers=0)
    assert isinstance(d.train, data.Stream)
    assert d.mean == d.std == (0.5, 0.5, 0.5)
    assert d.counts("train").tolist() == resident.counts("train").tolist()
    (batch,) = d.train.batches(np.arange(6)[None])
    np.testing.assert_array_equal(batch["image"], resident.train["image"])
    np.testing.assert_array_equal(batch["label"], resident.train["label"])


def corrupt(root):
    (root / "a" / "1.png").write_bytes((root / "a" / "1.png").read_bytes()[:60])


def nonsense(root):
    (root / "a" / "1.jpg").write_bytes(b"\xff\xd8 nonsense")


def only(*names):
    def keep(root):
        for path in list(root.iterdir()):
            if path.name not in names:
                path.rename(root.parent / path.name)

    return keep


def no_class(root):
    only()(root)
    picture(root / "1.png")


def empty_class(root):
    (root / "c").mkdir()


def train_alone(root):
    picture(root / "train" / "a" / "0.png")


def strange_test(root):
    for name in ("train/a", "train/b", "test/a", "test/z"):
        picture(root / name / "0.png")


def one_image_a_class(root):
    for name in "ab":
        (root / name / "1.png").unlink()


def empty_test(root):
    only()(root)
    picture(root / "train" / "a" / "0.png")
    picture(root / "train" / "b" / "0.png")
    (root / "test" / "a").mkdir(parents=True)


def foreign_name(root):
    os.mkdir(os.fsencode(root) + b"/caf\xe9")


def another_size(root):
    picture(root / "b" / "9.png", height=9)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (only(), "set is empty: put the images of each class into a sub-folder"),
        (no_class, "has images, but no sub-folders"),
        (only("a"), "one class only, 'a'"),
        (empty_class, r"c has no images \(.bmp"),
        (corrupt, "1.png: corrupt image"),
        (nonsense, r"1.jpg: corrupt image \(it is not an image"),
        (another_size, "9.png is 9 and 8"),
        (train_alone, "has a folder train, but none of test, val"),
        (strange_test, "z: this class is not in"),
        (one_image_a_class, "set has one image of each class, so no image to test on: give two images of a class"),
        (empty_test, "test has no image to test on: give"),
        (foreign_name, r"set has a sub-folder whose name is not UTF-8, 'caf\\udce9': rename it"),
    ],
)
def test_errors(tmp_path, spoil, says):
    root = tmp_path / "set"
    for i in range(4):
        picture(root / "ab"[i % 2] / f"{i // 2}.png")
    spoil(root)
    with pytest.raises(InputError, match=says):
        data.load(root)


@pytest.mark.parametrize("locked", ["set", "a"])
def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch, locked):
    root = tmp_path / "set"
    for name in "ab":
        picture(root / name / "0.png")
    iterdir = Path.iterdir

    def refuse(path):  # the tests' user may be root, who may read everything
        if path.name == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(InputError, match=rf"cannot read .*{locked}: Permission denied"):
        data.load(root)


def test_errors_of_a_call(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        data.load(tmp_path / "none")
    with pytest.raises(InputError, match="image_size is -1"):
        data.load(tmp_path, image_size=-1)
    with pytest.raises(InputError, match=r"cannot read image .*none.png"):
        images.read(tmp_path / "none.png", (4, 4, 3))
