"""Boxes and maps drawn over images, as arrays u8[H,W,3] for the sheets of `pictures`."""

from collections.abc import Mapping, Sequence

import numpy as np

from .style import PALETTE, colours

_LEAST = 256  # pixels: a smaller picture is enlarged a whole number of times before it is drawn on


def class_colours(count: int) -> np.ndarray:
    """A colour a class, u8[count,3]: the house's first, then a wheel of hues."""
    from matplotlib.colors import to_rgb

    first = np.round(255 * np.array([to_rgb(colour) for colour in PALETTE if colour != "#000000"])).astype(np.uint8)
    more = colours("hsv", np.arange(count) * 0.618 % 1)
    return np.concatenate([first, more])[:count]


def with_boxes(
    image: np.ndarray, objects: Mapping[str, np.ndarray], class_names: Sequence[str], *, threshold: float = 0.0
) -> np.ndarray:
    """An image u8[H,W,C] with the boxes f32[M,4] of its objects and their classes: u8[H',W',3], enlarged if small.

    objects: `boxes`, `label` i32[M], `objects` bool[M], perhaps `scores` f32[M], of which those below `threshold` are
    left out.
    """
    from PIL import Image, ImageDraw, ImageFont

    image, zoom = _enlarged(image)
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    size = max(14, min(image.shape[:2]) // 18)
    font, palette = ImageFont.load_default(size), class_colours(len(class_names))
    scores = objects.get("scores")
    keep = np.flatnonzero(objects["objects"] & (True if scores is None else scores >= threshold))
    for i in keep[::-1]:  # the best last, on top
        left, top, right, bottom = (float(x) * zoom for x in objects["boxes"][i])
        label = int(objects["label"][i])
        colour = tuple(int(x) for x in palette[label])
        right, bottom = max(right - 1, left), max(bottom - 1, top)
        draw.rectangle([left, top, right, bottom], outline=colour, width=max(2, size // 7))
        text = str(class_names[label]) + ("" if scores is None else f" {scores[i]:.2f}")
        width = draw.textlength(text, font=font) + 6
        x = min(max(left, 0), max(0, image.shape[1] - width))
        y = top - size - 4 if top >= size + 4 else min(top, image.shape[0] - size - 4)
        draw.rectangle([x, y, x + width, y + size + 4], fill=colour)
        light = np.dot(palette[label], (0.299, 0.587, 0.114)) > 150
        draw.text((x + 3, y + 1), text, fill="black" if light else "white", font=font)
    return np.asarray(picture)


def with_classes(
    image: np.ndarray, classes: np.ndarray | None = None, palette: np.ndarray | None = None, *, share: float = 0.6
) -> np.ndarray:
    """An image u8[H,W,C] with the colour of each pixel's class [H,W] over it: u8[H',W',3], enlarged if small.

    Class 0 stays as it is, and so does 255, where the class is not known.
    """
    image, zoom = _enlarged(image)
    if classes is None:
        return image
    classes = np.asarray(classes).repeat(zoom, 0).repeat(zoom, 1)
    marked = (classes > 0) & (classes < len(palette))
    colour = palette[np.where(marked, classes, 0)]
    mixed = np.round((1 - share) * image + share * colour).astype(np.uint8)
    return np.where(marked[..., None], mixed, image)


def _enlarged(image: np.ndarray) -> tuple[np.ndarray, int]:
    image = np.asarray(image)
    zoom = max(1, -(-_LEAST // max(image.shape[:2])))
    image = image.repeat(zoom, 0).repeat(zoom, 1)
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3))), zoom
