"""Folders with images/ and masks/: what is read is what was written, and each mistake has its sentence."""

import numpy as np
import pytest
from PIL import Image

from cnn_jax import data
from cnn_jax.data import annotated, dataset, mask_folder
from cnn_jax.errors import InputError


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


def pair(folder, i, mask=None, size=(6, 9), extension="png"):
    """Image i, of grey 10·i, and its mask: 0, below it 2, 1 at the right, and pixels that count nowhere at the left."""
    save(folder / "images" / f"{i}.{extension}", np.full((*size, 3), 10 * i))
    if mask is None:
        mask = np.zeros(size)
        mask[size[0] // 2 :], mask[:, -1], mask[:, 0] = 2, 1, 255
    save(folder / "masks" / f"{i}.png", mask)


def test_round_trip(tmp_path):
    for i in range(10):
        pair(tmp_path, i, extension="jpg" if i % 2 else "png")
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    (tmp_path / "masks" / "._0.png").write_text("as some systems leave behind")
    d = data.load_annotated(tmp_path, "map", image_size=18)
    assert d.class_names == ("0", "1", "2")
    assert (d.size("train"), d.size("test")) == (8, 2)
    expected = np.zeros((18, 18))
    expected[6:12], expected[:, 16:], expected[:, :2], expected[12:] = 2, 1, 255, 255
    for part in (d.train, d.test):
        assert part["map"].dtype == np.uint8
        np.testing.assert_array_equal(part["map"], np.broadcast_to(expected, part["map"].shape))
        assert (part["image"][:, 12:] == annotated.PAD).all()
        assert (np.ptp(part["image"][:, :12], axis=(1, 2, 3)) == 0).all()
    shades = np.concatenate([part["image"][:, 0, 0, 0] for part in (d.train, d.test)])
    assert sorted(shades.tolist()) == list(range(0, 100, 10))
    names = [f"{i}.{'jpg' if i % 2 else 'png'}" for i in range(10)]
    ordered = sorted(names)
    test = annotated.split_by_name(ordered)[1]
    assert sorted(d.test["image"][:, 0, 0, 0].tolist()) == sorted(10 * int(ordered[i][0]) for i in test)


def test_folders_of_its_own_and_names(tmp_path):
    for split, count in (("train", 3), ("val", 2)):
        for i in range(count):
            pair(tmp_path / split, i)
    (tmp_path / "classes.txt").write_text("sea\nland\n\nsky \nfog\n")
    d = data.load_annotated(tmp_path, "map")
    assert d.image_shape == (256, 256, 3)
    assert d.class_names == ("sea", "land", "sky", "fog")
    assert (d.size("train"), d.size("test")) == (3, 2)
    assert "split as its folders train and val say" in d.source


def test_a_large_set_is_a_stream(tmp_path, monkeypatch):
    for i in range(5):
        pair(tmp_path, i)
    resident = data.load_annotated(tmp_path, "map", image_size=9).train
    monkeypatch.setattr(dataset, "RESIDENT_BYTES", 0)
    d = mask_folder.load(tmp_path, image_size=9, workers=0)
    (batch,) = d.train.batches(np.array([[3, -1, 0]]))
    for name, values in resident.items():
        np.testing.assert_array_equal(batch[name][[0, 2]], values[[3, 0]], err_msg=name)
    assert (batch["map"][1] == 255).all()  # what fills up a batch counts nowhere


def no_masks(folder):
    for path in (folder / "masks").iterdir():
        path.unlink()
    (folder / "masks").rmdir()


def no_images(folder):
    for path in [*(folder / "images").iterdir(), *(folder / "masks").iterdir()]:
        path.unlink()


def classes(*names):
    return lambda folder: (folder / "classes.txt").write_text("\n".join(names))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (no_masks, "has no folder masks/: give a folder with images/ and masks/"),
        (no_images, "images holds no images"),
        (lambda f: (f / "masks" / "1.png").unlink(), r"images.1.png has no file of that name in masks/ \(and 0 more\)"),
        (lambda f: (f / "images" / "1.png").unlink(), "masks.1.png has no file of that name in images/"),
        (lambda f: save(f / "images" / "1.jpg", np.zeros((6, 9))), "1.png and 1.jpg have the same name"),
        (
            lambda f: save(f / "masks" / "1.png", np.zeros((6, 8))),
            r"1.png: the mask is \(6, 8\) high .* image \(6, 9\)",
        ),
        (lambda f: save(f / "masks" / "1.png", np.zeros((6, 9, 3))), "1.png: the mask is a PNG of mode RGB"),
        (lambda f: (f / "masks" / "1.png").write_bytes(b"no"), "1.png: corrupt image"),
        (lambda f: (f / "images" / "1.png").write_bytes(b"no"), "images.1.png: corrupt image"),
        (classes("a", "b", "a"), "classes.txt names two classes 'a': give each a name of its own"),
        (
            lambda f: (f / "classes.txt").write_bytes("a\nMüll".encode("latin-1")),
            "classes.txt is not in UTF-8: save it",
        ),
        (
            lambda f: [save(f / "masks" / f"{i}.png", np.indices((6, 9))[0] * 5) for i in range(3)],
            r"its masks hold 6 values with gaps, 0, 5, 10, 15, 20, 25: number the classes .* or name all 26 in",
        ),
        (classes("a", "b"), r"the mask has the values \[2\]: classes are 0 to 1, and 255 is for pixels"),
        (classes("a"), "classes.txt names 1 classes: segmentation needs 2 to 255"),
    ],
)
def test_mistakes(tmp_path, spoil, sentence):
    for i in range(3):
        pair(tmp_path, i)
    spoil(tmp_path)
    with pytest.raises(InputError, match=sentence):
        data.load_annotated(tmp_path, "map", image_size=9)


def test_a_mark_of_the_encoding_is_no_part_of_a_name(tmp_path):
    for i in range(3):
        pair(tmp_path, i)
    (tmp_path / "classes.txt").write_text("Müll\nb\nc", encoding="utf-8-sig")
    assert data.load_annotated(tmp_path, "map", image_size=9).class_names == ("Müll", "b", "c")


def test_masks_of_black_and_white(tmp_path):
    for i in range(3):
        pair(tmp_path, i, np.indices((6, 9))[0] % 2 * 255)
    (tmp_path / "classes.txt").write_text("ground\nobject")
    said = r"its training maps hold the values \[0\] alone, beside 255, which says that a pixel counts nowhere"
    with pytest.raises(InputError, match=said):
        data.load_annotated(tmp_path, "map", image_size=9)
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(InputError, match=r"its masks hold the values \[0\], beside 255, which counts nowhere"):
        data.load_annotated(tmp_path, "map", image_size=9)


def test_sizes(tmp_path):
    with pytest.raises(InputError, match="image_size is 0"):
        data.load_annotated(tmp_path, "map", image_size=0)
