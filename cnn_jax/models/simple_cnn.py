"""The textbook's network: two convolutions, two dense layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax.errors import InputError
from cnn_jax.models.layers import ACTIVATIONS, NORMS, Conv, check_choices, normed, tap
from cnn_jax.models.pooling import PADDINGS, POOLINGS

HEADS = ("flatten", "average")


class SimpleCNN(nn.Module):
    """Two 3×3 convolutions of 32 and 64, each with ReLU and a 2×2 max pool; dense 128, ReLU, dropout; dense.

    On 28×28 images of one channel with 10 classes: 421,642 parameters. Any other size from 4×4 up,
    channel count and class count will do; the first dense layer takes what the convolutions give.

    Stages to tap: `conv1` and `conv2` (after ReLU, before pooling), `fc1` (after ReLU), `logits`.

    Attributes:
        norm: behind each convolution: "none", "batch", or "group" of 32 groups.
        activation: a key of `layers.ACTIVATIONS`.
        pooling: a key of `pooling.POOLINGS`.
        padding: "torch", zeros, or "circular".
        head: what the dense layers take: "flatten", every pixel, or "average", the mean over the image.
        axis_name: the `pmap` axis that batch norm takes its statistics over.
    """

    num_classes: int = 10
    dropout: float = 0.5
    norm: str = "none"
    activation: str = "relu"
    pooling: str = "max"
    padding: str = "torch"
    head: str = "flatten"
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        check_choices(
            self, norm=("none", *NORMS), activation=ACTIVATIONS, head=HEADS, pooling=POOLINGS, padding=PADDINGS
        )
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
        pool, activation = POOLINGS[self.pooling], ACTIVATIONS[self.activation]
        x = images.astype(self.dtype)
        for i, features in enumerate((32, 64), start=1):
            x = Conv(features, padding=self.padding, dtype=self.dtype, name=f"conv{i}")(x)
            if self.norm != "none":
                x = normed(x, self.norm, f"norm{i}", train=train, axis_name=self.axis_name, dtype=self.dtype)
            x = pool(tap(self, f"conv{i}", activation(x)), padding=self.padding)
        x = x.reshape(x.shape[0], -1) if self.head == "flatten" else x.astype(jnp.float32).mean((1, 2))
        x = tap(self, "fc1", activation(nn.Dense(128, dtype=self.dtype, name="fc1")(x)))
        x = nn.Dropout(self.dropout, deterministic=not train, name="dropout")(x)
        x = nn.Dense(self.num_classes, dtype=self.dtype, name="logits")(x)
        return tap(self, "logits", x.astype(jnp.float32))
