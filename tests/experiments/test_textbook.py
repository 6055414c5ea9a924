"""The page of tested sentences, in little; and what decides a verdict, by hand."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import fails, succeeds

from cnn_jax import data, models
from experiments import textbook
from experiments.claims import lab, seeing
from experiments.claims.networks import Local


@pytest.mark.slow
def test_some_claims(tmp_path):
    succeeds(textbook, "--tiny", "--only", "cost", "hunger", "fooled", "--out", tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["holds"] + summary["holds in part"] + summary["does not hold"] == 3
    # 320 + 18,496 of 421,642 parameters are in convolutions.
    assert summary["convolutions_weights_SimpleCNN"] == pytest.approx(18_816 / 421_642)
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("data:image/png") == 3
    assert "CNNs need many labelled examples." in page


def test_mistakes_are_said(tmp_path):
    assert fails(textbook, "--only", "hungr", "--out", tmp_path / "a").startswith(
        "unknown claim 'hungr': did you mean 'hunger'"
    )
    assert fails(textbook, "--seeds", "1", "--out", tmp_path / "a") == "--seeds is 1: it must be 2 or more"
    assert not (tmp_path / "a").exists()


def test_several_and_clearly_above():
    # Student's t for 2 degrees of freedom at 97.5 %: 4.3027; the deviation of 1, 2, 3 is 1.
    assert lab.several([0.01, 0.02, 0.03]) == f"2.0 % ± {4.3027 / 3**0.5:.1f}"
    assert lab.clearly_above([5, 6, 7], [1, 2, 3])
    assert not lab.clearly_above([5, 6, 1], [1, 2, 3])


def test_edge_share():
    slope = np.mgrid[-1:2, -1:2].astype(np.float32)
    assert seeing.edge_share(slope[0][:, :, None] + 3) == pytest.approx(1)
    spot = np.zeros((3, 3, 1), np.float32)
    spot[1, 1] = 1
    assert seeing.edge_share(spot) == pytest.approx(0, abs=1e-6)
    noise = np.random.default_rng(0).normal(size=(3, 3, 4000)).astype(np.float32)
    assert seeing.edge_share(noise) == pytest.approx(0.25, abs=0.01)


def test_a_filter_for_each_place_is_linens(key):
    x = jax.random.normal(key, (2, 5, 6, 3))
    ours, linen = Local(4), nn.ConvLocal(4, (3, 3))
    variables = linen.init(key, x)
    kernel = variables["params"]["kernel"]  # Linen's columns have the channels first
    rows = kernel.reshape(30, 3, 9, 4).swapaxes(1, 2).reshape(30, 27, 4)
    bias = jnp.arange(120.0).reshape(5, 6, 4)
    expected = linen.apply({"params": {"kernel": kernel, "bias": bias}}, x)
    found = ours.apply({"params": {"kernel": rows, "bias": bias.reshape(30, 4)}}, x)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_what_a_seed_learns_is_the_same_again():
    digits = data.load("mnist_10k").head(train=200, test=50)
    learn = lab.Lab(digits, seeds=2, steps=3, batch_size=16).learner(models.create("simple_cnn"))
    first, again, other = learn(0), learn(0), learn(1)
    kernel = [np.asarray(variables["params"]["conv1"]["kernel"]) for variables in (first, again, other)]
    np.testing.assert_array_equal(kernel[0], kernel[1])
    assert np.abs(kernel[0] - kernel[2]).max() > 0.01
