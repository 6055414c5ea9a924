"""Sets that tensorflow-datasets has prepared: small ones, prepared here, and no TensorFlow."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from cnn_jax import data
from cnn_jax.data import dataset
from cnn_jax.errors import InputError

tfds = pytest.importorskip("tensorflow_datasets")


def png(i, size=(6, 5)):
    buffer = io.BytesIO()
    Image.fromarray(np.full((*size, 3), i, np.uint8)).save(buffer, "PNG")
    buffer.seek(0)
    return buffer


def prepare(name, data_dir, splits, features=None, make=lambda i: {"image": png(i), "label": i % 2}, **options):
    """Prepares a set with as many examples in each split as `splits` says; they are numbered through."""
    features = features or {
        "image": tfds.features.Image(shape=(6, 5, 3)),
        "label": tfds.features.ClassLabel(names=["even", "odd"]),
    }
    starts = dict(zip(splits, np.cumsum([0, *splits.values()]).tolist(), strict=False))

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, download_manager):
            return {split: self._generate_examples(split) for split in splits}

        def _generate_examples(self, split):
            for i in range(starts[split], starts[split] + splits[split]):
                yield i, make(i)

    Tiny.name = name
    Tiny(data_dir=data_dir, **({"file_format": "array_record"} | options)).download_and_prepare()


def test_resident(tmp_path):
    prepare("tiny", tmp_path, {"train": 12, "test": 4})
    d = data.load("tiny", data_dir=tmp_path)
    assert d.class_names == ("even", "odd")
    assert d.image_shape == (6, 5, 3)
    for split, numbers in (("train", range(12)), ("test", range(12, 16))):
        image, label = getattr(d, split)["image"], getattr(d, split)["label"]
        assert sorted(image[:, 0, 0, 0]) == list(numbers)
        assert (image == image[:, :1, :1, :1]).all()
        assert (label == image[:, 0, 0, 0] % 2).all()
    np.testing.assert_allclose(d.mean, 5.5 / 255)
    assert data.load("tiny:1.0.0", data_dir=tmp_path).name == "tiny:1.0.0"
    assert "tensorflow" not in sys.modules


def test_stream_by_workers_and_without(tmp_path, monkeypatch):
    from cnn_jax.data import stream

    prepare("tiny", tmp_path, {"train": 12, "test": 4})
    resident = data.load("tiny", data_dir=tmp_path).train
    monkeypatch.setattr(dataset, "RESIDENT_BYTES", 0)
    monkeypatch.setattr(stream, "FEW", 0)
    rows = np.array([[3, 1, 11], [0, -1, -1]], np.int32)
    for workers in (0, 1):
        d = data.load("tiny", data_dir=tmp_path, workers=workers)
        assert d.counts("train") is None  # known only once they are read
        assert len(d.train) == 12
        batches = list(d.train.batches(rows))
        np.testing.assert_array_equal(batches[0]["image"], resident["image"][[3, 1, 11]])
        np.testing.assert_array_equal(batches[0]["label"], resident["label"][[3, 1, 11]])
        assert batches[1]["mask"].tolist() == [True, False, False]
        assert not batches[1]["image"][1:].any()


def test_splits(tmp_path):
    prepare("valued", tmp_path, {"train": 6, "validation": 4})
    assert data.load("valued", data_dir=tmp_path).size("test") == 4
    prepare("single", tmp_path, {"train": 20})
    d = data.load("single", data_dir=tmp_path)
    assert d.counts("train").tolist() == [8, 8]
    assert d.counts("test").tolist() == [2, 2]
    assert sorted([*d.train["image"][:, 0, 0, 0], *d.test["image"][:, 0, 0, 0]]) == list(range(20))
    prepare("trainless", tmp_path, {"test": 4})
    with pytest.raises(InputError, match="no split `train`"):
        data.load("trainless", data_dir=tmp_path)


def test_images_of_several_sizes(tmp_path):
    features = {"image": tfds.features.Image(shape=(None, None, 3)), "label": tfds.features.ClassLabel(num_classes=2)}
    prepare(
        "sizes", tmp_path, {"train": 6, "test": 2}, features, lambda i: {"image": png(i, (6 + i, 9)), "label": i % 2}
    )
    with pytest.raises(InputError, match=r"sizes differ in size: .*--image-size"):
        data.load("sizes", data_dir=tmp_path)
    assert data.load("sizes", data_dir=tmp_path, image_size=4).image_shape == (4, 4, 3)


def test_other_tasks_and_formats(tmp_path):
    features = {"image": tfds.features.Image(shape=(6, 5, 3)), "label": tfds.features.Scalar(np.int32)}
    prepare("numbers", tmp_path, {"train": 4}, features)
    with pytest.raises(InputError, match="numbers is not a set for image classification"):
        data.load("numbers", data_dir=tmp_path)


def test_a_name_of_tfds_that_is_not_prepared(tmp_path):
    with pytest.raises(
        InputError, match=r"data set beans is not prepared.*tfds build beans --file_format=array_record"
    ):
        data.load("beans", data_dir=tmp_path)
