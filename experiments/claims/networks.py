"""A tower of convolutions in which one thing at a time can be taken away."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax.models import layers
from cnn_jax.models.pooling import POOLINGS


class Tower(nn.Module):
    """`depth` 3×3 convolutions, pooling after the second and fourth, and a dense layer.

    Stages to tap: `conv1` …, `logits`.

    Attributes:
        activation: of `layers.ACTIVATIONS`, or None for no non-linearity.
        norm: batch norm behind each convolution.
        residual: each convolution from the second on adds to what it is given.
        shared: one kernel for all places; without it each place has one of its own.
        pooling: a key of `POOLINGS`, or "strides": none, and a stride of 2 in the second and fourth convolution.
        flatten: the dense layer has a weight for each place; without it, it takes the mean over all.
    """

    depth: int = 6
    width: int = 16
    activation: str | None = "relu"
    norm: bool = False
    residual: bool = False
    shared: bool = True
    pooling: str = "max"
    flatten: bool = False
    num_classes: int = 10

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits f32[N,num_classes] of normalised images f32[N,H,W,C]."""
        x = images
        for i in range(1, self.depth + 1):
            halves, strides = i in (2, 4), self.pooling == "strides"
            if self.shared:
                stride = 2 if halves and strides else 1
                y = layers.Conv(self.width, stride=stride, use_bias=not self.norm, name=f"conv{i}")(x)
            else:
                y = Local(self.width, name=f"conv{i}")(x)
            if self.norm:
                y = layers.BatchNorm(train, name=f"norm{i}")(y)
            if self.activation:
                y = layers.ACTIVATIONS[self.activation](y)
            x = x + y if self.residual and i > 1 else y
            x = layers.tap(self, f"conv{i}", x)
            if halves and not strides:
                x = POOLINGS[self.pooling](x)
        x = x.reshape(len(x), -1) if self.flatten else x.mean((1, 2))
        x = nn.Dense(self.num_classes, name="logits")(x)
        return layers.tap(self, "logits", x)


class Local(nn.Module):
    """A 3×3 convolution with a kernel for each place; `nn.ConvLocal`, in a sixth of the time on a CPU."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N,H,W,C] to [N,H,W,features]."""
        n, height, width, channels = x.shape
        places, seen = height * width, 9 * channels
        init = nn.initializers.variance_scaling(
            1.0, "fan_in", "truncated_normal", in_axis=-2, out_axis=-1, batch_axis=0
        )
        kernel = self.param("kernel", init, (places, seen, self.features))
        bias = self.param("bias", nn.initializers.zeros, (places, self.features))
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        views = [x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        rows = jnp.concatenate(views, axis=-1).transpose(1, 2, 0, 3).reshape(places, n, seen)
        y = rows @ kernel + bias[:, None]
        return y.reshape(height, width, n, self.features).transpose(2, 0, 1, 3)
