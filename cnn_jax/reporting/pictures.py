"""Figures made of pictures: samples, mistakes, filters, feature maps.

Each is one array of pixels, put together here and shown by one `imshow`, which takes hundredths of a second where a
hundred Axes take seconds. Images come as u8 in 0..255 or floats in [0, 1], [N,H,W,C] with C of 1 or 3, or [N,H,W].
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from . import overlays
from .style import DPI, INK, LINE, MUTED, WIDTH, colours, pixel_figure, shorten, styled

_PAGE = round(WIDTH * DPI)  # all lengths here are pixels of the figure
_MARGIN, _GAP = 16, 14
_LARGEST = 300  # of a picture: few pictures do not grow beyond it


class _Scale(NamedTuple):
    """A colour scale under the pictures: its map, and the texts at its left end, middle and right end."""

    colour_map: str
    texts: tuple[str, str, str]


def image_grid(
    images: np.ndarray,
    titles: Sequence[str] | None = None,
    *,
    columns: int = 8,
    title: str = "",
    note: str = "",
    legend: tuple[Sequence[str], np.ndarray] | None = None,
    wide: bool = False,
):
    """Pictures in rows of `columns`, each under its title (which may have several lines). Returns a Figure.

    legend: names and their colours u8[N,3], to stand below; wide: twice as wide as other figures.
    """
    across = 2 * _PAGE if wide else _PAGE
    below = None if legend is None else overlays.legend(*legend, width=across - 2 * _MARGIN, size=_points(9))
    return _sheet(_rgb(images), titles, columns=columns, title=title, note=note, below=below, across=across)


def mistakes(
    images: np.ndarray | Callable[[np.ndarray], np.ndarray],
    labels: np.ndarray,
    predictions: np.ndarray,
    confidences: np.ndarray,
    class_names: Sequence[str],
    *,
    count: int = 25,
    columns: int = 5,
    title: str = "Worst mistakes",
):
    """The wrong predictions made with the greatest confidence, worst first, "true → predicted". Returns a Figure.

    images: [N,H,W,C], or a function of rows int[M] that gives [M,H,W,C], for sets that are not in memory;
    labels, predictions: int[N]; confidences: f[N] in [0, 1], of the predicted class.
    """
    labels, predictions, confidences = np.asarray(labels), np.asarray(predictions), np.asarray(confidences)
    wrong = np.flatnonzero(labels != predictions)
    worst = wrong[np.argsort(-confidences[wrong], kind="stable")][:count]
    if not len(worst):
        return _sheet(np.zeros((0, 1, 1, 3), np.uint8), None, columns=1, title=title, note="There are none.")
    names = [str(name) for name in class_names]
    if max(len(names[c]) for c in (*labels[worst], *predictions[worst])) > 2:
        columns, form = min(columns, 4), "{}\n→ {}\n{:.0%}"
    else:
        form = "{} → {}  {:.0%}"
    titles = [form.format(names[labels[i]], names[predictions[i]], confidences[i]) for i in worst]
    note = f"true → predicted, with confidence; {len(worst):,} of {len(wrong):,} mistakes among {len(labels):,} images"
    shown = images(worst) if callable(images) else np.asarray(images)[worst]
    return _sheet(_rgb(shown), titles, columns=columns, title=title, note=note)


def filters(kernel: np.ndarray, *, title: str = "Learned filters", columns: int = 8, limit: int = 64):
    """A convolution's filters, numbered from 1, on a diverging scale that is symmetric about zero. Returns a Figure.

    kernel: f[H,W,Cin,Cout]. One input channel: red is positive and blue negative. Three: grey is zero and each
    colour shows the weight on that channel. Otherwise each filter is the mean over its input channels.
    """
    kernel = np.asarray(kernel, np.float32)
    total = kernel.shape[-1]
    weights = np.moveaxis(kernel, -1, 0)[:limit]  # [Cout,H,W,Cin]
    note = f"{kernel.shape[0]} × {kernel.shape[1]}, {_first(len(weights), total, 'filters')}"
    if weights.shape[-1] not in (1, 3):
        weights = weights.mean(axis=-1, keepdims=True)
        note += f", each the mean over its {kernel.shape[2]} input channels"
    limit_value = float(np.nanmax(np.abs(weights), initial=0)) or 1.0
    shares = (weights / limit_value + 1) / 2
    ends = (f"−{limit_value:.2g}", "0", f"+{limit_value:.2g}")
    if weights.shape[-1] == 3:
        tiles, scale = _rgb(shares), _Scale("gray", ends)
        note += ", one colour for each input channel"
    else:
        tiles, scale = colours("RdBu_r", shares[..., 0]), _Scale("RdBu_r", ends)
        note += "; blue is negative, red positive"
    return _sheet(tiles, _numbers(len(tiles)), columns=columns, title=title, note=note, scale=scale)


def feature_maps(
    activations: np.ndarray,
    *,
    title: str = "Feature maps",
    image: np.ndarray | None = None,
    columns: int = 8,
    limit: int = 64,
):
    """All channels of one layer for one image, numbered from 1, on one common scale. Returns a Figure.

    activations: f[H,W,C], of which the first `limit` are shown; image: [H,W,C], shown beside the title.
    """
    activations = np.asarray(activations, np.float32)
    maps = np.moveaxis(activations, -1, 0)[:limit]
    tiles, scale = _heat(maps)
    note = f"{activations.shape[0]} × {activations.shape[1]}, {_first(len(maps), activations.shape[-1], 'maps')}"
    return _sheet(tiles, _numbers(len(tiles)), columns=columns, title=title, note=note, scale=scale, image=image)


def feature_maps_side_by_side(
    stages: Mapping[str, np.ndarray],
    image: np.ndarray | None = None,
    *,
    first: int = 4,
    title: str = "Feature maps",
):
    """The first maps of each stage, a row a stage: "conv1 · filter 1", … Returns a Figure.

    stages: {name: f[H,W,C]} in order; each stage has a scale of its own, from its least to its greatest value.
    image: [H,W,C], shown beside the title.
    """
    tiles, titles = [], []
    between = " · " if max(map(len, stages), default=0) <= 5 else "\n"
    for name, activations in stages.items():
        maps = np.moveaxis(np.asarray(activations, np.float32), -1, 0)[:first]
        shown = list(_heat(maps)[0])
        missing = first - len(shown)
        tiles += shown + [np.full_like(shown[0], 255)] * missing
        titles += [f"{name}{between}filter {i + 1}" for i in range(len(shown))] + [""] * missing
    scale = _Scale("viridis", ("row minimum", "", "row maximum"))
    return _sheet(tiles, titles, columns=first, title=title, scale=scale, image=image)


def _heat(maps: np.ndarray) -> tuple[np.ndarray, _Scale]:
    """f[N,H,W] → colours u8[N,H,W,3] on one scale from the least value (at most 0) to the greatest."""
    low, high = float(np.nanmin(maps, initial=0)), float(np.nanmax(maps, initial=0))
    shares = (maps - low) / ((high - low) or 1)
    return colours("viridis", shares), _Scale("viridis", (f"{low:.3g}".replace("-", "−"), "", f"{high:.3g}"))


def _first(shown: int, total: int, what: str) -> str:
    return f"{total:,} {what}" if shown == total else f"the first {shown} of {total:,} {what}"


def _numbers(count: int) -> list[str]:
    return [str(i + 1) for i in range(count)]


def _rgb(images: np.ndarray) -> np.ndarray:
    """Images as the module takes them → u8[N,H,W,3]."""
    images = np.asarray(images)
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(f"images: expected [N,H,W], [N,H,W,1] or [N,H,W,3], got {list(images.shape)}")
    if images.dtype != np.uint8:
        images = np.round(np.clip(np.nan_to_num(images.astype(np.float32)), 0, 1) * 255).astype(np.uint8)
    return np.broadcast_to(images, (*images.shape[:3], 3))


def _resize(tile: np.ndarray, width: int, height: int) -> np.ndarray:
    """One picture u8[h,w,3] at another size. Few pixels stay visible as squares, many are averaged."""
    from PIL import Image

    enlarged = width / tile.shape[1]
    how = Image.Resampling.NEAREST if enlarged >= 3 else Image.Resampling.BICUBIC
    if 1 < enlarged < 3 and tile.shape[1] <= 64:
        # A whole number of times first, so that the squares come out even.
        tile, how = tile.repeat(4, axis=0).repeat(4, axis=1), Image.Resampling.BOX
    return np.asarray(Image.fromarray(np.ascontiguousarray(tile)).resize((width, height), how))


def _points(size: float) -> int:
    """The height in pixels of type of this size."""
    return round(size / 72 * DPI)


@styled
def _sheet(
    tiles: Sequence[np.ndarray],
    titles: Sequence[str] | None,
    *,
    columns: int,
    title: str = "",
    note: str = "",
    scale: _Scale | None = None,
    image: np.ndarray | None = None,
    below: np.ndarray | None = None,
    across: int = _PAGE,
):
    """Lays pictures u8[h,w,3] out in rows under a heading (with a small `image` before it), a colour scale or a picture
    `below`, on a page of `across` pixels."""
    tiles = list(tiles)
    if titles is not None and len(titles) != len(tiles):
        raise ValueError(f"titles: expected one for each of {len(tiles)} images, got {len(titles)}")
    titles = ["" for _ in tiles] if titles is None else [str(t) for t in titles]
    columns = max(1, min(columns, len(tiles)))
    width = min(_LARGEST, (across - 2 * _MARGIN - (columns - 1) * _GAP) // columns)
    height = max((round(width * t.shape[0] / t.shape[1]) for t in tiles), default=0)
    small = 8.5 if width > 130 else 8
    lines = max((t.count("\n") + 1 for t in titles if t), default=0)
    above = round(lines * _points(small) * 1.25) + (8 if lines else 0)

    texts = []  # (x, y of the base line, text, size, colour, weight, alignment)
    top, left = _MARGIN, _MARGIN
    thumbnail = None
    if image is not None:
        image = np.asarray(image)
        thumbnail = _rgb(image[None])[0]
        thumbnail = _resize(thumbnail, round(110 * thumbnail.shape[1] / thumbnail.shape[0]), 110)
        left += thumbnail.shape[1] + 18
    if title:
        top += _points(12)
        texts.append((left, top, title, 12, INK, "bold", "left"))
        top += 8
    if note:
        for line in _wrap(note, round((across - left - _MARGIN) / (_points(9) * 0.53))):
            top += round(_points(9) * 1.3)
            texts.append((left, top, line, 9, MUTED, "normal", "left"))
    top = max(top, _MARGIN + 110 if thumbnail is not None else 0) + (18 if title or note else 0)

    rows = -(-len(tiles) // columns)
    row_height = above + height + _GAP
    bottom = top + rows * row_height + (_MARGIN if scale is None else _points(9) + 52)
    bottom += 0 if below is None else len(below)
    page = np.full((bottom, across, 3), 255, np.uint8)
    if below is not None:
        page[-_MARGIN - len(below) : -_MARGIN, _MARGIN : _MARGIN + below.shape[1]] = below
    if thumbnail is not None:
        _place(page, thumbnail, _MARGIN, _MARGIN)
    fits = int((width + _GAP) / (_points(small) * 0.58))
    for i, (tile, text) in enumerate(zip(tiles, titles, strict=True)):
        x, y = _MARGIN + i % columns * (width + _GAP), top + i // columns * row_height + above
        if not (tile == 255).all():
            _place(page, _resize(tile, width, round(width * tile.shape[0] / tile.shape[1])), x, y)
        for k, line in enumerate(reversed(text.split("\n") if text else [])):
            baseline = y - 9 - round(k * _points(small) * 1.25)
            texts.append((x + width / 2, baseline, shorten(line, fits), small, INK, "normal", "center"))
    if scale is not None:
        y = top + rows * row_height + 12
        bar = np.linspace(0, 1, 400)[None, :].repeat(16, axis=0)
        _place(page, colours(scale.colour_map, bar), _MARGIN, y)
        for x, text, side in zip((0, 200, 400), scale.texts, ("left", "center", "right"), strict=True):
            if text:
                texts.append((_MARGIN + x, y + 16 + round(_points(9) * 1.15), text, 9, MUTED, "normal", side))

    figure, axes = pixel_figure(page)
    for x, y, text, size, colour, weight, side in texts:
        axes.text(x, y, text, fontsize=size, color=colour, fontweight=weight, ha=side, va="baseline")
    return figure


def _place(page: np.ndarray, picture: np.ndarray, x: int, y: int) -> None:
    """Puts a picture on the page in a thin frame, so that a white one has an edge."""
    h, w = picture.shape[:2]
    page[y - 2 : y + h + 2, x - 2 : x + w + 2] = [int(LINE[i : i + 2], 16) for i in (1, 3, 5)]
    page[y : y + h, x : x + w] = picture


def _wrap(text: str, length: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, max(20, length))
