"""One look for every figure: colours, sizes, type; and the only file that builds on matplotlib, when one is made.

Figures are narrow (4.8 inches) with large type, so that they read well on a phone; a wide page puts two beside each
other. They keep a white card in light and dark pages alike. Colours are those of Okabe and Ito ("Color Universal
Design", 2008), which colour-blind readers tell apart.
"""

import functools
import io
import warnings
from pathlib import Path

import numpy as np

from cnn_jax.files import write_atomically

WIDTH = 4.8  # inches
DPI = 200
BLUE, ORANGE, GREEN, PINK, SKY, GOLD = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
PALETTE = (BLUE, ORANGE, GREEN, PINK, SKY, GOLD, "#000000", "#8C6BB1")
INK, MUTED, LINE, PAPER = "#1F2328", "#59636E", "#D1D9E0", "#FFFFFF"

_RC = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same letters everywhere
    "font.size": 10.5,
    "text.color": INK,
    "text.parse_math": False,  # a class may be named "$5"
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelsize": 10.5,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E7ECF0",
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.9,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "legend.handlelength": 1.3,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "figure.dpi": DPI,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.12,
}


def styled(draw):
    """Runs a function that draws under this style, and leaves matplotlib's own settings as they were."""

    @functools.wraps(draw)
    def wrapper(*args, **kwargs):
        import matplotlib

        with matplotlib.rc_context(_RC):
            return draw(*args, **kwargs)

    return wrapper


def new_figure(height: float, *, panels: int = 1, **options):
    """A figure of `panels` Axes one above the other, in all WIDTH × `height` inches: `(figure, [axes])`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, list(figure.subplots(panels, 1, squeeze=False, **options)[:, 0])


def pixel_figure(pixels: np.ndarray):
    """A figure that is exactly these pixels, u8[H,W,3], when saved at `DPI`: `(figure, axes)`; axes count in pixels."""
    from matplotlib.figure import Figure

    height, width = pixels.shape[:2]
    figure = Figure(figsize=(width / DPI, height / DPI))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.imshow(pixels, interpolation="nearest", aspect="auto", extent=(0, width, height, 0))
    return figure, axes


def colours(name: str, values: np.ndarray) -> np.ndarray:
    """`values` f[...] in [0, 1] through matplotlib's colour map `name`: u8[..., 3]."""
    from matplotlib import colormaps

    return colormaps[name](np.clip(np.nan_to_num(values), 0, 1), bytes=True)[..., :3]


def mix(colour: str, share: np.ndarray) -> np.ndarray:
    """From white (share 0) to `colour` (share 1): f64[..., 3]."""
    from matplotlib.colors import to_rgb

    return 1 - np.asarray(share)[..., None] * (1 - np.asarray(to_rgb(colour)))


def power_of_ten(value: float, _position=None) -> str:
    """Tick label of a logarithmic axis: 0.001 → 10⁻³; nothing between the powers."""
    exponent = np.log10(value) if value > 0 else 0.5
    if abs(exponent - round(exponent)) > 1e-9:
        return ""
    return "10" + str(round(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def short_number(value: float, _position=None) -> str:
    """Tick label of a linear axis: 0.25, 1,500, 20k."""
    if abs(value) >= 10_000:
        for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if abs(value) >= size:
                return f"{value / size:g}{letter}"
    return f"{value:,g}".replace("-", "\N{MINUS SIGN}")


def shorten(text: str, length: int) -> str:
    """`text`, or its beginning and an ellipsis, in at most `length` characters."""
    return text if len(text) <= length else text[: max(1, length - 1)] + "…"


@styled
def save(figure, path, *, dpi: int = DPI) -> Path:
    """Writes a figure as PNG: the same bytes for the same figure, and atomically. Returns the path.

    `dpi`: pixels an inch; a report shows figures at 4.8 inches, so the default serves screens of double density.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Class names in a script that the font lacks are drawn as boxes, which is no reason to stop a run.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        # The default metadata name the version of matplotlib.
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return write_atomically(path, buffer.getvalue())
