"""Figures of what a network looks at: maps of what counted over images, and what units look for."""

from collections.abc import Mapping, Sequence

import numpy as np

from . import pictures
from .style import colours, new_figure, styled


def attributions(images: np.ndarray, maps: Mapping[str, np.ndarray], titles: Sequence[str], *, title: str = ""):
    """A row for each image: the image, and beside it its map by each method, as `heat` draws it.

    Args:
        images: u8[N,H,W,C] or f32 in [0,1].
        maps: {method: f32[N,H,W] or f32[N,H,W,C]}.
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
    """A map f32[H,W] or f32[H,W,C], its channels added with their signs, as colours u8[H,W,3].

    Where it goes below zero, from blue (against) by white (zero) to red (for); elsewhere from its least value, dark, to
    its greatest, bright. The last hundredth of the values shares the ends.
    """
    values = values.sum(-1) if values.ndim == 3 else values
    if values.min() < 0:
        top = np.percentile(np.abs(values), 99) or np.abs(values).max()
        return colours("RdBu_r", 0.5 + values / (2 * top))
    values = values - values.min()
    top = np.percentile(values, 99) or values.max()
    return colours("inferno", values / top if top > 0 else values)


@styled
def similarity(names: Sequence[str], values: np.ndarray):
    """How alike stages are, f[A,A], 1 on the diagonal; what is no number is left white."""
    figure, (axes,) = new_figure(4.4)
    drawn = axes.imshow(values, cmap="viridis", vmin=0, vmax=1)
    axes.grid(False)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    if len(names) <= 8:
        for (i, j), value in np.ndenumerate(values):
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black")
    figure.colorbar(drawn, ax=axes, shrink=0.85)
    return figure
