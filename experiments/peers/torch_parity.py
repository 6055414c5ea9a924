"""What torchvision's networks compute, in our names and layout, for `experiments.parity`."""

import copy

import numpy as np
import torch
from torch import nn

from experiments.peers import torch_models
from experiments.peers.work import WORK


def network(name: str, side: int) -> nn.Module:
    """On random weights, with statistics and scales as training might leave them, rather than zeros and ones."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # two of its threads wait for each other while ours keep the cores busy
    net = torch_models.create(name, side)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean, 0, 0.2)
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
        if isinstance(module, nn.Dropout):
            module.p = 0
    if WORK[name].task == "detect":  # scores and boxes of all kinds
        for layer in (net.head.classification_head.cls_logits, net.head.regression_head.bbox_reg):
            nn.init.normal_(layer.weight, 0, 0.05)
        nn.init.ones_(net.head.regression_head.bbox_reg.bias)
    return net


def evaluate(name: str, net: nn.Module, batch: dict) -> dict[str, np.ndarray | list]:
    """The outputs; and of a detector the boxes, scores and labels that it ends with, a list of images each."""
    images, _ = torch_models.tensors(name, batch)
    net.eval()
    with torch.no_grad():
        if WORK[name].task == "classify":
            return {"logits": net(images).numpy()}
        if WORK[name].task == "segment":
            outputs = net(images)
            return {key: outputs[of].permute(0, 2, 3, 1).numpy() for key, of in (("logits", "out"), ("aux", "aux"))}
        outputs = net.head(list(net.backbone(torch.stack(images)).values()))
        names = {"logits": "cls_logits", "distances": "bbox_regression", "centerness": "bbox_ctrness"}
        found = {of: [image[of].numpy() for image in net(images)] for of in ("boxes", "scores", "labels")}
    return {key: outputs[of].numpy() for key, of in names.items()} | {f"detected {of}": x for of, x in found.items()}


def train(name: str, net: nn.Module, batch: dict, *, frozen: bool) -> tuple[float, dict[str, torch.Tensor]]:
    """(loss, its gradient in the form of a state dict); `frozen`: batch norm with its running statistics."""
    net = copy.deepcopy(net).train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train(not frozen)
    loss = torch_models.loss(name, net, *torch_models.tensors(name, batch))
    loss.backward()
    return loss.item(), net.state_dict() | {key: parameter.grad for key, parameter in net.named_parameters()}
