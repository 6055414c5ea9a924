"""Receptive fields: by hand, by arithmetic, and as gradients show them."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from networks import filled

from cnn_jax import models
from cnn_jax.analysis.receptive import Field, Layer, chain, effective, extent, measured
from cnn_jax.errors import InputError
from cnn_jax.models.layers import Conv, tap
from cnn_jax.models.resnet import ResNet


class Row(nn.Module):
    """Convolutions after each other."""

    layers: tuple[Layer, ...]

    @nn.compact
    def __call__(self, x, *, train=False):
        for side, stride, dilation, _ in self.layers:
            x = Conv(1, side, stride, dilation)(x)
        return tap(self, "row", x)


def ones(model, images):
    return jax.tree.map(lambda x: np.ones(x.shape, x.dtype), jax.eval_shape(model.init, jax.random.key(0), images))


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def square(size, stride, start):
    return Field((size, size), (stride, stride), (start, start))


def test_by_hand():
    assert chain([]) == square(1, 1, 0)
    assert chain([Layer(3, padding=1)]) == square(3, 1, -1)
    assert chain([Layer(2, 2), Layer(2, 2)]) == square(4, 4, 0)
    # Of two 3×3 convolutions with 2×2 pools behind them, the second sees 3 pools of 2 pixels, and 1 around.
    assert chain([Layer(3, padding=1), Layer(2, 2), Layer(3, padding=1)]) == square(8, 2, -3)
    # AlexNet up to its last pool: 195, stride 32, padding 64 (Araujo et al. 2019, the table of their library).
    alexnet = [Layer(11, 4), Layer(3, 2), Layer(5, padding=2), Layer(3, 2), *[Layer(3, padding=1)] * 3, Layer(3, 2)]
    assert chain(alexnet) == square(195, 32, -64)


@pytest.mark.parametrize(
    "layers",
    [(Layer(5, 2, 1, 2), Layer(3, 1, 2, 2)), (Layer(3, 1, 3, 3), Layer(1, 2), Layer(3, 1, 1, 1))],
    ids=["strided, then dilated", "dilated, then strided past"],
)
def test_arithmetic_agrees_with_gradients_for_rows(layers):
    images = noise(1, 31, 29, 1)
    row = Row(layers)
    assert measured(row, ones(row, images), images, stage="row") == chain(layers)


def test_arithmetic_agrees_with_gradients_for_networks():
    three, pool = Layer(3, padding=1), Layer(2, 2)
    simple, images = models.create("simple_cnn"), noise(4, 20, 20, 1)
    variables = filled(simple, images)
    assert measured(simple, variables, images, stage="conv1", batch_size=3) == chain([three])
    assert measured(simple, variables, images, stage="conv2", batch_size=3) == chain([three, pool, three])
    assert measured(simple, variables, images, stage="fc1") == Field((20, 20), (0, 0), (0, 0))
    resnet, images = ResNet((1, 1), "basic", stem="large", width=4), noise(3, 72, 72, 3)
    layers = [Layer(7, 2, padding=3), Layer(3, 2, padding=1), three, three, Layer(3, 2, padding=1), three]
    assert measured(resnet, filled(resnet, images), images, stage="stage2") == chain(layers)


def test_the_effective_field_of_sums_is_a_convolution_of_windows():
    images = noise(3, 9, 11, 2)
    row = Row((Layer(3), Layer(3)))
    found = effective(row, ones(row, images), images, stage="row", place=(4, 3), batch_size=2)
    expected = np.zeros((9, 11))
    expected[2:7, 1:6] = np.outer([1, 2, 3, 2, 1], [1, 2, 3, 2, 1])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_places():
    images = noise(1, 9, 11, 1)
    row = Row((Layer(3),))
    at = {place: effective(row, ones(row, images), images, stage="row", place=place) for place in (None, (0, 0))}
    assert [tuple(np.argwhere(counts).mean(0)) for counts in at.values()] == [
        (4, 5),
        (0.5, 0.5),
    ]  # the middle, a corner
    assert np.count_nonzero(at[0, 0]) == 4


def test_the_extent_of_an_effective_field():
    counts = np.zeros((9, 11), np.float32)
    counts[1:8, 2:9] = np.outer([1, 3, 6, 7, 6, 3, 1], [1, 3, 6, 7, 6, 3, 1])  # three 3×3 kernels of ones
    box, side = extent(counts)
    assert box == (7, 7)
    assert side == pytest.approx(45**0.5)  # but for the corners, 1 of 49, which is less than 4.55 %
    counts[0, 5] = 2  # another row, too little to be effective
    assert extent(counts) == ((8, 7), side)
    assert extent(np.zeros((3, 3))) == ((0, 0), 0)


def test_one_channel():
    images, simple = noise(2, 8, 8, 1), models.create("simple_cnn")
    variables = filled(simple, images)
    variables["params"]["conv1"]["bias"][:] = 100  # no ReLU is silent: the gradient is the kernel
    found = effective(simple, variables, images, stage="conv1", channel=7, place=(3, 4))
    np.testing.assert_allclose(found[2:5, 3:6], np.abs(variables["params"]["conv1"]["kernel"][:, :, 0, 7]), rtol=1e-5)
    assert np.count_nonzero(found) == 9


def test_bad_arguments():
    images, simple = noise(1, 8, 8, 1), models.create("simple_cnn")
    variables = filled(simple, images)
    for options, sentence in [
        ({"stage": "conv"}, "unknown stage 'conv': did you mean"),
        ({"stage": "conv2", "place": (4, 0)}, r"stage 'conv2' has no place \(4, 0\): it has 4×4"),
        ({"stage": "conv2", "channel": -1}, "stage 'conv2' has no channel -1"),
    ]:
        with pytest.raises(InputError, match=sentence):
            effective(simple, variables, images, **options)
    variables["params"]["conv1"]["bias"][:] = -100
    with pytest.raises(InputError, match="the gradient of stage 'conv1' is zero on all images"):
        measured(simple, variables, images, stage="conv1")
    with pytest.raises(InputError, match="must be 1 or more"):
        chain([Layer(0)])
