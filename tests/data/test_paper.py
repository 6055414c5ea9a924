"""Pictures of digits, made from MNIST's own, come back as MNIST's."""

import tracemalloc

import numpy as np
import pytest
from PIL import Image

from cnn_jax.data import mnist_10k, paper
from cnn_jax.errors import InputError

SHAPE = (28, 28, 1)
DIGITS = mnist_10k.load().test["image"][:20]


def photograph(digit, path, *, paper_colour=(235, 230, 215), ink=(30, 40, 120), seed=0):
    """A digit five times as large, somewhere on a sheet with shading and noise."""
    rng = np.random.default_rng(seed)
    large = np.asarray(Image.fromarray(digit[..., 0]).resize((140, 140), Image.Resampling.BICUBIC)) / 255
    alpha = np.zeros((260, 300, 1))
    top, left = rng.integers(10, 110), rng.integers(10, 150)
    alpha[top : top + 140, left : left + 140, 0] = large
    sheet = np.asarray(paper_colour) * np.linspace(1, 0.85, 300)[None, :, None]
    pixels = sheet * (1 - alpha) + np.asarray(ink) * alpha + rng.normal(0, 2, (260, 300, 3))
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def likeness(pixels, digit):
    """The correlation with the original. Its place is known to a pixel only: it was centred at a higher resolution."""
    shifted = (np.roll(pixels, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1))
    return max(np.corrcoef(x.ravel(), digit.ravel())[0, 1] for x in shifted)


def test_mnists_own_pass_unchanged(tmp_path):
    for digit in DIGITS:
        Image.fromarray(digit[..., 0]).save(tmp_path / "digit.png")
        pixels, done = paper.read(tmp_path / "digit.png", SHAPE, centred=True)
        np.testing.assert_array_equal(pixels, digit)
        assert done == []


@pytest.mark.parametrize(
    "colours",
    [
        {},
        {"paper_colour": (250, 250, 250), "ink": (10, 10, 10)},
        {"paper_colour": (30, 70, 40), "ink": (240, 240, 230)},
        {"paper_colour": (200, 200, 90), "ink": (190, 40, 60)},
    ],
)
def test_photographs_come_back(tmp_path, colours):
    correlations = []
    for i, digit in enumerate(DIGITS):
        photograph(digit, tmp_path / "photo.jpg", seed=i, **colours)
        pixels, done = paper.read(tmp_path / "photo.jpg", SHAPE, centred=True)
        assert (pixels.shape, pixels.dtype) == (SHAPE, np.uint8)
        correlations.append(likeness(pixels, digit))
        dark_on_light = sum(colours.get("paper_colour", (255,) * 3)) > sum(colours.get("ink", (0,) * 3))
        assert any("inverted" in phrase for phrase in done) == dark_on_light
    assert np.median(correlations) > 0.95
    assert min(correlations) > 0.85


def test_the_ground_is_a_plane_beside_whatever_figure():
    """One that fills most of the sheet, and touches its upper edge."""
    y, x = np.meshgrid(np.linspace(0, 1, 120), np.linspace(0, 1, 100), indexing="ij")
    sheet = np.stack([200 + 30 * x, 190 + 20 * y, 180 - 10 * x + 5 * y], axis=-1)
    drawn = sheet.copy()
    drawn[:100, 10:85] = 20
    drawn[:20, 10:25] = sheet[:20, 10:25]
    drawn[:20, 45:85] = sheet[:20, 45:85]
    np.testing.assert_allclose(paper._ground(drawn), sheet, atol=1e-6)


@pytest.mark.parametrize("ink", [0, 255])
def test_what_is_transparent_is_paper(tmp_path, ink):
    """Black ink on nothing is a digit on white paper, and white ink one on a black board."""
    for digit in DIGITS[:3]:
        large = np.asarray(Image.fromarray(digit[..., 0]).resize((140, 140), Image.Resampling.BICUBIC))
        drawn = np.full((140, 140, 4), ink, np.uint8)
        drawn[..., 3] = large
        Image.fromarray(drawn).save(tmp_path / "layer.png")
        board = 255 - large if ink == 0 else large
        Image.fromarray(board).save(tmp_path / "board.png")
        (found, done), (expected, _) = (
            paper.read(tmp_path / f"{name}.png", SHAPE, centred=True) for name in ("layer", "board")
        )
        np.testing.assert_allclose(found.astype(int), expected.astype(int), atol=1)
        assert likeness(found, digit) > 0.9
        assert any("inverted" in phrase for phrase in done) == (ink == 0)


def test_inverting_twice_is_nothing(tmp_path):
    """The figure is found alike in a picture and in its negative."""
    photograph(DIGITS[3], tmp_path / "photo.png")
    negative = Image.fromarray(255 - np.asarray(Image.open(tmp_path / "photo.png")))
    negative.save(tmp_path / "negative.png")
    one, other = (paper.read(tmp_path / f"{name}.png", SHAPE, centred=True)[0] for name in ("photo", "negative"))
    assert np.abs(one.astype(int) - other).max() <= 1


def test_negatives_of_mnists_own_are_inverted_exactly(tmp_path):
    for digit in DIGITS:
        Image.fromarray(255 - digit[..., 0]).save(tmp_path / "digit.png")
        pixels, done = paper.read(tmp_path / "digit.png", SHAPE, centred=True)
        np.testing.assert_array_equal(pixels, digit)
        assert done == ["dark on light: inverted"]


def test_specks_do_not_move_the_figure(tmp_path):
    photograph(DIGITS[2], tmp_path / "clean.png")
    pixels = np.array(Image.open(tmp_path / "clean.png"))
    pixels[15:18, 280:283] = pixels[240:242, 20:23] = (30, 40, 120)
    Image.fromarray(pixels).save(tmp_path / "specks.png")
    clean, specks = (paper.read(tmp_path / f"{name}.png", SHAPE, centred=True)[0] for name in ("clean", "specks"))
    assert np.abs(clean.astype(int) - specks).max() <= 2


def test_layout_is_mnists(tmp_path):
    photograph(DIGITS[1], tmp_path / "photo.png")
    pixels = paper.read(tmp_path / "photo.png", SHAPE, centred=True)[0][..., 0] / 255
    rows, columns = (np.flatnonzero(pixels.any(axis=axis)) for axis in (1, 0))
    assert 19 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 20
    centre = [(pixels.sum(axis) @ np.arange(28)) / pixels.sum() for axis in (0, 1)]
    np.testing.assert_allclose(centre, 13.5, atol=0.6)


def test_any_kind_of_file(tmp_path):
    """Palette, black or white ink on nothing, 16 and 32 bits, fractions, turned by the camera: all show the same."""
    photograph(DIGITS[0], tmp_path / "photo.png", paper_colour=(255, 255, 255), ink=(0, 0, 0))
    photo = Image.open(tmp_path / "photo.png").convert("L")
    truth = paper.read(tmp_path / "photo.png", SHAPE, centred=True)[0].astype(int)
    photo.convert("P").save(tmp_path / "palette.gif")
    black = Image.new("RGBA", photo.size, "black")
    black.putalpha(Image.fromarray(255 - np.asarray(photo)))
    black.save(tmp_path / "alpha.png")
    Image.fromarray(np.asarray(photo).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    white = Image.new("RGBA", photo.size, "white")
    white.putalpha(Image.fromarray(255 - np.asarray(photo)))
    white.save(tmp_path / "white.png")
    Image.fromarray(np.asarray(photo).astype(np.int32) * 257).save(tmp_path / "deeper.tif")
    Image.fromarray(np.asarray(photo).astype(np.float32) / 255).save(tmp_path / "fractions.tif")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    photo.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    for name in ("palette.gif", "alpha.png", "white.png", "deep.png", "deeper.tif", "fractions.tif", "turned.png"):
        pixels = paper.read(tmp_path / name, SHAPE, centred=True)[0]
        assert np.abs(pixels - truth).mean() < 2, name


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_large_photograph_is_made_small_first(tmp_path, suffix):
    photograph(DIGITS[4], tmp_path / "small.png")
    with Image.open(tmp_path / "small.png") as small:
        small.resize((2700, 2340), Image.Resampling.BICUBIC).save(tmp_path / f"large.{suffix}")
    tracemalloc.start()
    pixels = paper.read(tmp_path / f"large.{suffix}", SHAPE, centred=True)[0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert likeness(pixels, DIGITS[4]) > 0.9
    assert peak < 2700 * 2340 * 3 * 8  # less than the whole photograph takes in 64 bits


def test_fashion_keeps_its_place(tmp_path):
    pixels = np.full((56, 28, 3), 255, np.uint8)
    pixels[10:20, 4:12] = 0
    Image.fromarray(pixels).save(tmp_path / "shirt.png")
    read, done = paper.read(tmp_path / "shirt.png", SHAPE, centred=False)
    assert done == ["dark on light: inverted", "scaled to 28×28"]
    expected = np.zeros((28, 28))
    expected[5:10, 9:13] = 255  # half the size, in the middle of a square
    assert np.abs(read[..., 0] - expected).mean() < 6


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("gone.png", None, "cannot read image .*gone.png: there is no such file"),
        ("", None, "cannot read image .*: it is a folder"),
        ("text.png", b"not an image", "text.png: corrupt image .*: replace it or take it out"),
        ("blank.png", "white", "blank.png: there is nothing to see in it"),
    ],
)
def test_bad_files(tmp_path, name, content, sentence):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content:
        Image.new("RGB", (50, 50), content).save(tmp_path / name)
    with pytest.raises(InputError, match=sentence):
        paper.read(tmp_path / name, SHAPE, centred=True)
