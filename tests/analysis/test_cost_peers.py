"""FLOPs of both directions equal those that PyTorch counts while it runs."""

import jax
import jax.numpy as jnp
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cnn_jax import models
from cnn_jax.analysis import cost
from experiments.peers.torch_models import import_torchvision

pytestmark = pytest.mark.peers


def torch_flops(module, images) -> tuple[int, int]:
    """Of the forward and of the backward pass."""
    with FlopCounterMode(display=False) as forward:
        out = module(images).sum()
    with FlopCounterMode(display=False) as backward:
        out.backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("side", "stride", "dilation", "groups"), [(3, 2, 1, 4), (3, 2, 3, 1), (2, 2, 1, 2), (5, 3, 1, 1)]
)
def test_convolutions(transposed, side, stride, dilation, groups):
    options = {"stride": stride, "dilation": dilation, "groups": groups}
    kind = torch.nn.ConvTranspose2d if transposed else torch.nn.Conv2d
    with torch.device("meta"):  # where nothing is computed
        forward, backward = torch_flops(kind(8, 16, side, **options), torch.ones(2, 8, 13, 13, requires_grad=True))
    if groups > 1:  # of a kernel's gradient PyTorch forgets that its groups see but their own channels
        backward = 2 * forward
    reach = dilation * (side - 1)

    def ours(both):
        x, kernel = both
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1) if transposed else (stride, stride), [(reach, reach)] * 2 if transposed else "VALID",
            lhs_dilation=(stride, stride) if transposed else (1, 1), rhs_dilation=(dilation, dilation),
            feature_group_count=groups, dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    shapes = [(2, 13, 13, 8), (side, side, 8 // groups, 16)]
    found = cost.count(cost.gradient(ours), [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes])
    assert (found.forward, found.backward) == (forward, backward)


@pytest.mark.parametrize(
    ("name", "side", "options"),
    [("resnet18", 96, {"stem": "large"}), ("vgg11", 224, {}), ("mobilenet_v2", 96, {}), ("convnext_tiny", 224, {})],
)
def test_networks(name, side, options):
    with torch.device("meta"):
        peer = getattr(import_torchvision().models, name)(num_classes=11).eval()
        images = torch.ones(1, 3, side, side)
        forward, backward = torch_flops(peer, images)
        convolutions = [layer for layer in peer.modules() if isinstance(layer, torch.nn.Conv2d)]
        first, _ = torch_flops(convolutions[0], images)
    # Each layer has two gradients, but for that of the images; where groups are, PyTorch miscounts them, see above.
    assert backward == 2 * forward - first or any(layer.groups > 1 for layer in convolutions)
    model = models.create(name, num_classes=11, **options)
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    with models.traced_for("tpu"):
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
        params = variables.pop("params")
        found = cost.count(
            cost.gradient(lambda params, rest, images: model.apply({"params": params, **rest}, images)),
            params, variables, images,
        )  # fmt: skip
    assert (found.forward, found.backward) == (forward, 2 * forward - first)
