"""The nuclei of StarDist's example: one microscope image of 512×512 pixels with 125 nuclei, drawn by hand.

Its package carries image and mask (BSD-3): `pip install --no-deps stardist==0.9.2`, on Python 3.11 to 3.13 (0.9.1 has
the same two files). Only they are read; nothing of the package is run, so it needs none of its requirements.
"""

import numpy as np

from cnn_jax.data import dataset
from cnn_jax.data.dataset import Dataset
from cnn_jax.data.images import CROPS, corrupt, in_package
from cnn_jax.errors import InputError

SIDE = 512
_INSTALL = "pip install --no-deps stardist==0.9.2"


def load(*, image_size: int | None = None) -> Dataset:
    """Crops of three quarters of the image to train on, and of the lower right quarter, which no crop touches, to test.

    Args:
        image_size: side of the crops in pixels, 128 by default; those for training overlap by three quarters.

    Raises:
        InputError: a size that does not divide the quarter; the package or its files are not there, or damaged.
    """
    size = 128 if image_size is None else image_size
    half = SIDE // 2
    if size < 4 or half % size:
        raise InputError(f"nuclei: image_size is {size}: it must be 4 or more and divide {half}")
    folder = in_package("stardist", missing=f"nuclei come with the package stardist: {_INSTALL}") / "data" / "images"
    from PIL import Image

    arrays = []
    for path in (folder / "img2d.tif", folder / "mask2d.tif"):
        try:
            with Image.open(path) as image:
                arrays.append(np.asarray(image))
        except FileNotFoundError:
            raise InputError(f"nuclei: {path} is not there: {_INSTALL}") from None
        except (OSError, SyntaxError, ValueError) as error:
            raise corrupt(path, error) from None
        if arrays[-1].shape != (SIDE, SIDE):
            raise InputError(f"nuclei: {path} is of shape {arrays[-1].shape}, expected {(SIDE, SIDE)}")
    pixels, nuclei = arrays[0].astype(np.float32), arrays[1] > 0
    low, high = np.percentile(pixels, CROPS["nuclei"])
    pixels = np.round(255 * ((pixels - low) / (high - low)).clip(0, 1)).astype(np.uint8)

    def crops(corners):
        rows = [(slice(y, y + size), slice(x, x + size)) for y, x in corners]
        return {
            "image": np.stack([pixels[row][..., None] for row in rows]),
            "map": np.stack([nuclei[row].astype(np.uint8) for row in rows]),
        }

    places = range(0, SIDE - size + 1, size // 4)
    train = crops([(y, x) for y in places for x in places if y + size <= half or x + size <= half])
    test = crops([(y, x) for y in range(half, SIDE, size) for x in range(half, SIDE, size)])
    mean, std = dataset.moments(train["image"])
    return Dataset(
        name="nuclei",
        train=train,
        test=test,
        class_names=("ground", "nucleus"),
        image_shape=(size, size, 1),
        mean=mean,
        std=std,
        source=f"StarDist's example (BSD-3), in crops of {size}×{size}; its lower right quarter is for testing.",
    )
