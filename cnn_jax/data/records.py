"""Any image-classification set that tensorflow-datasets (TFDS) has prepared, read without TensorFlow."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cnn_jax.data import dataset
from cnn_jax.data.dataset import Dataset
from cnn_jax.data.stream import Labelled, Stream, read_all
from cnn_jax.errors import InputError

# Published means and standard deviations of the training images, in [0,1].
_MOMENTS = {
    "imagenet2012": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "svhn_cropped": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
}
_TEST_SPLIT = {"imagenet2012": "validation"}  # the labels of its split `test` were never published
_IMAGE_SIZE = {"imagenet2012": 224}


@dataclass(frozen=True)
class Records:
    """A `Source` of TFDS records; row i is record rows[i] of `records`."""

    name: str
    records: Any
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> tuple[bytes, int]:
        record = self.records[int(self.rows[row])]
        return record["image"], int(record["label"])

    def where(self, row: int) -> str:
        return f"{self.name}, record {self.rows[row]}"


def known() -> list[str]:
    """The names of all sets that TFDS can prepare; none where it is not installed."""
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        return []
    return tfds.list_builders(with_community_datasets=False)


def open_builder(name: str, data_dir: Path) -> Any:
    """TFDS's builder of a set that is prepared in `data_dir`, for reading rows; None if it is not prepared.

    Raises:
        InputError: TFDS is not installed; the set's file format is not array_record; it has no split `train`.
    """
    if not (data_dir / name.split("/")[0].split(":")[0]).is_dir():
        return None  # without the half second that importing TFDS takes
    try:
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core import naming, read_only_builder
    except ImportError as error:
        raise InputError(f"data set {name} needs tensorflow-datasets ({error}): pip install 'cnn_jax[data]'") from None

    try:
        set_name, options = naming.parse_builder_name_kwargs(name)
    except ValueError:  # it is not written as their names are
        return None
    try:
        builder = read_only_builder.builder_from_files(set_name.name, data_dir=data_dir, **options)
    except tfds.core.DatasetNotFoundError:
        return None
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise InputError(
            f"{name} in {builder.data_dir} was prepared as {builder.info.file_format.value}, which cannot be read by "
            f"row: prepare it again with `tfds build {name} --file_format=array_record`"
        )
    splits = list(builder.info.splits)
    if "train" not in splits:
        raise InputError(f"{name} has no split `train`: its splits are {', '.join(splits)}")
    return builder


def load(name: str, data_dir: Path, *, image_size: int | None = None, workers: int | None = None) -> Dataset | None:
    """Loads a set that is prepared in `data_dir`; None if it is not. Uses no network.

    The test set is TFDS's split `test`, else `validation`, else a fifth of `train`, chosen by the SHA-256 of the record
    number (stratified, see `dataset.split_rows`). Sets of up to `dataset.RESIDENT_BYTES` once decoded are resident,
    larger ones are streams.

    Args:
        name: as TFDS has it: `name`, `name/config`, `name:version`.
        data_dir: TFDS's folder.
        image_size: side of the images; others are resized (short side) and cut (centre). Needed where they differ.
        workers: processes that read a stream.

    Raises:
        InputError: TFDS is not installed; the set is not one of image classification; its file format is not
            array_record; images have several sizes and `image_size` is not given.
    """
    builder = open_builder(name, data_dir)
    if builder is None:
        return None
    import tensorflow_datasets as tfds

    features = builder.info.features
    named = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    image, label = named.get("image"), named.get("label")
    if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
        raise InputError(f"{name} is not a set for image classification: it has no features `image` and `label`")
    size = image_size or _IMAGE_SIZE.get(builder.name)
    height, width, channels = image.shape
    if size is not None:
        height = width = size
    elif height is None or width is None:
        raise InputError(f"the images of {name} differ in size: give an image size (--image-size) to bring all to one")
    shape = (height, width, 1 if channels == 1 else 3)

    def records(split: str) -> Records:
        source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        return Records(name, source, np.arange(len(source)))

    splits = list(builder.info.splits)
    test = _TEST_SPLIT.get(builder.name) or next((s for s in ("test", "validation") if s in splits), None)
    train = records("train")
    parts = (train, records(test)) if test else _split(train)
    if sum(map(len, parts)) * np.prod(shape) <= dataset.RESIDENT_BYTES:
        parts = [read_all(Labelled(part, shape, label.num_classes, size is not None)) for part in parts]
    else:
        readers = [Labelled(part, shape, label.num_classes, size is not None) for part in parts]
        parts = [Stream(reader, workers=workers) for reader in readers]
    if builder.name in _MOMENTS:
        mean, std = _MOMENTS[builder.name]
    elif isinstance(parts[0], dict):
        mean, std = dataset.moments(parts[0]["image"])
    else:
        mean = std = (0.5,) * shape[2]
    return Dataset(
        name=name,
        train=parts[0],
        test=parts[1],
        class_names=tuple(label.names or map(str, range(label.num_classes))),
        image_shape=shape,
        mean=mean,
        std=std,
        source=f"{builder.info.full_name} of tensorflow-datasets, test split: {test or 'a fifth of train'}; "
        f"{builder.info.homepage or builder.data_dir}",
    )


def _split(records: Records) -> tuple[Records, Records]:
    labels = np.array([records[i][1] for i in range(len(records))], np.int32)
    keys = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(len(records))]
    train, test = dataset.split_rows(labels, keys)
    return replace(records, rows=train), replace(records, rows=test)
