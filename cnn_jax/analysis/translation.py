"""What becomes of a network's stages and answers when its images are shifted, turned or scaled.

    errors = equivariance(model, variables, images, [(0, 1), (2, 4)])         # {stage: f32[shifts, images]}
    maps = heat_map(model, variables, images, labels)                         # accuracy under every shift, and more
    curve = respond(model, variables, images, labels, rotate, jnp.arange(-90.0, 91, 15))

Images are f32[N,H,W,C] as the model takes them. Where they are shifted, they roll around (`fill=None`), or what comes
in is `fill`, a number or f32[C], such as the value of an empty ground after preprocessing. A batch of images takes all
shifts, angles or factors one after the other, so that memory does not grow with their number.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from cnn_jax.analysis.activations import stages
from cnn_jax.analysis.batches import batches
from cnn_jax.analysis.scores import check_labels
from cnn_jax.errors import InputError


def shift(images: jax.Array, offset: jax.Array, *, fill: jax.typing.ArrayLike | None = None) -> jax.Array:
    """Images moved by whole pixels: what was at (0, 0) is at the offset.

    Args:
        images: [N,H,W,C] of any dtype.
        offset: i32[2], pixels down and to the right.
    """
    moved = jnp.roll(images, (offset[0], offset[1]), (1, 2))
    if fill is None:
        return moved
    rows, columns = (
        (jnp.arange(side) >= by) & (jnp.arange(side) < side + by)
        for side, by in zip(images.shape[1:3], offset, strict=True)
    )
    inside = (rows[:, None] & columns[None])[None, :, :, None]
    return jnp.where(inside, moved, jnp.broadcast_to(jnp.asarray(fill, images.dtype), images.shape))


def shift_between(images: jax.Array, offset: jax.Array, *, fill: jax.typing.ArrayLike | None = None) -> jax.Array:
    """Images moved by parts of pixels too.

    Rolling around, they are sums of waves whose phases are shifted (Fourier): nothing is blurred, and a shift there and
    back is none, but for the wave of the highest frequency of an even side, of which the part is kept that pixels can
    show. With a fill, they are bilinear: means of the four shifts by whole pixels around.

    Args:
        images: f32[N,H,W,C].
        offset: f32[2], pixels down and to the right.
    """
    if fill is not None:
        whole = jnp.floor(offset).astype(jnp.int32)
        part = offset - whole
        return sum(
            jnp.abs(1 - i - part[0]) * jnp.abs(1 - j - part[1]) * shift(images, whole + jnp.array([i, j]), fill=fill)
            for i in (0, 1)
            for j in (0, 1)
        )

    def phases(side, frequencies, by):
        turned = jnp.exp(-2j * jnp.pi * frequencies * by)
        return jnp.where(np.abs(frequencies) == 0.5, turned.real, turned) if side % 2 == 0 else turned

    _, height, width, _ = images.shape
    rows = phases(height, np.fft.fftfreq(height), offset[0])[None, :, None, None]
    columns = phases(width, np.fft.rfftfreq(width), offset[1])[None, None, :, None]
    return jnp.fft.irfft2(jnp.fft.rfft2(images, axes=(1, 2)) * rows * columns, (height, width), (1, 2))


def rotate(images: jax.Array, degrees: jax.Array, *, fill: jax.typing.ArrayLike = 0.0) -> jax.Array:
    """Images turned about their middle, anti-clockwise as one looks at them; bilinear, `fill` beyond the border.

    Args:
        images: f32[N,H,W,C].
        degrees: f32[].
    """
    n, height, width, channels = images.shape
    angle = jnp.deg2rad(degrees)
    y, x = (jnp.arange(side) - (side - 1) / 2 for side in (height, width))
    y, x = y[:, None], x[None]
    places = [
        jnp.sin(angle) * x + jnp.cos(angle) * y + (height - 1) / 2,
        jnp.cos(angle) * x - jnp.sin(angle) * y + (width - 1) / 2,
    ]
    fill = jnp.broadcast_to(jnp.asarray(fill, images.dtype), images.shape)
    flat = (images - fill).transpose(0, 3, 1, 2).reshape(n * channels, height, width)
    turned = jax.vmap(lambda image: map_coordinates(image, places, order=1))(flat)
    return turned.reshape(n, channels, height, width).transpose(0, 2, 3, 1) + fill


def scale(images: jax.Array, factor: jax.Array, *, fill: jax.typing.ArrayLike = 0.0) -> jax.Array:
    """Images made larger or smaller about their middle, on the same canvas; bilinear, `fill` beyond the border.

    Where they are made smaller, each pixel is a mean over the part that it stands for, so that nothing aliases.

    Args:
        images: f32[N,H,W,C].
        factor: f32[], above 0; above 1 is larger.
    """
    sides = jnp.array(images.shape[1:3], jnp.float32)
    fill = jnp.broadcast_to(jnp.asarray(fill, images.dtype), images.shape)
    scaled = jax.image.scale_and_translate(
        images - fill, images.shape, (1, 2), jnp.broadcast_to(factor, 2), sides * (1 - factor) / 2, method="linear"
    )
    return scaled + fill


def equivariance(
    model: nn.Module,
    variables: Any,
    images: np.ndarray,
    shifts: Sequence[tuple[int, int]],
    *,
    names: str | Sequence[str] = "*",
    fill: jax.typing.ArrayLike | None = None,
    batch_size: int = 64,
) -> dict[str, np.ndarray]:
    """How far each stage is from moving with its image: f32[S,N] by stage.

    ‖f(shifted x) - shifted f(x)‖ / ‖f(x)‖, where a map of h rows for an image of H is shifted by h/H of the shift.
    Where that is no whole number, it is the best of the whole ones next to it, for each image. So it is zero, but for
    rounding, for circular padding and images that roll around, whose sides are multiples of the stage's stride: in
    stages of stride 1 under all shifts, in others under shifts by multiples of their stride, and with adaptive
    polyphase sampling under all. Of other sides a stride leaves out the last rows. Stages without places, [N,D], are
    compared as they are: there it is the error of invariance.

    Args:
        shifts: S times (down, right), in whole pixels.
        names: which stages.
        fill: what comes in, instead of what goes out. Maps are then compared where both have been in the image.

    Raises:
        InputError: a name that fits no stage; shifts of another form; or, with a fill, a shift past the image.
    """
    offsets = np.asarray(shifts)
    if offsets.ndim != 2 or offsets.shape[1] != 2 or offsets.dtype.kind != "i":
        raise InputError(f"shifts of shape {offsets.shape} and {offsets.dtype}: expected whole pixels (down, right)")
    sides = images.shape[1:3]
    if fill is not None and (np.abs(offsets) >= sides).any():
        raise InputError(
            f"shifts of up to {np.abs(offsets).max()} pixels leave nothing of images of {sides[0]}×{sides[1]}"
        )
    order = []

    @jax.jit
    def step(variables, batch):
        still = stages(model, variables, batch, names=names)
        order[:] = still

        def of_shift(offset):
            moved = stages(model, variables, shift(batch, offset, fill=fill), names=names)
            return [_error(still[name], moved[name], offset, sides, fill is not None) for name in still]

        return jax.lax.map(of_shift, jnp.asarray(offsets))

    found = []
    for rows, batch, _ in batches(images, batch_size=batch_size):
        found.append([np.asarray(error)[:, : rows.stop - rows.start] for error in step(variables, batch)])
    return {name: np.concatenate(parts, axis=1) for name, *parts in zip(order, *found, strict=True)}


def _error(still: jax.Array, moved: jax.Array, offset: jax.Array, sides: tuple, cut: bool) -> jax.Array:
    """f32[N]: the least over the whole shifts of the map next to `offset`."""
    still, moved = still.astype(jnp.float32), moved.astype(jnp.float32)

    def length(x):
        return jnp.linalg.norm(x.reshape(len(x), -1), axis=1)

    def relative(target, moved):
        return length(moved - target) / jnp.maximum(length(target), 1e-30)

    if still.ndim != 4:
        return relative(still, moved)
    below, above = (
        [whole(by * small, side) for by, small, side in zip(offset, still.shape[1:3], sides, strict=True)]
        for whole in (lambda a, b: a // b, lambda a, b: -(-a // b))
    )
    errors = []
    for down in (below[0], above[0]):
        for right in (below[1], above[1]):
            target, seen = shift(still, (down, right)), 1
            if cut:
                seen = shift(jnp.ones_like(still), (down, right), fill=0)
            errors.append(relative(target * seen, moved * seen))
    return jnp.stack(errors).min(0)


class Responses(NamedTuple):
    """What a classifier says of N images under P transformations."""

    classes: np.ndarray
    """i32[P,N], what it takes them for."""
    correct: np.ndarray
    """bool[P,N]."""
    probability: np.ndarray
    """f32[P,N], that it gives to the true class."""


def respond(
    model: nn.Module,
    variables: Any,
    images: np.ndarray,
    labels: np.ndarray,
    transform: Callable[[jax.Array, jax.Array], jax.Array],
    amounts: jax.Array,
    *,
    batch_size: int = 128,
) -> Responses:
    """A classifier's answers to transformed images, for every amount of the transformation.

    Two compiled programs are called in turns. In one, XLA's CPU back end would move an image anew for each place of a
    kernel that sees it.

    Args:
        model: gives logits f32[N,K].
        labels: i32[N].
        transform: (images, amount) to images of their shape, traceable: `shift`, `shift_between`, `rotate`, `scale`, or
            `partial(rotate, fill=-0.42)`.
        amounts: [P,…], one after the other: f32[P] degrees or factors, [P,2] offsets.

    Raises:
        InputError: labels that do not fit the images or the classes, or no logits.
    """
    labels, amounts = np.asarray(labels), jnp.asarray(amounts)
    logits = jax.eval_shape(model.apply, variables, jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32))
    if getattr(logits, "ndim", 0) != 2:
        raise InputError(f"{type(model).__name__} does not give logits [N,K]: give a classifier")
    check_labels(labels, len(images), logits.shape[1])

    @jax.jit
    def answer(variables, batch, labels):
        logits = model.apply(variables, batch)
        return logits.argmax(1), jnp.take_along_axis(jax.nn.softmax(logits), labels[:, None], 1)[:, 0]

    move, found = jax.jit(transform), []
    for rows, batch, mask in batches(images, batch_size=batch_size):
        batch, known = jax.device_put((batch, np.pad(labels[rows], (0, len(batch) - mask.sum()))))
        answers = [answer(variables, move(batch, amount), known) for amount in amounts]
        found.append([np.stack(part)[:, mask] for part in zip(*answers, strict=True)])
    said, probability = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
    return Responses(said, said == labels[None], probability)


class HeatMap(NamedTuple):
    """What a classifier says under all shifts, as maps: rows are shifts down, columns are shifts to the right."""

    down: np.ndarray
    """i32[Y], pixels."""
    right: np.ndarray
    """i32[X], pixels."""
    accuracy: np.ndarray
    """f32[Y,X]."""
    probability: np.ndarray
    """f32[Y,X], the mean of what the true class is given."""
    kept: np.ndarray
    """f32[Y,X], the share of the images that are taken for the same as without a shift; 1 where there is none."""
    consistency: np.ndarray
    """f32[N], of each image, see `consistency`."""


def heat_map(
    model: nn.Module,
    variables: Any,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    reach: int | None = None,
    fill: jax.typing.ArrayLike | None = None,
    batch_size: int = 128,
) -> HeatMap:
    """Accuracy, the true class's probability and steadiness of the prediction under every shift by whole pixels.

    Args:
        model: gives logits f32[N,K].
        labels: i32[N].
        reach: the largest shift either way; by default half of each side, all that differ when images roll around.

    Raises:
        InputError: as `respond`, or a reach below 0.

    Source: Azulay & Weiss 2019, "Why do deep convolutional networks generalize so poorly to small image
    transformations?", for accuracy and probability; Zhang 2019 for consistency.
    """
    if reach is not None and reach < 0:
        raise InputError(f"reach is {reach}: it must be 0 or more")
    down, right = (
        np.arange(-(side // 2), (side + 1) // 2) if reach is None else np.arange(-reach, reach + 1)
        for side in images.shape[1:3]
    )
    offsets = np.stack(np.meshgrid(down, right, indexing="ij"), -1).reshape(-1, 2)

    def move(images, offset):
        return shift(images, offset, fill=fill)

    said = respond(model, variables, images, labels, move, offsets, batch_size=batch_size)
    still = said.classes[np.flatnonzero((offsets == 0).all(1))]
    maps = (said.correct, said.probability, said.classes == still)
    maps = (values.mean(1, dtype=np.float32).reshape(len(down), len(right)) for values in maps)
    return HeatMap(down, right, *maps, consistency(said.classes))


def consistency(classes: np.ndarray) -> np.ndarray:
    """How likely two shifts, drawn at random, are to lead to the same prediction: f32[N], from 1/K to 1.

    Args:
        classes: i32[P,N], predictions under P shifts, as in `Responses`.

    Source: Zhang 2019, "Making Convolutional Networks Shift-Invariant Again"; there two shifts are drawn for each
    image, and here all pairs count, those of a shift with itself too.
    """
    counts = [(classes == label).sum(0) for label in np.unique(classes)]
    return (np.square(np.stack(counts) / len(classes)).sum(0)).astype(np.float32)
