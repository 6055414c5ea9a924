"""Counts against hand values, whatever the program is wrapped in; measurements against what must hold of them."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from cnn_jax.analysis import cost
from cnn_jax.errors import InputError
from cnn_jax.models import traced_for
from cnn_jax.models.layers import BatchNorm


def f32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def conv(x, kernel, stride=1, *, padding="SAME", groups=1, dilation=1, spread=1):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, lhs_dilation=(spread, spread), rhs_dilation=(dilation, dilation),
        feature_group_count=groups, dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


# FLOPs: two for each number of the kernel at each place of the output; of a transposed one, of the input.
CONVOLUTIONS = {
    "plain": (conv, (3, 3, 4, 6), 2 * 64 * 9 * 4 * 6),
    "strided": (partial(conv, stride=2), (3, 3, 4, 6), 2 * 16 * 9 * 4 * 6),
    "strided, an odd size": (partial(conv, stride=3), (3, 3, 4, 6), 2 * 9 * 9 * 4 * 6),
    "strided past its kernel": (partial(conv, stride=2), (1, 1, 4, 6), 2 * 16 * 4 * 6),
    "patches": (partial(conv, stride=4, padding="VALID"), (4, 4, 4, 6), 2 * 4 * 16 * 4 * 6),
    "without padding": (partial(conv, padding="VALID"), (5, 5, 4, 6), 2 * 16 * 25 * 4 * 6),
    "dilated": (partial(conv, dilation=2), (3, 3, 4, 6), 2 * 64 * 9 * 4 * 6),
    "grouped": (partial(conv, groups=2), (3, 3, 2, 6), 2 * 64 * 9 * 2 * 6),
    "depthwise, strided": (partial(conv, groups=4, stride=2), (5, 5, 1, 8), 2 * 16 * 25 * 8),
    "transposed": (partial(conv, spread=2, padding=[(1, 1), (1, 1)]), (2, 2, 4, 6), 2 * 64 * 4 * 4 * 6),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_and_both_their_gradients(name):
    function, shape, flops = CONVOLUTIONS[name]
    arguments = f32(3, 8, 8, 4), f32(*shape)
    found = cost.count(function, *arguments)
    assert (found.forward, found.backward, found.elementwise, found.uncounted) == (3 * flops, 0, 0, ())
    both = cost.count(cost.gradient(lambda both: function(*both)), arguments)
    assert both.forward == 3 * flops
    assert both.backward == 2 * 3 * flops


def test_matrix_products():
    assert cost.count(jnp.matmul, f32(3, 5), f32(5, 7)).flops == 2 * 3 * 5 * 7
    assert cost.count(partial(jnp.einsum, "bik,bkj->bij"), f32(4, 3, 5), f32(4, 5, 7)).flops == 2 * 4 * 3 * 5 * 7
    assert cost.count(jax.vmap(jnp.dot), f32(4, 5), f32(4, 5)).flops == 2 * 4 * 5


def product(x):
    return x @ x


ONE = 2 * 4**3


@jax.custom_vjp
def own_gradient(x):
    return product(x)


own_gradient.defvjp(lambda x: (product(x), x), lambda x, dy: (dy @ x.T,))


@jax.custom_jvp
def own_tangent(x):
    return product(x)


own_tangent.defjvp(lambda primals, tangents: (own_tangent(*primals), tangents[0] @ primals[0]))


@pytest.mark.parametrize(
    ("function", "forward", "backward"),
    [
        (product, 1, 2),
        (jax.jit(product), 1, 2),
        (lambda x: jax.lax.scan(lambda x, _: (product(x), None), x, length=5)[0], 5, 10),
        (lambda x: jax.lax.map(product, jnp.stack([x] * 3)), 3, 6),
        (lambda x: jax.lax.fori_loop(0, 7, lambda _, x: product(x), x), 7, 14),
        # Of the branches the dearest, here that of three products.
        (lambda x: jax.lax.cond(x[0, 0] > 0, product, lambda x: product(product(x) @ x), x), 3, 6),
        # What is computed anew belongs to the backward pass: the inner product, but not the outer.
        (jax.checkpoint(lambda x: jnp.sin(product(x))), 1, 3),
        (own_gradient, 1, 1),
        (own_tangent, 1, 1),
        (lambda x: jax.vmap(own_tangent)(jnp.stack([x] * 3)), 3, 3),
        (jax.jit(lambda x: jax.lax.scan(lambda x, _: (jax.jit(product)(x), None), x, length=5)[0]), 5, 10),
    ],
)
def test_whatever_it_is_wrapped_in(function, forward, backward):
    assert cost.count(function, f32(4, 4)).forward == forward * ONE
    found = cost.count(jax.jit(cost.gradient(function)), f32(4, 4))
    assert (found.forward, found.backward) == (forward * ONE, backward * ONE)


def test_what_is_mapped_over_devices_counts_for_all():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    mapped = jax.shard_map(lambda x, y: x @ y, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
    assert cost.count(mapped, f32(16, 4), f32(4, 4)).flops == 2 * 16 * 4 * 4
    assert cost.count(jax.pmap(product), f32(8, 4, 4)).flops == 8 * ONE


def test_what_cannot_be_told_is_named():
    def until(x):
        return jax.lax.while_loop(lambda x: x[0, 0] > 0, product, x)

    found = cost.count(lambda x: jnp.linalg.cholesky(until(x)), f32(4, 4))
    assert set(found.uncounted) == {"while", "cholesky"}
    assert found.flops == ONE


def test_what_nobody_uses_costs_nothing():
    def function(x):
        product(x)
        return x + 1

    assert cost.count(function, f32(4, 4)).flops == 0


@pytest.mark.parametrize(
    ("function", "operations"),
    [
        (lambda x: jnp.exp(x) * 2 + x, 3 * 60),
        (lambda x: x.sum(1), 60),
        (lambda x: x.mean(), 60 + 1),
        (lambda x: x.reshape(5, 12).T[:, :3], 0),
        (lambda x: x > 0, 0),
        (lambda x: x.astype(jnp.int32) + 1, 0),
        (lambda x: nn.max_pool(x[None], (2, 2), (2, 2)), (1 * 2 * 4) * (2 * 2)),
        (lambda x: jax.lax.reduce((x, x), (0.0, 1.0), lambda a, b: (a[0] + b[0], a[1] * b[1]), (0, 1)), 2 * 60),
        (lambda x: (jnp.sort(x), x.argmax(), jnp.where(x > 0, x, 0)), 0),  # chosen and moved, not computed
    ],
)
def test_other_arithmetic_is_counted_apart(function, operations):
    found = cost.count(function, f32(3, 5, 4))
    assert found.flops == 0
    assert found.elementwise == operations


def test_of_a_solver_what_runs_is_counted():
    """Not what says how its gradient is solved for."""

    def function(x, b):
        return jax.lax.custom_linear_solve(lambda y: x @ (x @ y), b, lambda _, b: x @ b, lambda _, b: x @ (x @ (x @ b)))

    found = cost.count(function, f32(4, 4), f32(4))
    assert (found.flops, found.uncounted) == (2 * 4 * 4, ())
    both = cost.count(cost.gradient(lambda b, x: function(x, b)), f32(4), f32(4, 4))
    assert (both.forward, both.backward) == (2 * 4 * 4, 3 * 2 * 4 * 4)


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_costs_what_linens_does(train):
    x = f32(1, 32, 32, 64)

    def counts(norm):
        def apply(both, rest):
            params, x = both
            return norm.apply({"params": params, **rest}, x, mutable=["batch_stats"])[0]

        variables = jax.eval_shape(norm.init, jax.random.key(0), x)
        arguments = (variables["params"], x), {"batch_stats": variables["batch_stats"]}
        for function in (apply, cost.gradient(apply)):
            found = cost.count(function, *arguments)
            assert (found.flops, found.uncounted) == (0, ())
            yield from (found.elementwise, found.kept, found.peak)

    with traced_for("tpu"):
        ours = list(counts(BatchNorm(train)))
    assert ours == pytest.approx(list(counts(nn.BatchNorm(not train))), rel=0.01)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), name="conv")(x))
        for i in range(2):
            x = Inner(name=f"inner{i}")(x)
        return nn.Dense(5, use_bias=False, name="logits")(x.reshape(len(x), -1))


class Inner(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jnp.tanh(nn.Conv(8, (1, 1), use_bias=False, name="conv")(x))


def net():
    x, model = f32(2, 6, 6, 3), Net()
    return (
        (lambda params, x: model.apply({"params": params}, x)),
        jax.eval_shape(model.init, jax.random.key(0), x)["params"],
        x,
    )


def test_scopes_are_the_modules_in_their_order():
    function, params, x = net()
    found = cost.count(cost.gradient(function), params, x)
    places, first, inner = 2 * 36, 2 * 9 * 3 * 8, 2 * 8 * 8
    # The images are not differentiated by: the first convolution has but one gradient.
    assert {name: scope[:2] for name, scope in found.scopes.items() if scope.forward} == {
        "Net/conv": (places * first, places * first),
        "Net/inner0/conv": (places * inner, 2 * places * inner),
        "Net/inner1/conv": (places * inner, 2 * places * inner),
        "Net/logits": (2 * 2 * 288 * 5, 2 * 2 * 2 * 288 * 5),
    }
    assert next(iter(found.scopes)) == "Net/conv"
    assert found.scopes["Net/inner0"].elementwise >= places * 8  # tanh
    for i, name in enumerate(("forward", "backward", "elementwise", "kept")):
        assert sum(scope[i] for scope in found.scopes.values()) == getattr(found, name)
    forward = cost.count(function, params, x)
    assert (forward.forward, forward.backward, forward.kept) == (found.forward, 0, 0)


def test_what_is_kept_for_the_gradient():
    function, params, x = net()
    found = cost.count(cost.gradient(function), params, x)
    numbers = 2 * 6 * 6 * 8
    # ReLU: what the next convolution sees, and where it is above zero, a byte each. Tanh: y and 1 - y. That the dense
    # layer sees the last y in another shape takes no more memory; images and kernels are arguments.
    assert {name: scope.kept for name, scope in found.scopes.items() if scope.kept} == {
        "Net": 5 * numbers, "Net/inner0": 8 * numbers, "Net/inner1": 8 * numbers
    }  # fmt: skip
    assert found.kept == (5 + 8 + 8) * numbers


def test_what_is_computed_anew_is_not_kept():
    def deep(x):
        for _ in range(4):
            x = jnp.sin(x)
        return x

    x = f32(100)
    assert cost.count(cost.gradient(deep), x).kept == 4 * 400  # the cosine of each
    assert cost.count(cost.gradient(jax.checkpoint(deep)), x).kept == 0


def test_the_peak_of_what_is_alive():
    x = f32(100)
    assert cost.count(lambda x: jnp.sin(jnp.sin(jnp.sin(x))), x).peak == 2 * 400  # one goes in, one comes out
    assert cost.count(lambda x: x.reshape(10, 10) * 2, x).peak == 400  # a view takes no memory

    def both(x):
        a, b = jnp.sin(x), jnp.cos(x)
        return jnp.stack([a, b]).sum()

    assert cost.count(both, x).peak == 400 + 400 + 800
    # Ten rounds are given back together, one is worked on at a time.
    rounds = cost.count(lambda x: jax.lax.scan(lambda x, _: (jnp.sin(jnp.sin(x)), x), x, length=10), x)
    assert rounds.peak == 400 + 10 * 400


def test_memory_of_a_compiled_program():
    x = jnp.ones((64, 64))
    found = cost.memory(jax.jit(lambda x: (x @ x + 1).sum(0)).lower(x).compile())
    assert (found.arguments, found.outputs) == (64 * 64 * 4, 64 * 4)
    assert found.temporary >= 64 * 64 * 4
    assert found.total == sum(found)
    given = cost.memory(jax.jit(lambda x: x + 1, donate_argnums=0).lower(x).compile())
    assert (given.arguments, given.outputs) == (64 * 64 * 4, 0)


def test_programs_take_turns(monkeypatch):
    order, now = [], [0.0]
    monkeypatch.setattr(cost.time, "perf_counter", lambda: now[0])  # a clock that a busy machine does not move

    def program(name, pause):
        now[0] += pause
        order.append(name)
        return np.float32(0)

    programs = {"slow": partial(program, "slow", 0.02), "slower": partial(program, "slower", 0.03)}
    found = cost.seconds(programs, rounds=3, least=0.04)
    assert order[4:] == ["slow", "slow", "slower"] * 3
    np.testing.assert_allclose(found["slow"], [0.02] * 3)
    np.testing.assert_allclose(found["slower"], [0.03] * 3)
    with pytest.raises(InputError, match="rounds is 0: it must be 1 or more"):
        cost.seconds(programs, rounds=0)


def test_the_product_that_measures_the_peak():
    program, flops = cost.matrix_product(64, dtype=jnp.bfloat16)
    assert program().dtype == jnp.bfloat16
    assert cost.count(program).flops == flops == 2 * 64**3
    assert min(cost.seconds({"product": program}, rounds=1, least=0)["product"]) > 0
