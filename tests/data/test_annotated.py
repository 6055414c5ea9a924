"""What sets with boxes and maps share: the letterbox's geometry, what a batch holds, masks, the split."""

import hashlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cnn_jax.data import annotated
from cnn_jax.errors import InputError


def encoded(array, kind="PNG", **options):
    buffer = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(np.asarray(array, np.uint8))
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("height", "width", "size", "inside"),
    [(10, 20, 40, (20, 40)), (20, 10, 5, (5, 2)), (8, 8, 8, (8, 8)), (3, 99, 33, (1, 33))],
)
def test_letterbox(height, width, size, inside):
    square, scale = annotated.letterbox(np.full((height, width, 3), 7, np.uint8), size)
    assert square.shape == (size, size, 3)
    assert square.dtype == np.uint8
    assert scale == size / max(height, width)
    assert (square[: inside[0], : inside[1]] == 7).all()
    square[: inside[0], : inside[1]] = annotated.PAD
    assert (square == annotated.PAD).all()


def test_letterbox_interpolates_images_and_not_maps():
    steps = np.repeat(np.array([[0, 0, 100, 100]], np.uint8), 4, axis=0)
    half, _ = annotated.letterbox(steps[:, 1:], 2)  # 0 100 100, from three to two
    assert half[0].tolist() == [33, 100]
    for size in (1, 2, 3, 5, 8, 13):
        square, _ = annotated.letterbox(steps, size, pad=255, nearest=True)
        assert set(np.unique(square)) <= {0, 100}
    long, _ = annotated.letterbox(np.zeros((1, 6), np.uint8), 3, pad=255, nearest=True)
    assert long.tolist() == [[0] * 3, [255] * 3, [255] * 3]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 60))
def test_a_pixel_of_a_map_has_the_value_at_its_centre(height, width, size):
    """As an image does, so that neither is moved against the other."""
    values = np.random.default_rng(height * width).integers(0, 9, (height, width), np.uint8)
    square, scale = annotated.letterbox(values, size, pad=255, nearest=True)
    new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    y = np.floor((np.arange(new_height) + 0.5) * height / new_height + 1e-9).astype(int)
    x = np.floor((np.arange(new_width) + 0.5) * width / new_width + 1e-9).astype(int)
    np.testing.assert_array_equal(square[:new_height, :new_width], values[y[:, None], x])
    assert (square == 255).sum() == size**2 - new_height * new_width


@settings(max_examples=40, deadline=None)
@given(st.integers(8, 60), st.integers(8, 60), st.sampled_from([7, 16, 31, 64, 100]), st.data())
def test_image_map_and_boxes_stay_together(height, width, size, given):
    left, top = given.draw(st.integers(0, width - 4)), given.draw(st.integers(0, height - 4))
    right, bottom = given.draw(st.integers(left + 4, width)), given.draw(st.integers(top + 4, height))
    classes = np.zeros((height, width), np.uint8)
    classes[top:bottom, left:right] = 1
    image = np.repeat(classes[..., None] * 255, 3, axis=2)
    box = np.array([[left, top, right, bottom]], np.float32)
    area = np.array([(right - left) * (bottom - top)], np.float32)
    one = np.zeros(1, np.int32)
    objects = annotated.with_objects(image, box, one, crowd=one > 0, area=area, size=size, most=2, where="here")
    maps = annotated.with_map(image, classes, size=size, where="here")
    np.testing.assert_array_equal(objects["image"], maps["image"])
    assert objects["objects"].tolist() == [True, False]
    y, x = np.nonzero(maps["map"] == 1)
    if len(y):
        found = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
        # Half a pixel for its centre, and half because the shorter side is rounded to whole pixels.
        assert np.abs(found - objects["boxes"][0]).max() <= 1
    inner = (maps["image"][..., 0] > 200) | (maps["image"][..., 0] < 55)
    real = maps["map"] != 255
    assert ((maps["image"][..., 0] > 127) == (maps["map"] == 1))[inner & real].mean() > 0.97
    np.testing.assert_allclose(objects["area"][0], area[0])
    np.testing.assert_allclose(objects["scale"], size / max(height, width), rtol=1e-6)
    np.testing.assert_allclose(objects["inside"], np.array([width, height]) * size / max(height, width), rtol=1e-6)


def test_boxes_never_leave_the_square():
    """In 32 bits 1276 · (640 / 1276) is more than 640."""
    widths = np.arange(1, 2000)
    over = widths[np.float32(widths) * (640 / widths).astype(np.float32) > 640]
    assert 1276 in over
    one = np.ones(1, np.float32)
    for width in over:
        box, image = np.array([[0, 0, width, 1]], np.float32), np.zeros((1, width, 3), np.uint8)
        out = annotated.with_objects(
            image, box, one.astype(np.int32), crowd=one < 1, area=one, size=640, most=1, where="here"
        )
        assert out["boxes"].max() == 640


def test_the_greatest_objects_are_kept_in_their_order():
    boxes = np.array([[0, 0, side, side] for side in (1, 5, 3, 4, 3)], np.float32)
    area = boxes[:, 2] ** 2
    out = annotated.with_objects(
        np.zeros((8, 8, 3), np.uint8),
        boxes,
        np.arange(5, dtype=np.int32),
        crowd=np.arange(5) == 3,
        area=area,
        size=8,
        most=3,
        where="here",
    )
    assert out["label"].tolist() == [1, 2, 3]  # of the two of equal size the first
    assert out["crowd"].tolist() == [False, False, True]
    assert out["area"].tolist() == [25, 9, 16]
    for name, values in annotated.empty("boxes", 8, most=3).items():
        assert (values.shape, values.dtype) == (out[name].shape, out[name].dtype), name
        assert name in ("scale", "inside") or not values.any()


def test_masks():
    values = np.array([[0, 1, 2, 255]], np.uint8)
    grey = Image.fromarray(values)
    palette = Image.fromarray(values)
    palette.putpalette([x for i in range(256) for x in (i, 255 - i, 7)])
    two = Image.fromarray(np.array([[False, True]]))
    for image, expected in ((grey, values), (palette, values), (two, [[0, 1]])):
        found = annotated.decode_map(encoded(image), "here")
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, expected)
    for bits in (2, 4):  # of a palette, as drawing programs save few colours
        few = Image.fromarray(np.array([[0, 1, 2, 3]], np.uint8))
        few.putpalette([0, 0, 0, 9, 9, 9, 5, 0, 0, 0, 7, 0])
        np.testing.assert_array_equal(annotated.decode_map(encoded(few, bits=bits), "here"), [[0, 1, 2, 3]])


def png_of_bits(values, bits):
    """A grey PNG of so many bits a pixel, which Pillow does not write."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    row = int("".join(f"{v:0{bits}b}" for v in values), 2).to_bytes(len(values) * bits // 8, "big")
    header = struct.pack(">IIBBBBB", len(values), 1, bits, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def test_grey_of_few_bits_is_not_stretched():
    """Pillow makes 0, 85, 170, 255 of 0 to 3: then class 3 would count nowhere."""
    assert annotated.decode_map(png_of_bits([0, 1, 2, 3], 2), "here").tolist() == [[0, 1, 2, 3]]
    assert annotated.decode_map(png_of_bits([0, 1, 9, 15], 4), "here").tolist() == [[0, 1, 9, 15]]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (encoded(np.zeros((2, 2, 3))), "here: the mask is a PNG of mode RGB: give a grey or palette PNG of 8 bits"),
        (encoded(np.zeros((8, 8)), "JPEG"), "here: the mask is a JPEG of mode L"),
        (encoded(Image.fromarray(np.zeros((2, 2), np.uint16))), "here: the mask is a PNG of mode I;16"),
        (b"nonsense", "here: corrupt image"),
        (encoded(np.zeros((50, 50)))[:60], "here: corrupt image"),
    ],
)
def test_files_that_are_no_masks(content, sentence):
    with pytest.raises(InputError, match=sentence):
        annotated.decode_map(content, "here")


def test_values_of_maps():
    annotated.check_map(np.array([[0, 2, 255]], np.uint8), 3, "here")
    with pytest.raises(InputError, match=r"here: the mask has the values \[3, 9\]: classes are 0 to 2, and 255"):
        annotated.check_map(np.array([[0, 9, 3]], np.uint8), 3, "here")
    assert annotated.names_of(np.array([0, 2, 255]), "here") == ("0", "1", "2")
    with pytest.raises(InputError, match=r"here: its masks hold the values \[0\], beside 255.* at least 2 classes"):
        annotated.names_of(np.array([0, 255]), "here")
    with pytest.raises(InputError, match=r"here: the mask is \(2, 3\) high and wide, its image \(3, 2\)"):
        annotated.with_map(np.zeros((3, 2, 3), np.uint8), np.zeros((2, 3), np.uint8), size=4, where="here")


def test_decode(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    (tmp_path / "a.png").write_bytes(encoded(pixels))
    np.testing.assert_array_equal(annotated.decode(tmp_path / "a.png", 3), pixels)
    assert annotated.decode(tmp_path / "a.png", 1).shape == (4, 6, 1)
    with pytest.raises(InputError, match=r"cannot read image .*b.png: No such file"):
        annotated.decode(tmp_path / "b.png", 3)


def test_split_by_name():
    names = [f"photo {i}.jpg" for i in range(23)]
    train, test = annotated.split_by_name(names)
    assert sorted([*train, *test]) == list(range(23))
    ordered = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    assert [names[i] for i in test] == ordered[2::5]
    # It follows from the names alone, whatever the order in which the files are found.
    again = annotated.split_by_name(names[::-1])[1]
    assert {names[::-1][i] for i in again} == {names[i] for i in test}
    assert [len(rows) for rows in annotated.split_by_name(["one"])] == [1, 0]
    annotated.split_by_name(["b\udcff.png", "a.png"])  # a name that is not UTF-8, as Python reads it


def test_assemble_needs_images():
    class Nothing:
        image_shape = (2, 2, 3)

        def __len__(self):
            return 0

    with pytest.raises(
        InputError, match="s: has 0 images to train on and 0 to test on: give at least one for each, so two in all"
    ):
        annotated.assemble("s", (Nothing(), Nothing()), ("a", "b"), "")
