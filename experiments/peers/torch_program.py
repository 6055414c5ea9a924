"""The same network, step and program in PyTorch, as its users write them.

python -m experiments.peers.torch_program EPOCHS    trains on mnist_10k with a DataLoader and tests after each epoch.
"""

import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from experiments.peers.contest import SHAPES, serve


class SimpleCNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.fc1 = nn.Linear(3136, 128)
        self.dropout = nn.Dropout(0.5)
        self.fc2 = nn.Linear(128, 10)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x):
        x = self.pool(torch.relu(self.conv1(x)))
        x = self.pool(torch.relu(self.conv2(x)))
        return self.fc2(self.dropout(torch.relu(self.fc1(x.flatten(1)))))


class Digits(Dataset):
    """Makes a normalised tensor of each image as it is asked for, like torchvision's `MNIST` with a transform."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        image = torch.from_numpy(self.images[i]).permute(2, 0, 1).float() / 255
        return (image - 0.5) / 0.5, int(self.labels[i])


def work(*, model: str, batch_size: int, bfloat16: bool, compiled: bool, matmul_size: int) -> None:
    """Steps on one batch that lies on the device already: nothing is loaded, permuted or converted."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size, channels, classes = SHAPES[model]
    if model == "simple_cnn":
        net = SimpleCNN()
    else:
        # PyTorch's CPU build has no torchvision; its Python part imports once these two operators are declared.
        for name in ("nms", "qnms"):
            if not torch.cuda.is_available():
                torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou) -> Tensor")
        import torchvision

        net = getattr(torchvision.models, model)(num_classes=classes)
    images = torch.randn(batch_size, channels, size, size, device=device)
    net = net.to(device)
    if model != "simple_cnn":
        net, images = net.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    labels = torch.randint(classes, (batch_size,), device=device)
    optimiser = torch.optim.Adam(net.parameters(), 1e-3)
    forward = torch.compile(net) if compiled else net

    def seconds(steps: int) -> float:
        begin = time.perf_counter()
        for _ in range(steps):
            with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
                loss = cross_entropy(forward(images), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    a = torch.ones(matmul_size, matmul_size, device=device, dtype=torch.bfloat16 if bfloat16 else torch.float32)

    def matmul() -> float:
        begin = time.perf_counter()
        a @ a
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    seconds(3), matmul()
    threads = best_threads(seconds) if device == "cpu" else None
    serve(seconds, matmul, torch=torch.__version__, threads=threads)


def best_threads(seconds) -> int:
    """The number of threads that is fastest here, set."""
    measured = {}
    for threads in {1, max(1, os.cpu_count() // 2), os.cpu_count()}:
        torch.set_num_threads(threads)
        seconds(1)
        measured[threads] = min(seconds(3) for _ in range(3))
    best = min(measured, key=measured.get)
    torch.set_num_threads(best)
    return best


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
