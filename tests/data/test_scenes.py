"""Scenes and the augmentation that moves their truth: what is said of a picture is what is in it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax import data
from cnn_jax.data import geometry, scenes
from cnn_jax.errors import InputError

# As many items in both splits, and everywhere the same size of scenes: they are made by one compiled program.
ITEMS = data.load("mnist_10k").head(train=2000, test=2000)


@pytest.fixture(scope="module")
def made():
    return scenes.make(jax.random.key(0), ITEMS.train, count=70, size=48, most=4)


@pytest.fixture
def batch(made):
    return {name: jnp.asarray(values[:64]) for name, values in made.items()}


def test_shapes_and_ranges(made):
    assert made["image"].shape == (70, 48, 48, 3)
    assert made["objects"].any(1).all()  # there is always something
    assert made["instances"].max() <= 4


def test_the_same_key_makes_the_same_scenes_however_many(made):
    fewer = scenes.make(jax.random.key(0), ITEMS.train, count=5, size=48, most=4)
    for name, values in fewer.items():
        np.testing.assert_array_equal(values, made[name][:5], err_msg=name)
    other = scenes.make(jax.random.key(1), ITEMS.train, count=5, size=48, most=4)
    assert (other["image"] != fewer["image"]).mean() > 0.9


def test_boxes_and_maps_are_those_of_the_pixels(made):
    for i in range(70):
        for j in range(4):
            seen = made["instances"][i] == j + 1
            assert seen.any() == made["objects"][i, j]
            if not seen.any():
                assert not made["boxes"][i, j].any()
                continue
            y, x = np.nonzero(seen)
            assert made["boxes"][i, j].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
            assert set(made["map"][i][seen]) == {made["label"][i, j] + 1}
        assert ((made["map"][i] > 0) == (made["instances"][i] > 0)).all()


@pytest.mark.parametrize("ground", [0.1, 0.45, 0.9])
def test_what_is_painted_stands_out_and_is_a_colour(ground):
    picture = jnp.full((4, 4, 3), ground)
    ink = jnp.zeros((4, 4)).at[1, 1].set(1.0)
    keys = jax.random.split(jax.random.key(0), 50)
    painted = jax.vmap(lambda key: scenes._painted(key, picture, ink, 0.5)[1, 1])(keys)
    assert (np.abs(painted - ground).max(1) >= 0.5 - 1e-6).all()
    assert painted.min() >= 0
    assert painted.max() <= 1.05 + 1e-6  # from just below the middle 0.6 more


def test_sets_for_both_tasks():
    boxes = scenes.load(ITEMS, "boxes", train=3, test=2, size=48, most=4)
    maps = scenes.load(ITEMS, "map", train=3, test=2, size=48, most=4, seed=1)
    assert boxes.num_classes == 10
    assert maps.class_names[:2] == ("ground", "0")
    np.testing.assert_array_equal(boxes.test["image"], maps.test["image"])  # fixed, whatever the seed
    assert (boxes.train["image"] != maps.train["image"]).any()
    with pytest.raises(InputError, match="expected 1, 1, 32 and 1 or more"):
        scenes.load(ITEMS, "map", size=8)


@pytest.mark.parametrize("change", [lambda x: 255 - x, lambda x: x // 2 + 60], ids=["on white", "on grey"])
def test_items_must_lie_on_black(change):
    items = replace(ITEMS, name="paper", train=ITEMS.train | {"image": change(ITEMS.train["image"])})
    with pytest.raises(InputError, match="the images of paper are no light items on black"):
        scenes.load(items, "map", train=3, test=2, size=48, most=4)


def test_flip_twice_is_nothing_and_boxes_follow_the_mask(batch):
    once = geometry.flip(jax.random.key(0), batch, p=1.0)
    boxes, there = jax.vmap(lambda x: scenes.boxes_of(x.astype(jnp.int32), 4))(once["instances"])
    np.testing.assert_array_equal(there, once["objects"])
    np.testing.assert_array_equal(boxes, once["boxes"])
    twice = geometry.flip(jax.random.key(0), once, p=1.0)
    for name, values in batch.items():
        np.testing.assert_array_equal(twice[name], values, err_msg=name)


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_the_moved_box_is_that_of_the_moved_mask(batch, factor):
    """Exact where pixels fall on pixels; a factor of two may miss by half a pixel of the original."""
    n = 64
    away = jnp.round(jax.random.uniform(jax.random.key(1), (n, 2), minval=-9, maxval=9))
    out = geometry.moved(batch, jnp.full(n, factor), away, least=0.0)
    boxes, there = jax.vmap(lambda x: scenes.boxes_of(x.astype(jnp.int32), 4))(out["instances"])
    # A box that is only just in the image may hold no pixel of its object.
    assert not (there & ~out["objects"]).any()
    # Where an edge cuts a box, that of what is left of the object may be smaller.
    inside = there & out["objects"] & (out["boxes"].min(-1) > 0) & (out["boxes"].max(-1) < 48)
    assert inside.sum() >= 4
    apart = np.abs(np.asarray(boxes - out["boxes"]))[np.asarray(inside)]
    assert apart.max() <= (0 if factor == 1 else 1)


def test_what_leaves_the_image_is_no_object(batch):
    out = geometry.moved(batch, jnp.ones(64), jnp.full((64, 2), 100.0))
    assert not out["objects"].any()
    assert (out["map"] == 255).all()
    assert (out["instances"] == 0).all()


def test_the_identity_changes_nothing(batch):
    out = geometry.moved(batch, jnp.ones(64), jnp.zeros((64, 2)))
    np.testing.assert_allclose(out["image"], batch["image"] / 255, atol=1e-6)
    for name in ("boxes", "objects", "map", "instances", "label"):
        np.testing.assert_array_equal(out[name], batch[name], err_msg=name)


def test_named(batch):
    augment = geometry.named(("flip", "scale", "crop", "color"))
    out = jax.jit(augment)(jax.random.key(2), batch)
    assert out["image"].shape == batch["image"].shape
    assert out["boxes"].min() >= 0
    assert out["boxes"].max() <= 48
    with pytest.raises(InputError, match="did you mean 'flip'"):
        geometry.named(("flop",))
