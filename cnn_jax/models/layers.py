"""The pieces that the networks share."""

import math
from collections.abc import Callable, Collection
from functools import partial, reduce

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax.errors import InputError, unknown
from cnn_jax.models.channels import moments, scaled
from cnn_jax.models.convolution import convolution
from cnn_jax.models.places import exact, largest
from cnn_jax.models.platform import on_cpu
from cnn_jax.models.xla import kept


def gelu(x: jax.Array) -> jax.Array:
    """x·Φ(x), where Φ is the distribution of the normal law (Hendrycks & Gimpel 2016), as PyTorch computes it.

    Linen's is made of `erfc`, which takes XLA half as long again as `erf` (on a CPU 12.4 ms for 7.6). It is more exact
    only below -3, where the value is nearly 0.
    """
    wide = exact(x)
    return (wide * 0.5 * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


# What networks take as the option `activation`.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "relu6": nn.relu6,
    "leaky_relu": nn.leaky_relu,
    "elu": nn.elu,
    "gelu": gelu,
    "silu": nn.silu,
    "sigmoid": nn.sigmoid,
    "tanh": nn.tanh,
}

# What networks take as the option `norm`.
NORMS = ("batch", "group")


def check_choices(network: nn.Module, **choices: Collection[str]) -> None:
    """Raises InputError where an attribute of a network, such as `norm=NORMS`, is none of its choices."""
    for attribute, known in choices.items():
        if getattr(network, attribute) not in known:
            raise unknown(attribute, getattr(network, attribute), known)


def check_images(network: str, images: jax.Array, *, stride: int) -> None:
    """Raises InputError if images are not [N,H,W,C], or smaller than `stride`, by which the network shrinks them."""
    if images.ndim != 4:
        raise InputError(f"{network}: images of shape {images.shape}, expected [N,H,W,C]")
    height, width = images.shape[1:3]
    if min(height, width) < stride:
        raise InputError(
            f"{network}: images of {height}×{width} are smaller than its stride of {stride}: use larger images"
        )


def tap(module: nn.Module, name: str, x: jax.Array) -> jax.Array:
    """Names a stage of a network, and returns it unchanged.

    To look at the stage, apply the model with `mutable=["intermediates"]`: it comes back as
    `intermediates[name][0]`. For the gradient at the stage, pass zeros of its shape as
    `variables["perturbations"][name]`, which are added to it, and differentiate by them.
    Where neither is asked for, it costs nothing.
    """
    # `sow` reserves the name of a new variable, and so refuses that of a submodule; one that exists it takes as it is.
    if module.is_mutable_collection("intermediates") and not module.has_variable("intermediates", name):
        module.put_variable("intermediates", name, ())
    module.sow("intermediates", name, x)
    # Linen's own `perturb` refuses a stage that has the name of a submodule.
    if module.has_variable("perturbations", name):
        x = x + module.get_variable("perturbations", name)
    return x


def activated(activation: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """`activation(x)` at the end of a residual block: one array for all that need it, see `xla.kept`."""
    if not on_cpu():
        return activation(x)
    return _kept_relu(x) if activation is nn.relu else kept(activation(x))


@jax.custom_jvp
def _kept_relu(x: jax.Array) -> jax.Array:
    return kept(nn.relu(x))


@_kept_relu.defjvp
def _kept_relu_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    y = _kept_relu(x)
    return y, jnp.where(y > 0, kept(dx), 0)  # seen in the output, so that `x` is needed no more


class Conv(nn.Module):
    """A convolution with square kernels, padded as PyTorch's are: by `dilation * (side // 2)` on all sides.

    With a stride, Linen's "SAME" pads otherwise. Parameters are float32, `kernel` [side,side,C/groups,features] and
    `bias`.

    Attributes:
        dtype: of the computation.
        groups: the channels are in so many groups, each with kernels of its own; as many as channels: depthwise.
        padding: "torch"; "same", XLA's and TensorFlow's, where of an odd number the end takes more; "valid", none; or
            "circular", by the opposite sides.
    """

    features: int
    side: int = 3
    stride: int = 1
    dilation: int = 1
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros
    groups: int = 1
    padding: str = "torch"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N,H,W,C] to [N,⌈H/stride⌉,⌈W/stride⌉,features] of `dtype`, for kernels of an odd side or "same"."""
        kernel = self.param(
            "kernel", self.kernel_init, (self.side, self.side, x.shape[-1] // self.groups, self.features)
        )
        bias = self.param("bias", self.bias_init, (self.features,)) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return convolution(
            x, kernel, bias, stride=self.stride, dilation=self.dilation, groups=self.groups, padding=self.padding
        )


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015): Linen's parameters, statistics and values, faster on a CPU.

    Attributes:
        train: use the statistics of this batch, and move the running ones towards them; else use the latter.
        axis_name: the `pmap` axis to take the statistics over. Under `jit` they are those of the whole batch anyway.
        dtype: of the result; statistics and arithmetic are float32.
        epsilon: added to the variance.
        momentum: the part of the way that the running statistics go, as in PyTorch; Linen calls 1 - this so.
    """

    train: bool
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    epsilon: float = 1e-5
    momentum: float = 0.1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N,H,W,C], of any dtype, to the same shape."""
        channels = x.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels)
        scale = self.param("scale", self.scale_init, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        mean, var = running_mean.value, running_var.value
        exact = x.astype(jnp.float32)
        if self.train:
            mean, square = moments(exact)
            if self.axis_name and not self.is_initializing():
                mean, square = jax.lax.pmean((mean, square), self.axis_name)
            var = jnp.maximum(square - jnp.square(mean), 0)
            if not self.is_initializing():
                for running, new in ((running_mean, mean), (running_var, var)):
                    running.value = (1 - self.momentum) * running.value + self.momentum * new
        factor = jax.lax.rsqrt(var + self.epsilon) * scale
        return scaled(exact, mean, factor, bias).astype(self.dtype)


def normed(
    x: jax.Array,
    kind: str,
    name: str,
    *,
    train: bool,
    axis_name: str | None,
    dtype: jnp.dtype,
    groups: int = 32,
    epsilon: float = 1e-5,
    momentum: float = 0.1,
    scale_init: nn.initializers.Initializer = nn.initializers.ones,
) -> jax.Array:
    """What a network's option `norm` says: `BatchNorm`, or group norm (Wu & He 2018).

    Args:
        x: [N,H,W,C].
        kind: of `NORMS`.
        name: of the module.
        groups: of group norm, or as many as divide both them and the channels.
        train, axis_name, dtype, epsilon, momentum, scale_init: of `BatchNorm`.
    """
    if kind == "group":
        groups = math.gcd(groups, x.shape[-1])
        return nn.GroupNorm(groups, epsilon=epsilon, dtype=dtype, scale_init=scale_init, name=name)(x)
    return BatchNorm(train, axis_name, dtype, scale_init, epsilon, momentum, name=name)(x)


def max_pool(x: jax.Array, *, window: int = 2) -> jax.Array:
    """Max pooling over windows that do not overlap; rows and columns left over at the end are dropped.

    Where a window holds its maximum more than once, the first in reading order takes the gradient, as in PyTorch.

    `flax.linen.max_pool` has the same values, but its gradient (XLA's select-and-scatter) is 30 times slower on a CPU.

    Args:
        x: [N,H,W,C] of any real dtype.
        window: side of the window and stride, in pixels.

    Returns:
        [N, H // window, W // window, C], of the dtype of `x`.

    Raises:
        InputError: `x` is smaller than the window.
    """
    _, height, width, _ = x.shape
    if min(height, width) < window:
        raise InputError(
            f"max_pool: images of {height}×{width} are smaller than its window of {window}: use larger images"
        )
    return _max_pool(x[:, : height // window * window, : width // window * window], window)


def _places(x: jax.Array, window: int) -> list[jax.Array]:
    """The pixels of all windows, a place at a time: `window`² strided views [N,h,w,C], in reading order."""
    return [x[:, i::window, j::window] for i in range(window) for j in range(window)]


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _max_pool(x: jax.Array, window: int) -> jax.Array:
    # Kept: where it is flattened, in one loop with that it takes three times as long.
    return kept(reduce(jnp.maximum, _places(x, window)))


@_max_pool.defjvp
def _max_pool_jvp(window: int, primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    # Kept: a gradient that looks for the winner makes what is pooled anew for each pixel.
    y, winner = kept(largest(_places(x, window)))
    n, h, w, c = y.shape
    places = jnp.arange(window**2, dtype=jnp.uint8).reshape(1, 1, window, 1, window, 1)
    chosen = winner[:, :, None, :, None, :] == places
    # A select over a view [N,h,window,w,window,C]: its transpose is one select, without a scatter.
    return y, jnp.where(chosen, dx.reshape(n, h, window, w, window, c), 0).sum((2, 4))
