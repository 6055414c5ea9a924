"""Measures against hand values, SciPy and what must hold of them; the report card beside its baselines."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from networks import filled
from scipy import ndimage, stats

from cnn_jax.analysis import attribution, faithfulness
from cnn_jax.analysis.report_card import BASELINES, MEASURES, edges, report_card
from cnn_jax.analysis.scores import class_score
from cnn_jax.errors import InputError
from cnn_jax.models.layers import Conv


class Net(nn.Module):
    @nn.compact
    def __call__(self, images, *, train=False):
        x = nn.relu(Conv(4, name="first")(images))
        return nn.Dense(3, name="head")(nn.relu(nn.Dense(4, name="between")(x.mean((1, 2)))))


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


IMAGES = random(3, 6, 5, 2)
NET = Net()
SCORE = class_score(NET, filled(NET, IMAGES), [2, 0, 1])
WEIGHTS = random(6, 5, 2, seed=1)


def weighted(weights, images):
    return jnp.einsum("nhwc,hwc->n", images, weights)


LINEAR = Partial(weighted, WEIGHTS)


def gradient(key, score, images):
    return attribution.gradient(score, images)


def test_completeness():
    maps = WEIGHTS * (IMAGES - 0.5)
    total, difference = faithfulness.completeness(LINEAR, IMAGES, maps, baseline=0.5, batch_size=2)
    np.testing.assert_allclose(total, maps.sum((1, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(total, difference, rtol=1e-4)
    of_pixels, _ = faithfulness.completeness(LINEAR, IMAGES, maps.sum(-1), baseline=0.5, batch_size=2)
    np.testing.assert_allclose(of_pixels, total, rtol=1e-4)


@pytest.mark.parametrize("batch_size", [2, 100])
def test_deletion_and_insertion_by_hand(batch_size):
    """Of a sum, each pixel that is covered or uncovered takes or gives its own part, the greatest first."""
    parts = (WEIGHTS * IMAGES).sum(-1)
    falling = -np.sort(-parts.reshape(3, -1))  # 30 pixels
    given = np.pad(falling.cumsum(1), ((0, 0), (1, 0)))[:, ::3]  # after 0, 3, … 30
    options = {"steps": 10, "batch_size": batch_size}
    found = faithfulness.insertion(LINEAR, IMAGES, parts, start=0.0, **options)
    np.testing.assert_allclose(found.values, given, atol=1e-4)
    np.testing.assert_allclose(found.area, np.trapezoid(given, dx=0.1), atol=1e-4)
    found = faithfulness.deletion(LINEAR, IMAGES, WEIGHTS * IMAGES, **options)
    np.testing.assert_allclose(found.values, given[:, -1:] - given, atol=1e-4)
    np.testing.assert_allclose(found.area, np.trapezoid(given[:, -1:] - given, dx=0.1), atol=1e-4)


def test_insertion_begins_with_a_blurred_image():
    along = stats.norm.pdf(np.arange(-5, 6), scale=5)
    kernel = along / along.sum()
    expected = ndimage.correlate1d(ndimage.correlate1d(IMAGES, kernel, 1, mode="nearest"), kernel, 2, mode="nearest")
    np.testing.assert_allclose(faithfulness.blurred(IMAGES), expected, atol=1e-5)
    curve = faithfulness.insertion(LINEAR, IMAGES, IMAGES, steps=2)
    np.testing.assert_allclose(curve.values[:, 0], weighted(WEIGHTS, expected), atol=1e-4)
    np.testing.assert_allclose(curve.values[:, 2], weighted(WEIGHTS, IMAGES), atol=1e-4)


def test_equal_values_are_not_taken_from_the_top():
    """A map that says nothing is as good as chance, though what matters lies at the top left."""
    images = np.zeros((1, 20, 20, 1), np.float32)
    images[:, :10] = 1
    curve = faithfulness.deletion(lambda images: images.mean((1, 2, 3)), images, np.zeros((1, 20, 20)), steps=4)
    np.testing.assert_allclose(curve.values[0], [0.5, 0.375, 0.25, 0.125, 0], atol=0.05)


def test_infidelity(key):
    """Contributions to a sum say all of what a covered square takes; half of them a half."""

    def found(maps, **options):
        return faithfulness.infidelity(key, LINEAR, IMAGES, maps, baseline=0.5, samples=30, batch_size=2, **options)

    maps = WEIGHTS * (IMAGES - 0.5)
    for value in found(maps):
        np.testing.assert_allclose(value, 0, atol=1e-4)
    derivative = np.broadcast_to(WEIGHTS, IMAGES.shape)
    np.testing.assert_allclose(found(derivative, perturb=faithfulness.remove_square).error, 0, atol=1e-4)
    half, nothing = found(maps / 2), found(0 * maps)
    np.testing.assert_allclose(half.error, nothing.error / 4, rtol=1e-4)
    np.testing.assert_allclose(half.relative, 0, atol=1e-4)
    np.testing.assert_allclose(nothing.relative, 1)
    np.testing.assert_array_equal(nothing.scaled, nothing.error)
    spread = maps.sum(-1, keepdims=True).repeat(2, -1) / 2
    np.testing.assert_allclose(found(maps.sum(-1)), found(spread), atol=1e-4)


def test_squares(key):
    image = jnp.asarray(random(9, 6, 2))
    squares = jax.jit(jax.vmap(lambda i: faithfulness.cover_square(jax.random.fold_in(key, i), image, 2 * image)))
    inside, changed = map(np.asarray, squares(np.arange(300)))
    np.testing.assert_array_equal(inside[..., 0], inside[..., 1])
    np.testing.assert_array_equal(changed, np.where(inside > 0, 2 * image, image))
    rows, columns = inside.any((2, 3)).sum(1), inside.any((1, 3)).sum(1)
    np.testing.assert_array_equal(rows, columns)
    np.testing.assert_array_equal(inside[..., 0].sum((1, 2)), rows**2)
    assert set(rows) == {1, 2, 3}
    assert inside.any(0).all()
    change, same = faithfulness.remove_square(key, image, 2 * image)
    np.testing.assert_allclose(image - change, same)


def test_max_sensitivity(key):
    def identity(key, score, images):
        return images

    images = 100 * IMAGES  # so that the length changes by little
    found = faithfulness.max_sensitivity(key, identity, LINEAR, images, radius=0.3, samples=20)
    # The length of 60 numbers, uniform in ±0.3, is 0.3·√20 ± 0.06; at most 0.3·√60.
    lengths = np.asarray(found) * np.sqrt((images**2).sum((1, 2, 3)))
    assert (lengths > 1.34).all()
    assert (lengths < 1.8).all()
    for method in (BASELINES["random map"], gradient):
        np.testing.assert_array_equal(faithfulness.max_sensitivity(key, method, LINEAR, IMAGES, samples=2), 0)


def test_blank_maps_are_not_measured(key):
    """A map of ones does not change with the image, nor one of zeros with the network; that is no merit."""

    def ones(key, score, images):
        return jnp.ones(images.shape[:3])

    assert np.isnan(faithfulness.max_sensitivity(key, ones, LINEAR, IMAGES, samples=1)).all()
    assert np.isnan(faithfulness.cascade(key, ones, SCORE, IMAGES).similarity).all()
    corner = np.array([[[0, 0, 1, 1]]] * 3, np.float32)
    np.testing.assert_array_equal(faithfulness.pointing_game(np.ones((3, 6, 5)), corner), 0)


def test_cascade_goes_from_the_last_module_to_the_first(key):
    kept = []

    def method(key, score, images):
        pairs = zip(*(jax.tree.leaves_with_path(v["params"]) for v in (score.variables, SCORE.variables)), strict=True)
        kept.append({path[0].key for (path, new), (_, old) in pairs if new.shape and np.array_equal(new, old)})
        return images if "first" in kept[-1] else -images

    found = faithfulness.cascade(key, method, SCORE, IMAGES)
    assert found.modules == ("head", "between", "first")
    assert kept == [{"head", "between", "first"}, {"between", "first"}, {"first"}, set()]
    np.testing.assert_allclose(found.similarity, [[[1] * 3, [1] * 3, [-1] * 3]], atol=1e-6)
    kept.clear()
    found = faithfulness.cascade(key, method, SCORE, IMAGES, draws=2)
    np.testing.assert_allclose(found.similarity, [[[1] * 3, [1] * 3, [-1] * 3]] * 2, atol=1e-6)
    assert kept[1:4] == kept[4:]  # each begins with the network as it is
    several = faithfulness.cascade(key, gradient, SCORE, IMAGES, draws=2).similarity
    assert not np.allclose(several[0], several[1])


def test_rank_correlation_is_scipys():
    a, b = np.round(random(4, 5, 6), 1), np.round(random(4, 5, 6, seed=1), 1)  # with many equal values
    b[1] = -a[1]
    a[2] = 1  # the same everywhere: SciPy has NaN
    expected = [stats.spearmanr(a[i].ravel(), b[i].ravel()).statistic if i != 2 else np.nan for i in range(4)]
    np.testing.assert_allclose(faithfulness.rank_correlation(a, b), expected, atol=1e-6)
    zeros = np.array([[0.0, -0.0, 1.0]])
    np.testing.assert_allclose(faithfulness.rank_correlation(zeros, np.abs(zeros)), 1, atol=1e-6)


def test_pointing_game():
    maps = np.zeros((4, 8, 10), np.float32)
    maps[:, 2, 7] = 1  # the pixel around x 7.5, y 2.5
    boxes = np.array([[[7, 2, 8, 3]], [[8, 2, 9, 3]], [[0, 0, 0, 0]], [[0, 3, 9, 7]]], np.float32)
    nan = np.nan  # where no object is known
    np.testing.assert_array_equal(faithfulness.pointing_game(maps, boxes), [1, 0, nan, 0])
    np.testing.assert_array_equal(faithfulness.pointing_game(maps, boxes, tolerance=1), [1, 1, nan, 1])
    both = np.concatenate([boxes, boxes[[0, 2, 2, 0]]], axis=1)
    np.testing.assert_array_equal(faithfulness.pointing_game(maps[..., None], both), [1, 0, nan, 1])
    np.testing.assert_array_equal(faithfulness.pointing_game(maps, boxes[:, 0]), [1, 0, nan, 0])
    masks = np.zeros((4, 8, 10), bool)
    masks[[0, 1, 3], [2, 2, 3], [7, 8, 7]] = True
    np.testing.assert_array_equal(faithfulness.pointing_game(maps, masks), [1, 0, nan, 0])


def test_edges_are_sobels():
    gray = IMAGES.mean(-1)
    expected = np.hypot(ndimage.sobel(gray, 1, mode="nearest"), ndimage.sobel(gray, 2, mode="nearest"))
    for i in range(3):  # of one image: SciPy smooths along all other axes
        expected[i] = np.hypot(*(ndimage.sobel(gray[i], axis, mode="nearest") for axis in (0, 1)))
    np.testing.assert_allclose(edges(IMAGES), expected, atol=1e-5)


def test_report_card(key):
    methods = {
        "gradient × input": lambda key, score, images: attribution.gradient_times_input(score, images),
        "some": lambda key, score, images: gradient(key, score, images) * np.array([1, 0, 1])[:, None, None, None],
        "none": lambda key, score, images: jnp.ones(images.shape[:3]),
    }
    judged = class_score(NET, SCORE.variables, [2, 0, 1], probability=True)
    boxes = np.tile([[0.0, 0, 5, 6]], (3, 1))
    said = []
    card = report_card(
        key, SCORE, IMAGES, methods, judged=judged, objects=boxes, samples=20, draws=3, progress=said.append
    )
    assert card.methods == tuple(said) == (*methods, "random map", "edges")
    assert card.measures == tuple(MEASURES)
    assert card.values.shape == (5, 8, 3)
    whole = [0, 3, 4]  # without the methods that are blank
    assert np.isfinite(card.values[whole]).all()
    column = dict(zip(card.measures, np.moveaxis(card.values, 1, 0), strict=True))
    mean, low, high = (dict(zip(card.measures, of.T, strict=True)) for of in (card.mean, card.low, card.high))
    # What knows nothing of the network stays as it is when that is drawn anew.
    np.testing.assert_allclose(column["randomisation"][3:], 1, atol=1e-6)
    assert (column["randomisation"][0] < 0.9).all()
    np.testing.assert_array_equal(column["blank"], [[0] * 3, [0, 1, 0], [1] * 3, [0] * 3, [0] * 3])
    np.testing.assert_array_equal(column["pointing"], [[1] * 3, [1, 0, 1], [0] * 3, [1] * 3, [1] * 3])
    for name in ("randomisation", "sensitivity"):
        np.testing.assert_array_equal(np.isnan(column[name]), column["blank"] == 1)
        np.testing.assert_allclose(mean[name][1], np.nanmean(column[name][1]), rtol=1e-5)
        assert np.isnan([of[name][2] for of in (mean, low, high)]).all()
    assert (column["deletion"] > 0).all()
    assert (column["deletion"] < 1).all()
    maps = attribution.gradient_times_input(SCORE, IMAGES)
    total, difference = faithfulness.completeness(SCORE, IMAGES, maps)
    expected = np.abs(total - difference) / (np.abs(total) + np.abs(difference))
    np.testing.assert_allclose(column["completeness"][0], expected, rtol=1e-4)
    np.testing.assert_allclose(column["insertion"][0], faithfulness.insertion(judged, IMAGES, maps).area, rtol=1e-4)
    np.testing.assert_allclose(card.mean[whole], card.values[whole].mean(-1), rtol=1e-5)
    ends = stats.ttest_1samp(column["insertion"][0], 0).confidence_interval(0.95)
    np.testing.assert_allclose([low["insertion"][0], high["insertion"][0]], ends, rtol=1e-4)
    # Of a share Wilson's interval: 1 ± 0 would be the other one. Of 3 of 3 it begins at 3 / (3 + 1.96²).
    np.testing.assert_allclose([low["pointing"][0], high["pointing"][0]], [3 / (3 + 1.959964**2), 1], rtol=1e-5)
    header, first, second, *_ = card.table()
    assert header == ["", *MEASURES]
    assert first[:2] == [
        "gradient × input",
        f"{mean['completeness'][0]:.2f} ± {(high['completeness'] - mean['completeness'])[0]:.2f}",
    ]
    assert first[-1] == "1.00 [0.44, 1.00]"
    assert second[-2] == "1 of 3"


def test_the_interval_of_randomisation_is_that_of_draws(key):
    """A network is drawn for all images at once: they say little of another draw."""
    split = jax.random.split(key, 4)[3]
    found = faithfulness.cascade(split, gradient, SCORE, IMAGES, draws=4).similarity
    card = report_card(key, SCORE, IMAGES, {"gradient": gradient}, samples=1, draws=4)
    at = card.measures.index("randomisation")
    of_images = np.nanmean(found, 1)  # under drawn weights some maps are blank
    ends = stats.ttest_1samp(of_images.mean(1), 0).confidence_interval(0.95)
    np.testing.assert_allclose([card.low[0, at], card.high[0, at]], ends, rtol=1e-4)
    np.testing.assert_allclose(card.values[0, at], of_images.mean(0), rtol=1e-4)
    one = report_card(key, SCORE, IMAGES, {}, samples=1, draws=1)
    assert np.isnan(one.low[0, at])
    assert one.table()[1][1 + at] == "1.00"


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("maps have shape (3, 5, 6)", lambda: faithfulness.deletion(LINEAR, IMAGES, np.zeros((3, 5, 6)))),
        ("steps is 0", lambda: faithfulness.deletion(LINEAR, IMAGES, IMAGES, steps=0)),
        ("samples is 0", lambda: faithfulness.infidelity(jax.random.key(0), LINEAR, IMAGES, IMAGES, samples=0)),
        ("start has shape (7,)", lambda: faithfulness.insertion(LINEAR, IMAGES, IMAGES, start=np.zeros(7))),
        ("give a Score, such as", lambda: faithfulness.cascade(jax.random.key(0), gradient, LINEAR, IMAGES)),
        ("expected boxes (N, M, 4) or (N, 4)", lambda: faithfulness.pointing_game(IMAGES, np.zeros((2, 4)))),
        ("masks bool (N, H, W)", lambda: faithfulness.pointing_game(IMAGES, np.zeros((3, 5, 6), bool))),
        ("draws is 0", lambda: faithfulness.cascade(jax.random.key(0), gradient, SCORE, IMAGES, draws=0)),
    ],
)
def test_errors(message, call):
    with pytest.raises(InputError) as error:
        call()
    assert message in str(error.value)
