"""Maps of what counted, ours beside captum's and pytorch-grad-cam's on the same random weights of SimpleCNN."""

import warnings
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace

import captum.attr
import jax
import numpy as np
import torch
from torch import nn

from cnn_jax import models
from cnn_jax.analysis import attribution, cam, class_score
from experiments.peers import torch_models, twins

LABELS = [3, 0, 7, 3]


class SimpleCNN(torch_models.SimpleCNN):
    """With a module for every ReLU, as captum's guided back-propagation needs it."""

    def __init__(self):
        super().__init__()
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()

    def forward(self, x):
        x = self.pool(self.relu1(self.conv1(x)))
        x = self.pool(self.relu2(self.conv2(x)))
        return self.fc2(self.dropout(self.relu3(self.fc1(x.flatten(1)))))


def maps() -> list[tuple[tuple[str, str], tuple[np.ndarray, np.ndarray]]]:
    """((library, method), (ours, theirs)), f32[4,28,28] each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum says of its hooks that it removes them
        return list(_maps())


def _maps() -> Iterator[tuple[tuple[str, str], tuple[np.ndarray, np.ndarray]]]:
    torch_models.import_torchvision()  # which pytorch-grad-cam imports
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    torch.manual_seed(0)
    network = SimpleCNN().eval()
    score = class_score(models.create("simple_cnn"), twins.converted("simple_cnn", network), LABELS)
    images = np.random.default_rng(0).normal(size=(4, 28, 28, 1)).astype(np.float32)
    inputs = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).requires_grad_()
    peers = captum.attr
    small = peers.LayerGradCam(network, network.relu2).attribute(inputs, target=LABELS, relu_attributions=True)
    of_captum = {
        "gradient": (attribution.gradient, peers.Saliency(network).attribute(inputs, target=LABELS, abs=False)),
        "gradient × input": (
            attribution.gradient_times_input, peers.InputXGradient(network).attribute(inputs, target=LABELS),
        ),
        "guided back-propagation": (
            attribution.guided_backpropagation, peers.GuidedBackprop(network).attribute(inputs, target=LABELS),
        ),
        "integrated gradients": (_integrated, _integrated_of_captum(network, images)),
        "occlusion": (
            lambda *of: attribution.occlusion(*of, window=7, stride=3),
            peers.Occlusion(network).attribute(inputs.detach(), (1, 7, 7), (1, 3, 3), target=LABELS),
        ),
        "Grad-CAM": (
            lambda *of: cam.grad_cam(*of, stage="conv2"),
            peers.LayerAttribution.interpolate(small, (28, 28), "bilinear"),
        ),
    }  # fmt: skip
    for method, (ours, theirs) in of_captum.items():
        found = np.asarray(ours(score, images))
        yield ("captum", method), (found.reshape(4, 28, 28), theirs.detach().numpy().reshape(4, 28, 28))
    for method, name in (("grad_cam", "GradCAM"), ("grad_cam_plus_plus", "GradCAMPlusPlus"), ("layer_cam", "LayerCAM")):
        with getattr(pytorch_grad_cam, name)(network, [network.relu2]) as peer:
            theirs = peer(inputs.detach(), [ClassifierOutputTarget(label) for label in LABELS])
        found = np.asarray(getattr(cam, method)(score, images, stage="conv2"))
        least, most = (extreme(found, axis=(1, 2), keepdims=True) for extreme in (np.min, np.max))
        yield ("grad-cam", name), ((found - least) / (most - least), theirs)  # which stretches each from 0 to 1


# Integrated gradients are compared in float64. In float32 a ReLU whose input is almost zero may open, on one of the 50
# places, in one library alone: captum's is then off by 4·10⁻⁴ of the largest value.


def _integrated(score, images):
    with jax.enable_x64(True):
        exact = replace(
            score,
            model=score.model.clone(dtype=np.float64),
            variables=jax.tree.map(lambda x: np.asarray(x, np.float64), score.variables),
        )
        return np.asarray(attribution.integrated_gradients(exact, images.astype(np.float64), steps=50).maps)


def _integrated_of_captum(network, images):
    inputs = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float64))
    exact = captum.attr.IntegratedGradients(deepcopy(network).double())
    return exact.attribute(inputs, target=LABELS, n_steps=50)
