"""Poolings against loops over windows, and what shifts do to them and to networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import compiled, filled

from cnn_jax import models
from cnn_jax.errors import InputError
from cnn_jax.models.convnext import ConvNeXt
from cnn_jax.models.efficientnet import EfficientNet
from cnn_jax.models.mobilenet import MobileNetV2
from cnn_jax.models.pooling import POOLINGS, adaptive_average
from cnn_jax.models.resnet import BLOCKS, ResNet
from cnn_jax.models.resnet9 import ResNet9
from cnn_jax.models.simple_cnn import SimpleCNN
from cnn_jax.models.vgg import VGG


def looped(kind, image, window, padding):
    """[H,W] to what is kept, pixel by pixel."""
    if window == 2:
        image = image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2]
    height, width = image.shape

    def maximum(i, j):
        seen = []
        for a in range(i - (window - 1) // 2, i + window // 2 + 1):
            for b in range(j - (window - 1) // 2, j + window // 2 + 1):
                if padding == "circular":
                    seen.append(image[a % height, b % width])
                elif 0 <= a < height and 0 <= b < width:
                    seen.append(image[a, b])
        return max(seen)

    def inside(i, side):
        if padding == "circular":
            return i % side
        return min(i, side - 1)

    def mirrored(i, side):
        if padding == "circular":
            return i % side
        return min(abs(i) if i < side else 2 * (side - 1) - i, side - 1) if side > 1 else 0

    corners = [(i, j) for i in range(0, height, 2) for j in range(0, width, 2)]
    if kind == "max":
        kept = [maximum(i, j) for i, j in corners]
    elif kind == "average":
        kept = [
            np.mean([image[inside(i + a, height), inside(j + b, width)] for a in (0, 1) for b in (0, 1)])
            for i, j in corners
        ]
    elif kind == "blur":
        weights = ((-1, 0.25), (0, 0.5), (1, 0.25))
        kept = [
            sum(
                u * v * maximum(mirrored(i + a, height), mirrored(j + b, width)) for a, u in weights for b, v in weights
            )
            for i, j in corners
        ]
    else:
        grids = [
            [maximum(inside(i + a, height), inside(j + b, width)) for i, j in corners] for a in (0, 1) for b in (0, 1)
        ]
        kept = max(grids, key=lambda grid: np.square(grid).sum())
    return np.reshape(kept, (-(-height // 2), -(-width // 2)))


CASES = [(w, p, s) for w in (1, 2, 3) for p in ("torch", "circular") for s in ((6, 4), (5, 7))]
CASES += [(w, p, (5, 1)) for w in (1, 3) for p in ("torch", "circular")]


@pytest.mark.parametrize("kind", POOLINGS)
def test_values_are_those_of_loops(key, kind):
    images = [jax.random.normal(key, (2, *shape, 1)) for _, _, shape in CASES]
    found = compiled(
        lambda images: [
            POOLINGS[kind](x, window=window, padding=padding)
            for x, (window, padding, _) in zip(images, CASES, strict=True)
        ],
        images,
    )
    for case, x, y in zip(CASES, images, found, strict=True):
        expected = np.stack([looped(kind, image, case[0], case[1]) for image in np.asarray(x[..., 0])])
        np.testing.assert_allclose(y[..., 0], expected, atol=1e-6, err_msg=str(case))


@pytest.mark.parametrize("kind", POOLINGS)
def test_gradients_are_differences(key, kind):
    """Piecewise linear functions: along a small step the value changes by the gradient times the step."""
    x, step, weights = (jax.random.normal(k, shape) for k, shape in zip(
        jax.random.split(key, 3), ((2, 6, 7, 2), (2, 6, 7, 2), (2, 3, 4, 2)), strict=True
    ))  # fmt: skip

    def energy(x):
        return (POOLINGS[kind](x, window=3) * weights).sum()

    difference, forward, gradient = compiled(
        lambda x: (
            energy(x + 1e-3 * step) - energy(x - 1e-3 * step),
            jax.jvp(energy, (x,), (step,))[1],
            jax.grad(energy)(x),
        ),
        x,
    )
    np.testing.assert_allclose(forward, difference / 2e-3, rtol=1e-2)
    np.testing.assert_allclose((gradient * step).sum(), forward, rtol=1e-4)


def test_the_first_maximum_takes_the_gradient():
    gradient = jax.grad(lambda x: POOLINGS["max"](x, window=3).sum())(jnp.zeros((1, 4, 4, 1)))
    # Of the windows around (0,0), (0,2), (2,0) and (2,2) the first pixels inside.
    np.testing.assert_array_equal(gradient[0, ..., 0], [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


def test_nan_goes_through():
    places = ((2, 2), (3, 3))
    images = jnp.stack([jnp.zeros((6, 6, 1)).at[place].set(jnp.nan) for place in places])
    for kind, kept in compiled(lambda x: {name: pool(x) for name, pool in POOLINGS.items()}, images).items():
        assert np.isnan(kept).any((1, 2, 3)).all(), kind


@pytest.mark.parametrize("window", [1, 2, 3])
def test_shifts_in_a_circle(key, window):
    """Adaptive sampling keeps the same pixels; the others do so only when the shift is even."""
    shifts = ((0, 0), (1, 0), (0, 1), (3, 5), (2, 4))
    image = np.asarray(jax.random.normal(key, (8, 8, 3)))
    images = np.stack([np.roll(image, shift, (0, 1)) for shift in shifts])
    kept = compiled(
        lambda x: {kind: pool(x, window=window, padding="circular") for kind, pool in POOLINGS.items()}, images
    )
    for kind, (first, *others) in kept.items():
        rolled = [np.roll(first, (i, j), (0, 1)) for i in range(4) for j in range(4)]
        for shift, other in zip(shifts[1:], others, strict=True):
            same = any(np.allclose(one, other, atol=1e-6) for one in rolled)
            assert same == (kind == "aps" or shift == (2, 4)), (kind, shift)


def test_one_choice_for_two_maps():
    decides = jnp.zeros((2, 4, 4, 1)).at[0, 1::2, ::2].set(1).at[1, ::2, 1::2].set(-1)
    x = jnp.arange(32.0).reshape(2, 4, 4, 1)
    kept = POOLINGS["aps"](x, window=1, choice=decides)
    np.testing.assert_array_equal(kept[..., 0], [[[4, 6], [12, 14]], [[17, 19], [25, 27]]])


def test_adaptive_average(key):
    x = jax.random.normal(key, (2, 10, 2, 3))
    found = adaptive_average(x, size=(7, 7))
    parts = [(0, 2), (1, 3), (2, 5), (4, 6), (5, 8), (7, 9), (8, 10)]
    sides = [x[:, a:b].mean(1) for a, b in parts]
    for row, side in enumerate(sides):
        np.testing.assert_allclose(found[:, row, 0], side[:, 0], atol=1e-6)
        np.testing.assert_allclose(found[:, row, 3], side.mean(1), atol=1e-6)
        np.testing.assert_allclose(found[:, row, 6], side[:, 1], atol=1e-6)


NETWORKS = {
    "simple_cnn": SimpleCNN(head="average"),
    "vgg": VGG((1, 1), head="average", norm="group"),
    "resnet9": ResNet9(width=4),
    "convnext": ConvNeXt((1, 1), 8),
    "mobilenet_v2": MobileNetV2(width=0.25),
    "efficientnet": EfficientNet(0.25, 0.1, 0.0, norm="group"),
    "bottleneck": ResNet((1, 1), "bottleneck", stem="large", width=4),
    "preactivated": ResNet((1, 1), "preactivated_x4", stem="medium", width=4),
}


def shifted_logits(key, name, **options):
    """f32[shifts, N, classes]; the first shift is none."""
    side = 32 if isinstance(NETWORKS[name], MobileNetV2 | EfficientNet) else 16
    images = np.asarray(jax.random.normal(key, (2, side, side, 3)))
    shifts = [(0, 0), (1, 0), (0, 1), (5, 3), (6, 9)]
    images = np.concatenate([np.roll(images, shift, (1, 2)) for shift in shifts])
    model = NETWORKS[name].clone(padding="circular", **options)
    variables = filled(model, images)
    return compiled(lambda x: model.apply(variables, x), images).reshape(len(shifts), 2, -1)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_do_not_see_shifts_in_a_circle(key, name):
    """Exactly so with circular padding, adaptive sampling and a mean at the end."""
    first, *others = shifted_logits(key, name, pooling="aps")
    for other in others:
        np.testing.assert_allclose(other, first, rtol=0, atol=1e-5 * np.abs(first).max())


def test_other_networks_see_them_and_a_blur_lessens_it(key):
    changes = {}
    for pooling in ("max", "blur"):
        first, *others = shifted_logits(key, "simple_cnn", pooling=pooling)
        changes[pooling] = np.abs(np.stack(others) - first[None]).mean() / np.abs(first).mean()
    assert changes["max"] > 2 * changes["blur"] > 1e-3


def test_errors():
    with pytest.raises(InputError, match="pooling: images of 1×4 are smaller than its window of 2"):
        POOLINGS["blur"](jnp.ones((1, 1, 4, 1)))
    for create in (lambda **o: models.create("simple_cnn", **o), lambda **o: ResNet((1,), next(iter(BLOCKS)), **o)):
        with pytest.raises(InputError, match="unknown pooling 'bluer': did you mean 'blur'"):
            create(pooling="bluer")
        with pytest.raises(InputError, match="unknown padding 'circle'"):
            create(padding="circle")
    with pytest.raises(InputError, match="unknown head 'flat': did you mean 'flatten'"):
        models.create("simple_cnn", head="flat")
