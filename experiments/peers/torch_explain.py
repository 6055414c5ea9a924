"""captum's and pytorch-grad-cam's maps of the same network, timed for `experiments.benchmark --task explain`."""

import numpy as np
import torch

from experiments.peers import torch_models
from experiments.peers.contest import serve, timed
from experiments.peers.work import EXPLAINED


def work(*, threads: int) -> None:
    torch_models.import_torchvision()  # which pytorch-grad-cam imports
    from captum.attr import IntegratedGradients, Occlusion
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.normal(size=(EXPLAINED["images"], 1, 28, 28)).astype(np.float32))
    labels = torch.from_numpy(rng.integers(0, 10, len(images)))
    network = torch_models.SimpleCNN().eval()
    window, stride = EXPLAINED["window"], EXPLAINED["stride"]
    integrated, occlusion = IntegratedGradients(network), Occlusion(network)
    targets = [ClassifierOutputTarget(int(label)) for label in labels]
    methods = {
        # All 50 × 256 images at once do not fit many machines; captum itself advises to bound them.
        "integrated": lambda: integrated.attribute(
            images, target=labels, n_steps=EXPLAINED["steps"], internal_batch_size=256
        ),
        "occlusion": lambda: occlusion.attribute(images, (1, window, window), (1, stride, stride), target=labels),
        "grad_cam": lambda: GradCAM(network, [network.conv2])(images, targets),
    }

    serve({"threads": threads}, **{name: timed(method) for name, method in methods.items()})
