"""A tower of convolutions in which one thing at a time can be taken away."""

import flax.linen as nn
import jax

from cnn_jax.models import layers


class Tower(nn.Module):
    """`depth` 3×3 convolutions, max pooling after the second and fourth, the mean over all places, and a dense layer.

    Stages to tap: `conv1` …, `logits`.

    Attributes:
        activation: of `layers.ACTIVATIONS`, or None for no non-linearity.
        norm: batch norm behind each convolution.
        residual: each convolution from the second on adds to what it is given.
        shared: one kernel for all places; without it each place has one of its own.
    """

    depth: int = 6
    width: int = 16
    activation: str | None = "relu"
    norm: bool = False
    residual: bool = False
    shared: bool = True
    num_classes: int = 10

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits f32[N,num_classes] of normalised images f32[N,H,W,C]."""
        x = images
        for i in range(1, self.depth + 1):
            if self.shared:
                y = layers.Conv(self.width, use_bias=not self.norm, name=f"conv{i}")(x)
            else:
                y = nn.ConvLocal(self.width, (3, 3), name=f"conv{i}")(x)
            if self.norm:
                y = layers.BatchNorm(train, name=f"norm{i}")(y)
            if self.activation:
                y = layers.ACTIVATIONS[self.activation](y)
            x = x + y if self.residual and i > 1 else y
            x = layers.tap(self, f"conv{i}", x)
            if i in (2, 4):
                x = layers.max_pool(x)
        x = nn.Dense(self.num_classes, name="logits")(x.mean((1, 2)))
        return layers.tap(self, "logits", x)
