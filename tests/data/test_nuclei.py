"""The nuclei, from a package's two files that are made up here: the package itself is optional."""

import sys

import numpy as np
import pytest
from PIL import Image

from cnn_jax import data
from cnn_jax.errors import InputError

# Of each pixel a level of its own, as far as they go, and nuclei numbered in blocks.
Y, X = np.mgrid[:512, :512]
PIXELS = (100 * (Y // 2) + 50 * (X // 256)).astype(np.uint16)
PIXELS[:8, :8] = 60_000  # a glare that must not darken the rest
NUCLEI = ((Y // 32) % 2 * (1 + X // 32)).astype(np.uint16)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a package `stardist` keeps its images, instead of an installed one."""
    folder = tmp_path / "stardist" / "data" / "images"
    folder.mkdir(parents=True)
    (tmp_path / "stardist" / "__init__.py").write_text("raise RuntimeError('only its files are read')")
    Image.fromarray(PIXELS).save(folder / "img2d.tif")
    Image.fromarray(NUCLEI).save(folder / "mask2d.tif")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "stardist", raising=False)
    return folder


@pytest.mark.parametrize("size", [None, 64, 256])
def test_crops(folder, size):
    d = data.load_annotated("nuclei", "map", image_size=size)
    size = size or 128
    assert d.class_names == ("ground", "nucleus")
    assert d.image_shape == (size, size, 1)
    assert d.size("test") == (256 // size) ** 2
    places = [(y, x) for y in range(256, 512, size) for x in range(256, 512, size)]
    low, high = np.percentile(PIXELS, (0.5, 99.8))
    for row, (y, x) in enumerate(places):
        window = (slice(y, y + size), slice(x, x + size))
        np.testing.assert_array_equal(d.test["map"][row], NUCLEI[window] > 0)
        expected = 255 * ((PIXELS[window] - low) / (high - low)).clip(0, 1)
        np.testing.assert_allclose(d.test["image"][row, ..., 0], expected, atol=0.51)
    steps = range(0, 513 - size, size // 4)
    apart = sum(min(y, x) <= 256 - size for y in steps for x in steps)
    assert d.size("train") == apart
    assert len(np.unique(d.train["map"])) == 2


def test_no_crop_for_training_touches_the_quarter_for_testing(folder):
    marked = PIXELS * 0
    marked[256:, 256:] = 1
    Image.fromarray(marked).save(folder / "img2d.tif")
    Image.fromarray(marked).save(folder / "mask2d.tif")
    d = data.load_annotated("nuclei", "map", image_size=64)
    assert not d.train["map"].any()
    assert d.test["map"].all()
    assert not d.train["image"].any()


@pytest.mark.parametrize("size", [1, 2, 100, 512])
def test_sizes_that_do_not_fit(folder, size):
    with pytest.raises(InputError, match=f"nuclei: image_size is {size}: it must be 4 or more and divide 256"):
        data.load_annotated("nuclei", "map", image_size=size)


def test_files_that_are_not_there_or_damaged(folder):
    Image.fromarray(PIXELS[:100]).save(folder / "mask2d.tif")
    with pytest.raises(InputError, match=r"mask2d.tif is of shape \(100, 512\), expected \(512, 512\)"):
        data.load_annotated("nuclei", "map")
    (folder / "mask2d.tif").write_bytes(b"no")
    with pytest.raises(InputError, match=r"mask2d.tif: corrupt image"):
        data.load_annotated("nuclei", "map")
    (folder / "mask2d.tif").unlink()
    with pytest.raises(InputError, match=r"mask2d.tif is not there: pip install --no-deps stardist"):
        data.load_annotated("nuclei", "map")


def test_the_package_is_not_there(monkeypatch):
    monkeypatch.setattr("cnn_jax.data.images.find_spec", lambda name: None)
    with pytest.raises(InputError, match="nuclei come with the package stardist: pip install"):
        data.load_annotated("nuclei", "map")
    with pytest.raises(InputError, match="unknown data set 'nuclei'"):
        data.load_annotated("nuclei", "boxes")
