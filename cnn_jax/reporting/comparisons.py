"""Figures that set ways to do a thing beside each other, with intervals over seeds."""

from collections.abc import Mapping, Sequence

import numpy as np

from cnn_jax.statistics import interval

from .style import PALETTE, new_figure, short_number, styled


@styled
def bars(values: Mapping[str, Sequence[float]], label: str, *, scale: float = 100):
    """A bar for each way, with its 95 % interval over seeds.

    Args:
        values: {way: a value for each seed}.
        label: of the axis of values.
        scale: what values are multiplied by.
    """
    figure, (axes,) = new_figure(0.5 * len(values) + 1.1)
    mean, half = scale * np.array([interval(of) for of in values.values()]).T
    places = np.arange(len(values))[::-1]
    axes.barh(places, mean, xerr=half, height=0.6, color=PALETTE[0], error_kw={"elinewidth": 1.2, "capsize": 3})
    axes.set_yticks(places, list(values))
    axes.set_xlabel(label)
    axes.xaxis.set_major_formatter(short_number)
    axes.grid(False, axis="y")
    return figure


@styled
def lines(
    values: Mapping[str, Mapping[float, Sequence[float]]],
    x: str,
    y: str,
    *,
    scale: float = 100,
    log: bool = True,
    chance: float | None = None,
):
    """A line for each way, with its 95 % intervals over seeds.

    Args:
        values: {way: {place on the x axis: a value for each seed}}.
        x, y: what the axes say.
        scale: what values are multiplied by.
        log: whether the x axis is logarithmic.
        chance: what guessing reaches, as a line of its own.
    """
    figure, (axes,) = new_figure(3.4)
    for i, (way, of) in enumerate(values.items()):
        places = np.array(list(of), float)
        mean, half = scale * np.array([interval(seeds) for seeds in of.values()]).T
        look = {"color": PALETTE[i % len(PALETTE)], "marker": "osD^v"[i % 5], "markersize": 5, "label": way}
        # A little beside each other, so that none hides another.
        axes.errorbar(places * 1.03 ** (i - 1) if log else places, mean, half, capsize=3, elinewidth=1.2, **look)
    means = [scale * np.mean(seeds) for of in values.values() for seeds in of.values()]
    if scale == 100 and 0 <= min(means) <= max(means) <= 100:  # intervals of few seeds reach beyond what can be
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -4), min(high, 104))
    if chance is not None:
        axes.axhline(scale * chance, color="#59636E", linewidth=1, linestyle=":", label="chance")
    if log:
        axes.set_xscale("log")
        axes.set_xticks(places)
        axes.minorticks_off()
    elif (places == places.round()).all():
        axes.locator_params(axis="x", integer=True)
    axes.xaxis.set_major_formatter(short_number)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if len(values) > 1 or chance is not None:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)  # above, where it hides nothing
    return figure


@styled
def heat_map(values: np.ndarray, reach: int):
    """A share f[2·reach+1, 2·reach+1] for each shift, down and to the right, in per cent and colours from 0 to 100."""
    figure, (axes,) = new_figure(4.2)
    edge = reach + 0.5
    extent = (-edge, edge, edge, -edge)
    drawn = axes.imshow(100 * np.asarray(values), cmap="viridis", vmin=0, vmax=100, extent=extent)
    axes.grid(False)
    axes.locator_params(integer=True)
    axes.set_xlabel("to the right, pixels")
    axes.set_ylabel("down, pixels")
    figure.colorbar(drawn, ax=axes, shrink=0.85)
    return figure


@styled
def shares(values: Mapping[str, Mapping[str, float]]):
    """{row: {what: share from 0 to 1}} as bars in groups."""
    figure, (axes,) = new_figure(0.9 * len(values) + 1.0)
    kinds = list(next(iter(values.values())))
    places = np.arange(len(values))[::-1]
    for i, kind in enumerate(kinds):
        at = places + 0.4 * ((len(kinds) - 1) / 2 - i)
        axes.barh(at, [100 * of[kind] for of in values.values()], height=0.36, color=PALETTE[i], label=kind)
    axes.set_yticks(places, list(values))
    axes.set_xlim(0, 100)
    axes.set_xlabel("share, %")
    axes.grid(False, axis="y")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.25), ncols=len(kinds))
    return figure
