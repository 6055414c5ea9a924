"""FCOS (Tian et al. 2019, "FCOS: Fully Convolutional One-Stage Object Detection") on a ResNet with a feature pyramid.

A detector without anchor boxes: every place of every level of the pyramid says which class it lies in, how far it is to
the four sides of that object's box, and how near to its centre it is. As in torchvision, whose weights it can take:
group norm in the heads, distances in strides of the level, a place (i, j) stands for the pixel (i, j)·stride.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax.errors import InputError
from cnn_jax.models.layers import Conv, tap
from cnn_jax.models.resnet import FAMILY, ResNet

SMALL = {"depths": (1, 1, 1, 1), "block": "basic", "stem": "medium", "width": 32}

# What differs between the members. `fcos_small` is for images of 64 pixels or so, and trains on a CPU.
DETECTORS = {
    "fcos_small": SMALL | {"extra_levels": 0, "channels": 64, "depth": 2},
    **{f"fcos_{name}_fpn": member for name, member in FAMILY.items()},
}


class FCOS(nn.Module):
    """A backbone, its pyramid and two heads; `models.create("fcos_resnet50_fpn", ...)` fills in the backbone.

    Stages to tap: those of the ResNet under `backbone`, and `pyramid1` … of the levels, fine to coarse.

    Attributes:
        depths, block, stem, norm, width, dtype, axis_name: of the `ResNet`.
        num_classes: of objects; there is no class for the background.
        extra_levels: coarser levels below the three that stem from stages 2 to 4, each half the size of the last.
        channels: of the pyramid and the heads.
        depth: 3×3 convolutions in each head before its outputs.
    """

    depths: tuple[int, ...]
    block: str
    num_classes: int = 10
    stem: str = "large"
    norm: str = "batch"
    width: int = 64
    extra_levels: int = 2
    channels: int = 256
    depth: int = 4
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels from one place to the next in each level, fine to coarse."""
        first = {"small": 2, "medium": 4, "large": 8}[self.stem]
        return tuple(first * 2**i for i in range(3 + self.extra_levels))

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> list[dict[str, jax.Array]]:
        """What each level, fine to coarse, says of normalised images f32[N,H,W,C].

        Returns:
            A dict a level, [h,w] being ⌈H/stride⌉ × ⌈W/stride⌉: `logits` f32[N,h,w,num_classes], `distances`
            f32[N,h,w,4] ≥ 0 to the left, upper, right and lower side, in strides; `centerness` f32[N,h,w], a logit.
        """
        step = self.strides[2]
        if images.ndim != 4 or any(side % step for side in images.shape[1:3]):
            raise InputError(
                f"fcos: images of shape {images.shape}, expected [N,H,W,C] with H and W multiples of {step}"
            )
        stages = ResNet(
            self.depths, self.block, stem=self.stem, norm=self.norm, width=self.width, axis_name=self.axis_name,
            dtype=self.dtype, head=False, name="backbone",
        )(images, train=train)  # fmt: skip
        levels = Pyramid(self.channels, self.extra_levels, self.dtype, name="pyramid")(
            [stages[f"stage{i}"] for i in (2, 3, 4)]
        )
        levels = [tap(self, f"pyramid{i}", level) for i, level in enumerate(levels, start=1)]
        classes, box = (Tower(self.channels, self.depth, self.dtype, name=name) for name in ("classes", "box"))
        # The heads start at a probability of 0.01 for every class (Lin et al. 2017, "Focal loss", section 4.1).
        bias = nn.initializers.constant(-math.log(99))
        logits = _conv(self.num_classes, self.dtype, "logits", bias_init=bias, std=0.01)
        # Above zero, where ReLU has a gradient.
        distances = _conv(4, self.dtype, "distances", std=0.01, bias_init=nn.initializers.ones)
        centerness = _conv(1, self.dtype, "centerness", std=0.01)
        outputs = []
        for level in levels:
            of_class, of_box = classes(level), box(level)
            outputs.append(
                {
                    "logits": logits(of_class).astype(jnp.float32),
                    "distances": nn.relu(distances(of_box).astype(jnp.float32)),
                    "centerness": centerness(of_box).astype(jnp.float32)[..., 0],
                }
            )
        return outputs


class Pyramid(nn.Module):
    """A feature pyramid (Lin et al. 2017): coarse stages are enlarged and added to fine ones."""

    channels: int
    extra_levels: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, stages: list[jax.Array]) -> list[jax.Array]:
        """Stages [N,h,w,C] to levels [N,h,w,channels], both fine to coarse, with the extra levels at the end."""
        uniform = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")

        def conv(side, stride, name):
            return Conv(self.channels, side, stride, dtype=self.dtype, kernel_init=uniform, name=name)

        sums, above = [], None
        for i in reversed(range(len(stages))):
            x = conv(1, 1, f"inner{i + 1}")(stages[i])
            above = x if above is None else x + _enlarged(above, x.shape)
            sums.insert(0, above)
        levels = [conv(3, 1, f"layer{i + 1}")(x) for i, x in enumerate(sums)]
        for i in range(self.extra_levels):
            levels.append(conv(3, 2, f"extra{i + 1}")(nn.relu(levels[-1]) if i else levels[-1]))
        return levels


class Tower(nn.Module):
    """Convolutions with group norm and ReLU, the same for every level."""

    channels: int
    depth: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(1, self.depth + 1):
            x = _conv(self.channels, self.dtype, f"conv{i}")(x)
            x = nn.GroupNorm(math.gcd(32, self.channels), epsilon=1e-5, dtype=self.dtype, name=f"norm{i}")(x)
            x = nn.relu(x)
        return x


def _conv(features: int, dtype, name: str, *, std: float | None = None, bias_init=nn.initializers.zeros) -> Conv:
    kernel_init = nn.initializers.he_normal() if std is None else nn.initializers.normal(std)
    return Conv(features, dtype=dtype, kernel_init=kernel_init, bias_init=bias_init, name=name)


def _enlarged(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Each pixel as a square of four, cut to the height and width of `shape`."""
    return x.repeat(2, axis=1).repeat(2, axis=2)[:, : shape[1], : shape[2]]
