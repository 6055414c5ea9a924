"""Eight devices compute what one does, by `jit` and by `pmap`."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cnn_jax import models, tasks, training
from cnn_jax.errors import InputError
from cnn_jax.models.resnet import ResNet
from cnn_jax.training.parallel import MODES

CLASSES, N = 4, 16
RNG = np.random.default_rng(0)
DATA = {
    "image": RNG.integers(0, 256, (40, 8, 8, 3)).astype(np.uint8),
    "label": RNG.integers(0, CLASSES, 40).astype(np.int32),
}
LAYOUTS = {"one": ("jit", 1), "jit": ("jit", 8), "pmap": ("pmap", 8)}


def train(layout, dtype, **options):
    mode, devices = LAYOUTS[layout]
    over = training.parallel(mode, devices=jax.devices()[:devices])
    model = ResNet(depths=(1, 1), block="basic", num_classes=CLASSES, width=8, zero_init=False, dtype=dtype)
    # SGD: Adam divides by the gradient's size, so that where it is nearly 0 rounding alone decides its update.
    options = {"tx": optax.sgd(0.05, momentum=0.9), "steps": 5, "batch_size": N, "test": DATA} | options
    return training.fit(model, tasks.classify(CLASSES), DATA, over=over, **options)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def fits(request):
    return request.param, {layout: train(layout, request.param) for layout in LAYOUTS}


@pytest.mark.parametrize("layout", ["jit", "pmap"])
def test_five_steps_with_batch_norm_agree_with_one_device(fits, layout):
    dtype, runs = fits
    # bfloat16 keeps 8 bits: sums over the batch differ by 2^-8 of activations of size 1, five times over.
    tolerance = {"float32": 1e-5, "bfloat16": 3e-2}[dtype]
    one, many = runs["one"].state, runs[layout].state
    assert one.step == many.step == 5
    for (path, a), b in zip(jax.tree.leaves_with_path(one.variables), jax.tree.leaves(many.variables), strict=True):
        np.testing.assert_allclose(b, a, atol=tolerance, rtol=tolerance, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("layout", ["jit", "pmap"])
def test_metrics_agree_with_one_device(fits, layout):
    """40 examples: the last batch of 8 devices is padded."""
    dtype, runs = fits
    one, many = runs["one"].summary, runs[layout].summary
    assert many["count"] == 40
    tolerance = {"float32": 1e-5, "bfloat16": 5e-2}[dtype]
    np.testing.assert_allclose(many["loss"], one["loss"], rtol=tolerance)
    if dtype == "float32":
        np.testing.assert_array_equal(many["confusion"], one["confusion"])


def test_evaluation_drops_nothing_and_counts_nothing_twice():
    """13 examples in batches of 8 over 8 devices, against the model applied to all at once."""
    model, task = models.create("simple_cnn", num_classes=CLASSES), tasks.classify(CLASSES)
    data = {name: values[:13] for name, values in DATA.items()}
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    logits = np.asarray(model.apply(variables, data["image"] / np.float32(255)), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    for mode in ("jit", "pmap"):
        found = training.evaluate(model, task, variables, data, batch_size=8, over=training.parallel(mode))
        assert found["count"] == 13
        assert found["accuracy"] == (logits.argmax(1) == data["label"]).mean()
        np.testing.assert_allclose(found["loss"], -log_p[np.arange(13), data["label"]].mean(), rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_one_copy_of_what_all_devices_hold(mode):
    over = training.parallel(mode)
    held = over.replicate({"a": np.arange(6.0).reshape(2, 3), "b": np.float32(7)})
    one = over.one(held)
    np.testing.assert_array_equal(one["a"], np.arange(6).reshape(2, 3))
    assert one["b"] == 7
    if mode == "pmap":  # made without a program on all devices
        assert {device for x in one.values() for device in x.devices()} == {jax.devices()[0]}


@pytest.mark.parametrize("mode", MODES)
def test_programs_on_many_devices_of_a_cpu_run_one_at_a_time(mode):
    over = training.parallel(mode)
    slow = over.compile(
        lambda axis: lambda x: jax.lax.fori_loop(0, 50, lambda i, y: jnp.sin(y @ y), x), split=(True,), donate=None
    )
    assert jax.tree.all(jax.tree.map(lambda y: y.is_ready(), slow(over.replicate(np.ones((300, 300), np.float32)))))


def test_devices_augment_with_keys_of_their_own():
    """Under pmap as under jit, no two examples of a batch get the same noise."""
    seen = {}

    class Flat(nn.Module):
        @nn.compact
        def __call__(self, images, *, train=False):
            return nn.Dense(CLASSES, name="logits", kernel_init=nn.initializers.zeros)(images.reshape(len(images), -1))

    def only_noise(key, batch):
        return {**batch, "image": jax.random.normal(key, batch["image"].shape)}

    same = {"image": np.zeros((8, 8, 8, 3), np.uint8), "label": np.arange(8, dtype=np.int32) % CLASSES}
    for mode in ("jit", "pmap"):
        fit = training.fit(
            Flat(), tasks.classify(CLASSES), same, steps=1, batch_size=8, tx=optax.sgd(1.0), augment=only_noise,
            over=training.parallel(mode),
        )  # fmt: skip
        seen[mode] = np.asarray(fit.state.params["logits"]["kernel"])
        # The update is x^T (p - y): of rank 3 if the images differ, and 0 if all were the same.
        assert np.linalg.matrix_rank(seen[mode], tol=1e-4) == CLASSES - 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch_size": 12}, "batch size 12: it must be a multiple of the number of devices, 8"),
        ({"batch_size": 16, "accumulate": 4}, "the number of devices, 8 times the 4 parts of accumulation"),
        ({"accumulate": 0}, "accumulate 0: it must be 1 or more"),
        ({"epochs": 1}, "give either epochs or steps"),
        ({"steps": None}, "give either epochs or steps"),
    ],
)
def test_arguments_that_do_not_fit(options, sentence):
    with pytest.raises(InputError, match=sentence):
        train("jit", "float32", **options)


def test_unknown_mode():
    with pytest.raises(InputError, match="pmap"):
        training.parallel("pmab")
