"""Segmentation of whole images with more than one look: mirrored, at several scales, by windows."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.errors import InputError
from cnn_jax.tasks.segment import logits_of


class Averaged(NamedTuple):
    """A segmenter that looks more than once: `apply` as the model's own, with the log of the mean probabilities.

        several = Averaged(model, flip=True, scales=(0.75, 1.0, 1.25))
        training.evaluate(several, variables, task, test)

    Attributes:
        model: a Linen module whose outputs are logits f32[N,H,W,C], or {"logits"} of them.
        flip: also look at the mirrored image.
        scales: sizes to look at; sides are rounded to multiples of `multiple`.
        multiple: what the sides of the model's images must be multiples of.
        window: look through square windows of this side, which overlap by half, where the image is larger than one.
    """

    model: Any
    flip: bool = True
    scales: Sequence[float] = (1.0,)
    multiple: int = 32
    window: int | None = None

    def apply(self, variables: Any, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Log probabilities f32[N,H,W,C] of normalised images f32[N,H,W,C']; only for evaluation."""
        if not self.scales or not all(0 < scale < math.inf for scale in self.scales):
            raise InputError(f"looks at scales {tuple(self.scales)}: give one or more, each a number above 0")
        if self.window is not None and self.window < 1:
            raise InputError(f"looks through a window of {self.window} pixels: its side must be 1 or more")
        height, width = images.shape[1:3]
        looks = []
        for scale in self.scales:
            size = [max(self.multiple, round(side * scale / self.multiple) * self.multiple) for side in (height, width)]
            if scale == 1:
                size = [height, width]
            resized = jax.image.resize(images, (len(images), *size, images.shape[-1]), "bilinear")
            for mirrored in (False, True) if self.flip else (False,):
                found = self._probabilities(variables, resized[:, :, ::-1] if mirrored else resized)
                found = found[:, :, ::-1] if mirrored else found
                looks.append(jax.image.resize(found, (*images.shape[:3], found.shape[-1]), "bilinear"))
        return jnp.log(jnp.maximum(sum(looks) / len(looks), 1e-12))

    def _probabilities(self, variables, images):
        height, width = images.shape[1:3]
        side = self.window
        if side is None or (height <= side and width <= side):
            return self._one(variables, images)
        # Windows begin every half of their side, the last at the end; what lies in several is their mean.
        images = jnp.pad(images, ((0, 0), (0, max(0, side - height)), (0, max(0, side - width)), (0, 0)))
        corners = [sorted({*range(0, length - side, max(1, side // 2)), length - side}) for length in images.shape[1:3]]
        shape = jax.eval_shape(self._one, variables, images[:, :side, :side])
        total = jnp.zeros((*images.shape[:3], shape.shape[-1]), shape.dtype)

        # One window after the other: the network is once in the program, and in memory for one window.
        def add(total, corner):
            at = (0, corner[0], corner[1], 0)
            found = self._one(variables, jax.lax.dynamic_slice(images, at, (*shape.shape[:3], images.shape[-1])))
            return jax.lax.dynamic_update_slice(total, found + jax.lax.dynamic_slice(total, at, found.shape), at), None

        total, _ = jax.lax.scan(add, total, jnp.array([(y, x) for y in corners[0] for x in corners[1]]))
        rows, columns = (
            sum((np.arange(length) >= start) & (np.arange(length) < start + side) for start in starts)
            for length, starts in zip(images.shape[1:3], corners, strict=True)
        )
        return (total / jnp.asarray(rows[:, None] * columns, total.dtype)[None, ..., None])[:, :height, :width]

    def _one(self, variables, images):
        return jax.nn.softmax(logits_of(self.model.apply(variables, images, train=False)))
