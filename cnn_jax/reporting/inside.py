"""Figures of what a network looks at: maps of what counted over images, and what units look for."""

from collections.abc import Mapping, Sequence

import numpy as np

from . import pictures
from .style import colours


def attributions(images: np.ndarray, maps: Mapping[str, np.ndarray], titles: Sequence[str], *, title: str = ""):
    """A row for each image: the image, and beside it its map by each method, from little (dark) to much (bright).

    Args:
        images: u8[N,H,W,C] or f32 in [0,1].
        maps: {method: f32[N,H,W] or f32[N,H,W,C]}; of signed maps the size is shown, summed over colours.
        titles: N, of the images.
    """
    tiles, names = [], []
    for i, image in enumerate(images):
        tiles.append(np.asarray(image))
        names.append(titles[i])
        for method, values in maps.items():
            tiles.append(heat(np.asarray(values[i], np.float32)))
            names.append(method if i == 0 else "")
    rgb = [tile if tile.shape[-1] == 3 else tile.repeat(3, axis=-1) for tile in tiles]
    rgb = [tile if tile.dtype == np.uint8 else np.round(255 * tile.clip(0, 1)).astype(np.uint8) for tile in rgb]
    return pictures.image_grid(np.stack(rgb), names, columns=len(maps) + 1, title=title, wide=True)


def heat(values: np.ndarray) -> np.ndarray:
    """A map f32[H,W] or f32[H,W,C] as colours u8[H,W,3], from its least size to the 99th percentile."""
    size = np.abs(values).sum(-1) if values.ndim == 3 else np.abs(values)
    size = size - size.min()
    top = np.percentile(size, 99)
    return colours("inferno", size / top if top > 0 else size)
