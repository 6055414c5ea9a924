"""MobileNetV2 (Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks"), as in torchvision."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax.errors import InputError
from cnn_jax.models.layers import ACTIVATIONS, NORMS, Conv, check_choices, check_images, normed, tap
from cnn_jax.models.pooling import PADDINGS, POOLINGS

# For each stage how much wider a block is inside, its channels, the blocks, and the stride of the first.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class MobileNetV2(nn.Module):
    """Blocks that widen the image, look at each channel by itself, and narrow it again.

    Stages to tap: `stem`, `stage1` … `stage7`, `head` (the last of the maps), `pre_logits` (f32[N,C], its mean over the
    image), `logits`.

    Attributes:
        num_classes: length of the logits.
        width: what the channels are multiplied by, and rounded to multiples of 8.
        norm: "batch", or "group" of 8 groups.
        activation: a key of `layers.ACTIVATIONS`.
        pooling: a key of `pooling.POOLINGS`. Those other than "max" stand in the place of every stride.
        padding: "torch", zeros, or "circular".
        dropout: rate before the logits.
        axis_name: the `pmap` axis that batch norm takes its statistics over.
        dtype: of the computation. Parameters and logits are float32.
    """

    num_classes: int = 10
    width: float = 1.0
    norm: str = "batch"
    activation: str = "relu6"
    pooling: str = "max"
    padding: str = "torch"
    dropout: float = 0.2
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        check_choices(self, norm=NORMS, activation=ACTIVATIONS, pooling=POOLINGS, padding=PADDINGS)
        if self.width <= 0:
            raise InputError(f"mobilenet: a width of {self.width}, expected one above 0")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits f32[N, num_classes] of normalised images f32[N,H,W,C], H and W of 32 or more.

        With `train`, dropout draws from the key `dropout`, and batch norm uses the statistics of this batch.
        """
        check_images("mobilenet", images, stride=32)
        unit = units(train, self.norm, self.activation, self.pooling, self.axis_name, self.dtype, padding=self.padding)
        x = unit(images.astype(self.dtype), rounded(32 * self.width), "stem", side=3, stride=2)
        x = tap(self, "stem", x)
        for stage, (expansion, channels, depth, stride) in enumerate(STAGES, start=1):
            for block in range(1, depth + 1):
                x = InvertedResidual(
                    unit,
                    features=rounded(channels * self.width),
                    expansion=expansion,
                    stride=stride if block == 1 else 1,
                    name=f"stage{stage}_block{block}",
                )(x)
            x = tap(self, f"stage{stage}", x)
        x = tap(self, "head", unit(x, rounded(1280 * max(1.0, self.width)), "head"))
        return classify(self, x, self.dropout, train)


class InvertedResidual(nn.Module):
    """1×1 to more channels, a depthwise convolution, 1×1 to few channels; and a way around where the shape is kept.

    Attributes:
        unit: of `units`.
        features: of the result.
        expansion: inside it has so many times the channels.
        side: of the depthwise kernels.
        squeeze: channels of squeeze and excitation (Hu et al. 2018): the mean over the image says how much of each
            channel goes on. 0 for none.
        activation: of it, a key of `layers.ACTIVATIONS`.
        drop: how often an example goes the way around alone, in training (Huang et al. 2016).
    """

    unit: Callable[..., jax.Array]
    features: int
    expansion: int
    stride: int
    side: int = 3
    squeeze: int = 0
    activation: str = "silu"
    drop: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        around = x
        if self.expansion != 1:
            x = self.unit(x, rounded(x.shape[-1] * self.expansion), "expand")
        x = self.unit(x, x.shape[-1], "depthwise", side=self.side, stride=self.stride, groups=x.shape[-1])
        if self.squeeze:
            weights = x.mean((1, 2), keepdims=True)
            weights = Conv(self.squeeze, 1, dtype=x.dtype, kernel_init=_init(1), name="squeeze")(weights)
            weights = ACTIVATIONS[self.activation](weights)
            x = x * nn.sigmoid(Conv(x.shape[-1], 1, dtype=x.dtype, kernel_init=_init(1), name="excite")(weights))
        x = self.unit(x, self.features, "project", activate=False)
        if x.shape != around.shape:
            return x
        return around + nn.Dropout(self.drop, broadcast_dims=(1, 2, 3), deterministic=not self.drop)(x)


def units(
    train: bool,
    norm: str,
    activation: str,
    pooling: str,
    axis_name: str | None,
    dtype: jnp.dtype,
    *,
    padding: str = "torch",
    epsilon: float = 1e-5,
    momentum: float = 0.1,
) -> Callable[..., jax.Array]:
    """The function `unit(x, features, name, side=1, stride=1, groups=1, activate=True)` of a network.

    It is a convolution without a bias, `{name}_conv`, a norm, `{name}_norm`, an activation, and a pooling other than
    "max" in the place of a stride.

    Args:
        norm, activation, pooling, axis_name, dtype: of the network.
        padding: of `Conv`.
        epsilon, momentum: of batch norm.
    """

    def unit(x, features, name, *, side=1, stride=1, groups=1, activate=True):
        pools = stride == 2 and pooling != "max"
        stride = 1 if pools else stride
        x = Conv(
            features, side, stride, use_bias=False, dtype=dtype, kernel_init=_init(groups), groups=groups,
            padding=padding, name=f"{name}_conv",
        )(x)  # fmt: skip
        x = normed(
            x, norm, f"{name}_norm", train=train, axis_name=axis_name, dtype=dtype, groups=8, epsilon=epsilon,
            momentum=momentum,
        )  # fmt: skip
        x = ACTIVATIONS[activation](x) if activate else x
        if not pools:
            return x
        return POOLINGS[pooling](x, window=1, padding="circular" if padding == "circular" else "torch")

    return unit


def classify(network: nn.Module, x: jax.Array, dropout: float, train: bool) -> jax.Array:
    """The end of a network that has `num_classes` and `dtype`: its last maps [N,h,w,C] to logits."""
    x = tap(network, "pre_logits", x.astype(jnp.float32).mean((1, 2)))
    x = nn.Dropout(dropout, deterministic=not train)(x)
    normal = nn.initializers.normal(0.01)
    x = nn.Dense(network.num_classes, dtype=network.dtype, kernel_init=normal, name="logits")(x)
    return tap(network, "logits", x.astype(jnp.float32))


def rounded(channels: float) -> int:
    """To the nearest multiple of 8, or the next where that would take away more than a tenth."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


def _init(groups: int) -> nn.initializers.Initializer:
    # Initialisers take the fan out for that of all channels, where a depthwise kernel has that of one, as its fan in.
    return nn.initializers.variance_scaling(2.0, "fan_out" if groups == 1 else "fan_in", "normal")
