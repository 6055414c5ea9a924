"""The whole program in PyTorch, as its users write it.

python -m experiments.peers.torch_program EPOCHS    trains on mnist_10k with a DataLoader and tests after each epoch.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from experiments.peers.torch_models import SimpleCNN


class Digits(Dataset):
    """Makes a normalised tensor of each image as it is asked for, like torchvision's `MNIST` with a transform."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        image = torch.from_numpy(self.images[i]).permute(2, 0, 1).float() / 255
        return (image - 0.5) / 0.5, int(self.labels[i])


def program(epochs: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    file = np.load(Path(find_spec("cnn_jax").origin).parent / "data" / "embedded" / "mnist_10k.npz")

    def loader(split: str, **options) -> DataLoader:
        return DataLoader(Digits(file[f"{split}_image"], file[f"{split}_label"]), batch_size=128, **options)

    train, test = loader("train", shuffle=True), loader("test")
    net = SimpleCNN().to(device)
    optimiser = torch.optim.Adam(net.parameters(), 1e-3)
    for epoch in range(epochs):
        net.train()
        for images, labels in train:
            loss = cross_entropy(net(images.to(device)), labels.to(device))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        net.eval()
        with torch.no_grad():
            right = sum((net(x.to(device)).argmax(1) == y.to(device)).sum().item() for x, y in test)
        print(f"epoch {epoch + 1}: test accuracy {right / len(test.dataset):.4f}")


if __name__ == "__main__":
    program(int(sys.argv[1]))
