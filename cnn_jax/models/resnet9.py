"""ResNet-9, for small images and little time.

The network of Page 2018, "How to Train Your ResNet" (myrtle.ai), made to reach 94 % on CIFAR-10 in little time: wide
and shallow, with blocks in two stages only, a maximum over the image, and logits made small.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax.models.layers import ACTIVATIONS, NORMS, Conv, check_choices, check_images, normed, tap
from cnn_jax.models.pooling import PADDINGS, POOLINGS


class ResNet9(nn.Module):
    """Eight 3×3 convolutions and a dense layer; 6,573,120 parameters for images of three channels and 10 classes.

    Stages to tap: `stem`, `stage1` … `stage3`, `pre_logits` (f32[N,C], the maximum over the image), `logits`.

    Attributes:
        num_classes: length of the logits.
        width: channels of the stem; each stage doubles them. The work grows with its square: on a CPU take 16 or 32.
        norm: "batch", or "group" of 32 groups.
        activation: a key of `layers.ACTIVATIONS`.
        pooling: a key of `pooling.POOLINGS`.
        padding: "torch", zeros, or "circular".
        scale: of the logits. Small ones keep the first steps of a large rate from being too sure.
        axis_name: the `pmap` axis that batch norm takes its statistics over.
        dtype: of the computation. Parameters and logits are float32.
    """

    num_classes: int = 10
    width: int = 64
    norm: str = "batch"
    activation: str = "relu"
    pooling: str = "max"
    padding: str = "torch"
    scale: float = 0.125
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        check_choices(self, norm=NORMS, activation=ACTIVATIONS, pooling=POOLINGS, padding=PADDINGS)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits f32[N, num_classes] of normalised images f32[N,H,W,C], H and W of 8 or more."""
        check_images("resnet9", images, stride=8)

        def convolve(x, features, name):
            x = Conv(features, use_bias=False, dtype=self.dtype, padding=self.padding, name=f"{name}_conv")(x)
            x = normed(x, self.norm, f"{name}_norm", train=train, axis_name=self.axis_name, dtype=self.dtype)
            return ACTIVATIONS[self.activation](x)

        x = tap(self, "stem", convolve(images.astype(self.dtype), self.width, "stem"))
        for stage in (1, 2, 3):
            x = convolve(x, self.width * 2**stage, f"stage{stage}")
            x = POOLINGS[self.pooling](x, padding=self.padding)
            if stage != 2:
                around = x
                for i in (1, 2):
                    x = convolve(x, x.shape[-1], f"stage{stage}_block_{i}")
                x = around + x
            x = tap(self, f"stage{stage}", x)
        x = tap(self, "pre_logits", x.astype(jnp.float32).max((1, 2)))
        x = nn.Dense(self.num_classes, use_bias=False, dtype=self.dtype, name="logits")(x)
        return tap(self, "logits", self.scale * x.astype(jnp.float32))
