"""Networks here beside torchvision's with the same random weights; for tests with the marker `peers`."""

import numpy as np
import torch
from networks import compiled
from safetensors.torch import load_file

from cnn_jax import models
from cnn_jax.models.torch_files import read_tensors
from experiments.peers.torch_models import import_torchvision
from experiments.peers.twins import randomise


def assert_same(folder, name: str, theirs: dict, ours: dict, *, shape=(2, 64, 70, 3), make=None) -> None:
    """The logits are equal to 1e-4 of the largest, in evaluation and in training; and torchvision's weights go back.

    Args:
        folder: for the file of weights.
        name: of the network, here and in torchvision.
        theirs, ours: options of either.
        shape: of the images.
        make: of the network of PyTorch's, where it is not torchvision's of that name.
    """
    network = randomise((make or getattr(import_torchvision().models, name))(num_classes=20, **theirs))
    torch.save(network.state_dict(), folder / "weights.pth")
    variables = models.load_pretrained(name, folder / "weights.pth")
    model = models.create(name, num_classes=20, **ours)
    if not make:
        path = models.save_pretrained(model, variables, folder / "weights.safetensors")
        network.load_state_dict(load_file(path), strict=True)
        back = read_tensors(path)
        for key, value in torch.load(folder / "weights.pth").items():
            if not key.endswith("num_batches_tracked"):
                np.testing.assert_array_equal(back[key], value.numpy())
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for train in (False, True):
        with torch.no_grad():
            expected = network.train(train)(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
        found, _ = compiled(lambda v, x: model.apply(v, x, train=train, mutable=["batch_stats"]), variables, images)  # noqa: B023
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max(), err_msg=f"{train}")
