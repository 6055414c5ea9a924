"""Convolutions are arranged in ways of their own: values and derivatives are those of XLA."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from networks import compiled

from cnn_jax.errors import InputError
from cnn_jax.models import traced_for, winograd
from cnn_jax.models.convolution import convolution

# (channels, features, groups): one channel, where it is a sum over the kernel's places; no groups, once as if the
# kernel were large, twice by fewer products, of few channels and as if of many, and by products with what lies within
# the images; depthwise; groups of one channel with three features each; groups that are seen together, and such that
# are not.
KINDS = {
    "one_channel": (1, 4, 1),
    "plain": (2, 4, 1),
    "large": (16, 4, 1),
    "winograd": (3, 4, 1),
    "winograd_wide": (3, 4, 1),
    "within": (3, 4, 1),
    "depthwise": (3, 3, 3),
    "multiplied": (2, 6, 2),
    "grouped": (6, 4, 2),
    "wide_groups": (80, 4, 2),
}

# (size, side, stride, dilation, padding). Sides that halve, and such that do not; kernels beyond the border.
FEW = [((8, 12), 3, 2, 1, "torch"), ((8, 9), 3, 1, 2, "same"), ((9, 11), 1, 2, 1, "torch")]
GEOMETRIES = dict.fromkeys(KINDS, FEW) | {
    "one_channel": [*FEW, ((8, 12), 3, 1, 1, "torch"), ((6, 8), 5, 1, 1, "same"), ((9, 7), 4, 1, 1, "valid")],
    "winograd": [
        ((8, 12), 3, 1, 1, "torch"), ((7, 9), 3, 1, 1, "same"), ((3, 4), 3, 1, 1, "torch"), ((9, 8), 3, 1, 2, "torch"),
        ((13, 12), 3, 1, 3, "same"),
    ],
    "winograd_wide": [((7, 9), 3, 1, 1, "same")],
    "within": [
        ((5, 7), 3, 1, 3, "torch"), ((4, 6), 3, 1, 5, "same"), ((2, 3), 3, 1, 1, "torch"), ((5, 4), 4, 1, 2, "same"),
        ((4, 5), 4, 1, 2, "torch"),
    ],
    "plain": [*FEW, ((9, 9), 4, 4, 1, "valid"), ((7, 9), 4, 1, 1, "circular")],
    "large": [*FEW, ((9, 9), 4, 4, 1, "valid"), ((7, 9), 4, 1, 1, "circular"), ((8, 9), 3, 2, 2, "same")],
    "depthwise": [
        ((8, 12), 3, 1, 1, "torch"), ((9, 11), 3, 2, 1, "torch"), ((8, 9), 3, 2, 2, "torch"),
        ((8, 11), 3, 2, 1, "same"),
        ((9, 8), 5, 1, 2, "same"), ((5, 6), 5, 3, 1, "torch"), ((2, 3), 5, 2, 1, "same"), ((8, 9), 2, 2, 1, "valid"),
    ],
}  # fmt: skip


def xlas(x, kernel, bias, *, stride=1, dilation=1, groups=1, padding="torch"):
    around = dilation * (kernel.shape[0] - 1)
    if padding == "circular":
        x = jnp.concatenate([x, x, x], 1)[:, x.shape[1] - around // 2 : 2 * x.shape[1] + around - around // 2]
        x = jnp.concatenate([x, x, x], 2)[:, :, x.shape[2] - around // 2 : 2 * x.shape[2] + around - around // 2]
    pads = {"torch": [(dilation * (kernel.shape[0] // 2),) * 2] * 2, "same": "SAME"}.get(padding, "VALID")
    y = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
    )  # fmt: skip
    return y + bias.reshape(1, 1, 1, -1)


def arrays(key, size, side, kind, dtype=jnp.float32):
    channels, features, groups = KINDS[kind]
    keys = jax.random.split(key, 3)
    shapes = ((2, *size, channels), (side, side, channels // groups, features), (features,))
    return [jax.random.normal(k, shape, dtype) for k, shape in zip(keys, shapes, strict=True)]


@pytest.fixture(autouse=True)
def _few_channels(request, monkeypatch):
    if "winograd" in request.node.name or "within" in request.node.name:
        monkeypatch.setattr(winograd, "CHANNELS", 3)
        monkeypatch.setattr(winograd, "WORK", 1)
    if "winograd_wide" in request.node.name:
        monkeypatch.setattr(winograd, "WIDE", 3)
    if "large" in request.node.name:
        monkeypatch.setattr("cnn_jax.models.convolution.LARGE", 1)


@pytest.mark.parametrize(
    ("platform", "kind"),
    [("cpu", kind) for kind in KINDS] + [("gpu", kind) for kind in ("one_channel", "plain", "depthwise", "grouped")],
)
def test_convolution_is_xlas(key, platform, kind):
    def by(conv, primals):
        every = []
        for (_, _, stride, dilation, padding), three in zip(GEOMETRIES[kind], primals, strict=True):
            options = {"stride": stride, "dilation": dilation, "groups": KINDS[kind][2], "padding": padding}
            y, back = jax.vjp(partial(conv, **options), *three)
            every.append((y, back(jnp.cos(y))))
        return every

    primals = [arrays(key, size, side, kind) for size, side, *_ in GEOMETRIES[kind]]
    with traced_for(platform):
        found = compiled(partial(by, convolution), primals)
    expected = compiled(partial(by, xlas), primals)
    for geometry, ours, xla in zip(GEOMETRIES[kind], found, expected, strict=True):
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4, err_msg=str(geometry)), ours, xla)


@pytest.mark.parametrize(
    ("kind", "stride", "dilation"),
    [
        ("one_channel", 1, 1),
        ("plain", 1, 1),
        ("large", 2, 1),
        ("winograd", 1, 2),
        ("winograd_wide", 1, 1),
        ("within", 1, 4),
        ("depthwise", 1, 1),
        ("depthwise", 2, 1),
    ],
)
def test_derivatives_of_every_kind(key, kind, stride, dilation):
    """Forward over reverse, reverse twice, by one argument alone; in `scan`, `checkpoint`, and `vmap` of both kinds."""
    groups = KINDS[kind][2]

    def by(conv, x, kernel, bias):
        def energy(x, kernel, bias):
            return jnp.sin(conv(x, kernel, bias, stride=stride, dilation=dilation, groups=groups)).sum()

        every = jax.grad(energy, (0, 1, 2))
        _, hvp = jax.jvp(every, (x, kernel, bias), (jnp.cos(x), jnp.cos(kernel), jnp.cos(bias)))
        twice = jax.grad(lambda *three: sum(jnp.sin(g).sum() for g in every(*three)), (0, 1, 2))(x, kernel, bias)
        alone = [jax.grad(energy, i)(x, kernel, bias) for i in range(3)]
        _, forward = jax.jvp(lambda x: energy(x, kernel, bias), (x,), (jnp.ones_like(x),))
        _, scanned = jax.lax.scan(lambda k, _: (k - 0.1 * jax.grad(energy, 1)(x, k, bias), k), kernel, length=3)
        again = jax.grad(jax.checkpoint(energy), 1)(x, kernel, bias)
        each = jax.vmap(jax.grad(energy, 1), (0, None, None))(x[:, None], kernel, bias)
        many = jax.vmap(every, (0, 0, None))(x[:, None], jnp.stack([kernel, 2 * kernel]), bias)
        return hvp, twice, alone, forward, scanned, again, each, many

    three = arrays(key, (6, 6), 3, kind)
    found, expected = (compiled(partial(by, conv), *three) for conv in (convolution, xlas))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-3), found, expected)


@pytest.mark.parametrize("kind", ["plain", "depthwise", "grouped"])
def test_bfloat16(key, kind):
    def by(conv, *three):
        y, back = jax.vjp(partial(conv, groups=KINDS[kind][2]), *three)
        return y, back(jnp.ones_like(y))

    three = arrays(key, (8, 9), 3, kind)
    exact = compiled(partial(by, xlas), *three)
    found = compiled(partial(by, convolution), *(a.astype(jnp.bfloat16) for a in three))

    def assert_close(found, exact):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(found.astype(np.float32), exact, atol=0.03 * np.abs(exact).max())

    jax.tree.map(assert_close, found, exact)


@pytest.mark.parametrize(
    ("kind", "dilation"),
    [("one_channel", 1), ("plain", 1), ("large", 1), ("winograd", 1), ("winograd", 2), ("within", 4), ("depthwise", 1)],
)
def test_gradients_on_many_devices(key, kind, dilation):
    """Each has a part of the images; all that they say to each other is the sum of the kernel's gradients."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    keys = jax.random.split(key, 2)
    channels, features, groups = KINDS[kind]
    x = jax.random.normal(keys[0], (8, 6, 6, channels))
    kernel = jax.random.normal(keys[1], (3, 3, channels // groups, features))

    def grads(kernel, x, conv=convolution):
        conv = partial(conv, groups=groups, dilation=dilation, bias=jnp.zeros(features))
        return jax.grad(lambda kernel, x: jnp.sin(conv(x, kernel)).sum(), (0, 1))(kernel, x)

    expected = compiled(partial(grads, conv=xlas), kernel, x)
    whole, parts = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    program = jax.jit(grads, in_shardings=(whole, parts), out_shardings=(whole, parts)).lower(kernel, x).compile()
    text = program.as_text()
    assert "all-reduce" in text
    assert not any(word in text for word in ("all-gather", "all-to-all", "collective-permute"))
    found = program(jax.device_put(kernel, whole), jax.device_put(x, parts))
    jax.tree.map(partial(np.testing.assert_allclose, atol=5e-5), found, expected)


def test_products_are_saved_where_there_are_many_channels():
    x, kernel = jnp.ones((64, 16, 16, 128)), jnp.ones((3, 3, 128, 128))
    # By Winograd's scheme, up to a dilation with which a third of the zeros lies around the images; beyond it by what
    # each number of the kernel meets within them, in the end that in the middle alone.
    for dilation, products in ((1, 16), (2, 16), (4, 16), (5, 9), (15, 9), (16, 1)):
        program = str(jax.make_jaxpr(partial(convolution, bias=None, dilation=dilation))(x, kernel))
        assert "conv_general_dilated" not in program
        assert program.count("dot_general") == products
    for other in ({"stride": 2}, {"stride": 2, "dilation": 16}, {"padding": "valid"}):
        assert "conv_general_dilated" in str(jax.make_jaxpr(partial(convolution, bias=None, **other))(x, kernel))
    little = {"bias": None, "dilation": 16}
    assert "conv_general_dilated" in str(jax.make_jaxpr(partial(convolution, **little))(x[:3], kernel))
    for few in ((x[:3], kernel), (x[..., :31], kernel[:, :, :31]), (x, kernel[..., :31])):
        assert "conv_general_dilated" in str(jax.make_jaxpr(partial(convolution, bias=None))(*few))


@pytest.mark.parametrize("side", [14, 96])  # worth Winograd's scheme if there are many images, and for a single one
def test_any_number_of_images(key, side):
    keys = jax.random.split(key, 2)
    x, kernel = jax.random.normal(keys[0], (2, side, side, 32)), jax.random.normal(keys[1], (3, 3, 32, 64))
    shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape(f"n,{side},{side},32"), x.dtype)
    exported = jax.export.export(jax.jit(partial(convolution, kernel=kernel, bias=None)))(shape)
    expected = xlas(x, kernel, jnp.zeros(64))
    np.testing.assert_allclose(exported.call(x), expected, atol=1e-4)
    assert ("stablehlo.convolution" in exported.mlir_module()) == (side == 14)


def test_a_gpu_sees_squares_of_pixels_where_there_are_few_channels():
    def kernels(channels, stride):
        x, kernel = jnp.ones((1, 16, 16, channels)), jnp.ones((7, 7, channels, 8))
        with traced_for("gpu"):
            program = jax.make_jaxpr(partial(convolution, bias=None, stride=stride))(x, kernel)
        return [eqn.invars[1].aval.shape for eqn in program.eqns if eqn.primitive.name == "conv_general_dilated"]

    assert kernels(3, 2) == [(4, 4, 12, 8)]
    assert kernels(3, 4) == [(2, 2, 48, 8)]
    assert kernels(3, 1) == [(7, 7, 3, 8)]
    assert kernels(8, 2) == [(7, 7, 8, 8)]


def test_an_unknown_padding():
    with pytest.raises(InputError, match="unknown padding 'sme': did you mean 'same'"):
        convolution(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2)), None, padding="sme")
