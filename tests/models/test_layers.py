"""Convolutions and batch norm are arranged in ways of their own: the values are those of XLA and Linen."""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import compiled

from cnn_jax.errors import InputError
from cnn_jax.models import traced_for
from cnn_jax.models.convolution import convolution
from cnn_jax.models.layers import ACTIVATIONS, BatchNorm, Conv, activated, max_pool
from cnn_jax.models.xla import kept

# (size, side, stride, dilation), beside those of test_convolution.py; of one channel it is a sum over the places.
GEOMETRIES = [((8, 12), 1, 1, 1), ((9, 11), 5, 1, 1), ((8, 9), 5, 2, 1), ((9, 11), 3, 2, 2), ((8, 12), 5, 2, 2)]


def xlas(x, kernel, bias, *, stride=1, dilation=1):
    padding = dilation * (kernel.shape[0] // 2)
    y = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), [(padding, padding)] * 2,
        rhs_dilation=(dilation, dilation), dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    return y + bias.reshape(1, 1, 1, -1)


def arrays(key, size, side, channels):
    keys = jax.random.split(key, 3)
    shapes = ((2, *size, channels), (side, side, channels, 4), (4,))
    return [jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True)]


@pytest.mark.parametrize("channels", [1, 2])
def test_convolution_is_xlas(key, channels):
    def by(conv, primals):
        every = []
        for (_, _, stride, dilation), three in zip(GEOMETRIES, primals, strict=True):
            y, back = jax.vjp(partial(conv, stride=stride, dilation=dilation), *three)
            every.append((y, back(jnp.cos(y))))
        return every

    primals = [arrays(key, size, side, channels) for size, side, *_ in GEOMETRIES]
    found, expected = (compiled(partial(by, conv), primals) for conv in (convolution, xlas))
    for geometry, ours, xla in zip(GEOMETRIES, found, expected, strict=True):
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4, err_msg=str(geometry)), ours, xla)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_conv_is_linens(key, dtype):
    """The same parameters from the same key, and the same values."""
    x = jax.random.normal(key, (2, 7, 8, 3))
    ours = Conv(5, side=3, stride=2, dtype=dtype, name="conv")
    linens = nn.Conv(5, (3, 3), (2, 2), 1, dtype=dtype, name="conv")
    variables = ours.init(key, x)
    jax.tree.map(np.testing.assert_array_equal, variables, linens.init(key, x))
    y, expected = ours.apply(variables, x), linens.apply(variables, x)
    assert y.dtype == expected.dtype == dtype
    np.testing.assert_allclose(
        *(a.astype(jnp.float32) for a in (y, expected)), atol=1e-5 if dtype == jnp.float32 else 0.03
    )


@pytest.mark.parametrize(
    ("platform", "dtype", "epsilon", "momentum"),
    [
        ("cpu", jnp.float32, 1e-5, 0.1),
        ("cpu", jnp.float32, 1e-3, 0.01),
        ("cpu", jnp.bfloat16, 1e-5, 0.1),
        ("tpu", jnp.float32, 1e-5, 0.1),
    ],
)
def test_batch_norm_is_linens(key, platform, dtype, epsilon, momentum):
    """Values, running statistics and derivatives both ways, in training; and values in evaluation."""
    x = (3 + 2 * jax.random.normal(key, (4, 5, 6, 3))).astype(dtype)
    variables = BatchNorm(train=True).init(key, x)
    linen = nn.BatchNorm(use_running_average=False, momentum=1 - momentum, epsilon=epsilon, dtype=dtype)
    jax.tree.map(np.testing.assert_array_equal, variables, linen.init(key, x))
    scale, bias = jnp.array([1.0, 2.0, 3.0]), jnp.array([0.5, 0.0, -0.5])
    variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": variables["batch_stats"]}

    def by(train, evaluation):
        def energy(params, x):
            y, changed = train.apply({**variables, "params": params}, x, mutable=["batch_stats"])
            return jnp.sin(y.astype(jnp.float32)).sum(), (y, changed)

        primals = variables["params"], x
        grads, (y, changed) = jax.grad(energy, (0, 1), has_aux=True)(*primals)
        _, forwards = jax.jvp(lambda *primals: energy(*primals)[1][0], primals, jax.tree.map(jnp.cos, primals))
        return grads, forwards, y, changed, evaluation.apply({**variables, **changed}, x)

    ours = partial(BatchNorm, dtype=dtype, epsilon=epsilon, momentum=momentum)
    with traced_for(platform):
        found = by(ours(train=True), ours(train=False))
    expected = by(linen, linen.clone(use_running_average=True))
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(
            ours.astype(jnp.float32), theirs.astype(jnp.float32), atol=1e-4 if dtype == jnp.float32 else 0.1
        ),
        found, expected,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["relu", "silu"])
def test_activations_at_the_end_of_a_block(key, name):
    """Values and derivatives are those of the activation alone, of second order too, and 0 where a ReLU begins."""
    activation = ACTIVATIONS[name]
    x = jax.random.normal(key, (2, 3, 3, 4)).at[0, 0, 0].set(0.0)

    def derivatives(f, x):
        slope = jax.grad(lambda x: jnp.sin(f(x)).sum())
        return f(x), jax.jvp(f, (x,), (x + 1,))[1], slope(x), jax.jvp(slope, (x,), (x + 1,))[1], jax.vmap(f)(x)

    found, expected = (jax.jit(partial(derivatives, f))(x) for f in (partial(activated, activation), activation))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6), found, expected)


def test_gelu_is_its_formula():
    gelu = ACTIVATIONS["gelu"]
    x = np.linspace(-6, 6, 49, dtype=np.float32)
    law = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in x.tolist()])
    density = np.exp(-np.square(x, dtype=float) / 2) / math.sqrt(2 * math.pi)
    np.testing.assert_allclose(gelu(x), x * law, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(x), law + x * density, atol=1e-6)
    low = gelu(jnp.asarray(x, jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(np.float32), x * law, atol=0.02)


@pytest.mark.parametrize("window", [2, 3])
def test_max_pool_is_linens(key, window):
    """In value, gradient and along a line; the rows left over have no gradient."""
    x, along, weights = (jax.random.normal(k, (2, 7, 11, 3)) for k in jax.random.split(key, 3))

    def linens(x):
        return nn.max_pool(x, (window,) * 2, (window,) * 2)

    def ours(x):
        return max_pool(x, window=window)

    np.testing.assert_array_equal(ours(x), linens(x))
    weights = weights[:, : 7 // window, : 11 // window]
    gradients = (jax.grad(lambda x, pool=pool: (pool(x) * weights).sum())(x) for pool in (ours, linens))
    np.testing.assert_array_equal(*gradients)
    lines = (jax.jvp(pool, (x,), (along,))[1] for pool in (ours, linens))
    np.testing.assert_array_equal(*lines)


def test_of_equal_pixels_max_pool_asks_the_first():
    gradient = jax.grad(lambda x: max_pool(x).sum())(jnp.zeros((1, 2, 4, 1)))
    np.testing.assert_array_equal(gradient[0, ..., 0], [[1, 0, 1, 0], [0, 0, 0, 0]])
    with pytest.raises(InputError, match="images of 1×4 are smaller than its window of 2"):
        max_pool(jnp.zeros((1, 1, 4, 1)))


def test_what_is_kept_is_an_array_of_its_own():
    """Without, XLA makes the product where the sum needs it."""

    def loops(keep):
        program = jax.jit(lambda x: keep(x * 2) + 1).lower(jnp.ones((8, 8))).compile()
        return program.as_text().count(" fusion(")

    assert (loops(lambda x: x), loops(kept)) == (1, 2)
