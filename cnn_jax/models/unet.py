"""U-Net (Ronneberger et al. 2015), plain or on a ResNet: what is coarse and known meets what is fine and seen."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax.errors import InputError
from cnn_jax.models.layers import Conv, max_pool, normed, tap
from cnn_jax.models.resnet import FAMILY, ResNet

# What differs between the members: the way down.
UNETS = {
    "unet": {"widths": (32, 64, 128, 256)},
    # For images of 64 pixels or so: trains on a CPU.
    "unet_small": {
        "widths": (16, 32, 64, 128),
        "depths": (1, 1, 2, 2),
        "stem": "medium",
        "width": 32,
        "convs": 1,
        "auxiliary": 4,
    },
    **{f"unet_{name}": {"widths": (32, 64, 128, 256), **member} for name, member in FAMILY.items()},
}


class UNet(nn.Module):
    """Down by halves, up again by doubling, each size of the way up joined to that of the way down.

    Stages to tap: `down1` … (or those of the ResNet under `backbone`), `up1` …, `logits`.

    Attributes:
        widths: channels of the way up, and of the plain way down, fine to coarse.
        convs: 3×3 convolutions of a step of the way.
        depths, block: of a `ResNet` that is the way down; without them it is plain, as in the paper.
        stem, width: of that ResNet.
        num_classes: length of the logits of a pixel.
        norm: "batch", or "group" of 8 groups.
        auxiliary: also predict from the way up at this stride, 0 for none. Where objects are thin, as strokes are,
            their classes are learned many times sooner so (deep supervision, Lee et al. 2015).
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...] = ()
    block: str = "basic"
    num_classes: int = 10
    stem: str = "small"
    width: int = 64
    norm: str = "batch"
    convs: int = 2
    auxiliary: int = 0
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array | dict[str, jax.Array]:
        """Logits f32[N,H,W,num_classes] of normalised images f32[N,H,W,C]; {"logits", "aux"} with `auxiliary`."""

        def step(x, features, name):
            for i in range(1, self.convs + 1):
                he = nn.initializers.he_normal()
                x = Conv(features, use_bias=False, dtype=self.dtype, kernel_init=he, name=f"{name}_conv{i}")(x)
                norm = {"train": train, "axis_name": self.axis_name, "dtype": self.dtype, "groups": 8}
                x = nn.relu(normed(x, self.norm, f"{name}_norm{i}", **norm))
            return tap(self, name, x)

        x = images.astype(self.dtype)
        if self.depths:
            stages = ResNet(
                self.depths, self.block, stem=self.stem, norm=self.norm, width=self.width, axis_name=self.axis_name,
                dtype=self.dtype, head=False, name="backbone",
            )(x, train=train)  # fmt: skip
            down = [stages[f"stage{i}"] for i in range(1, len(self.depths) + 1)]
            if self.stem != "small":
                # Edges are seen at the size of the image, which the ResNet leaves at once.
                down.insert(0, step(x, self.widths[0], "full"))
        else:
            part = 2 ** (len(self.widths) - 1)
            if images.ndim != 4 or any(side % part for side in images.shape[1:3]):
                raise InputError(
                    f"unet: images of shape {images.shape}, expected [N,H,W,C] with H and W multiples of {part}"
                )
            down = []
            for i, width in enumerate(self.widths, start=1):
                x = step(max_pool(x) if down else x, width, f"down{i}")
                down.append(x)
        x = down.pop()
        while down:
            beside = down.pop()
            x = jax.image.resize(x, (*beside.shape[:3], x.shape[-1]), "bilinear")
            x = step(
                jnp.concatenate([beside, x], axis=-1),
                self.widths[min(len(down), len(self.widths) - 1)],
                f"up{len(down) + 1}",
            )
            if self.auxiliary and x.shape[1] == -(-images.shape[1] // self.auxiliary):
                aux = Conv(self.num_classes, 1, dtype=self.dtype, name="aux_logits")(x).astype(jnp.float32)
                aux = jax.image.resize(aux, (*images.shape[:3], self.num_classes), "bilinear")
        logits = Conv(self.num_classes, 1, dtype=self.dtype, name="logits")(x)
        logits = tap(self, "logits", logits.astype(jnp.float32))
        return {"logits": logits, "aux": aux} if self.auxiliary else logits
