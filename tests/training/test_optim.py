"""Schedules at points known by hand; optimisers against formulas."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cnn_jax import models
from cnn_jax.errors import InputError
from cnn_jax.training import frozen, layer_rates, make_optimiser, make_schedule


@pytest.mark.parametrize(
    ("name", "options", "points"),
    [
        ("constant", {}, {0: 0.2, 99: 0.2}),
        ("constant", {"warmup_steps": 10}, {0: 0, 5: 0.1, 10: 0.2, 99: 0.2}),
        ("cosine", {}, {0: 0.2, 50: 0.1, 25: 0.1 * (1 + np.sqrt(0.5)), 100: 0}),
        ("cosine", {"warmup_steps": 20}, {0: 0, 10: 0.1, 20: 0.2, 60: 0.1, 100: 0}),
        ("one-cycle", {}, {0: 0.2 / 25, 30: 0.2, 100: 0.2 / 25e4}),
    ],
)
def test_schedules(name, options, points):
    schedule = make_schedule(name, 0.2, total_steps=100, **options)
    for step, rate in points.items():
        np.testing.assert_allclose(schedule(step), rate, atol=1e-6)


PARAMS = {"conv1": {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full(2, 3.0)}, "norm": {"scale": jnp.full(2, 3.0)}}


def updates(tx, *gradients):
    state = tx.init(PARAMS)
    for gradient in gradients:
        grads = {"conv1": {"kernel": jnp.full((2, 2), gradient), "bias": jnp.full(2, gradient)}}
        update, state = tx.update({**grads, "norm": {"scale": jnp.full(2, gradient)}}, state, PARAMS)
    return float(update["conv1"]["kernel"][0, 0]), float(update["conv1"]["bias"][0]), float(update["norm"]["scale"][0])


def test_weight_decay_is_decoupled_and_spares_biases_and_norms():
    """Adam's first update is the rate times the gradient's sign; decay adds rate × decay × parameter to kernels."""
    kernel, bias, scale = updates(make_optimiser("adam", 0.1, weight_decay=0.5), 0.01)
    np.testing.assert_allclose([kernel, bias, scale], [-0.1 - 0.1 * 0.5 * 3, -0.1, -0.1], rtol=1e-5)


def test_sgd_with_nesterov_momentum():
    """v = m v + g; update = -rate (g + m v): 1, then v = 1.5 + 2 = … by hand."""
    kernel, *_ = updates(make_optimiser("sgd", 0.1, momentum=0.5), 1.0, 2.0)
    np.testing.assert_allclose(kernel, -0.1 * (2 + 0.5 * (0.5 * 1 + 2)), rtol=1e-6)


def test_clipping_scales_the_whole_gradient():
    """Eight gradients of 2 have the norm 2 √8."""
    clipped = updates(make_optimiser("sgd", 1.0, momentum=0.0, clip_norm=1.0), 2.0)
    np.testing.assert_allclose(clipped, [-1 / np.sqrt(8)] * 3, rtol=1e-5)
    untouched = updates(make_optimiser("sgd", 1.0, momentum=0.0, clip_norm=100.0), 2.0)
    np.testing.assert_allclose(untouched, [-2.0] * 3, rtol=1e-6)


def test_adam_is_the_papers():
    ours = updates(make_optimiser("adam", 0.001), 0.3, -0.7, 0.2)
    np.testing.assert_allclose(ours[0], updates(optax.adam(0.001), 0.3, -0.7, 0.2)[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: make_schedule("cosin", 0.1, total_steps=9), "cosine"),
        (lambda: make_schedule("constant", 0, total_steps=9), "learning rate 0: it must be finite and above 0"),
        (lambda: make_schedule("constant", 1, total_steps=9, warmup_steps=9), "shorter than the run"),
        (lambda: make_schedule("one-cycle", 1, total_steps=9, warmup_steps=1), "warm-up of its own"),
        (lambda: make_optimiser("adan", 0.1), "adam"),
        (lambda: make_optimiser("adam", 0.1, weight_decay=-1), "weight decay -1: it must be finite and 0 or above"),
        (lambda: make_optimiser("adam", 0.1, clip_norm=0), "clip norm 0: it must be above 0"),
    ],
)
def test_bad_arguments(call, sentence):
    with pytest.raises(InputError, match=sentence):
        call()


@pytest.mark.parametrize(
    ("rates", "factors"),
    [
        ({"conv1": 0.25}, [0.25, 0.25, 1]),
        ({"conv1": 0.25, "conv1/bias": 0, "norm": 3}, [0.25, 0, 3]),  # the inner one counts
        ({}, [1, 1, 1]),
    ],
)
def test_rates_scale_the_whole_update_of_a_module(rates, factors):
    """Decay of weights too, for it is a part of the rate."""
    plain = updates(make_optimiser("adam", 0.1, weight_decay=0.5), 0.01)
    scaled = updates(make_optimiser("adam", 0.1, weight_decay=0.5, rates=rates), 0.01)
    np.testing.assert_allclose(scaled, np.array(plain) * factors, rtol=1e-6)


def test_rates_at_any_depth():
    """Of modules in modules, and of a parameter that is in none; such a path that there is not is refused."""
    params = {"a": {"b": {"c": jnp.ones(1), "d": jnp.ones(1)}, "e": jnp.ones(1)}, "gain": jnp.ones(1)}
    tx = make_optimiser("sgd", 1.0, momentum=0.0, rates={"a": 2, "a/b": 3, "a/b/c": 4, "gain": 5})
    update, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_array_equal(jax.tree.leaves(update), [[-4], [-3], [-2], [-5]])
    for path, nearest in {"a/bb": "a/b", "gian": "gain", "a/b/cc": "a/b/c"}.items():
        with pytest.raises(
            InputError, match=f"^rates: no module or parameter has the path '{path}': did you mean '{nearest}'"
        ):
            make_optimiser("sgd", 1.0, rates={path: 0}).init(params)


def test_layers_learn_more_slowly_towards_the_input():
    """In the order in which they compute, not that of their names; a norm belongs to the layer before it."""
    rates = layer_rates(models.create("resnet18", width=4), (8, 8, 3), decay=0.5)
    names = ["stem_conv", "stem_norm", *(f"stage{s}_block{b}" for s in (1, 2, 3, 4) for b in (1, 2)), "logits"]
    assert list(rates) == names
    np.testing.assert_allclose(list(rates.values()), 0.5 ** np.array([9, 9, *range(8, -1, -1)]))
    with pytest.raises(InputError, match="layer decay 0: it must be above 0 and at most 1"):
        layer_rates(models.create("simple_cnn"), (8, 8, 1), decay=0)


def test_layers_side_by_side_learn_alike():
    """What counts is how many layers follow one another: heads have the rate 1, whatever stands beside them."""
    rates = layer_rates(models.create("fcos_small"), (32, 32, 3), decay=0.5)
    outputs = dict.fromkeys(("logits", "distances", "centerness"), 1.0)
    assert list(rates.items())[-6:] == [("pyramid", 0.25), ("classes", 0.5), ("box", 0.5), *outputs.items()]
    assert rates["backbone/stem_conv"] == rates["backbone/stem_norm"] == 0.5**7
    rates = layer_rates(models.create("deeplabv3_resnet50", width=4, dtype="bfloat16"), (8, 8, 3), decay=0.5)
    assert {rates[f"aspp{i}_{part}"] for i in (1, 2, 3, 4) for part in ("conv", "norm")} == {0.5**3}
    assert rates["backbone/stage4_block3"] == 0.5**4
    assert rates["logits"] == rates["aux_logits"] == 1


class Looped(nn.Module):
    """A gain outside of all modules, and a layer that runs again after the one that follows it."""

    @nn.compact
    def __call__(self, images, *, train=False):
        again, other = nn.Dense(4, name="again"), nn.Dense(4, name="other")
        x = again(images.reshape(len(images), 4))
        x *= self.param("gain", nn.initializers.ones, 4)[None]
        return nn.Dense(2, name="last")(again(other(x)))


def test_rates_of_layers_that_run_again_and_of_a_lone_parameter():
    rates = layer_rates(Looped(), (2, 2, 1), decay=0.5)
    assert rates == {"again": 0.25, "gain": 0.25, "other": 0.5, "last": 1}
    params = Looped().init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))["params"]
    tx = make_optimiser("sgd", 1.0, momentum=0.0, rates=rates)
    ones = jax.tree.map(jnp.ones_like, params)
    update, _ = tx.update(ones, tx.init(params), params)
    assert {name: -float(jax.tree.leaves(update[name])[0].ravel()[0]) for name in update} == rates


def test_patterns_find_what_they_freeze():
    stats = {"norm": {"mean": jnp.zeros(2)}}
    found = frozen({"params": PARAMS, "batch_stats": stats}, ["norm", ".*bias"])
    assert found == {
        "params": {"conv1": {"kernel": False, "bias": True}, "norm": {"scale": True}},
        "batch_stats": {"norm": {"mean": True}},
    }
    for patterns, sentence in [
        (["nrom"], "freeze 'nrom': no parameter has such a path; they begin with conv1, norm"),
        (["norm", "stage["], r"freeze 'stage\[': not a regular expression \(unterminated"),
        ([".*"], r"freeze '\.\*': no parameter is left to learn"),
        ("norm", r"freeze 'norm': give a sequence of patterns, \['norm'\]"),
    ]:
        with pytest.raises(InputError, match=sentence):
            frozen({"params": PARAMS}, patterns)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("conv1", "conv1"),
        ("conv", "conv1 conv11 conv13"),
        ("conv1/", "conv1"),
        ("conv1|stem", "conv1 stem_conv"),
        ("conv[0-9]+", "conv1 conv11 conv13"),
        ("conv1.", "conv11 conv13 conv1"),
        ("stem", "stem_conv"),
        ("(?!conv)", "stem_conv"),
        (".*v1/bias", "conv1"),
    ],
)
def test_no_pattern_ends_within_a_number(pattern, names):
    modules = ("conv1", "conv11", "conv13", "stem_conv")
    params = {name: {"bias": jnp.zeros(1)} for name in modules} | {"logits": {"scale": jnp.zeros(1)}}
    held = frozen({"params": params}, [pattern])["params"]
    held.pop("logits")
    assert {name for name in held if held[name]["bias"]} == set(names.split())


def test_muon_makes_the_update_of_a_kernel_orthogonal():
    """Beside the singular value decomposition of the gradient, a convolution's read as [side·side·C, features]."""
    gradient = np.random.default_rng(0).normal(size=(3, 3, 2, 4)).astype(np.float32)
    params = {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)}
    tx = make_optimiser("muon", 0.1, weight_decay=0.5)
    update, _ = tx.update({"kernel": jnp.asarray(gradient), "bias": jnp.full(4, -2.0)}, tx.init(params), params)
    u, _, v = np.linalg.svd(gradient.reshape(18, 4), full_matrices=False)
    nearest = -0.1 * 0.2 * np.sqrt(18) * u @ v  # √18: so 18 × 4 numbers have a root mean square of 0.2
    ours = np.asarray(update["kernel"]).reshape(18, 4) + 0.1 * 0.5
    assert (ours * nearest).sum() / np.linalg.norm(ours) / np.linalg.norm(nearest) > 0.98
    singular = np.linalg.svd(ours, compute_uv=False) / (0.1 * 0.2 * np.sqrt(18))
    assert singular.min() > 0.6  # five iterations bring them near one, not to it
    assert singular.max() < 1.3
    # Adam's first, with Nesterov momentum (Dozat 2016): 0.9·0.1 g / (1 − 0.9²) + 0.1 g / (1 − 0.9), over |g|.
    np.testing.assert_allclose(update["bias"], 0.1 * (0.09 / 0.19 + 1), rtol=1e-5)
