"""Residual networks, from He et al. 2016, "Deep Residual Learning for Image Recognition", to those grouped or wide.

Those of 18 layers and more for images such as ImageNet's are of version 1.5, as in torchvision: the stride of a
bottleneck sits on its 3×3 convolution, not on the first 1×1. Padding is symmetric as in PyTorch, so that PyTorch's
weights give PyTorch's results; Linen's "SAME" pads strided layers otherwise.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax.models.layers import ACTIVATIONS, NORMS, Conv, activated, check_choices, check_images, normed, tap
from cnn_jax.models.pooling import PADDINGS, POOLINGS
from cnn_jax.models.xla import kept

# What differs between the members: the number of blocks in each stage, and their kind.
FAMILY = {
    "resnet18": {"depths": (2, 2, 2, 2), "block": "basic"},
    "resnet34": {"depths": (3, 4, 6, 3), "block": "basic"},
    "resnet50": {"depths": (3, 4, 6, 3), "block": "bottleneck"},
    "resnet101": {"depths": (3, 4, 23, 3), "block": "bottleneck"},
    "resnet152": {"depths": (3, 8, 36, 3), "block": "bottleneck"},
}
# Aggregated residual transformations (Xie et al. 2017), and Wide Residual Networks (Zagoruyko & Komodakis 2016).
RELATIVES = {
    "resnext50_32x4d": {"depths": (3, 4, 6, 3), "block": "bottleneck_32_groups"},
    "wide_resnet50_2": {"depths": (3, 4, 6, 3), "block": "bottleneck_x2"},
}
# For CIFAR's images: those of He et al. 2016, section 4.2, and of Zagoruyko & Komodakis 2016, without dropout.
CIFAR = {
    "resnet20": {"depths": (3, 3, 3), "block": "basic_padded", "width": 16},
    "resnet56": {"depths": (9, 9, 9), "block": "basic_padded", "width": 16},
    "resnet110": {"depths": (18, 18, 18), "block": "basic_padded", "width": 16},
    "wide_resnet16_4": {"depths": (2, 2, 2), "block": "preactivated_x4", "width": 16},
    "wide_resnet28_10": {"depths": (4, 4, 4), "block": "preactivated_x10", "width": 16},
}


class Kind(NamedTuple):
    """What a block is made of.

    Attributes:
        convolutions: a row of (side of the kernel, channels in widths of the stage, whether it strides, groups).
        preactivated: norm and activation come before each convolution (He et al. 2016, "Identity Mappings"), not after
            it; the way around a block that changes the shape begins behind the first of them, and has no norm.
        padded: new channels on the way around are zeros, rather than those of a 1×1 convolution.
    """

    convolutions: tuple[tuple[int, int, bool, int], ...]
    preactivated: bool = False
    padded: bool = False


BLOCKS = {
    "basic": Kind(((3, 1, True, 1), (3, 1, False, 1))),
    "basic_padded": Kind(((3, 1, True, 1), (3, 1, False, 1)), padded=True),
    "bottleneck": Kind(((1, 1, False, 1), (3, 1, True, 1), (1, 4, False, 1))),
    "bottleneck_x2": Kind(((1, 2, False, 1), (3, 2, True, 1), (1, 4, False, 1))),
    "bottleneck_32_groups": Kind(((1, 2, False, 1), (3, 2, True, 32), (1, 4, False, 1))),
    "preactivated_x4": Kind(((3, 4, True, 1), (3, 4, False, 1)), preactivated=True),
    "preactivated_x10": Kind(((3, 10, True, 1), (3, 10, False, 1)), preactivated=True),
}

STEMS = {"small": (3, 1), "medium": (3, 2), "large": (7, 2)}  # side and stride of the convolution


class ResNet(nn.Module):
    """A residual network; `models.create("resnet50", ...)` fills in `depths` and `block`.

    Stages to tap: `stem`, `stage1` … as many as there are, `pre_logits` (f32[N,C], the mean over the image), `logits`.
    Without a head it is the backbone of a detector or a segmenter, and returns its stages.

    Attributes:
        depths: blocks in each stage. Every stage but the first halves the image and doubles the width.
        block: a key of `BLOCKS`: "basic" is two 3×3 convolutions, "bottleneck" 1×1, 3×3 and 1×1 of four times the
            channels.
        num_classes: length of the logits.
        stem: "small" is a 3×3 convolution that keeps the size, for images such as CIFAR's; "medium" is one of stride
            2; "large" is a 7×7 of stride 2 and a 3×3 max pool of stride 2, for images such as ImageNet's.
        norm: "batch", or "group" (Wu & He 2018): 32 groups, or as many as divide both 32 and the channels.
        activation: a key of `layers.ACTIVATIONS`.
        pooling: a key of `pooling.POOLINGS`. Those other than "max" stand in the place of every stride, the stem's too.
        padding: "torch", zeros, or "circular".
        width: channels of the stem and of the first stage.
        dilated: stages that keep the size of the image and spread their kernels instead (Chen et al. 2017, section 3).
        head: end in logits; otherwise in the stages, {"stem": [N,h,w,C], "stage1": …} of `dtype`.
        zero_init: start every block as the identity, with the scale of its last norm at zero (Goyal et al. 2017, 5.1);
            blocks that are preactivated end without a norm, and start as He et al. 2015 have it.
        axis_name: the `pmap` axis that batch norm takes its statistics over. Under `jit` over a mesh the statistics
            are those of the whole batch anyway, and this must be None.
        dtype: of the computation. Parameters and the statistics of the norms are float32 always, and so are the logits.
    """

    depths: tuple[int, ...]
    block: str
    num_classes: int = 10
    stem: str = "small"
    norm: str = "batch"
    activation: str = "relu"
    pooling: str = "max"
    padding: str = "torch"
    width: int = 64
    dilated: tuple[int, ...] = ()
    head: bool = True
    zero_init: bool = True
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        check_choices(
            self, block=BLOCKS, stem=STEMS, norm=NORMS, activation=ACTIVATIONS, pooling=POOLINGS, padding=PADDINGS
        )
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array | dict[str, jax.Array]:
        """Logits f32[N, num_classes] of normalised images f32[N,H,W,C], H and W of the network's stride or more.

        Without a head the stages. With `train`, batch norm uses the statistics of this batch, and updates `batch_stats`
        where that is mutable.
        """
        strided = [stage for stage in range(2, len(self.depths) + 1) if stage not in self.dilated]
        check_images("resnet", images, stride={"small": 1, "medium": 2, "large": 4}[self.stem] * 2 ** len(strided))
        kind, activation = BLOCKS[self.block], ACTIVATIONS[self.activation]

        def norm(x, **options):
            return normed(x, self.norm, train=train, axis_name=self.axis_name, dtype=self.dtype, **options)

        def conv(x, features, side, stride, *, name, dilation=1, groups=1):
            he = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # He et al. 2015, for the gradients
            return Conv(
                features, side, stride, dilation, use_bias=False, dtype=self.dtype, kernel_init=he, groups=groups,
                padding=self.padding, name=name,
            )(x)  # fmt: skip

        def halve(x, **options):
            return POOLINGS[self.pooling](x, padding=self.padding, **options)

        side, stride = STEMS[self.stem]
        pools = self.pooling != "max"
        x = conv(images.astype(self.dtype), self.width, side, 1 if pools else stride, name="stem_conv")
        if not kind.preactivated:
            x = activation(norm(x, name="stem_norm"))
        if stride == 2 and pools:
            x = halve(x, window=1)
        if self.stem == "large":
            x = halve(x, window=3)
        stages = {"stem": tap(self, "stem", x)}
        dilation = 1
        for stage, depth in enumerate(self.depths, start=1):
            for block in range(1, depth + 1):
                strides = stage > 1 and block == 1
                x = Block(
                    kind=kind,
                    width=self.width * 2 ** (stage - 1),
                    stride=2 if strides and stage not in self.dilated else 1,
                    dilation=dilation,
                    conv=conv,
                    norm=norm,
                    activation=activation,
                    halve=halve if pools else None,
                    zero_init=self.zero_init,
                    name=f"stage{stage}_block{block}",
                )(x)
                if strides and stage in self.dilated:
                    dilation *= 2  # of the blocks after the one that would have made the image smaller
            x = stages[f"stage{stage}"] = tap(self, f"stage{stage}", x)
        if not self.head:
            return stages
        if kind.preactivated:
            x = activation(norm(x, name="norm"))
        x = tap(self, "pre_logits", x.astype(jnp.float32).mean((1, 2)))
        x = nn.Dense(self.num_classes, dtype=self.dtype, name="logits")(x)
        return tap(self, "logits", x.astype(jnp.float32))


class Block(nn.Module):
    """A row of convolutions and a way around it. `halve` is the pooling in the place of strides, or None."""

    kind: Kind
    width: int
    stride: int
    dilation: int
    conv: Callable[..., jax.Array]
    norm: Callable[..., jax.Array]
    activation: Callable[[jax.Array], jax.Array]
    halve: Callable[..., jax.Array] | None
    zero_init: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kind, last = self.kind, len(self.kind.convolutions)
        features = self.width * kind.convolutions[-1][1]
        changes = self.stride > 1 or x.shape[-1] != features
        around = x
        if kind.preactivated:
            x = self.activation(self.norm(x, name="norm1"))
            around = x if changes else around
        stride = 1 if self.halve else self.stride
        for i, (side, widths, strides, groups) in enumerate(kind.convolutions, start=1):
            x = self.conv(
                x, self.width * widths, side, stride if strides else 1, dilation=self.dilation, groups=groups,
                name=f"conv{i}",
            )  # fmt: skip
            if i == last:
                break
            x = self.activation(self.norm(x, name=f"norm{i + kind.preactivated}"))
            if strides and self.stride == 2 and self.halve:
                around = self.halve(around, window=1, choice=x)
                x = self.halve(x, window=1)
        if not kind.preactivated:
            scale_init = nn.initializers.zeros if self.zero_init else nn.initializers.ones
            x = self.norm(x, name=f"norm{last}", scale_init=scale_init)
        if changes and kind.padded:
            around = around[:, ::stride, ::stride]
            around = jnp.pad(around, ((0, 0), (0, 0), (0, 0), (0, features - around.shape[-1])))
        elif changes:
            around = self.conv(around, features, 1, stride, name="shortcut_conv")
            around = around if kind.preactivated else self.norm(around, name="shortcut_norm")
        return kept(x + around) if kind.preactivated else activated(self.activation, x + around)
