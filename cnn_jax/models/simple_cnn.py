"""The textbook's network: two convolutions, two dense layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax.errors import InputError
from cnn_jax.models.layers import Conv, check_choices, tap
from cnn_jax.models.pooling import PADDINGS, POOLINGS

HEADS = ("flatten", "average")


class SimpleCNN(nn.Module):
    """Two 3×3 convolutions of 32 and 64, each with ReLU and a 2×2 max pool; dense 128, ReLU, dropout; dense.

    On 28×28 images of one channel with 10 classes: 421,642 parameters. Any other size from 4×4 up,
    channel count and class count will do; the first dense layer takes what the convolutions give.

    Stages to tap: `conv1` and `conv2` (after ReLU, before pooling), `fc1` (after ReLU), `logits`.

    Attributes:
        pooling: a key of `pooling.POOLINGS`.
        padding: "torch", zeros, or "circular".
        head: what the dense layers take: "flatten", every pixel, or "average", the mean over the image.
    """

    num_classes: int = 10
    dropout: float = 0.5
    pooling: str = "max"
    padding: str = "torch"
    head: str = "flatten"
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        check_choices(self, head=HEADS, pooling=POOLINGS, padding=PADDINGS)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits f32[N, num_classes] of normalised images f32[N,H,W,C].

        With `train`, dropout draws from the key `dropout`.
        """
        if images.ndim != 4 or min(images.shape[1:3]) < 4:
            raise InputError(
                f"simple_cnn: images of shape {images.shape}, expected [N,H,W,C] with H and W of 4 or more"
            )
        pool = POOLINGS[self.pooling]
        x = images.astype(self.dtype)
        for name, features in (("conv1", 32), ("conv2", 64)):
            x = tap(self, name, nn.relu(Conv(features, padding=self.padding, dtype=self.dtype, name=name)(x)))
            x = pool(x, padding=self.padding)
        x = x.reshape(x.shape[0], -1) if self.head == "flatten" else x.astype(jnp.float32).mean((1, 2))
        x = tap(self, "fc1", nn.relu(nn.Dense(128, dtype=self.dtype, name="fc1")(x)))
        x = nn.Dropout(self.dropout, deterministic=not train, name="dropout")(x)
        x = nn.Dense(self.num_classes, dtype=self.dtype, name="logits")(x)
        return tap(self, "logits", x.astype(jnp.float32))
