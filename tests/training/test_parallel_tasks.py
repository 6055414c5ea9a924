"""Eight devices detect and segment as one does, by `jit` and by `pmap`: training with batch norm, and the metrics."""

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from cnn_jax import data, tasks, training
from cnn_jax.data import scenes
from cnn_jax.models.layers import BatchNorm, Conv

LAYOUTS = {"one": ("jit", 1), "jit": ("jit", 8), "pmap": ("pmap", 8)}
CLASSES = 10
METRICS = {
    "detect": ("ap", "ap50", "ar100", "voc_ap", "f1"),
    "segment": ("miou", "dice", "pixel_accuracy", "boundary_f1"),
}


class Small(nn.Module):
    """A network with batch norm whose outputs are those of a detector of one level, or of a segmenter."""

    task: str
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, *, train=False):
        stride = 4 if self.task == "detect" else 1
        x = Conv(8, side=5, stride=stride, use_bias=False, name="conv")(images)
        x = nn.relu(BatchNorm(train, self.axis_name, name="norm")(x))
        if self.task == "segment":
            return Conv(CLASSES + 1, name="logits")(x)
        named = {"logits": CLASSES, "distances": 4, "centerness": 1}
        outputs = {name: Conv(features, name=name)(x) for name, features in named.items()}
        return [outputs | {"distances": nn.softplus(outputs["distances"]), "centerness": outputs["centerness"][..., 0]}]


@pytest.fixture(scope="module")
def made():
    return scenes.make(jax.random.key(2), data.load("mnist_10k").train, count=20, size=32, most=3)


@pytest.fixture(scope="module", params=["detect", "segment"])
def fits(request, made):
    if request.param == "detect":
        task, kept = tasks.detect(CLASSES, strides=(4,)), ("image", "boxes", "label", "objects")
    else:
        task, kept = tasks.segment(CLASSES + 1, losses={"cross_entropy": 1.0, "dice": 1.0}), ("image", "map")
    split = {name: made[name] for name in kept}

    def fit(mode, devices):
        over = training.parallel(mode, devices=jax.devices()[:devices])
        # SGD: Adam divides by the gradient's size, so that where it is nearly 0 rounding alone decides its update.
        return training.fit(Small(request.param), task, split, tx=optax.sgd(0.02), steps=5, batch_size=16, over=over)

    return {layout: fit(*how) for layout, how in LAYOUTS.items()}


@pytest.mark.parametrize("layout", ["jit", "pmap"])
def test_five_steps_agree_with_one_device(fits, layout):
    one, many = fits["one"].state, fits[layout].state
    assert one.step == many.step == 5
    for (path, a), b in zip(jax.tree.leaves_with_path(one.variables), jax.tree.leaves(many.variables), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5, rtol=1e-4, err_msg=jax.tree_util.keystr(path))


class Told(nn.Module):
    """A detector whose images hold its outputs."""

    @nn.compact
    def __call__(self, images, *, train=False):
        logits, distances, centerness = np.split(images, [CLASSES, CLASSES + 4], axis=-1)
        return [{"logits": logits, "distances": distances, "centerness": centerness[..., 0]}]


def nearly_right(made):
    """Outputs for `Told` that say of most objects roughly where they are."""
    rng = np.random.default_rng(0)
    images = np.full((20, 8, 8, CLASSES + 5), -6, np.float32)
    for n, i in zip(*np.nonzero(made["objects"]), strict=True):
        if n == 0:
            continue
        box = made["boxes"][n, i]
        x, y = ((box[:2] + box[2:]) / 8).astype(int)
        images[n, y, x, made["label"][n, i]] = rng.normal(1, 2)
        sides = np.r_[4 * np.array([x, y]) - box[:2], box[2:] - 4 * np.array([x, y])] / 4
        images[n, y, x, CLASSES:-1] = sides * rng.uniform(0.9, 1.1, 4)
        images[n, y, x, -1] = 3
    return images


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_metrics_agree_with_one_device(made, task):
    """20 scenes: the last batch of 8 devices is padded."""
    if task == "detect":
        model, of, kept = Told(), tasks.detect(CLASSES, strides=(4,)), ("boxes", "label", "objects")
        split = {"image": nearly_right(made), **{name: made[name] for name in kept}}
        variables = {}
    else:
        model, of = Small("segment"), tasks.segment(CLASSES + 1)
        split = {"image": made["image"], "map": made["map"]}
        variables = model.init(jax.random.key(2), split["image"][:1])
    found = {
        layout: training.evaluate(
            model, of, variables, split, batch_size=16,
            over=training.parallel(mode, devices=jax.devices()[:devices]),
        )
        for layout, (mode, devices) in LAYOUTS.items()
    }  # fmt: skip
    for name in METRICS[task]:
        one = found["one"][name]
        assert 0 < one < 1, name
        for layout in ("jit", "pmap"):
            assert found[layout]["count"] == 20
            np.testing.assert_allclose(found[layout][name], one, atol=1e-6, err_msg=name)
