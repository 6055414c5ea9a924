"""Are networks, non-maximum suppression and COCO's metrics those of torchvision, timm and pycocotools?

    python -m experiments.parity                 # everything, in some minutes on two cores
    python -m experiments.parity --only zoo      # every classifier that torchvision or timm has
    python -m experiments.parity --only maps     # attribution, beside captum and grad-cam; or networks, nms, coco

The peers are computed in the run, on random weights, images and boxes; nothing is downloaded. Weights reach our
networks through a saved state dict and `models.load_pretrained`, and so do PyTorch's gradients, to be compared with
ours. It needs the extra `peers`. The last line is one JSON object: measurement -> numbers. A difference above its bound
ends it with exit status 1.
"""

import json
import os
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import numpy as np

from cnn_jax import cli, runtime
from cnn_jax.reporting import print_table
from cnn_jax.reporting.trackers import plain
from cnn_jax.run import environment
from cnn_jax.tasks import boxes
from experiments.peers import coco_cases, require
from experiments.peers.differences import compared, told
from experiments.peers.work import WORK, random_data

# Side of the images, and how many.
NETWORKS = {"resnet18": (64, 4), "resnet50": (64, 4), "fcos_resnet50_fpn": (256, 2), "deeplabv3_resnet50": (64, 4)}


@dataclass(frozen=True)
class Config:
    """Compare with the libraries that define what is right."""

    only: Literal["networks", "zoo", "maps", "nms", "coco"] | None = None
    tiny: bool = False  # fewer and smaller cases, and no gradients


def main(config: Config) -> None:
    require("torch", "torchvision", "timm", "captum", "pycocotools")
    runtime.configure()
    results = {}
    for name, part in {"networks": networks, "zoo": zoo, "maps": maps, "nms": nms, "coco": coco_cases.compare}.items():
        if config.only in (None, name):
            results |= part(config.tiny)
    broken = [name for name, x in results.items() if "bound" in x and not x["difference"] <= x["bound"]]
    if results.get("coco_speed", {"ratio": 2})["ratio"] <= 1:
        broken.append("coco_speed")
    results["machine"] = {**environment(), "load": os.getloadavg()[0]}
    print(json.dumps(plain(results)))
    if broken:
        raise SystemExit(f"error: above their bounds: {', '.join(broken)}")


def networks(tiny: bool) -> dict:
    """Outputs and detections in evaluation, the loss in training, and the gradient with the running statistics.

    With batch norm's statistics of the batch, the gradient of such a network hangs on the last bits: PyTorch's own
    differs by per cents between float32 and float64. And still a ReLU whose input is almost zero may open in one
    library alone, which changes the gradient by up to a hundredth; hence its bound.
    """
    from experiments.peers import ours_parity, torch_parity

    found = {}
    for name, (side, batch_size) in NETWORKS.items():
        side = min(side, 128) if tiny else side
        peer, batch = torch_parity.network(name, side), random_data(name, batch_size, side)
        ours = ours_parity.create(name, peer)
        outputs = ours_parity.evaluate(ours, batch)
        for what, values in torch_parity.evaluate(name, peer, batch).items():
            found[name, what] = compared(outputs[what], values, 1e-4)
        if WORK[name].task == "detect":  # torchvision divides the loss by the places of the whole batch, we of an image
            batch = {key: values[:1] for key, values in batch.items()}
        loss, _ = torch_parity.train(name, peer, batch, frozen=False)
        found[name, "loss in training"] = compared(ours_parity.loss(ours, batch), loss, 1e-4)
        if not tiny:
            _, gradient = torch_parity.train(name, peer, batch, frozen=True)
            gradient = ours_parity.converted(name, gradient)["params"]
            found[name, "gradient"] = compared(ours_parity.gradient(ours, batch), gradient, 0.02)
    return told("Networks and torchvision's", found)


def zoo(tiny: bool) -> dict:
    """The logits of every classifier that another library has too, in evaluation and in training."""
    from experiments.peers import twins

    found = {}
    for of, values in twins.logits(("vgg11", "resnext50_32x4d", "mobilenet_v2") if tiny else twins.TWINS):
        found[of] = compared(*values, 1e-4)
        print(*of, f"{found[of]['difference']:.2g}", flush=True)
    return told("The zoo, and torchvision's and timm's", found)


def maps(tiny: bool) -> dict:
    """Maps of what counted in an image, of SimpleCNN."""
    from experiments.peers import explanations

    found = {of: compared(*values, 1e-4) for of, values in explanations.maps()}
    return told("Maps of what counted", found)


def nms(tiny: bool) -> dict:
    """Which boxes remain, of several labels, with equal scores, equal boxes and empty ones."""
    import torch

    from experiments.peers import torch_models

    torchvision = torch_models.import_torchvision()
    count = 1100 if tiny else 5000  # of up to 1,000 torchvision moves the labels apart, which rounds
    rng = np.random.default_rng(0)
    corner, size = np.round(rng.uniform(0, 100, (count, 2))), np.round(rng.exponential(50, (count, 2)))
    these = np.concatenate([corner, corner + size], -1).astype(np.float32)
    these[::10] = these[1::10]
    scores, labels = np.round(rng.random(count), 2).astype(np.float32), rng.integers(0, 5, count)
    found = {}
    for threshold in (0.3, 0.5, 0.6, 0.9):
        choose = jax.jit(partial(boxes.nms, threshold=threshold, limit=count))
        ours, chosen = map(np.asarray, choose(these, scores, labels))
        theirs = torchvision.ops.batched_nms(*map(torch.from_numpy, (these, scores, labels)), threshold).numpy()
        different = np.setxor1d(ours[chosen], theirs)
        found[f"nms_{threshold}"] = {"difference": len(different), "scale": len(theirs), "bound": 0}
    rows = [[name.removeprefix("nms_"), count, x["scale"], x["difference"]] for name, x in found.items()]
    missing = "" if torchvision.extension._has_ops() else " (plain loops for its compiled operator, which is not there)"
    print_table(f"Non-maximum suppression and torchvision's{missing}", ["IoU", "boxes", "chosen", "by one alone"], rows)
    return found


if __name__ == "__main__":
    cli.main(main, Config, __doc__)
