"""Residual networks of 18 to 152 layers (He et al. 2016, "Deep Residual Learning for Image Recognition").

Version 1.5, as in torchvision: the stride of a bottleneck sits on its 3×3 convolution, not on the first 1×1. Padding is
symmetric as in PyTorch, so that PyTorch's weights give PyTorch's results; Linen's "SAME" pads strided layers otherwise.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax.errors import InputError, unknown
from cnn_jax.models.layers import BatchNorm, Conv, max_pool_3x3, tap

# What differs between the members: the number of blocks in each stage, and their kind.
FAMILY = {
    "resnet18": {"depths": (2, 2, 2, 2), "block": "basic"},
    "resnet34": {"depths": (3, 4, 6, 3), "block": "basic"},
    "resnet50": {"depths": (3, 4, 6, 3), "block": "bottleneck"},
    "resnet101": {"depths": (3, 4, 23, 3), "block": "bottleneck"},
    "resnet152": {"depths": (3, 8, 36, 3), "block": "bottleneck"},
}

# A block is a row of convolutions: (side of the kernel, output channels in widths of the stage, whether it strides).
BLOCKS = {
    "basic": ((3, 1, True), (3, 1, False)),
    "bottleneck": ((1, 1, False), (3, 1, True), (1, 4, False)),
}

STEMS = ("small", "medium", "large")
NORMS = ("batch", "group")


class ResNet(nn.Module):
    """A residual network; `models.create("resnet50", ...)` fills in `depths` and `block`.

    Stages to tap: `stem`, `stage1` … `stage4`, `pre_logits` (f32[N,C], the mean over the image), `logits`. Without a
    head it is the backbone of a detector or a segmenter, and returns its stages.

    Attributes:
        depths: blocks in each stage. Every stage but the first halves the image and doubles the width.
        block: "basic" (two 3×3 convolutions) or "bottleneck" (1×1, 3×3, 1×1 with four times the channels).
        num_classes: length of the logits.
        stem: "small" is a 3×3 convolution that keeps the size, for images such as CIFAR's; "medium" is one of stride
            2; "large" is a 7×7 of stride 2 and a 3×3 max pool of stride 2, for images such as ImageNet's.
        norm: "batch", or "group" (Wu & He 2018): 32 groups, or as many as divide both 32 and the channels.
        width: channels of the stem and of the first stage.
        dilated: stages that keep the size of the image and spread their kernels instead (Chen et al. 2017, section 3).
        head: end in logits; otherwise in the stages, {"stem": [N,h,w,C], "stage1": …} of `dtype`.
        zero_init: start every block as the identity, with the scale of its last norm at zero (Goyal et al. 2017, 5.1).
        axis_name: the `pmap` axis that batch norm takes its statistics over. Under `jit` over a mesh the statistics
            are those of the whole batch anyway, and this must be None.
        dtype: of the computation. Parameters and the statistics of the norms are float32 always, and so are the logits.
    """

    depths: tuple[int, ...]
    block: str
    num_classes: int = 10
    stem: str = "small"
    norm: str = "batch"
    width: int = 64
    dilated: tuple[int, ...] = ()
    head: bool = True
    zero_init: bool = True
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        for kind, choices in (("block", BLOCKS), ("stem", STEMS), ("norm", NORMS)):
            if getattr(self, kind) not in choices:
                raise unknown(kind, getattr(self, kind), choices)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array | dict[str, jax.Array]:
        """Logits f32[N, num_classes] of normalised images f32[N,H,W,C] of any size; without a head the stages.

        With `train`, batch norm uses the statistics of this batch, and updates `batch_stats` where that is mutable.
        """
        if images.ndim != 4:
            raise InputError(f"resnet: images of shape {images.shape}, expected [N,H,W,C]")

        def norm(x, *, name, scale_init=nn.initializers.ones):
            if self.norm == "group":
                groups = math.gcd(32, x.shape[-1])
                return nn.GroupNorm(groups, epsilon=1e-5, dtype=self.dtype, scale_init=scale_init, name=name)(x)
            return BatchNorm(train, self.axis_name, self.dtype, scale_init, name=name)(x)

        x = images.astype(self.dtype)
        side, stride = {"small": (3, 1), "medium": (3, 2), "large": (7, 2)}[self.stem]
        x = nn.relu(norm(_conv(self.width, side, stride, 1, self.dtype, "stem_conv")(x), name="stem_norm"))
        if self.stem == "large":
            x = max_pool_3x3(x)
        stages = {"stem": tap(self, "stem", x)}
        dilation = 1
        for stage, depth in enumerate(self.depths, start=1):
            for block in range(1, depth + 1):
                strides = stage > 1 and block == 1
                x = Block(
                    convolutions=BLOCKS[self.block],
                    width=self.width * 2 ** (stage - 1),
                    stride=2 if strides and stage not in self.dilated else 1,
                    dilation=dilation,
                    norm=norm,
                    zero_init=self.zero_init,
                    dtype=self.dtype,
                    name=f"stage{stage}_block{block}",
                )(x)
                if strides and stage in self.dilated:
                    dilation *= 2  # of the blocks after the one that would have made the image smaller
            x = stages[f"stage{stage}"] = tap(self, f"stage{stage}", x)
        if not self.head:
            return stages
        x = tap(self, "pre_logits", x.astype(jnp.float32).mean((1, 2)))
        x = nn.Dense(self.num_classes, dtype=self.dtype, name="logits")(x)
        return tap(self, "logits", x.astype(jnp.float32))


class Block(nn.Module):
    """A row of convolutions and a way around it, which is a 1×1 convolution where the shape changes."""

    convolutions: tuple[tuple[int, int, bool], ...]
    width: int
    stride: int
    dilation: int
    norm: Callable[..., jax.Array]
    zero_init: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        around = x
        last = len(self.convolutions)
        for i, (side, widths, strides) in enumerate(self.convolutions, start=1):
            stride = self.stride if strides else 1
            x = _conv(self.width * widths, side, stride, self.dilation, self.dtype, f"conv{i}")(x)
            if i < last:
                x = nn.relu(self.norm(x, name=f"norm{i}"))
        scale_init = nn.initializers.zeros if self.zero_init else nn.initializers.ones
        x = self.norm(x, name=f"norm{last}", scale_init=scale_init)
        if around.shape != x.shape:
            around = _conv(x.shape[-1], 1, self.stride, 1, self.dtype, "shortcut_conv")(around)
            around = self.norm(around, name="shortcut_norm")
        return nn.relu(x + around)


def _conv(features: int, side: int, stride: int, dilation: int, dtype: jnp.dtype, name: str) -> Conv:
    he = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # He et al. 2015, for the gradients
    return Conv(features, side, stride, dilation, use_bias=False, dtype=dtype, kernel_init=he, name=name)
