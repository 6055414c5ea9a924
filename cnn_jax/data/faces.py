"""Faces and what is none: 200 grey patches of 25×25 pixels, cut from photographs, half of them faces.

They are a part of Labeled Faces in the Wild (Huang et al. 2007), which the package scikit-image carries:
`pip install --no-deps scikit-image`. Only the file is read; nothing of the package is run, so it needs none of its
requirements.
"""

import numpy as np

from cnn_jax.data import dataset
from cnn_jax.data.dataset import Dataset
from cnn_jax.data.images import in_package
from cnn_jax.errors import InputError

_INSTALL = "pip install --no-deps scikit-image"


def load() -> Dataset:
    """u8[100,25,25,1] for training and as many for testing: of each class every second patch, classes in turn.

    Raises:
        InputError: the package or its file is not there, or damaged.
    """
    folder = in_package("skimage", missing=f"faces come with the package scikit-image: {_INSTALL}")
    path = folder / "data" / "lfw_subset.npy"
    try:
        patches = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"faces: {path} is not there: {_INSTALL}") from None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"faces: {path} is damaged ({error}): {_INSTALL}") from None
    if patches.shape != (200, 25, 25):
        raise InputError(f"faces: {path} is of shape {patches.shape}, expected (200, 25, 25)")
    images = np.rint(255 * patches).astype(np.uint8)[..., None]
    # The faces come first; here they take turns with the others.
    images, label = images.reshape(2, 100, 25, 25, 1), np.tile(np.array([1, 0], np.int32), 50)
    train, test = (
        {"image": images[:, first::2].swapaxes(0, 1).reshape(100, 25, 25, 1), "label": label} for first in (0, 1)
    )
    mean, std = dataset.moments(train["image"])
    return Dataset(
        name="faces",
        train=train,
        test=test,
        class_names=("none", "face"),
        image_shape=(25, 25, 1),
        mean=mean,
        std=std,
        source="100 faces and 100 other patches of Labeled Faces in the Wild (Huang, Ramesh, Berg, "
        "Learned-Miller 2007), as in scikit-image.",
    )
