"""DeepLabv3 (Chen et al. 2017, "Rethinking Atrous Convolution for Semantic Image Segmentation"), as in torchvision."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax.models.layers import Conv, normed, tap
from cnn_jax.models.resnet import FAMILY, ResNet

DEEPLABS = {f"deeplabv3_{name}": member for name, member in FAMILY.items() if member["block"] == "bottleneck"}


class DeepLabV3(nn.Module):
    """A ResNet whose last stages are dilated, convolutions of several dilations side by side, and an auxiliary head.

    Stages to tap: those of the ResNet under `backbone`; `aspp`, `logits`.

    Attributes:
        depths, block, stem, norm, width, dtype, axis_name: of the `ResNet`.
        num_classes: length of the logits of a pixel.
        rates: dilations of the 3×3 convolutions.
        channels: of the head.
        auxiliary: also predict from stage 3, for training.
    """

    depths: tuple[int, ...]
    block: str
    num_classes: int = 21
    stem: str = "large"
    norm: str = "batch"
    width: int = 64
    rates: tuple[int, ...] = (12, 24, 36)
    channels: int = 256
    auxiliary: bool = True
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        """Of normalised images f32[N,H,W,C]: {"logits": f32[N,H,W,num_classes]}, and "aux" alike with `auxiliary`.

        With `train`, dropout draws from the key `dropout`.
        """

        def block(x, features, name, *, side=1, dilation=1):
            x = Conv(features, side, dilation=dilation, use_bias=False, dtype=self.dtype, name=f"{name}_conv")(x)
            norm = {"train": train, "axis_name": self.axis_name, "dtype": self.dtype}
            return nn.relu(normed(x, self.norm, f"{name}_norm", **norm))

        def to_pixels(x, name):
            x = Conv(self.num_classes, 1, dtype=self.dtype, name=name)(x).astype(jnp.float32)
            return jax.image.resize(x, (*images.shape[:3], self.num_classes), "bilinear")

        def dropout(x, rate):
            return nn.Dropout(rate, deterministic=not train)(x)

        stages = ResNet(
            self.depths, self.block, stem=self.stem, norm=self.norm, width=self.width, axis_name=self.axis_name,
            dtype=self.dtype, head=False, dilated=(3, 4), name="backbone",
        )(images, train=train)  # fmt: skip
        x = stages["stage4"]
        beside = [block(x, self.channels, "aspp1")]
        for i, rate in enumerate(self.rates, start=2):
            beside.append(block(x, self.channels, f"aspp{i}", side=3, dilation=rate))
        whole = block(x.mean((1, 2), keepdims=True), self.channels, "aspp_pool")
        beside.append(jnp.broadcast_to(whole, beside[0].shape))
        x = dropout(block(jnp.concatenate(beside, axis=-1), self.channels, "aspp_project"), 0.5)
        x = block(tap(self, "aspp", x), self.channels, "head", side=3)
        outputs = {"logits": tap(self, "logits", to_pixels(x, "logits"))}
        if self.auxiliary:
            x = stages["stage3"]
            x = dropout(block(x, x.shape[-1] // 4, "aux", side=3), 0.1)
            outputs["aux"] = to_pixels(x, "aux_logits")
        return outputs
