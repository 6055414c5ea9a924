"""What is measured: models, their batches, and the ways to run PyTorch."""

from typing import NamedTuple

import numpy as np


class Work(NamedTuple):
    """What a model is measured on: images of `side` pixels, on a CPU and on a GPU, and so many of them in a batch."""

    task: str
    channels: int
    classes: int
    side: tuple[int, int]
    batch: tuple[int, int]


WORK = {
    "simple_cnn": Work("classify", 1, 10, (28, 28), (128, 128)),
    "resnet18": Work("classify", 3, 1000, (224, 224), (8, 128)),
    "resnet50": Work("classify", 3, 1000, (224, 224), (8, 128)),
    "mobilenet_v2": Work("classify", 3, 1000, (224, 224), (8, 128)),
    "convnext_tiny": Work("classify", 3, 1000, (224, 224), (8, 128)),
    "fcos_small": Work("detect", 3, 10, (64, 64), (16, 16)),
    "fcos_resnet50_fpn": Work("detect", 3, 90, (256, 512), (2, 16)),
    "deeplabv3_resnet50": Work("segment", 3, 21, (256, 512), (2, 16)),
}
ZOO = ("resnet18", "resnet50", "mobilenet_v2", "convnext_tiny")  # whose forward pass is measured as well
MOST_OBJECTS = 8
# What is explained of SimpleCNN: so many images, steps of integrated gradients, and squares that cover the image.
EXPLAINED = {"images": 256, "steps": 50, "window": 7, "stride": 3}
TORCH = {
    "torch_eager": {"bfloat16": False, "compiled": False},
    "torch_eager_bf16": {"bfloat16": True, "compiled": False},
    "torch_compile": {"bfloat16": False, "compiled": True},
    "torch_compile_bf16": {"bfloat16": True, "compiled": True},
}


def torch_rivals(model: str, gpu: bool) -> dict[str, dict]:
    """The ways to run PyTorch that are worth comparing with, for `torch_step.work`."""
    if model == "fcos_small":  # which torchvision has not
        return {}
    # torchvision's detectors come apart under `torch.compile`, and on a CPU it takes three minutes for DeepLabv3: after
    # them steps of either are no faster.
    compiles = WORK[model].task == "classify" or (gpu and WORK[model].task == "segment")
    rivals = {name: how for name, how in TORCH.items() if compiles or not how["compiled"]}
    if gpu and model != "simple_cnn":  # large ones take half the time so
        return {name: how for name, how in rivals.items() if how["bfloat16"]}
    return {name: how for name, how in rivals.items() if gpu or name != "torch_compile_bf16"}


def random_data(model: str, images: int, side: int) -> dict[str, np.ndarray]:
    """A random batch for a model of `WORK`."""
    work = WORK[model]
    return random_batch(work.task, images, side, channels=work.channels, classes=work.classes)


def random_batch(task: str, images: int, side: int, *, channels: int, classes: int) -> dict[str, np.ndarray]:
    """Images and what is true of them, in the form of our batches; for a detector with none to eight objects each."""
    rng = np.random.default_rng(0)
    data = {"image": rng.integers(0, 256, (images, side, side, channels), np.uint8)}
    if task == "segment":
        return data | {"map": rng.integers(0, classes, (images, side, side), np.uint8)}
    if task == "classify":
        return data | {"label": rng.integers(0, classes, images, np.int32)}
    corner = rng.uniform(0, side / 2, (images, MOST_OBJECTS, 2))
    size = rng.uniform(side / 16, side / 2, corner.shape)
    return data | {
        "boxes": np.concatenate([corner, corner + size], -1).astype(np.float32),
        "label": rng.integers(0, classes, corner.shape[:2], np.int32),
        "objects": np.arange(MOST_OBJECTS) < ((np.arange(images) + 4) % (MOST_OBJECTS + 1))[:, None],
    }
