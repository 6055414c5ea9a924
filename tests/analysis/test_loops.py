"""Programs rewritten for loops: the same values, with convolutions in the one order that XLA is fast at there."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr

from cnn_jax.analysis.loops import for_loops

CANONICAL = ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))  # NHWC, HWIO, NHWC


def convolutions(jaxpr):
    """The orders of dimensions of all convolutions of a program, those of the programs within it too."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "conv_general_dilated":
            yield tuple(map(tuple, eqn.params["dimension_numbers"]))
        for value in eqn.params.values():
            for part in value if isinstance(value, tuple) else (value,):
                if isinstance(part, ClosedJaxpr | Jaxpr):
                    yield from convolutions(getattr(part, "jaxpr", part))


def check(function, *args, canonical=True):
    expected = jax.jit(function)(*args)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), expected, jax.jit(for_loops(function))(*args)
    )
    orders = set(convolutions(jax.make_jaxpr(for_loops(function))(*args).jaxpr))
    assert orders == {CANONICAL}
    assert set(convolutions(jax.make_jaxpr(function)(*args).jaxpr)) != {CANONICAL}  # else nothing was tested


def gradients(conv):
    def loss(x, kernel):
        return jnp.sin(conv(x, kernel)).sum()

    return jax.grad(loss, argnums=(0, 1))


def images_and_kernel(channels=4, groups=1):
    rng = np.random.default_rng(0)
    return (
        rng.normal(size=(2, 7, 6, channels)).astype(np.float32),
        rng.normal(size=(3, 3, channels // groups, 6)).astype(np.float32) / 5,
    )


def plain(x, kernel, stride=1, dilation=1, groups=1):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride,) * 2, "SAME", rhs_dilation=(dilation,) * 2, feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


@pytest.mark.parametrize("options", [{"stride": 2}, {"dilation": 2}, {"groups": 2}], ids=str)
def test_gradients_of_convolutions(options):
    check(gradients(partial(plain, **options)), *images_and_kernel(groups=options.get("groups", 1)))


def test_gradients_of_each_example():
    x, kernel = images_and_kernel()
    each = jax.vmap(lambda x, kernel: gradients(plain)(x[None], kernel), in_axes=(0, None))
    check(each, x, kernel)


def test_programs_within_programs():
    @jax.custom_jvp
    def own(x):
        return jnp.tanh(x)

    own.defjvp(lambda primals, tangents: (own(primals[0]), tangents[0]))

    def function(x, kernel, deep):
        inner = gradients(lambda x, kernel: own(jax.checkpoint(plain)(x, kernel)))

        def body(carry, _):
            dx, dkernel = jax.jit(inner)(x, carry)
            return jax.lax.cond(deep, lambda: carry - 0.1 * dkernel, lambda: carry), dx.sum()

        return jax.lax.scan(body, kernel, length=2)

    check(function, *images_and_kernel(), True)


def test_trees_go_in_and_come_out():
    x, kernel = images_and_kernel()
    found = for_loops(lambda a, b: {"y": (plain(a["x"], b), None)})({"x": x}, kernel)
    np.testing.assert_allclose(found["y"][0], plain(x, kernel), atol=1e-5)
    assert found["y"][1] is None
