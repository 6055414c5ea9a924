"""One channel on a CPU, where the convolution is a sum over the kernel's places: values and derivatives are XLA's."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.models.layers import convolution

NHWC = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
CASES = list(product([(3, 3), (5, 2)], [(1, 1), (2, 3)], ["SAME", "VALID", ((2, 0), (1, 3))], [None, (2, 1)]))


@pytest.mark.parametrize(("size", "strides", "padding", "dilation"), CASES)
@pytest.mark.parametrize("channels", [1, 2])
def test_is_xlas(key, size, strides, padding, dilation, channels):
    x = jax.random.normal(key, (2, 9, 11, channels))
    kernel = jax.random.normal(jax.random.fold_in(key, 1), (*size, channels, 4))

    def by(conv):
        return lambda x, kernel: conv(x, kernel, strides, padding, rhs_dilation=dilation, **NHWC)

    y, back = jax.vjp(by(convolution), x, kernel)
    expected, back_expected = jax.vjp(by(jax.lax.conv_general_dilated), x, kernel)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    for ours, xlas in zip(back(jnp.cos(y)), back_expected(jnp.cos(y)), strict=True):
        np.testing.assert_allclose(ours, xlas, atol=1e-5)


def test_forward_mode_and_loops(key):
    """Hessian-vector products, forward derivatives by the images, and `scan`."""
    x, kernel = jax.random.normal(key, (2, 6, 6, 1)), jax.random.normal(key, (3, 3, 1, 4))

    def by(conv):
        def energy(x, kernel):
            return jnp.sin(conv(x, kernel, (1, 1), "SAME", **NHWC)).sum()

        _, hvp = jax.jvp(jax.grad(energy, (0, 1)), (x, kernel), (jnp.cos(x), jnp.cos(kernel)))
        _, by_images = jax.jvp(lambda x: energy(x, kernel), (x,), (jnp.ones_like(x),))
        _, scanned = jax.lax.scan(lambda k, _: (k - 0.1 * jax.grad(energy, 1)(x, k), k), kernel, length=3)
        return hvp, by_images, scanned

    for ours, xlas in zip(
        jax.tree.leaves(by(convolution)), jax.tree.leaves(by(jax.lax.conv_general_dilated)), strict=True
    ):
        np.testing.assert_allclose(ours, xlas, atol=2e-5)
