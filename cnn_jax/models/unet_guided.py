"""A small U-Net that works at half the size of the image, and lets the pixels themselves draw the outlines.

What a thing is can be told from afar; where it ends, only from the pixel. So classes are found on halved images, whose
four neighbours are channels (space to depth, as in Shi et al. 2016, and back again for the logits), and the logit of
class 0, the ground, also has a part that is affine in the colours of the full image, with coefficients that vary
slowly over it (Gharbi et al. 2017, "Deep bilateral learning"): where ink on a ground has two colours, that is how much
of a pixel the ink covers.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax.errors import InputError
from cnn_jax.models.layers import BatchNorm, Conv, max_pool, tap

GUIDED = {"unet_guided": {"widths": (32, 64, 128), "depths": (1, 2, 2), "up": (48, 64)}}


class GuidedUNet(nn.Module):
    """Residual stages down by halves, each added to the way up; for images of 64 pixels or so, it trains on a CPU.

    Stages to tap: `stem`, `stage1` …, `up2`, `up1`, `logits`.

    Attributes:
        widths: channels of the stages, of which the first is at half the size of the image.
        depths: residual blocks of each stage.
        up: channels of the way up, fine to coarse; one fewer than there are stages.
        num_classes: length of the logits of a pixel.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    up: tuple[int, ...]
    num_classes: int = 10
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        """{"logits", "aux"}, f32[N,H,W,num_classes] each, of normalised images f32[N,H,W,C].

        `aux`, to be learned beside, is the same from a quarter of the size (deep supervision, Lee et al. 2015).
        """
        step = 2 ** len(self.widths)
        if images.ndim != 4 or any(side % step for side in images.shape[1:3]):
            raise InputError(
                f"unet_guided: images of shape {images.shape}, expected [N,H,W,C] with H and W multiples of {step}"
            )
        n, height, width, _ = images.shape

        def conv(x, features, name, *, side=3, scale_init=nn.initializers.ones):
            he = nn.initializers.he_normal()
            x = Conv(features, side, use_bias=False, dtype=self.dtype, kernel_init=he, name=f"{name}_conv")(x)
            return BatchNorm(train, self.axis_name, self.dtype, scale_init, name=f"{name}_norm")(x)

        def read(x, features, name):
            """Numbers at each pixel of `x`, brought to the size of the image."""
            x = Conv(features, 1, dtype=self.dtype, name=name)(x).astype(jnp.float32)
            return jax.image.resize(x, (n, height, width, features), "bilinear")

        x = _space_to_depth(images.astype(self.dtype))
        x = tap(self, "stem", nn.relu(conv(x, self.widths[0], "stem")))
        stages = []
        for stage, (features, depth) in enumerate(zip(self.widths, self.depths, strict=True), start=1):
            if stage > 1:
                x = nn.relu(conv(max_pool(x), features, f"stage{stage}"))
            for block in range(1, depth + 1):
                y = nn.relu(conv(x, features, f"stage{stage}_block{block}_1"))
                # A block starts as the identity.
                y = conv(y, features, f"stage{stage}_block{block}_2", scale_init=nn.initializers.zeros)
                x = nn.relu(x + y)
            stages.append(tap(self, f"stage{stage}", x))
        x = stages.pop()
        while stages:
            beside, features = stages[-1], self.up[len(stages) - 1]
            name = f"up{len(stages)}"
            above = conv(x, features, f"{name}_above", side=1)
            above = jax.image.resize(above, (*beside.shape[:3], features), "bilinear")
            x = nn.relu(above + conv(beside, features, f"{name}_beside", side=1))
            x = tap(self, name, nn.relu(conv(x, features, name)))
            if len(stages) == min(2, len(self.up)):
                aux = read(x, self.num_classes, "aux_logits")
            stages.pop()
        guide = read(x, images.shape[-1] + 1, "guide")
        covered = (guide[..., :-1] * images).sum(-1) + guide[..., -1]
        x = Conv(4 * self.num_classes, 1, dtype=self.dtype, name="logits")(x).astype(jnp.float32)
        logits = _depth_to_space(x).at[..., 0].add(covered)
        return {"logits": tap(self, "logits", logits), "aux": aux}


def _space_to_depth(x: jax.Array) -> jax.Array:
    """[N,H,W,C] to [N,H/2,W/2,4C]: the pixels of each square of 2×2, row by row."""
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).swapaxes(2, 3).reshape(n, h // 2, w // 2, 4 * c)


def _depth_to_space(x: jax.Array) -> jax.Array:
    """The way back."""
    n, h, w, c = x.shape
    return x.reshape(n, h, w, 2, 2, c // 4).swapaxes(2, 3).reshape(n, 2 * h, 2 * w, c // 4)
