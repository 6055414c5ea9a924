"""The same networks in PyTorch, with the losses that their users train them by."""

from functools import cache

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from experiments.peers.work import WORK


@cache
def import_torchvision():
    """torchvision, with or without its compiled operators, which are not to be had for PyTorch's CPU build.

    Its Python part asks for two of them on import, and its detectors for `nms` when they predict. Where they are
    missing, `slow_nms` takes the place of that.
    """
    try:
        import torchvision
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    if not torchvision.extension._has_ops():
        torch.library.impl("torchvision::nms", "cpu", slow_nms)
        torchvision.ops.boxes._assert_has_ops = lambda: None
    return torchvision


def slow_nms(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """The rows that are kept: by falling score, those that overlap none kept before by an IoU above the threshold."""
    kept = []
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    for row in torch.sort(scores, descending=True, stable=True).indices.tolist():
        low = torch.maximum(boxes[row, :2], boxes[kept, :2])
        high = torch.minimum(boxes[row, 2:], boxes[kept, 2:])
        shared = (high - low).clamp(min=0).prod(1)
        if not (shared / (area[row] + area[kept] - shared) > threshold).any():
            kept.append(row)
    return torch.tensor(kept, dtype=torch.int64)


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


def create(model: str, side: int) -> nn.Module:
    """The network with random weights, for images in [0,1] that it is to leave as they are."""
    if model == "simple_cnn":
        return SimpleCNN()
    zoo, classes = import_torchvision().models, WORK[model].classes
    if WORK[model].task == "classify":
        return getattr(zoo, model)(num_classes=classes)
    if WORK[model].task == "segment":
        return zoo.segmentation.deeplabv3_resnet50(num_classes=classes, aux_loss=True, weights_backbone=None)
    as_it_is = {"min_size": side, "max_size": side, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    return zoo.detection.fcos_resnet50_fpn(num_classes=classes, weights_backbone=None, **as_it_is)


def tensors(model: str, batch: dict[str, np.ndarray], device: str = "cpu") -> tuple:
    """One of our batches as (images, targets) for `loss`."""
    images = torch.from_numpy(batch["image"]).to(device).permute(0, 3, 1, 2) / 255
    if model != "simple_cnn":
        images = images.contiguous(memory_format=torch.channels_last)
    if WORK[model].task != "detect":
        return images, torch.from_numpy(batch["map" if "map" in batch else "label"]).long().to(device)
    targets = [
        {"boxes": torch.from_numpy(boxes[real]).to(device), "labels": torch.from_numpy(label[real]).long().to(device)}
        for boxes, label, real in zip(batch["boxes"], batch["label"], batch["objects"], strict=True)
    ]
    return list(images), targets


def loss(model: str, network: nn.Module, images, targets) -> torch.Tensor:
    """As torchvision's own scripts have it."""
    if WORK[model].task == "detect":
        return sum(network(images, targets).values())
    outputs = network(images)
    if WORK[model].task == "segment":
        return cross_entropy(outputs["out"], targets) + 0.5 * cross_entropy(outputs["aux"], targets)
    return cross_entropy(outputs, targets)
