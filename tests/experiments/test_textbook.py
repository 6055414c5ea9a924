"""The page of tested sentences, in little; and what decides a verdict, by hand."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import fails, succeeds
from PIL import Image

from cnn_jax import data, models
from experiments import textbook
from experiments.claims import lab, rules, seeing
from experiments.claims.networks import Local, Tower


@pytest.mark.slow  # every claim compiles networks of its own
def test_all_claims(tmp_path):
    succeeds(textbook, "--tiny", "--out", tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["holds"] + summary["holds in part"] + summary["does not hold"] == len(textbook.CLAIMS) == 13
    # 320 + 18,496 of 421,642 parameters are in convolutions.
    assert summary["convolutions_weights_SimpleCNN"] == pytest.approx(18_816 / 421_642)
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("data:image/png") == page.count(">expected</th>") == 13
    assert "in 2 steps (PGD)" in page
    assert "digit" not in page


def test_claims_of_few_classes(tmp_path):
    folder = few_classes(tmp_path, 3, side=16, each=52)  # of which 42 are for training
    flags = ("--tiny", "--dataset", folder, "--out", tmp_path / "run")
    succeeds(textbook, *flags, "--only", "hunger")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {name for name in summary if name.startswith("hunger_linear")} == {"hunger_linear_30", "hunger_linear_120"}


def test_mistakes_are_said(tmp_path):
    assert fails(textbook, "--only", "hungr", "--out", tmp_path / "a").startswith(
        "unknown claim 'hungr': did you mean 'hunger'"
    )
    assert fails(textbook, "--seeds", "1", "--out", tmp_path / "a") == "--seeds is 1: it must be 2 or more"
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("classes", "side", "each", "message"),
    [
        (3, 16, 52, "the claim 'transfer' needs 4 classes or more, and {} has 3: name others by --only"),
        (4, 16, 20, "the textbook needs 40 training images of each class, and {} has 16 of 'class_0'"),
        (4, 12, 52, "the textbook needs images of 16×16 or more, and those of {} are 12×12"),
    ],
)
def test_sets_that_are_too_small_are_refused_before_a_run(tmp_path, classes, side, each, message):
    folder = few_classes(tmp_path, classes, side=side, each=each)
    said = fails(textbook, "--only", "hunger", "transfer", "--dataset", folder, "--out", tmp_path / "run")
    assert said == message.format(data.load(str(folder)).name)
    assert not (tmp_path / "run").exists()


def test_sets_without_one_label_an_image_are_refused_before_a_run(tmp_path):
    said = fails(textbook, "--dataset", "scenes/mnist_10k", "--out", tmp_path / "run")
    assert "scenes/mnist_10k" in said
    assert not (tmp_path / "run").exists()


def few_classes(path, classes, *, side, each):
    """A folder of grey images of noise."""
    rng = np.random.default_rng(0)
    for label in range(classes):
        folder = path / "images" / f"class_{label}"
        folder.mkdir(parents=True)
        for i in range(each):
            noise = rng.integers(0, 256, (side, side), np.uint8)
            Image.fromarray(noise).save(folder / f"{i}.png")
    return path / "images"


def test_several_and_clearly_above():
    # Student's t for 2 degrees of freedom at 97.5 %: 4.3027; the deviation of 1, 2, 3 is 1, and half the interval 2.48.
    assert lab.several([0.01, 0.02, 0.03]) == f"2.0 % ± {4.3027 / 3**0.5:.1f}"
    assert rules.clearly_above([5, 6, 7], [1, 2, 3])
    assert not rules.clearly_above([5, 6, 1], [1, 2, 3])
    assert rules.clearly_above([1, 2, 3], -0.49)
    assert not rules.clearly_above([1, 2, 3], -0.47)
    assert rules.clearly_above([1, 2, 3], -1, by=0.5)
    assert not rules.clearly_above([1, 2, 3], -1, by=0.53)


LOW, MIDDLE, HIGH = [0.2, 0.21, 0.22], [0.6, 0.61, 0.62], [0.97, 0.98, 0.99]
NOISY = [0.1, 0.7, 0.99]  # clearly above or below none of them
DEEP, FLAT = [-9.0, -9.1, -9.2], [-0.5, -0.6, -0.4]
POOLINGS = ("max, flattened", "strides, flattened", "max, averaged", "strides, averaged")


def pooled(*values):
    return dict(zip(POOLINGS, values, strict=True))


def nonlinear(*values):
    return dict(zip(("ReLU", "tanh", "sigmoid", "none"), values, strict=True))


def stages(*values):
    return dict(zip(("conv1", "conv2", "fc1"), values, strict=True))


@pytest.mark.parametrize(
    ("rule", "holds", "in_part", "fails"),
    [
        (
            rules.sharing,
            [{"a": (HIGH, LOW), "b": (HIGH, LOW)}],
            [{"a": (HIGH, LOW), "b": (NOISY, LOW)}],
            [{"a": (LOW, HIGH), "b": (NOISY, HIGH)}],
        ),
        (
            rules.hierarchy,
            [MIDDLE, stages(LOW, MIDDLE, HIGH)],
            [LOW, stages(LOW, MIDDLE, NOISY)],
            [NOISY, stages(HIGH, MIDDLE, LOW)],
        ),
        (
            rules.pooling,
            [pooled(HIGH, MIDDLE, HIGH, LOW), HIGH],
            [pooled(MIDDLE, LOW, MIDDLE, NOISY), HIGH],
            [pooled(LOW, MIDDLE, LOW, LOW), HIGH],
        ),
        (rules.translation, [0.0, [0.001, 0.002, 0.003]], [0.0, LOW], [0.1, [0.009, 0.011, 0.01]]),
        (
            rules.gradient_flow,
            [{"sigmoid": DEEP, "ReLU": FLAT, "residual": FLAT}],
            [{"sigmoid": DEEP, "ReLU": FLAT, "residual": DEEP}],
            [{"sigmoid": FLAT, "ReLU": FLAT, "residual": FLAT}],
        ),
        (
            rules.relu,
            [nonlinear(HIGH, MIDDLE, LOW, LOW)],
            [nonlinear(HIGH, HIGH, LOW, NOISY)],
            [nonlinear(MIDDLE, HIGH, NOISY, HIGH)],
        ),
        (
            rules.batch_norm,
            [{"best": (HIGH, MIDDLE), "largest": (HIGH, LOW)}],
            [{"best": (HIGH, HIGH), "largest": (HIGH, LOW)}],
            [{"best": (LOW, HIGH), "largest": (NOISY, LOW)}],
        ),
        (rules.hunger, [LOW, HIGH, MIDDLE], [LOW, HIGH, LOW], [HIGH, HIGH, MIDDLE]),
        (
            rules.transfer,
            [{1: (HIGH, LOW), 5: (HIGH, LOW)}],
            [{1: (HIGH, LOW), 5: (LOW, LOW)}],
            [{1: (NOISY, LOW), 5: (LOW, LOW)}],
        ),
        (
            rules.over_fitting,
            [LOW, {"nothing": LOW, "dropout": MIDDLE, "decay": HIGH, "shifts": HIGH}],
            [LOW, {"nothing": LOW, "dropout": LOW, "decay": NOISY, "shifts": LOW}],
            [[0.04, 0.05, 0.06], {"nothing": LOW, "dropout": LOW, "decay": NOISY, "shifts": LOW}],
        ),
        (
            rules.cost,
            [{"a": (0.1, 0.9, 4), "b": (0.4, 0.6, 100)}],
            [{"a": (0.1, 0.9, 4), "b": (0.9, 0.99, 100)}],
            [{"a": (0.6, 0.4, 1), "b": (0.9, 0.1, 2)}],
        ),
        (rules.fooled, [LOW, HIGH], [[0.56, 0.57, 0.58], MIDDLE], [NOISY, HIGH]),
        (
            rules.black_box,
            [{"random": MIDDLE, "edges": MIDDLE, "Grad-CAM": HIGH, "gradient": NOISY}, ("random", "edges")],
            [{"random": MIDDLE, "edges": MIDDLE, "Grad-CAM": LOW, "gradient": NOISY}, ("random", "edges")],
            [{"random": MIDDLE, "edges": HIGH, "Grad-CAM": LOW, "gradient": LOW}, ("random", "edges")],
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_each_rule_gives_each_verdict(rule, holds, in_part, fails):
    verdicts = [rules.judge(rule(*numbers)) for numbers in (holds, in_part, fails)]
    assert verdicts == ["holds", "holds in part", "does not hold"]


def test_methods_must_beat_both_maps_that_know_nothing():
    assert list(rules.black_box({"a": HIGH, "b": LOW, "Grad-CAM": MIDDLE}, ("a", "b")).values()) == [True]


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


def test_black_of_each_channel():
    splits = {"image": np.zeros((2, 4, 4, 3), np.uint8), "label": np.array([0, 1], np.int32)}
    mean, std = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)
    dataset = data.Dataset("colours", splits, splits, ("a", "b"), (4, 4, 3), mean, std, "")
    np.testing.assert_allclose(lab.Lab(dataset, seeds=2, steps=1).black, [-2, -2, -3], rtol=1e-6)


def test_strides_and_poolings_give_the_same_places(key):
    images = jnp.zeros((1, 9, 8, 1))
    for pooling in ("strides", "average"):
        variables = Tower(depth=4, pooling=pooling, flatten=True).init(key, images)
        side = {"strides": 3 * 2, "average": 2 * 2}[pooling]  # of odd sides strides keep the last row, as ⌈9/2⌉
        assert variables["params"]["logits"]["kernel"].shape == (16 * side, 10)
