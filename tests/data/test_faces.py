"""The faces, from a package's file that is made up here: the package itself is optional."""

import sys

import numpy as np
import pytest

from cnn_jax import data
from cnn_jax.errors import InputError


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Where a package `skimage` keeps its faces, instead of an installed one."""
    file = tmp_path / "skimage" / "data" / "lfw_subset.npy"
    file.parent.mkdir(parents=True)
    (tmp_path / "skimage" / "__init__.py").write_text("raise RuntimeError('only its file is read')")
    levels = np.arange(200)[:, None, None] / 255 * np.ones((1, 25, 25))  # patch i has the level i
    np.save(file, levels)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "skimage", raising=False)
    return file


def test_every_second_patch_is_for_testing(file):
    d = data.load("faces")
    assert "faces" in data.names()
    assert (d.class_names, d.image_shape) == (("none", "face"), (25, 25, 1))
    for split, first in (("train", 0), ("test", 1)):
        levels = d.images(split, np.arange(100))[:, 3, 5, 0]
        np.testing.assert_array_equal(np.sort(levels), np.arange(first, 200, 2))
        np.testing.assert_array_equal(levels[:4], np.array([0, 100, 2, 102]) + first)
        np.testing.assert_array_equal(d.labels(split), levels < 100)
    assert data.load("faces", image_size=32).image_shape == (32, 32, 1)


def test_what_is_missing_or_damaged_is_said(file, monkeypatch):
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(InputError, match=r"lfw_subset\.npy is damaged \("):
        data.load("faces")
    np.save(file, np.zeros((200, 5, 5)))
    with pytest.raises(InputError, match=r"is of shape \(200, 5, 5\), expected \(200, 25, 25\)"):
        data.load("faces")
    file.unlink()
    with pytest.raises(InputError, match=r"lfw_subset\.npy is not there: pip install --no-deps scikit-image"):
        data.load("faces")
    monkeypatch.setattr("cnn_jax.data.images.find_spec", lambda name: None)
    with pytest.raises(InputError, match="faces come with the package scikit-image: pip install"):
        data.load("faces")
