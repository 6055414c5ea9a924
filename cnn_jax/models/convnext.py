"""ConvNeXt (Liu et al. 2022, "A ConvNet for the 2020s"), as in torchvision."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax.models.layers import ACTIVATIONS, Conv, check_choices, check_images, tap
from cnn_jax.models.places import matrix
from cnn_jax.models.platform import on_cpu
from cnn_jax.models.pooling import PADDINGS, POOLINGS
from cnn_jax.models.xla import kept

# What differs between the members: the blocks in each stage, and the channels of the first, which each stage doubles.
CONVNEXTS = {
    "convnext_tiny": {"depths": (3, 3, 9, 3), "width": 96},
    "convnext_small": {"depths": (3, 3, 27, 3), "width": 96},
    "convnext_base": {"depths": (3, 3, 27, 3), "width": 128},
    "convnext_large": {"depths": (3, 3, 27, 3), "width": 192},
}


class ConvNeXt(nn.Module):
    """Patches of 4×4 pixels, then stages of blocks; each stage but the first halves the image.

    Stages to tap: `stem`, `stage1` … `stage4`, `pre_logits` (the mean over the image, normed), `logits`.

    Attributes:
        depths: blocks in each stage.
        width: channels of the first stage.
        num_classes: length of the logits.
        activation: a key of `layers.ACTIVATIONS`.
        pooling: a key of `pooling.POOLINGS`. Those other than "max" stand in the place of every stride.
        padding: "torch", zeros, or "circular".
        stochastic_depth: how often an example passes the last block by in training; the others less, in proportion
            (Huang et al. 2016). Torchvision trained with 0.1, 0.4, 0.5 and 0.5, from tiny to large.
        scale_init: of what the blocks add, by channel (Touvron et al. 2021, "LayerScale").
        dtype: of the computation. Parameters and logits are float32.
    """

    depths: tuple[int, ...]
    width: int
    num_classes: int = 10
    activation: str = "gelu"
    pooling: str = "max"
    padding: str = "torch"
    stochastic_depth: float = 0.1
    scale_init: float = 1e-6
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        check_choices(self, activation=ACTIVATIONS, pooling=POOLINGS, padding=PADDINGS)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits f32[N, num_classes] of normalised images f32[N,H,W,C], H and W of 32 or more.

        With `train`, stochastic depth draws from the key `dropout`.
        """
        check_images("convnext", images, stride=4 * 2 ** (len(self.depths) - 1))
        normal = nn.initializers.truncated_normal(0.02)
        options = {"dtype": self.dtype, "kernel_init": normal}

        def norm(x, name):
            return nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name=name)(x)

        def shrink(x, features, by, name):
            if self.pooling == "max":
                return Conv(features, by, by, padding="valid", **options, name=name)(x)
            everywhere = "same" if self.padding == "torch" else self.padding
            x = Conv(features, by, padding=everywhere, **options, name=name)(x)
            while by > 1:
                x = POOLINGS[self.pooling](x, window=1, padding=self.padding)
                by //= 2
            return x

        x = norm(shrink(images.astype(self.dtype), self.width, 4, "stem_conv"), "stem_norm")
        x = tap(self, "stem", x)
        blocks = 0
        for stage, depth in enumerate(self.depths, start=1):
            features = self.width * 2 ** (stage - 1)
            if stage > 1:
                x = shrink(norm(x, f"down{stage}_norm"), features, 2, f"down{stage}_conv")
            for block in range(1, depth + 1):
                rate = self.stochastic_depth * blocks / max(sum(self.depths) - 1, 1)
                x = Block(
                    ACTIVATIONS[self.activation], self.padding, rate if train else 0, self.scale_init, self.dtype,
                    name=f"stage{stage}_block{block}",
                )(x)  # fmt: skip
                blocks += 1
            x = tap(self, f"stage{stage}", x)
        x = tap(self, "pre_logits", norm(x.astype(jnp.float32).mean((1, 2)), "norm"))
        x = nn.Dense(self.num_classes, **options, name="logits")(x)
        return tap(self, "logits", x.astype(jnp.float32))


class Block(nn.Module):
    """A depthwise 7×7 convolution, a norm, and two dense layers for each pixel, of which the first is wide."""

    activation: Callable[[jax.Array], jax.Array]
    padding: str
    rate: float
    scale_init: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features = x.shape[-1]
        normal = nn.initializers.truncated_normal(0.02)
        options = {"dtype": self.dtype, "kernel_init": normal}
        y = Conv(features, 7, groups=features, padding=self.padding, **options, name="conv")(x)
        y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(y)
        y = matrix(y) if on_cpu() else y  # a training step in three quarters of the time
        y = self.activation(nn.Dense(4 * features, **options, name="expand")(y))
        y = nn.Dense(features, **options, name="project")(y).reshape(x.shape)
        scale = self.param("layer_scale", nn.initializers.constant(self.scale_init), (features,))
        y = y * scale.astype(self.dtype).reshape(1, 1, 1, -1)
        return kept(x + nn.Dropout(self.rate, broadcast_dims=(1, 2, 3), deterministic=self.rate == 0)(y))
