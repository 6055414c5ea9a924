"""Maps and measures beside captum's and pytorch-grad-cam's, on the same weights, equal to 1e-4 of the largest value."""

import captum.attr
import captum.metrics
import jax
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict, unflatten_dict

from cnn_jax import models
from cnn_jax.analysis import attribution, cam, faithfulness
from cnn_jax.analysis.scores import class_score
from cnn_jax.models.resnet import ResNet
from cnn_jax.models.sources import SOURCES
from experiments.peers.explanations import SimpleCNN
from experiments.peers.torch_models import import_torchvision
from experiments.peers.twins import randomise

pytestmark = pytest.mark.peers
LABELS = [3, 0, 7, 3]
ZOO = import_torchvision().models.resnet  # which pytorch-grad-cam imports too


def twins(network, model, *shape):
    """(the network of PyTorch, the score of LABELS here, images for it, the same for here)."""
    (source,) = SOURCES[type(model)].values()
    tensors = network.eval().state_dict()
    images = np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)
    leaves = flatten_dict(jax.eval_shape(model.init, jax.random.key(0), images))
    variables = {}
    for path in leaves:
        inside = "/".join(path[1:])
        variables[path] = source.from_torch(inside, tensors[source.name(inside)].numpy(), shape[:2])
    theirs = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).requires_grad_()
    return network, class_score(model, unflatten_dict(variables), LABELS), theirs, images


@pytest.fixture(scope="module")
def simple():
    torch.manual_seed(0)
    return twins(SimpleCNN(), models.create("simple_cnn"), 28, 28, 1)


@pytest.fixture(scope="module")
def resnet():
    """Whose blocks use one ReLU twice."""
    network = randomise(ZOO.ResNet(ZOO.BasicBlock, [1, 1, 1, 1], num_classes=10))
    return twins(network, ResNet((1, 1, 1, 1), "basic", stem="large"), 48, 40, 3)


def assert_same(ours, theirs):
    theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else theirs
    if theirs.ndim == 4:
        theirs = theirs.transpose(0, 2, 3, 1)
    assert np.abs(theirs).max() > 0
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize("name", ["simple", "resnet"])
def test_gradients(request, name):
    network, score, theirs, images = request.getfixturevalue(name)
    expected = captum.attr.Saliency(network).attribute(theirs, target=LABELS, abs=False)
    assert_same(attribution.gradient(score, images), expected)
    expected = captum.attr.InputXGradient(network).attribute(theirs, target=LABELS)
    assert_same(attribution.gradient_times_input(score, images), expected)


@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU activations")
def test_guided_back_propagation(simple):
    network, score, theirs, images = simple
    expected = captum.attr.GuidedBackprop(network).attribute(theirs, target=LABELS)
    assert_same(attribution.guided_backpropagation(score, images), expected)


def test_guided_back_propagation_through_a_relu_used_twice(resnet):
    from pytorch_grad_cam import GuidedBackpropReLUModel

    network, score, theirs, images = resnet
    guided = GuidedBackpropReLUModel(network, "cpu")
    expected = [guided(image[None].detach().clone(), label) for image, label in zip(theirs, LABELS, strict=True)]
    assert_same(attribution.guided_backpropagation(score, images), np.array(expected).transpose(0, 3, 1, 2))


@pytest.mark.parametrize("baseline", [0.0, -0.5])
def test_integrated_gradients(simple, baseline):
    network, score, theirs, images = simple
    maps, gap = captum.attr.IntegratedGradients(network).attribute(
        theirs, theirs * 0 + baseline, target=LABELS, n_steps=12, return_convergence_delta=True
    )
    found = attribution.integrated_gradients(score, images, baseline=baseline, steps=12)
    assert_same(found.maps, maps)
    np.testing.assert_allclose(found.gap, gap.detach(), atol=1e-4 * float(maps.detach().abs().sum((1, 2, 3)).max()))


def test_occlusion(simple):
    """The last squares of a row are cut at the border."""
    window, stride = 7, 5
    network, score, theirs, images = simple
    expected = captum.attr.Occlusion(network).attribute(
        theirs.detach(), (1, window, window), (1, stride, stride), baselines=0.3, target=LABELS
    )
    assert_same(attribution.occlusion(score, images, window=window, stride=stride, baseline=0.3), expected[:, 0])


@pytest.mark.parametrize("stage", ["relu2", "relu1"])
def test_grad_cam_is_captums(simple, stage):
    network, score, theirs, images = simple
    small = captum.attr.LayerGradCam(network, getattr(network, stage)).attribute(
        theirs, target=LABELS, relu_attributions=True
    )
    expected = captum.attr.LayerAttribution.interpolate(small, (28, 28), "bilinear")
    assert_same(cam.grad_cam(score, images, stage=stage.replace("relu", "conv")), expected[:, 0])


@pytest.mark.parametrize(
    ("ours", "theirs", "name", "stage", "layer"),
    [
        ("grad_cam", "GradCAM", "resnet", "stage3", "layer3"),
        ("grad_cam_plus_plus", "GradCAMPlusPlus", "simple", "conv2", "relu2"),
        ("layer_cam", "LayerCAM", "simple", "conv1", "relu1"),
    ],
)
def test_cams_are_pytorch_grad_cams(request, ours, theirs, name, stage, layer):
    """Which stretches each map from 0 to 1."""
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    network, score, inputs, images = request.getfixturevalue(name)
    with getattr(pytorch_grad_cam, theirs)(network, [getattr(network, layer)]) as peer:
        expected = peer(inputs.detach(), [ClassifierOutputTarget(label) for label in LABELS])
    found = np.asarray(getattr(cam, ours)(score, images, stage=stage))
    least, most = (extreme(found, axis=(1, 2), keepdims=True) for extreme in (np.min, np.max))
    assert_same((found - least) / (most - least), expected)


def noise(key, image, baseline):
    change = 0.3 * jax.random.normal(key, image.shape)
    return change, image - change


def test_infidelity(simple, key):
    network, score, theirs, images = simple
    maps = attribution.gradient(score, images)
    changes = [
        noise(jax.random.fold_in(of_image, i), image, 0)[0]
        for of_image, image in zip(jax.random.split(key, 4), images, strict=True)
        for i in range(6)
    ]
    changes = torch.from_numpy(np.array(changes).transpose(0, 3, 1, 2).copy())
    found = faithfulness.infidelity(key, score, images, maps, perturb=noise, samples=6)
    for normalize, ours in ((False, found.error), (True, found.scaled)):
        expected = captum.metrics.infidelity(
            network, lambda inputs: (changes, inputs - changes), theirs.detach(),
            torch.from_numpy(np.array(maps).transpose(0, 3, 1, 2).copy()), target=LABELS, n_perturb_samples=6,
            normalize=normalize,
        )  # fmt: skip
        assert_same(ours, expected)


@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")
def test_max_sensitivity(simple, key):
    network, score, theirs, images = simple
    of_noise, _ = jax.random.split(key)
    changes = np.array([
        jax.random.uniform(jax.random.fold_in(of_noise, i), images.shape, minval=-0.1, maxval=0.1) for i in range(3)
    ])  # fmt: skip
    changes = torch.from_numpy(changes.transpose(1, 0, 4, 2, 3).reshape(12, 1, 28, 28))  # captum: image by image
    expected = captum.metrics.sensitivity_max(
        captum.attr.Saliency(network).attribute, theirs, lambda inputs: inputs + changes,
        n_perturb_samples=3, target=LABELS, abs=False,
    )  # fmt: skip
    found = faithfulness.max_sensitivity(
        key, lambda key, score, images: attribution.gradient(score, images), score, images, radius=0.1, samples=3
    )
    assert_same(found, expected)
