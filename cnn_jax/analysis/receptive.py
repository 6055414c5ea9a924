"""What part of an image a unit sees: by arithmetic, and as its gradient shows.

field = receptive.chain([Layer(3, padding=1), Layer(2, stride=2), Layer(3, padding=1)])   # SimpleCNN's conv2
field == receptive.measured(model, variables, noise, stage="conv2")
patches = receptive.patches(images, analysis.exciting(model, variables, images, stage="conv2"), field)
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.analysis.activations import Exciting, check_units, stage_of, stages
from cnn_jax.analysis.batches import batches
from cnn_jax.analysis.loops import for_loops
from cnn_jax.errors import InputError


class Layer(NamedTuple):
    """A convolution or a pooling, as far as it says what is seen."""

    side: int
    """Of the kernel or window, in its own pixels."""
    stride: int = 1
    """Pixels from one place to the next."""
    dilation: int = 1
    """Pixels from one number of the kernel to the next."""
    padding: int = 0
    """Pixels before the first row and column."""


class Field(NamedTuple):
    """The part of an image that each unit of a stage sees, by (rows, columns).

    The unit at (i, j) sees rows from start[0] + i·stride[0], as many as size[0], and so with j for the columns. Those
    that are not in the image are padding.
    """

    size: tuple[int, int]
    """In pixels."""
    stride: tuple[int, int]
    """Pixels from one unit's part to the next one's; 0 for a stage of one place."""
    start: tuple[int, int]
    """The first pixel that the unit at (0, 0) sees; below 0 where that is padding."""


def chain(layers: Iterable[Layer]) -> Field:
    """What a unit sees behind layers that follow each other; where ways part and join, the longest of them counts.

    Raises:
        InputError: a layer with a side, stride or dilation below 1.

    Source: Araujo et al. 2019, "Computing Receptive Fields of Convolutional Neural Networks", Distill.
    """
    size, stride, start = 1, 1, 0
    for layer in layers:
        if min(layer.side, layer.stride, layer.dilation) < 1:
            raise InputError(f"{layer}: side, stride and dilation must be 1 or more")
        size += layer.dilation * (layer.side - 1) * stride
        start -= layer.padding * stride
        stride *= layer.stride
    return Field((size, size), (stride, stride), (start, start))


def measured(model: nn.Module, variables: Any, images: jax.Array, *, stage: str, batch_size: int = 16) -> Field:
    """What a unit sees, as the smallest box of pixels outside of which its gradient is zero on all images.

    It is measured at two places in the middle of the stage. What lies beyond the image's border is not seen: give
    images larger than the field. Maxima and ReLU hide pixels on single images: give several, such as noise. What the
    variables cut off is not seen either: residual blocks that start as the identity see nothing more.

    Args:
        images: f32[N,H,W,C], as the model takes them.
        stage: [N,h,w,C]; or [N,D], whose field is measured as that of one place.

    Raises:
        InputError: no such stage, or its gradient is zero everywhere.
    """
    height, width, _ = _sides(model, variables, images, stage)
    places = np.array([[height // 2, width // 2], [max(height // 2 - 1, 0), max(width // 2 - 1, 0)]])
    maps = _gradients(model, variables, images, stage, places, None, batch_size)
    sides = []
    for axis in (0, 1):
        seen = [np.flatnonzero(gradient.any(1 - axis)) for gradient in maps]
        if not all(map(len, seen)):
            raise InputError(f"the gradient of stage {stage!r} is zero on all images: give others")
        (first, last), (first_before, last_before) = ((pixels[0], pixels[-1]) for pixels in seen)
        step = max(first - first_before, last - last_before)  # the one end may be cut off
        sides.append((int(last - first + 1), int(step), int(first - places[0][axis] * step)))
    return Field(*zip(*sides, strict=True))


def effective(
    model: nn.Module,
    variables: Any,
    images: jax.Array,
    *,
    stage: str,
    place: tuple[int, int] | None = None,
    channel: int | None = None,
    batch_size: int = 16,
) -> np.ndarray:
    """How much each pixel counts for a unit: f32[H,W], the mean of the absolute gradient over images and colours.

    Args:
        images: f32[N,H,W,C], as the model takes them.
        place: (row, column) of the stage's map; its middle by default.
        channel: of the stage; by default the sum of all of them is differentiated.

    Raises:
        InputError: no such stage, place or channel.

    Source: Luo et al. 2016, "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks".
    """
    height, width, channels = _sides(model, variables, images, stage)
    row, column = (height // 2, width // 2) if place is None else place
    if not (0 <= row < height and 0 <= column < width):
        raise InputError(f"stage {stage!r} has no place ({row}, {column}): it has {height}×{width}")
    if channel is not None:
        check_units([channel], stage, channels)
    return _gradients(model, variables, images, stage, np.array([[row, column]]), channel, batch_size)[0]


def extent(counts: np.ndarray) -> tuple[tuple[int, int], float]:
    """How large a field is: (rows, columns) of the box around all that counts, and the side of the effective field.

    Effective is what counts at least 4.55 % of what counts most; its side is that of a square with as many pixels. Luo
    et al. 2016 compare with the middle pixel, which behind pools of even sides is no more than one of several.

    Args:
        counts: f32[H,W], what `effective` gives. Of one that is zero everywhere, all sides are 0.
    """
    if not counts.any():
        return (0, 0), 0.0
    box = tuple(int(np.ptp(np.flatnonzero(counts.any(axis)))) + 1 for axis in (1, 0))
    return box, float(np.sqrt((counts >= 0.0455 * counts.max()).sum()))


def patches(images: np.ndarray, found: Exciting, field: Field, *, fill: float = 0) -> np.ndarray:
    """What units see in the images that excite them most: [U,k,h,w,C], of the images' dtype.

    Args:
        images: [N,H,W,C], those that `exciting` was given.
        field: of the stage.
        fill: the value beyond the border.
    """
    size = np.asarray(field.size)
    starts = np.asarray(field.start) + found.places * np.asarray(field.stride)
    out = np.full((*found.images.shape, *size, images.shape[-1]), fill, images.dtype)
    for index, row in np.ndenumerate(found.images):
        first = np.clip(starts[index], 0, images.shape[1:3])
        last = np.clip(starts[index] + size, 0, images.shape[1:3])
        inside = tuple(slice(*ends) for ends in zip(first - starts[index], last - starts[index], strict=True))
        out[(*index, *inside)] = images[(row, *map(slice, first, last))]
    return out


def _sides(model: nn.Module, variables: Any, images: jax.Array, stage: str) -> tuple[int, int, int]:
    """(height, width, channels) of a stage; one place, where it has none."""
    shape = jax.eval_shape(
        lambda variables, images: stage_of(stages(model, variables, images), stage), variables, images
    ).shape
    return (1, 1, *shape[1:])[-3:]


def _gradients(model, variables, images, stage, places, channel, batch_size) -> np.ndarray:
    """f32[P,H,W]: the mean absolute gradient of the unit at each of the places, i32[P,2]."""

    @jax.jit
    def step(variables, batch, mask):
        def of_place(place):
            def unit(images):
                value = stage_of(stages(model, variables, images), stage).astype(jnp.float32)
                value = value.reshape(len(value), -1, *value.shape[-2:]) if value.ndim == 4 else value[:, None, None]
                value = value[:, place[0], place[1]]
                return value.sum() if channel is None else value[:, channel].sum()

            gradient = jnp.abs(for_loops(jax.grad(unit))(batch)).mean(3)
            return jnp.where(mask[:, None, None], gradient, 0).sum(0)

        return jax.lax.map(of_place, jnp.asarray(places))

    total = 0
    for _, batch, mask in batches(images, batch_size=batch_size):
        total = total + np.asarray(step(variables, batch, mask))
    return total / len(images)
