"""VGG (Simonyan & Zisserman 2015, "Very Deep Convolutional Networks"), plain or with norms, as in torchvision."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax.models.layers import ACTIVATIONS, NORMS, Conv, check_choices, check_images, normed, tap
from cnn_jax.models.pooling import PADDINGS, POOLINGS, adaptive_average

# What differs between the members: the convolutions in each stage.
DEPTHS = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
VGGS = {name: {"depths": depths} for name, depths in DEPTHS.items()}
VGGS |= {f"{name}_bn": {"depths": depths, "norm": "batch"} for name, depths in DEPTHS.items()}

WIDTHS = (64, 128, 256, 512, 512)
HEADS = ("flatten", "average")


class VGG(nn.Module):
    """Five stages of 3×3 convolutions, each of which a pooling halves, and dense layers.

    Stages to tap: `stage1` … `stage5` (before the pooling), `pre_logits`, `logits`.

    Attributes:
        depths: convolutions in each stage.
        num_classes: length of the logits.
        norm: behind each convolution: "none", "batch", or "group" of 32 groups.
        activation: a key of `layers.ACTIVATIONS`.
        pooling: a key of `pooling.POOLINGS`.
        padding: "torch", zeros, or "circular".
        head: "flatten": the means over 7×7 parts of the image, two dense layers of 4096 with dropout, and one more; or
            "average": the mean over the image, and one dense layer.
        dropout: rate of it.
        axis_name: the `pmap` axis that batch norm takes its statistics over.
        dtype: of the computation. Parameters and logits are float32.
    """

    depths: tuple[int, ...]
    num_classes: int = 10
    norm: str = "none"
    activation: str = "relu"
    pooling: str = "max"
    padding: str = "torch"
    head: str = "flatten"
    dropout: float = 0.5
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        check_choices(
            self, norm=("none", *NORMS), activation=ACTIVATIONS, head=HEADS, pooling=POOLINGS, padding=PADDINGS
        )
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits f32[N, num_classes] of normalised images f32[N,H,W,C], H and W of 32 or more.

        With `train`, dropout draws from the key `dropout`.
        """
        check_images("vgg", images, stride=2 ** len(self.depths))
        activation = ACTIVATIONS[self.activation]
        he = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        x = images.astype(self.dtype)
        for stage, depth in enumerate(self.depths, start=1):
            for i in range(1, depth + 1):
                x = Conv(
                    WIDTHS[stage - 1], dtype=self.dtype, kernel_init=he, padding=self.padding,
                    name=f"stage{stage}_conv{i}",
                )(x)  # fmt: skip
                if self.norm != "none":
                    x = normed(
                        x, self.norm, f"stage{stage}_norm{i}", train=train, axis_name=self.axis_name, dtype=self.dtype
                    )
                x = activation(x)
            x = POOLINGS[self.pooling](tap(self, f"stage{stage}", x), padding=self.padding)
        if self.head == "flatten":
            x = adaptive_average(x, size=(7, 7))
            x = x.reshape(x.shape[0], -1)
            for name in ("fc1", "fc2"):
                x = activation(nn.Dense(4096, dtype=self.dtype, name=name)(x))
                if name == "fc2":
                    x = tap(self, "pre_logits", x)
                x = nn.Dropout(self.dropout, deterministic=not train)(x)
        else:
            x = tap(self, "pre_logits", x.astype(jnp.float32).mean((1, 2)))
        x = nn.Dense(self.num_classes, dtype=self.dtype, name="logits")(x)
        return tap(self, "logits", x.astype(jnp.float32))
