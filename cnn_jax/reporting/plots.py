"""Figures of numbers: curves, confusion, calibration. Each function takes arrays and returns a matplotlib Figure.

Nothing is shown and no state is global: `save(figure, path)` writes the PNG. Figures of pictures (`image_grid`,
`mistakes`, `filters`, `feature_maps`) are in `pictures` and can be called from here too.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from .pictures import feature_maps, feature_maps_side_by_side, filters, image_grid, mistakes
from .style import (
    BLUE,
    GREEN,
    INK,
    LINE,
    MUTED,
    ORANGE,
    PALETTE,
    colours,
    mix,
    new_figure,
    power_of_ten,
    save,
    short_number,
    shorten,
    styled,
)

__all__ = [
    "calibration",
    "class_counts",
    "confusion_matrix",
    "curves",
    "feature_maps",
    "feature_maps_side_by_side",
    "filters",
    "gradient_norms",
    "image_grid",
    "learning_rate",
    "mistakes",
    "per_class",
    "precision_recall",
    "save",
]

_MANY = 30  # classes: beyond so many, names no longer fit


@styled
def class_counts(
    counts: Mapping[str, Sequence[int]], class_names: Sequence[str], *, title: str = "Examples of each class"
):
    """How many examples each class has. `counts`: {"train": int[C], "test": int[C]}, one bar colour each.

    Beyond 30 classes: the counts in falling order, without names.
    """
    counts = {split: np.asarray(values) for split, values in counts.items()}
    classes = len(class_names)
    if classes > _MANY:
        figure, (axes,) = new_figure(3.0)
        for (split, values), colour in zip(counts.items(), PALETTE, strict=False):
            label = f"{split}: {values.min():,} to {values.max():,}"
            axes.step(np.arange(1, classes + 1), np.sort(values)[::-1], where="mid", color=colour, label=label)
        axes.set(title=title, xlabel="classes, the most frequent first", xlim=(1, classes))
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(short_number)
        _legend(axes)
        return figure
    figure, (axes,) = new_figure(1.2 + (0.13 + 0.15 * len(counts)) * classes)
    thick = 0.8 / max(1, len(counts))
    for k, ((split, values), colour) in enumerate(zip(counts.items(), PALETTE, strict=False)):
        y = np.arange(classes) + (k - (len(counts) - 1) / 2) * thick
        axes.barh(y, values, height=thick * 0.92, color=colour, label=f"{split}: {values.sum():,}")
        for at, value in zip(y, values, strict=True):
            axes.text(value, at, f" {value:,}", va="center", fontsize=8.5, color=MUTED)
    _class_axis(axes.yaxis, class_names)
    axes.set(title=title, ylim=(classes - 0.4, -0.6))
    axes.margins(x=0.12)
    axes.xaxis.set_major_formatter(short_number)
    axes.grid(axis="y", visible=False)
    _legend(axes)
    return figure


@styled
def curves(
    history: Sequence[Mapping], *, metrics: Sequence[str] = ("loss", "accuracy"), x: str | None = None, title: str = ""
):
    """How the run went: a panel for each metric, a line for each split, over `x`.

    history: records as `read_metrics` gives them, {"step": 100, "split": "train", "loss": 0.3, …}; those without a
    metric are passed over. x: "epoch" if every record that counts has one, else "step". A loss that falls more than
    thirtyfold is drawn on a logarithmic axis. The legend gives the last value and, except for train, the best.
    """
    history = [record for record in history if any(metric in record for metric in metrics)]
    x = x or ("epoch" if history and all("epoch" in record for record in history) else "step")
    splits = sorted({str(record.get("split", "")) for record in history}, key=lambda s: (s != "train", s))
    figure, panels = new_figure(0.3 + 2.35 * len(metrics), panels=len(metrics), sharex=True)
    for axes, metric in zip(panels, metrics, strict=True):
        seen = []
        for split, colour in zip(splits, PALETTE, strict=False):
            points = [
                (record[x], record[metric])
                for record in history
                if str(record.get("split", "")) == split and metric in record and x in record
            ]
            if not points:
                continue
            at, values = np.asarray(points, np.float64).T
            seen.append(values)
            label = f"{split} {_figure_of(values[-1])}".strip()
            if split != "train" and len(values) > 1 and np.isfinite(values).any():
                best = np.nanmin(values) if "loss" in metric else np.nanmax(values)
                label += f" (best {_figure_of(best)})"
            _line(axes, at, values, colour, label)
        finite = np.concatenate([v[np.isfinite(v)] for v in seen]) if seen else np.zeros(0)
        if "loss" in metric and finite.size and finite.min() > 0 and finite.max() > 30 * finite.min():
            _logarithmic(axes.yaxis)
        else:
            axes.yaxis.set_major_formatter(short_number)
            if "loss" not in metric and finite.size:
                # The climb of the first steps would press all that matters later against the upper edge.
                least, usual, most = finite.min(), min(np.nanquantile(v, 0.1) for v in seen), finite.max()
                if most - least > 3 * (most - usual) > 0:
                    axes.set_ylim(most - 1.6 * (most - usual), most + 0.1 * (most - usual))
        axes.set_title({"ap": "AP", "miou": "mIoU"}.get(metric, metric.replace("_", " ").capitalize()))
        if seen:
            _legend(axes, columns=1)
    panels[-1].set_xlabel(x)
    panels[-1].locator_params(axis="x", integer=True)
    panels[-1].xaxis.set_major_formatter(short_number)
    if title:
        figure.suptitle(title)
    return figure


@styled
def learning_rate(steps: Sequence[float], rates: Sequence[float], *, title: str = "Learning rate"):
    """The learning rate over the steps."""
    figure, (axes,) = new_figure(2.4)
    axes.plot(steps, rates, color=BLUE)
    axes.set(title=title, xlabel="step")
    axes.set_ylim(0, max([*rates, 1e-12]) * 1.08)
    axes.xaxis.set_major_formatter(short_number)
    axes.yaxis.set_major_formatter(short_number)
    return figure


@styled
def gradient_norms(
    steps: Sequence[float], norms: Mapping[str, Sequence[float]], *, title: str = "Gradient norm of each layer"
):
    """Norms f[len(steps)] of each layer's gradient over the steps, on a logarithmic scale.

    Up to eight layers are lines; more are rows of a picture, the first layer on top. Zeros and NaN are left out.
    """
    layers = {name: np.where(np.asarray(v, np.float64) > 0, v, np.nan) for name, v in norms.items()}
    if len(layers) <= len(PALETTE) or not len(steps):
        figure, (axes,) = new_figure(3.3 + 0.1 * len(layers))
        for (name, values), colour in zip(layers.items(), PALETTE, strict=False):
            _line(axes, np.asarray(steps, np.float64), values, colour, name)
        if any(np.isfinite(values).any() for values in layers.values()):
            _logarithmic(axes.yaxis)
        axes.set(title=title, xlabel="step")
        axes.xaxis.set_major_formatter(short_number)
        if layers:
            _legend(axes, columns=min(4, len(layers)))
        return figure
    figure, (axes,) = new_figure(min(7.5, 1.5 + 0.17 * len(layers)))
    table = np.log10(np.stack(list(layers.values())))
    seen = table[np.isfinite(table)]
    low = np.floor(seen.min()) if seen.size else 0
    high = max(np.ceil(seen.max()), low + 1) if seen.size else 1
    picture = colours("viridis", (table - low) / (high - low))
    picture[np.isnan(table)] = 255
    last = steps[-1] if len(steps) > 1 else steps[0] + 1
    axes.imshow(picture, aspect="auto", extent=(steps[0], last, len(layers) - 0.5, -0.5), interpolation="nearest")
    each = -(-len(layers) // 40)
    axes.set_yticks(range(0, len(layers), each), [shorten(name, 22) for name in layers][::each], fontsize=7.5)
    axes.grid(visible=False)
    axes.set(title=title, xlabel="step")
    axes.xaxis.set_major_formatter(short_number)
    scale = axes.inset_axes((0, -0.18 * 5 / figure.get_figheight(), 1, 0.02 * 5 / figure.get_figheight()))
    scale.imshow(colours("viridis", np.linspace(0, 1, 256)[None]), aspect="auto", extent=(low, high, 0, 1))
    powers = np.arange(low, high + 1, max(1, (high - low) // 5))
    scale.set(yticks=[], xticks=powers, xticklabels=[power_of_ten(10.0**p) for p in powers])
    return figure


@styled
def confusion_matrix(matrix: np.ndarray, class_names: Sequence[str], *, title: str = "Confusion matrix"):
    """Counts int[C,C] of true class (rows) against predicted class (columns).

    Colour is the share of the row: blue on the diagonal, and orange for mistakes on a scale of their own, so that rare
    ones are seen. Numbers stand in the cells up to 16 classes, names beside them up to 30.
    """
    matrix = np.asarray(matrix)
    classes = len(matrix)
    if matrix.shape != (classes, len(class_names)):
        raise ValueError(f"matrix: expected [{len(class_names)}, {len(class_names)}], got {list(matrix.shape)}")
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    diagonal = np.eye(classes, dtype=bool)
    worst = np.max(shares[~diagonal], initial=0)
    strength = np.where(diagonal, shares, 0.85 * shares / (worst or 1))
    picture = np.where(diagonal[..., None], mix(BLUE, 0.9 * strength), mix(ORANGE, strength))

    figure, (axes,) = new_figure(5.0 if classes <= _MANY else 4.9)
    # A large matrix is drawn by means of pixels: those of one class may be narrower than one of the screen's.
    axes.imshow(picture, interpolation="nearest" if classes <= 100 else "antialiased")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    if classes <= _MANY:
        names = [shorten(str(name), 12) for name in class_names]
        long = max(map(len, names), default=0) > 3
        size = 9.5 if classes <= 16 else 7.5
        axes.set_yticks(range(classes), names, fontsize=size)
        slant = {"rotation": 45 if classes <= 16 else 90, "ha": "right", "rotation_mode": "anchor"} if long else {}
        if long and classes > 16:
            slant["va"] = "center"
        axes.set_xticks(range(classes), names, fontsize=size, **slant)
        axes.set_xticks(np.arange(classes - 1) + 0.5, minor=True)
        axes.set_yticks(np.arange(classes - 1) + 0.5, minor=True)
        axes.grid(which="minor", color="#EEF1F4", linewidth=0.8)
    axes.set(xlabel="predicted" if classes <= _MANY else "predicted class", ylabel="true")
    if classes <= 16:
        digits = len(str(matrix.max(initial=0)))
        size = min(10.5, 370 / (max(classes, 4) * max(digits, 3)))
        for i, j in zip(*np.nonzero(matrix), strict=True):
            colour = "white" if strength[i, j] > 0.55 else INK
            axes.text(j, i, str(matrix[i, j]), ha="center", va="center", fontsize=size, color=colour)
    axes.set_title(title, pad=24)
    note = "blue: right; " + (f"orange: mistakes, at most {worst:.1%} of a row" if worst else "there are no mistakes")
    axes.annotate(note, (0, 1), (0, 8), xycoords="axes fraction", textcoords="offset points", fontsize=9, color=MUTED)
    return figure


@styled
def per_class(
    precision: Sequence[float],
    recall: Sequence[float],
    f1: Sequence[float],
    class_names: Sequence[str],
    *,
    title: str = "Precision, recall and F1 of each class",
):
    """Three marks in [0, 1] for each class. Beyond 30 classes: the 30 of lowest F1, lowest first."""
    values = np.stack([np.asarray(v, np.float64) for v in (precision, recall, f1)])
    names = [str(name) for name in class_names]
    if len(names) > _MANY:
        lowest = np.argsort(np.nan_to_num(values[2], nan=-1), kind="stable")[:_MANY]
        title = f"The {_MANY} classes of lowest F1, of {len(names):,}"
        values, names = values[:, lowest], [names[i] for i in lowest]
    figure, (axes,) = new_figure(1.3 + 0.27 * len(names))
    y = np.arange(len(names))
    axes.hlines(y, np.nanmin(values, axis=0), np.nanmax(values, axis=0), color=LINE, linewidth=3, zorder=1)
    for row, label, colour, mark, size in zip(
        values, ("precision", "recall", "F1"), (BLUE, ORANGE, INK), ("o", "s", "|"), (38, 32, 110), strict=True
    ):
        axes.scatter(row, y, s=size, color=colour, marker=mark, label=label, zorder=2)
    _class_axis(axes.yaxis, names)
    low = np.nanmin(values)
    axes.set(title=title, ylim=(len(names) - 0.4, -0.6), xlim=(max(-0.02, low - 0.15 * (1 - low) - 0.005), None))
    axes.locator_params(axis="x", nbins=6)
    axes.xaxis.set_major_formatter(short_number)
    _legend(axes, columns=3)
    return figure


@styled
def precision_recall(
    precision: np.ndarray, class_names: Sequence[str], *, title: str = "Precision and recall of each class"
):
    """Curves over recalls from 0 to 1: precision f[C,R], nan for a class to leave out. Beyond 8 classes only the three
    lowest are named; the mean is drawn in bold."""
    precision = np.asarray(precision, np.float64)
    there = np.flatnonzero(~np.isnan(precision).any(1))
    recall = np.linspace(0, 1, precision.shape[1])
    named = there if len(there) <= len(PALETTE) else there[np.argsort(precision[there].mean(1), kind="stable")[:3]]
    figure, (axes,) = new_figure(4.2)
    for c in there:
        if c not in named:
            axes.plot(recall, precision[c], color=LINE, linewidth=1.2)
    for c, colour in zip(named, PALETTE, strict=False):
        axes.plot(
            recall, precision[c], color=colour, linewidth=1.5, label=f"{class_names[c]}: {precision[c].mean():.2f}"
        )
    if len(there):
        mean = precision[there].mean(0)
        axes.plot(recall, mean, color=INK, linewidth=2.6, label=f"mean: {mean.mean():.2f}")
    axes.set(title=title, xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.03))
    _legend(axes, columns=1)
    return figure


@styled
def calibration(
    confidence: Sequence[float],
    accuracy: Sequence[float],
    count: Sequence[int],
    *,
    title: str = "Calibration",
):
    """A reliability diagram (accuracy within bins of confidence) above a histogram of confidence.

    confidence, accuracy: f[B], the means within B bins of equal width over [0, 1], NaN where a bin is empty;
    count: int[B], examples in each. The title gives the expected calibration error, the mean gap weighted by count
    (Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3).
    """
    count = np.asarray(count)
    confidence, accuracy = (np.where(count > 0, v, 0.0) for v in (confidence, accuracy))
    bins = len(count)
    ece = float(np.sum(count * np.abs(accuracy - confidence)) / max(1, count.sum()))
    centres, width = (np.arange(bins) + 0.5) / bins, 0.92 / bins
    figure, (axes, below) = new_figure(5.0, panels=2, sharex=True, height_ratios=[3, 1])
    filled = count > 0
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1.2, linestyle="--", label="perfect")
    axes.bar(centres[filled], accuracy[filled], width, color=BLUE, alpha=0.45, label="accuracy", zorder=2)
    ends = (centres[filled], accuracy[filled], confidence[filled])
    axes.vlines(*ends, color=ORANGE, linewidth=3.5, label="gap to confidence", zorder=3)
    axes.set(title=f"{title}: expected error {ece:.2%}", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    _legend(axes, columns=3)
    below.bar(centres, count / max(1, count.sum()), width=width, color=GREEN)
    below.set(xlabel="confidence", ylabel="share", ylim=(0, None))
    for axis in (axes.yaxis, below.yaxis, below.xaxis):
        axis.set_major_formatter(short_number)
    return figure


def _class_axis(axis, class_names: Sequence[str]) -> None:
    axis.set_ticks(range(len(class_names)), [shorten(str(name), 18) for name in class_names])


def _figure_of(value: float) -> str:
    return f"{value:.4f}" if abs(value) >= 1e-3 or value == 0 else f"{value:.1e}"


def _line(axes, x: np.ndarray, y: np.ndarray, colour: str, label: str) -> None:
    """A line; when it has many points, a running mean before the pale line of all."""
    if len(x) == 1:
        axes.plot(x, y, "o", color=colour, label=label)
        return
    if len(x) < 150:
        axes.plot(x, y, color=colour, label=label, marker="o" if len(x) <= 30 else None, markersize=3.5)
        return
    axes.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
    window = len(x) // 40 | 1
    finite = np.isfinite(y)
    sums, counts = (np.convolve(v, np.ones(window), mode="same") for v in (np.where(finite, y, 0), finite))
    axes.plot(x, np.where(counts > 0, sums / np.maximum(counts, 1), np.nan), color=colour, label=label)


def _logarithmic(axis) -> None:
    """A logarithmic axis, labelled at the powers of ten, or at 1, 2 and 5 where it spans few."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.axes.set_yscale("log")
    low, high = axis.axes.get_ylim()
    if high < 300 * low:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(short_number)
    else:
        axis.set_major_formatter(power_of_ten)
    axis.set_minor_formatter(NullFormatter())


def _legend(axes, *, columns: int = 3) -> None:
    """Where it hides the data least: above the panel for few words, inside for longer ones."""
    if columns == 1:
        axes.legend(loc="best")
        return
    axes.set_title(axes.get_title(loc="left"), pad=26 if len(axes.get_legend_handles_labels()[0]) <= columns else 44)
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.15, borderpad=0, columnspacing=1.2
    )
