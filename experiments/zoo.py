"""A network of the zoo with what it takes to be measured, and what its program costs."""

import re
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax import analysis, models, tasks
from experiments.peers.published import PUBLISHED, Published
from experiments.peers.work import random_batch

# Side and channels of the images that these are made for; they have 10 classes.
SMALL = {"simple_cnn": (28, 1), "resnet9": (32, 3), "wide_resnet16_4": (32, 3)}
SMALL |= dict.fromkeys(("fcos_small", "unet_small", "unet_guided"), (64, 3))


class Member(NamedTuple):
    """A network, ready to be measured."""

    model: nn.Module
    kind: str  # classify, detect or segment
    classes: int
    image_shape: tuple[int, int, int]
    variables: dict  # their shapes
    published: Published | None  # what others say of it, if they do

    @property
    def task(self) -> tasks.Task:
        """Of the network's kind, with its classes."""
        options = {"strides": self.model.strides} if self.kind == "detect" else {}
        return getattr(tasks, self.kind)(self.classes, **options)

    def batch(self, images: int) -> dict[str, np.ndarray]:
        """Random images u8 and what is true of them, in the form of our batches."""
        side, _, channels = self.image_shape
        return random_batch(self.kind, images, side, channels=channels, classes=self.classes)


def member(name: str, *, side: int | None = None, dtype: str = "float32") -> Member:
    """The network of that name as it is published, or else for images of 224×224 pixels or as `SMALL` has it.

    Args:
        side: of the images, in pixels, in place of that.

    Raises:
        InputError: no such network, or one for larger images.
    """
    kind = {"fcos": "detect", "deeplabv3": "segment", "unet": "segment"}.get(name.split("_")[0], "classify")
    known = PUBLISHED.get(name)
    usual, channels = SMALL.get(name, (known.side if known else 224, 3))
    side = side or usual
    classes = 10 if name in SMALL else {"classify": 1000, "detect": 90, "segment": 21}[kind]
    classes = known.classes if known else classes
    model = models.create(name, num_classes=classes, dtype=dtype)
    if kind == "classify" and hasattr(model, "stem"):  # of a ResNet, as `experiments.classify` chooses it
        model = model.clone(stem="small" if side <= 64 else "large")
    shape = (side, side, channels)
    with models.traced_for("tpu"):
        variables = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    return Member(model, kind, classes, shape, variables, known)


def counted(name: str, of: Member) -> tuple[dict, list[list]]:
    """What its program says: a network's row, and the rows of its layers, as `reporting.cost.write` takes them."""

    def apply(params, rest, images, key):
        variables, options = {"params": params, **rest}, {"mutable": ["batch_stats"], "rngs": {"dropout": key}}
        return of.model.apply(variables, images, train=True, **options)[0]

    images, key = jax.ShapeDtypeStruct((1, *of.image_shape), jnp.float32), jax.eval_shape(lambda: jax.random.key(0))
    rest = dict(of.variables)
    with models.traced_for("tpu"):
        both = analysis.cost.count(analysis.cost.gradient(apply), rest.pop("params"), rest, images, key)
    table = models.describe(of.model, of.image_shape)
    family = re.split(r"_?v?\d|_(?:tiny|small|base|large)", name)[0] + "_bn" * name.endswith("_bn")
    row = {"name": name, "family": family, "side": of.image_shape[0], "parameters": table.parameters}
    row |= {"flops": both.forward, "train_flops": both.flops, "kept": both.kept, "peak": both.peak}
    row["uncounted"] = ", ".join(both.uncounted)
    if of.published and of.published.side == of.image_shape[0]:
        norms = sum(np.prod(layer.output_shape) for layer in table.layers if layer.type.endswith("Norm"))
        same = both.forward + (4 * norms if of.published.source.norms else 0)
        row["published"] = 2e9 * of.published.multiply_adds
        row["difference"] = same / row["published"] - 1
    scopes, rows = dict(both.scopes), []
    for layer in {layer.name: layer for layer in reversed(table.layers)}.values():  # those that run twice have one row
        scope = scopes.pop(f"{type(of.model).__name__}/{layer.name}".rstrip("/"), (0, 0, 0, 0))
        rows.append([*layer[:4], *scope])
    between = np.sum([*scopes.values(), (0, 0, 0, 0)], axis=0).tolist()
    return row, [*rows[::-1], ["between layers", "", (), 0, *between]]
