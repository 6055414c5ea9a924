"""Image files to arrays: probing, decoding, and resizing.

JPEG is decoded by simplejpeg where it is installed, anything else, and JPEG otherwise, by Pillow; on grey and RGB JPEG
the two give the same pixels (on CMYK within a level). Resizing needs OpenCV, and has no second choice: another library
would give other pixels. The EXIF orientation is not applied, as in TFDS and torchvision.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from cnn_jax.errors import InputError

EXTENSIONS = frozenset([".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"])

# Sets whose images are crops of one picture at its own scale, and the percentiles of its levels that become 0 and 255.
CROPS = {"nuclei": (0.5, 99.8)}

_GREY_MODES = frozenset({"1", "L", "LA", "I;16", "I;16B", "I;16L"})


def in_package(name: str, *, missing: str) -> Path:
    """The folder of an installed package, of which files are to be read; nothing of it is imported or run.

    Raises:
        InputError: there is no such package; its sentence is `missing`.
    """
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(missing)
    return Path(spec.submodule_search_locations[0])


def probe(path: Path) -> tuple[int, int, bool]:
    """(height, width, is in colour) of an image file, from its header alone."""
    with _opened(path, path) as image:
        return image.height, image.width, image.mode not in _GREY_MODES


def decode(data: bytes, shape: tuple[int, int, int], *, resize: bool, where: object) -> np.ndarray:
    """Decodes one image.

    Colour is turned to grey, or grey to colour, as `shape` asks; what is transparent is laid on white.

    Args:
        data: the bytes of an image file.
        shape: (H, W, C) of the result, C is 1 or 3.
        resize: scale the image until it just covers H×W and cut out the centre. Otherwise its size must be H×W.
        where: names the image in errors.

    Returns:
        u8[H,W,C].

    Raises:
        InputError: the image is corrupt, or has another size.
    """
    height, width, channels = shape
    image = pixels(data, channels, where)
    if resize:
        image = _cover(image, height, width)
    elif image.shape[:2] != (height, width):
        raise InputError(
            f"{where}: the image is {image.shape[0]} high and {image.shape[1]} wide, others are {height} and {width}: "
            "give an image size (--image-size) to bring all to one"
        )
    return np.ascontiguousarray(image.reshape(*image.shape[:2], channels))


def read(path: Path | str, shape: tuple[int, int, int], *, resize: bool = True) -> np.ndarray:
    """Reads one image file as a data set of images of `shape` would: see `decode`."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read image {path}: {error.strerror}") from None
    return decode(data, shape, resize=resize, where=path)


def resize_all(images: np.ndarray, size: int) -> np.ndarray:
    """u8[N,H,W,C] → u8[N,size,size,C]: each scaled until it just covers the square, and its centre cut out."""
    return np.stack([_cover(image, size, size).reshape(size, size, -1) for image in images])


def pixels(data: bytes, channels: int, where: object) -> np.ndarray:
    """The bytes of an image file as u8[H,W] (1 channel) or u8[H,W,3], of their own size."""
    from PIL import Image

    simplejpeg = _simplejpeg()
    if simplejpeg and data[:2] == b"\xff\xd8":
        try:
            return simplejpeg.decode_jpeg(data, colorspace="GRAY" if channels == 1 else "RGB")
        except ValueError:
            pass  # Pillow says what is wrong, or reads what simplejpeg does not.
    with _opened(io.BytesIO(data), where) as image:
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.asarray(image.convert("L" if channels == 1 else "RGB"))


def stretched(data: bytes, percentiles: tuple[float, float], where: object) -> np.ndarray:
    """The bytes of an image file of any depth as u8[H,W]: two percentiles of its grey levels become 0 and 255."""
    with _opened(io.BytesIO(data), where) as image:
        deep = image.mode.startswith(("I", "F"))  # 16 or 32 bits, or fractions
        levels = np.asarray(image if deep else image.convert("L"), np.float32)
    low, high = np.percentile(levels, percentiles)
    return np.round(255 * ((levels - low) / max(high - low, 1e-6)).clip(0, 1)).astype(np.uint8)


@contextmanager
def _opened(file, where: object) -> Iterator:
    """A file that Pillow has opened; what Pillow says against it becomes a sentence."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise corrupt(where, error) from None


def _cover(image: np.ndarray, height: int, width: int) -> np.ndarray:
    h, w = image.shape[:2]
    if (h, w) != (height, width):
        try:
            import cv2
        except ImportError:
            raise InputError("resizing images needs OpenCV: pip install 'cnn_jax[data]'") from None
        scale = max(height / h, width / w)
        h, w = max(height, round(h * scale)), max(width, round(w * scale))
        image = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    top, left = (h - height) // 2, (w - width) // 2
    return image[top : top + height, left : left + width]


@cache
def _simplejpeg():
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


def corrupt(where: object, error: Exception) -> InputError:
    """The error for an image that could not be read, in Pillow's or the system's words."""
    reason = str(error) if not isinstance(error, OSError) or error.strerror is None else error.strerror
    if "cannot identify" in reason:
        reason = "it is not an image that Pillow knows"
    return InputError(f"{where}: corrupt image ({reason}): replace it or take it out")
