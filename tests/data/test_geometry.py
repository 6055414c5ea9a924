"""Augmentation that moves boxes and maps with the image: properties that hold whatever the picture and the motion."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from cnn_jax.data import annotated, geometry
from cnn_jax.errors import InputError

N, HEIGHT, WIDTH = 8, 24, 32
# Without the search for the simplest failure, which takes minutes here.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
moved = jax.jit(geometry.moved, static_argnames="least")
flip = jax.jit(geometry.flip, static_argnames="p")


def rectangles(seed, least=4):
    """Images with a white rectangle on black each, and what is true of them; the second place for objects is empty."""
    rng = np.random.default_rng(seed)
    width, height = rng.integers(least, WIDTH // 2, N), rng.integers(least, HEIGHT // 2, N)
    left, top = rng.integers(0, WIDTH - width + 1), rng.integers(0, HEIGHT - height + 1)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    box = np.stack([left, top, left + width, top + height], 1)
    mask = (x >= box[:, :1, None]) & (x < box[:, 2:3, None]) & (y >= box[:, 1:2, None]) & (y < box[:, 3:, None])
    label = rng.integers(0, 5, N)
    return {
        "image": np.repeat(mask[..., None] * 255, 3, axis=-1).astype(np.uint8),
        "boxes": np.stack([box, np.zeros_like(box)], 1).astype(np.float32),
        "label": np.stack([label, np.zeros(N)], 1).astype(np.int32),
        "objects": np.array([[True, False]] * N),
        "crowd": rng.random((N, 2)) < 0.5,
        "area": np.stack([width * height, np.zeros(N)], 1).astype(np.float32),
        "map": (mask * (1 + label[:, None, None])).astype(np.uint8),
        "instances": mask.astype(np.int32),
    }


def box_of(mask):
    y, x = np.nonzero(mask)
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])


motions = st.tuples(st.floats(0.5, 2.0), st.floats(-WIDTH, WIDTH), st.floats(-HEIGHT, HEIGHT))


@settings(max_examples=30, deadline=None, phases=PHASES)
@given(st.integers(0, 99), st.lists(motions, min_size=N, max_size=N))
def test_the_box_of_the_moved_mask_is_the_moved_box(seed, motion):
    """To half a pixel, since a pixel is in the mask where its centre is in the box; and the image moves with both."""
    batch = rectangles(seed)
    factor, away = np.float32(motion)[:, 0], np.float32(motion)[:, 1:]
    out = jax.device_get(moved(batch, factor, away, least=0.0))
    assert out["image"].min() >= 0
    assert out["image"].max() <= 1
    for i in range(N):
        mask = out["instances"][i] == 1
        assert set(np.unique(out["map"][i])) <= {0, 255, *np.unique(batch["map"][i]).tolist()}
        np.testing.assert_array_equal(out["map"][i][mask], 1 + batch["label"][i, 0])
        if mask.any():
            assert out["objects"][i, 0]
            assert np.abs(box_of(mask) - out["boxes"][i, 0]).max() <= 0.5 + 1e-3
        else:
            sides = out["boxes"][i, 0, 2:] - out["boxes"][i, 0, :2]
            assert sides.min() <= 1  # of less than a pixel there may be no centre
        # Interpolation rounds the four corners off, and an edge through the middle of pixels leaves them grey.
        grey = out["image"][i, ..., 0]
        inside = out["map"][i] != 255
        assert (((grey > 0.5) != mask) & (np.abs(grey - 0.5) > 1e-3) & inside).sum() <= 4 * max(1, factor[i])
        whole = batch["area"][i, 0] * factor[i] ** 2
        seen = np.prod(out["boxes"][i, 0, 2:] - out["boxes"][i, 0, :2])
        np.testing.assert_allclose(out["area"][i, 0], batch["area"][i, 0] * seen / whole, rtol=1e-3, atol=1e-3)
    assert not out["boxes"][:, 1].any()
    assert not out["objects"][:, 1].any()


@settings(max_examples=30, deadline=None, phases=PHASES)
@given(st.integers(0, 99), motions, st.sampled_from([0.1, 0.3, 0.7]))
def test_an_object_is_one_while_more_than_a_share_of_it_is_seen(seed, motion, least):
    batch = rectangles(seed)
    factor, *away = motion
    out = jax.device_get(moved(batch, np.full(N, factor, np.float32), np.float32([away] * N), least=least))
    size = np.array([WIDTH, HEIGHT, WIDTH, HEIGHT])
    boxes = (np.asarray(batch["boxes"][:, 0], np.float64) - size / 2) * factor + size / 2 + np.tile(away, 2)
    sides = np.maximum(boxes.clip(0, size)[:, 2:] - boxes.clip(0, size)[:, :2], 0)
    share = sides.prod(1) / (boxes[:, 2:] - boxes[:, :2]).prod(1)
    clear = np.abs(share - least) > 1e-4
    np.testing.assert_array_equal(out["objects"][clear, 0], (share > least)[clear])
    np.testing.assert_allclose(
        out["boxes"][:, 0], np.where(out["objects"][:, :1], boxes.clip(0, size), 0), rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("away", [(WIDTH, 0), (-WIDTH, 0), (0, HEIGHT), (0, -HEIGHT)])
def test_what_is_shifted_out_is_no_more(away):
    out = jax.device_get(moved(rectangles(0), np.ones(N, np.float32), np.float32([away] * N)))
    assert not out["objects"].any()
    assert not out["boxes"].any()
    np.testing.assert_allclose(out["image"], annotated.PAD / 255, atol=1e-6)  # as beside a letterboxed image
    assert not out["instances"].any()
    assert (out["map"] == 255).all()


@settings(max_examples=20, deadline=None, phases=PHASES)
@given(st.integers(0, 99), st.integers(-20, 20), st.integers(-20, 20))
def test_a_shift_by_whole_pixels_is_exact(seed, right, down):
    batch = rectangles(seed)
    out = jax.device_get(moved(batch, np.ones(N, np.float32), np.float32([(right, down)] * N)))
    expected = np.full((N, HEIGHT + 40, WIDTH + 40), 255)
    expected[:, 20 + down : 20 + down + HEIGHT, 20 + right : 20 + right + WIDTH] = batch["map"]
    expected = expected[:, 20:-20, 20:-20]
    np.testing.assert_array_equal(out["map"], expected)
    image = np.where(expected == 255, annotated.PAD / 255, expected > 0)
    np.testing.assert_allclose(out["image"][..., 1], image, atol=1e-5)


@settings(max_examples=20, deadline=None, phases=PHASES)
@given(st.integers(0, 99))
def test_flip_twice_is_the_identity(seed):
    batch = rectangles(seed)
    batch["image"] = np.random.default_rng(seed).integers(0, 256, batch["image"].shape, np.uint8)
    once = jax.device_get(flip(jax.random.key(seed), batch, p=1.0))
    twice = jax.device_get(flip(jax.random.key(seed), once, p=1.0))
    for name, values in batch.items():
        assert twice[name].dtype == values.dtype
        np.testing.assert_array_equal(twice[name], values, err_msg=name)
    np.testing.assert_array_equal(once["image"], batch["image"][:, :, ::-1])
    for i in range(N):
        np.testing.assert_array_equal(once["boxes"][i, 0], box_of(once["instances"][i]))
    assert not once["boxes"][:, 1].any()  # where there is no object there is no box


def test_flip_takes_about_so_many():
    batch = {"image": jnp.tile(jnp.arange(4, dtype=jnp.uint8).reshape(1, 1, 4, 1), (1000, 1, 1, 1))}
    for p in (0.0, 0.25, 1.0):
        out = flip(jax.random.key(3), batch, p=p)
        assert abs((out["image"][:, 0, 0, 0] == 3).mean() - p) <= 0.05 * (0 < p < 1)


@pytest.mark.parametrize("names", [("flip",), ("scale",), ("crop",), ("flip", "scale", "crop", "color")])
def test_the_same_key_does_the_same(names):
    augment, batch = jax.jit(geometry.named(names)), rectangles(1)
    first, again, other = (jax.device_get(augment(jax.random.key(seed), batch)) for seed in (0, 0, 1))
    for name, values in first.items():
        np.testing.assert_array_equal(values, again[name], err_msg=name)
        if name != "image":
            assert values.dtype == batch[name].dtype
    assert (first["image"] != other["image"]).any()
    assert first["image"].dtype == jnp.float32
    assert first["image"].min() >= 0
    assert first["image"].max() <= 1
    np.testing.assert_array_equal(first["label"], batch["label"])
    np.testing.assert_array_equal(first["crowd"], batch["crowd"])


MANY = 400


@pytest.fixture
def middles():
    """Black images with a box in the middle of each, and maps that say where a pixel was."""
    place = jnp.tile(jnp.arange(HEIGHT * WIDTH, dtype=jnp.int32).reshape(1, HEIGHT, WIDTH), (MANY, 1, 1))
    box = jnp.tile(jnp.asarray([[[15.0, 11.0, 17.0, 13.0]]]), (MANY, 1, 1))
    image = jnp.zeros((MANY, HEIGHT, WIDTH, 1))
    return {"image": image, "instances": place, "boxes": box, "objects": jnp.ones((MANY, 1), bool)}


def test_scales_are_as_asked_for(middles):
    boxes = np.asarray(jax.jit(partial(geometry.scale, factors=(0.5, 2.0)))(jax.random.key(0), middles)["boxes"][:, 0])
    factor = (boxes[:, 2:] - boxes[:, :2]) / 2
    np.testing.assert_allclose(factor[:, 0], factor[:, 1], rtol=1e-3)
    assert 0.5 <= factor.min() < 0.53
    assert 1.9 < factor.max() <= 2 + 1e-5
    assert abs(np.log(factor).mean()) < 0.1  # as often half as twice
    np.testing.assert_allclose((boxes[:, 2:] + boxes[:, :2]) / 2, [[WIDTH / 2, HEIGHT / 2]] * MANY, rtol=1e-5)


def test_a_crop_is_a_window_of_the_image(middles):
    """It holds nothing from outside, has the sides that were asked for, and lies anywhere."""
    out = jax.device_get(jax.jit(partial(geometry.crop, shares=(0.5, 0.8)))(jax.random.key(0), middles))
    assert not out["image"][:, 1:-1, 1:-1].any()  # no grey from outside, but where interpolation looks over the edge
    row, column = np.divmod(out["instances"], WIDTH)
    for axis, places, side in ((1, row, HEIGHT), (2, column, WIDTH)):
        first, last = places.min((1, 2)), places.max((1, 2))
        assert (np.diff(places, axis=axis) >= 0).all()
        share = (last - first + 1) / side
        assert 0.5 <= share.min() < 0.56
        assert 0.75 < share.max() <= 0.8 + 1 / side
        assert first.min() == 0
        assert last.max() == side - 1
        where = first / np.maximum(side - (last - first + 1), 1)
        assert 0.4 < where.mean() < 0.6


def test_without_truth_only_the_image_moves():
    batch = {"image": rectangles(0)["image"]}
    for function in (geometry.flip, geometry.crop):
        assert jax.eval_shape(function, jax.random.key(0), batch).keys() == {"image"}
    assert geometry.named(()) is None


@pytest.mark.parametrize(
    ("function", "options", "sentence"),
    [
        (geometry.flip, {"p": 1.5}, "p is 1.5: it must be from 0 to 1"),
        (geometry.scale, {"factors": (0.0, 1.0)}, r"factors is \(0.0, 1.0\): expected 0 < factors"),
        (geometry.scale, {"factors": (2.0, 1.0)}, r"factors is \(2.0, 1.0\)"),
        (geometry.crop, {"shares": (0.5, 1.2)}, r"shares is \(0.5, 1.2\): expected 0 < shares"),
        (geometry.crop, {"least": 1.0}, "least is 1.0: it must be from 0 to below 1"),
    ],
)
def test_options_out_of_range(function, options, sentence):
    with pytest.raises(InputError, match=sentence):
        function(jax.random.key(0), rectangles(0), **options)


def test_unknown_names():
    with pytest.raises(InputError, match="unknown augmentation 'scal': did you mean 'scale'"):
        geometry.named(("flip", "scal"))
