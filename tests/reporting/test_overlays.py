"""What is drawn over images and beside them: colours that tell classes apart, exact maps, legends that name them."""

import numpy as np
import pytest

from cnn_jax.reporting import overlays, plots

NAMES = [f"class {i}" for i in range(21)]


@pytest.mark.parametrize("count", [2, 11, 21, 24])
def test_classes_have_colours_far_apart(count):
    """From each other and from the white of what is not known, by the "redmean" approximation to what the eye sees."""
    palette = overlays.map_colours(count)
    assert (palette.dtype, palette.shape) == (np.uint8, (count, 3))
    every = np.concatenate([palette, [[255] * 3]]).astype(float)
    red = (every[:, None, 0] + every[None, :, 0]) / 2
    squares = (every[:, None] - every[None]) ** 2
    weights = np.stack([2 + red / 256, np.full_like(red, 4), 2 + (255 - red) / 256], axis=-1)
    distances = np.sqrt((weights * squares).sum(-1))
    assert distances[~np.eye(count + 1, dtype=bool)].min() > 75


def test_more_classes_than_colours():
    assert len(np.unique(overlays.map_colours(150), axis=0)) >= 149


def test_a_map_alone_has_one_colour_a_class():
    palette = overlays.map_colours(4)
    drawn = overlays.map_alone(np.array([[0, 1], [3, 255]], np.uint8), palette)
    assert drawn.shape == (256, 256, 3)
    assert np.unique(drawn[:128, :128].reshape(-1, 3), axis=0).tolist() == [palette[0].tolist()]
    assert np.unique(drawn[128:, :128].reshape(-1, 3), axis=0).tolist() == [palette[3].tolist()]
    assert (drawn[128:, 128:] == 255).all()


def test_over_an_image_a_class_has_one_hue():
    """Over any colour, the differences between red, green and blue are the class's own."""
    image = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    classes = np.repeat(np.array([0, 1, 2, 255], np.uint8), 75)[None].repeat(300, 0)
    palette = overlays.map_colours(3)
    drawn = overlays.with_classes(image, classes, palette).astype(int)
    for c in (1, 2):
        expected = 0.6 * (palette[c, :1].astype(int) - palette[c, 1:])
        found = drawn[classes == c]
        np.testing.assert_allclose(found[:, :1] - found[:, 1:], np.broadcast_to(expected, (len(found), 2)), atol=1)
    np.testing.assert_array_equal(drawn[(classes == 0) | (classes == 255)], image[(classes == 0) | (classes == 255)])


@pytest.mark.parametrize(("count", "width"), [(11, 928), (21, 928), (21, 300)])
def test_a_legend_shows_each_colour_and_cuts_no_name(count, width):
    palette = overlays.map_colours(count)
    drawn = overlays.legend(NAMES[:count], palette, width=width)
    assert drawn.shape[1:] == (width, 3)
    assert (drawn[:, -4:] == 255).all()
    assert (drawn[-4:] == 255).all()
    corners = [np.argwhere((drawn == colour).all(-1)) for colour in palette]
    assert all(len(found) > 300 for found in corners)
    first = [tuple(found[0]) for found in corners]
    assert first == sorted(first)  # in order, row after row


def test_a_sheet_with_a_legend_ends_with_it():
    palette = overlays.map_colours(3)
    images = np.zeros((2, 4, 4, 3), np.uint8)
    plain = plots.image_grid(images).axes[0].images[0].get_array()
    page = plots.image_grid(images, legend=(NAMES[:3], palette)).axes[0].images[0].get_array()
    np.testing.assert_array_equal(page[: len(plain) - 20], plain[:-20])
    for colour in palette:
        assert (page[len(plain) - 20 :] == colour).all(-1).sum() > 300


def test_a_picture_with_its_legend():
    picture = np.full((100, 200, 3), 7, np.uint8)
    drawn = overlays.with_legend(picture, ["a", "b"], overlays.map_colours(2))
    np.testing.assert_array_equal(drawn[:100], picture)
    assert drawn.shape[0] > 110


def test_no_label_covers_another():
    """Of three objects in nearly one place, whose boxes differ by two pixels."""
    boxes = np.array([[100, 100, 160, 160], [102, 100, 162, 160], [104, 102, 164, 162], [0, 0, 9, 9]], np.float32)
    objects = {"boxes": boxes, "label": np.array([0, 1, 2, 3]), "objects": np.array([True, True, True, False])}
    names, palette = ["dog", "cat", "cow", "none"], overlays.class_colours(4)
    drawn = overlays.with_boxes(np.zeros((300, 300, 3), np.uint8), objects, names)
    for colour in palette[:3]:  # of a label is seen what remains beside its letters, of a frame the lines alone
        same = (drawn == colour).all(-1)
        assert same.sum(1).max() > 25
        assert same.sum() > 60 * 2 * 4 * 0.5 + 400
    assert not (drawn == palette[3]).all(-1).any()
    crowded = overlays.with_boxes(np.zeros((300, 300, 3), np.uint8), {**objects, "crowd": objects["objects"]}, names)
    assert (crowded == palette[0]).all(-1).sum() > (drawn == palette[0]).all(-1).sum()  # "(crowd)" makes it longer
