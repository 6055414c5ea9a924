"""EfficientNet B0 to B7 (Tan & Le 2019), as in torchvision, and their Lite forms, as in timm and TensorFlow.

Source: "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", and for the Lite forms
github.com/tensorflow/tpu, `models/official/efficientnet/lite`.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax.models.layers import ACTIVATIONS, NORMS, check_choices, check_images, tap
from cnn_jax.models.mobilenet import InvertedResidual, classify, rounded, units
from cnn_jax.models.pooling import POOLINGS

# For each stage of B0 how much wider a block is inside, the side of its kernels, the stride of the first block, the
# channels and the blocks.
STAGES = (
    (1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3), (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)  # fmt: skip

_LATE = {"published_norm": (1e-3, 0.01)}

# What differs between the members: what channels and blocks are multiplied by, and the rate of dropout, and epsilon and
# momentum of the batch norm, that it is published with.
EFFICIENTNETS = {
    "efficientnet_b0": {"width": 1.0, "depth": 1.0, "published_dropout": 0.2},
    "efficientnet_b1": {"width": 1.0, "depth": 1.1, "published_dropout": 0.2},
    "efficientnet_b2": {"width": 1.1, "depth": 1.2, "published_dropout": 0.3},
    "efficientnet_b3": {"width": 1.2, "depth": 1.4, "published_dropout": 0.3},
    "efficientnet_b4": {"width": 1.4, "depth": 1.8, "published_dropout": 0.4},
    "efficientnet_b5": {"width": 1.6, "depth": 2.2, "published_dropout": 0.4, **_LATE},
    "efficientnet_b6": {"width": 1.8, "depth": 2.6, "published_dropout": 0.5, **_LATE},
    "efficientnet_b7": {"width": 2.0, "depth": 3.1, "published_dropout": 0.5, **_LATE},
    "efficientnet_lite0": {"width": 1.0, "depth": 1.0, "published_dropout": 0.2},
    "efficientnet_lite1": {"width": 1.0, "depth": 1.1, "published_dropout": 0.2},
    "efficientnet_lite2": {"width": 1.1, "depth": 1.2, "published_dropout": 0.3},
    "efficientnet_lite3": {"width": 1.2, "depth": 1.4, "published_dropout": 0.3},
    "efficientnet_lite4": {"width": 1.4, "depth": 1.8, "published_dropout": 0.3},
}
EFFICIENTNETS = {
    name: member | {"lite": True, "published_norm": (1e-3, 0.1)} if "lite" in name else member
    for name, member in EFFICIENTNETS.items()
}


class EfficientNet(nn.Module):
    """MobileNetV2's blocks with squeeze and excitation; `models.create("efficientnet_b0", ...)` fills in the member.

    Stages to tap: `stem`, `stage1` … `stage7`, `head` (the last of the maps), `pre_logits` (f32[N,C], its mean over the
    image), `logits`.

    Attributes:
        width: what the channels are multiplied by, and rounded to multiples of 8.
        depth: what the blocks of a stage are multiplied by, and rounded up.
        published_dropout: rate that the member is trained with.
        published_norm: epsilon and momentum of its batch norm.
        lite: without squeeze and excitation, with ReLU6, and with B0's stem, head, and depth of the first and last
            stage, whatever the width and depth.
        padding: "torch", or "same", as in TensorFlow and in networks whose weights come from there, or "circular";
            None for "torch", or "same" in the Lite forms.
        epsilon, momentum: of batch norm; None for the member's.
        num_classes: length of the logits.
        norm: "batch", or "group" of 8 groups.
        activation: a key of `layers.ACTIVATIONS`; None for "silu", or "relu6" in the Lite forms.
        pooling: a key of `pooling.POOLINGS`. Those other than "max" stand in the place of every stride.
        dropout: rate before the logits; None for the member's.
        stochastic_depth: how often an example passes the last block by in training; the others less, in proportion
            (Huang et al. 2016).
        axis_name: the `pmap` axis that batch norm takes its statistics over.
        dtype: of the computation. Parameters and logits are float32.
    """

    width: float
    depth: float
    published_dropout: float
    published_norm: tuple[float, float] = (1e-5, 0.1)
    lite: bool = False
    padding: str | None = None
    epsilon: float | None = None
    momentum: float | None = None
    num_classes: int = 10
    norm: str = "batch"
    activation: str | None = None
    pooling: str = "max"
    dropout: float | None = None
    stochastic_depth: float = 0.2
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        check_choices(self, norm=NORMS, pooling=POOLINGS)
        if self.activation is not None:
            check_choices(self, activation=ACTIVATIONS)
        if self.padding is not None:
            check_choices(self, padding=("torch", "same", "circular"))
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits f32[N, num_classes] of normalised images f32[N,H,W,C], H and W of 32 or more.

        With `train`, dropout and stochastic depth draw from the key `dropout`, and batch norm uses the statistics of
        this batch.
        """
        check_images("efficientnet", images, stride=32)
        activation = self.activation or ("relu6" if self.lite else "silu")
        epsilon, momentum = self.published_norm
        unit = units(
            train, self.norm, activation, self.pooling, self.axis_name, self.dtype,
            padding=self.padding or ("same" if self.lite else "torch"),
            epsilon=epsilon if self.epsilon is None else self.epsilon,
            momentum=momentum if self.momentum is None else self.momentum,
        )  # fmt: skip
        outer = 1.0 if self.lite else self.width
        x = unit(images.astype(self.dtype), rounded(32 * outer), "stem", side=3, stride=2)
        x = tap(self, "stem", x)
        counts, blocks = depths(self.depth, lite=self.lite), 0
        for stage, (expansion, side, stride, channels, _) in enumerate(STAGES, start=1):
            for block in range(1, counts[stage - 1] + 1):
                x = InvertedResidual(
                    unit,
                    features=rounded(channels * self.width),
                    expansion=expansion,
                    stride=stride if block == 1 else 1,
                    side=side,
                    squeeze=0 if self.lite else max(1, x.shape[-1] // 4),
                    activation=activation,
                    drop=self.stochastic_depth * blocks / sum(counts) if train else 0.0,
                    name=f"stage{stage}_block{block}",
                )(x)
                blocks += 1
            x = tap(self, f"stage{stage}", x)
        x = tap(self, "head", unit(x, 1280 if self.lite else 4 * x.shape[-1], "head"))
        dropout = self.published_dropout if self.dropout is None else self.dropout
        return classify(self, x, dropout, train)


def depths(depth: float, *, lite: bool) -> tuple[int, ...]:
    """The blocks in each stage of a member."""
    fixed = (1, len(STAGES)) if lite else ()
    return tuple(
        blocks if stage in fixed else math.ceil(blocks * depth) for stage, (*_, blocks) in enumerate(STAGES, start=1)
    )
