"""Pictures of one's own, drawn or photographed, turned into what MNIST and Fashion-MNIST look like.

Those sets show light figures on black. Ink on paper is the other way round, has the paper's colour and the lamp's
shading, and lies anywhere in the picture.
"""

from pathlib import Path

import numpy as np

from cnn_jax.data.images import corrupt
from cnn_jax.errors import InputError

# The sets whose form a picture can be brought into, and whether their figures are centred.
CENTRED = {"mnist": True, "mnist_10k": True, "fashion_mnist": False}
# A darker edge than this is the black of the sets themselves.
BLACK = 16
# Pixels along the longer side of what is looked at: of a photograph's thousands few are left in the end.
SIDE = 1000


def read(path: Path | str, shape: tuple[int, int, int], *, centred: bool) -> tuple[np.ndarray, list[str]]:
    """Reads a picture of one figure on a plain ground.

    A grey picture of the right size with black edges is taken as it is, one with white edges as its negative.
    Otherwise the ground is estimated from the picture's edges, and the figure is what differs from it, in any colour.
    What is larger than `SIDE` is made smaller first.

    Args:
        path: an image file of any kind, size and colour. The camera's orientation (EXIF) is applied.
        shape: (H, W, 1) of the result.
        centred: lay the figure out as MNIST's digits are: its longer side takes 20 of 28 pixels, and its centre of mass
            lies in the middle (LeCun et al. 1998). Otherwise the picture is only made square and scaled.

    Returns:
        u8[H,W,1], light on black, and what was done, a phrase each.

    Raises:
        InputError: not an image, or one with nothing on it.
    """
    height, width, _ = shape
    pixels = _pixels(path, max(SIDE, height, width))
    colour = int(np.ptp(pixels, axis=2).max()) > 12
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    if not colour and pixels.shape[:2] == (height, width):
        if np.median(edge) < BLACK:
            return pixels[..., :1].astype(np.uint8), []
        if np.median(edge) > 255 - BLACK:
            return 255 - pixels[..., :1].astype(np.uint8), ["dark on light: inverted"]

    done = []
    ground = _ground(pixels)
    difference = pixels - ground
    # The colour that differs most from the ground; its sign tells whether the figure is dark on light.
    strength = np.abs(difference).max(axis=2)
    least, most = 3 * _edges(strength).std() + np.median(_edges(strength)), np.quantile(strength, 0.995)
    if most < 24 or most <= least:
        raise InputError(f"{path}: there is nothing to see in it: every pixel is like the edge")
    least = max(least, 0.2 * most)
    ink = np.clip((strength - least) / (0.9 * most - least), 0, 1)
    if colour:
        done.append("in colour: what differs from the ground was taken as the figure")
    if (difference.mean(axis=2) * ink).sum() < 0:
        done.append("dark on light: inverted")

    if centred:
        ink = _laid_out(_without_specks(ink), height, width)
        done.append("cut to the figure and centred as MNIST's digits are")
    else:
        ink = _scaled(_square(ink), height, width)
        if pixels.shape[:2] != (height, width):
            done.append(f"scaled to {height}×{width}")
    return np.round(255 * ink).astype(np.uint8)[..., None], done


def _pixels(path: Path | str, side: int) -> np.ndarray:
    """f64[H,W,3] in 0..255, no longer than `side`.

    What is transparent becomes white under dark figures and black under light ones.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            image.draft(None, (side, side))  # a JPEG is decoded at a half, a quarter or an eighth, and not below
            if image.mode.startswith(("I", "F")):  # 16 or 32 bits, or fractions
                deep = np.asarray(image, np.float64)
                tops = (1, 255, 65535) if image.mode == "F" else (255, 65535)
                white = next((top for top in tops if deep.max() <= top), deep.max())
                image = Image.fromarray((255 * deep / white).clip(0, 255).astype(np.uint8))
            image = ImageOps.exif_transpose(image).convert("RGBA")
            image.thumbnail((side, side), Image.Resampling.BILINEAR)
            image = np.asarray(image, np.float64)
    except FileNotFoundError:
        raise InputError(f"cannot read image {path}: there is no such file") from None
    except IsADirectoryError:
        raise InputError(f"cannot read image {path}: it is a folder; name the image files in it") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise corrupt(path, error) from None
    colours, opacity = image[..., :3], image[..., 3:] / 255
    light = (colours * opacity).mean() > 127.5 * opacity.mean()
    return colours * opacity + (0 if light else 255) * (1 - opacity)


def _edges(x: np.ndarray) -> np.ndarray:
    """The pixels in the outermost twentieth of a picture."""
    margin = max(1, min(x.shape[:2]) // 20)
    inside = np.zeros(x.shape[:2], bool)
    inside[margin:-margin, margin:-margin] = True
    return x[~inside]


def _ground(pixels: np.ndarray) -> np.ndarray:
    """The ground as a plane through the edges' colours, for the light that falls from one side."""
    height, width, _ = pixels.shape
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y], axis=-1)
    at_edges, colours = _edges(terms), _edges(pixels)
    for _ in range(3):  # again without what is far off: a figure that touches the edge
        plane = np.linalg.lstsq(at_edges, colours, rcond=None)[0]
        far = np.abs(at_edges @ plane - colours).max(axis=1)
        near = far <= 2.5 * np.median(far) + 1
        at_edges, colours = at_edges[near], colours[near]
    return terms @ plane


def _without_specks(ink: np.ndarray) -> np.ndarray:
    """Takes out what is separate from the figure and has less than a twentieth of its largest part."""
    from scipy import ndimage

    parts, count = ndimage.label(ink > 0.2, np.ones((3, 3)))
    mass = ndimage.sum_labels(ink, parts, np.arange(count + 1))
    mass[0] = 0
    large = mass >= mass.max() / 20
    # The soft rims of the parts that stay lie within two pixels of them.
    return np.where(ndimage.binary_dilation(large[parts], np.ones((5, 5))), ink, 0)


def _laid_out(ink: np.ndarray, height: int, width: int) -> np.ndarray:
    rows, columns = (np.flatnonzero((ink > 0.2).any(axis=axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = min(20 / 28 * height / ink.shape[0], 20 / 28 * width / ink.shape[1])
    h, w = (max(1, round(side * scale)) for side in ink.shape)
    ink = _scaled(ink, h, w)
    mass = max(ink.sum(), 1e-9)
    top = round((height - 1) / 2 - (ink.sum(1) @ np.arange(h)) / mass)
    left = round((width - 1) / 2 - (ink.sum(0) @ np.arange(w)) / mass)
    top, left = int(np.clip(top, 0, height - h)), int(np.clip(left, 0, width - w))
    laid = np.zeros((height, width))
    laid[top : top + h, left : left + w] = ink
    return laid


def _square(ink: np.ndarray) -> np.ndarray:
    side = max(ink.shape)
    room = [((side - n) // 2, side - n - (side - n) // 2) for n in ink.shape]
    return np.pad(ink, room)


def _scaled(ink: np.ndarray, height: int, width: int) -> np.ndarray:
    from PIL import Image

    image = Image.fromarray(ink.astype(np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float64)
