"""Boxes and maps drawn over images, maps drawn alone, and the legend of their colours: arrays u8[H,W,3]."""

from collections.abc import Mapping, Sequence

import numpy as np

from .style import INK, PALETTE, colours

_LEAST = 256  # pixels: a smaller picture is enlarged a whole number of times before it is drawn on

GROUND, UNKNOWN = "#CDD3DA", "#FFFFFF"
# After the house's colours: each as far from those before it, from the ground and from white as there is room for in
# OKLab, a space in which distance is difference to the eye (Ottosson 2020), rounded to colours that please.
_MORE = ("#7A1E00", "#22D022", "#000096", "#F0F04B", "#005A00", "#FF00FF", "#780087", "#C30F69", "#78D287")
_MORE += ("#784B4B", "#FFA5FF", "#003C4B", "#1EFFF0", "#877800", "#FFA596", "#5A00FF")


def class_colours(count: int) -> np.ndarray:
    """A colour a class, u8[count,3]: the house's first, then others far from them; beyond 23 a wheel of hues,
    bright and dark."""
    first = [_rgb(colour) for colour in (*PALETTE, *_MORE) if colour != "#000000"]
    index = np.arange(count)
    more = colours("hsv", index * 0.618 % 1) * np.array([1, 0.7, 0.4])[index % 3, None]
    return np.concatenate([np.array(first), more])[:count].astype(np.uint8)


def map_colours(count: int) -> np.ndarray:
    """A colour a class of a map, u8[count,3]: a light grey for class 0, which as a rule is the ground, then
    `class_colours`."""
    return np.concatenate([np.array([_rgb(GROUND)], np.uint8), class_colours(count - 1)])


def with_boxes(
    image: np.ndarray, objects: Mapping[str, np.ndarray], class_names: Sequence[str], *, threshold: float = 0.0
) -> np.ndarray:
    """An image u8[H,W,C] with the boxes f32[M,4] of its objects and their classes: u8[H',W',3], enlarged if small.

    objects: `boxes`, `label` i32[M], `objects` bool[M]; perhaps `scores` f32[M], of which those below `threshold` are
    left out, and `crowd` bool[M], which is said.
    """
    from PIL import Image, ImageDraw, ImageFont

    image, zoom = _enlarged(image)
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    size = max(14, min(image.shape[:2]) // 18)
    font, palette = ImageFont.load_default(size), class_colours(len(class_names))
    scores = objects.get("scores")
    keep = np.flatnonzero(objects["objects"] & (True if scores is None else scores >= threshold))
    labels = []  # (place, text, colour), the best first
    for i in keep:
        left, top, right, bottom = (float(x) * zoom for x in objects["boxes"][i])
        right, bottom = max(right - 1, left), max(bottom - 1, top)
        colour = palette[int(objects["label"][i])]
        text = str(class_names[int(objects["label"][i])]) + ("" if scores is None else f" {scores[i]:.2f}")
        text += " (crowd)" if "crowd" in objects and objects["crowd"][i] else ""
        width, height = draw.textlength(text, font=font) + 6, size + 4
        spots = [(x, y) for x in (left, right - width) for y in (top - height, bottom, top, bottom - height)]
        place = _free(spots, width, height, image.shape, [place for place, _, _ in labels])
        labels.append((place, text, colour))
        draw.rectangle([left, top, right, bottom], outline=tuple(map(int, colour)), width=max(2, size // 7))
    for (x, y, right, bottom), text, colour in labels[::-1]:  # the best on top
        draw.rectangle([x, y, right, bottom], fill=tuple(map(int, colour)))
        light = np.dot(colour, (0.299, 0.587, 0.114)) > 150
        draw.text((x + 3, y + 1), text, fill="black" if light else "white", font=font)
    return np.asarray(picture)


def _free(spots, width: float, height: float, shape: tuple[int, ...], taken: list) -> tuple[float, ...]:
    """The first of the spots (left, top) where a label covers none of those `taken`, or else the first; all are moved
    into the image: (left, top, right, bottom)."""
    places = []
    for x, y in spots:
        x, y = max(0, min(x, shape[1] - width)), max(0, min(y, shape[0] - height))
        places.append((x, y, x + width, y + height))
    apart = lambda a, b: a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]  # noqa: E731
    return next((place for place in places if all(apart(place, other) for other in taken)), places[0])


def with_classes(
    image: np.ndarray, classes: np.ndarray | None = None, palette: np.ndarray | None = None, *, share: float = 0.6
) -> np.ndarray:
    """An image u8[H,W,C] with the colour of each pixel's class [H,W] over it: u8[H',W',3], enlarged if small.

    Class 0 stays as it is, and so does 255, where the class is not known. Under a colour the image is grey, so that a
    class has one hue wherever it lies.
    """
    image, zoom = _enlarged(image)
    if classes is None:
        return image
    classes = np.asarray(classes).repeat(zoom, 0).repeat(zoom, 1)
    marked = (classes > 0) & (classes < len(palette))
    colour = palette[np.where(marked, classes, 0)]
    grey = image.mean(-1, keepdims=True)
    mixed = np.round((1 - share) * grey + share * colour).astype(np.uint8)
    return np.where(marked[..., None], mixed, image)


def map_alone(classes: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """A map [H,W] in the colours of its classes, white where the class is not known: u8[H',W',3], enlarged if small."""
    classes = np.asarray(classes)
    known = classes < len(palette)
    drawn = np.where(known[..., None], palette[np.where(known, classes, 0)], np.array(_rgb(UNKNOWN), np.uint8))
    return _enlarged(drawn)[0]


def with_legend(picture: np.ndarray, class_names: Sequence[str], palette: np.ndarray) -> np.ndarray:
    """A picture u8[H,W,3] with the legend of its classes below, if there are any: u8[H',W,3]."""
    if not len(class_names):
        return picture
    height, width = picture.shape[:2]
    return np.concatenate([picture, legend(class_names, palette, width=width, size=max(14, min(height, width) // 24))])


def legend(class_names: Sequence[str], palette: np.ndarray, *, width: int, size: int = 24) -> np.ndarray:
    """Each class beside its colour, in rows: u8[H,width,3] on white, in letters `size` pixels high."""
    from PIL import Image, ImageDraw, ImageFont

    font, gap = ImageFont.load_default(size), size // 2
    picture = Image.new("RGB", (width, 1))
    places, x, y = [], gap, gap
    for name in map(str, class_names):
        wide = size + gap // 2 + ImageDraw.Draw(picture).textlength(name, font=font)
        if x > gap and x + wide + gap > width:
            x, y = gap, y + size + gap
        places.append((x, y, name))
        x += wide + 2 * gap
    picture = Image.new("RGB", (width, y + size + gap), "white")
    draw = ImageDraw.Draw(picture)
    for (x, y, name), colour in zip(places, palette, strict=True):
        draw.rectangle([x, y, x + size, y + size], fill=tuple(map(int, colour)), outline=INK)
        draw.text((x + size + gap // 2, y + size / 2), name, fill=INK, font=font, anchor="lm")
    return np.asarray(picture)


def _rgb(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def _enlarged(image: np.ndarray) -> tuple[np.ndarray, int]:
    image = np.asarray(image)
    zoom = max(1, -(-_LEAST // max(image.shape[:2])))
    image = image.repeat(zoom, 0).repeat(zoom, 1)
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3))), zoom
