"""The loop: streams as resident data, many steps a dispatch as one, interrupted as not."""

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import Linear

from cnn_jax import models, tasks, training
from cnn_jax.data.stream import Files, Labelled, Stream
from cnn_jax.errors import InputError
from cnn_jax.training import Checkpoints, Interrupted, NonFinite
from cnn_jax.training.watch import Window, is_finite

CLASSES, SIZE, BATCH = 3, 40, 8
RNG = np.random.default_rng(0)
LABEL = np.arange(SIZE, dtype=np.int32) % CLASSES
IMAGE = (RNG.integers(0, 100, (SIZE, 8, 8, 1)) + 60 * LABEL[:, None, None, None]).astype(np.uint8)
DATA = {"image": IMAGE, "label": LABEL}
ONE = training.parallel(devices=jax.devices()[:1])
TWO = training.parallel("pmap", devices=jax.devices()[:2])
MODEL, TASK = models.create("simple_cnn", num_classes=CLASSES), tasks.classify(CLASSES)


def noise(key, batch):
    images = batch["image"].astype(jnp.float32) / 255
    return {**batch, "image": images + 0.1 * jax.random.normal(key, images.shape)}


def fit(data=DATA, **options):
    """Fifteen steps, three epochs, with all that has a state of its own."""
    options = {
        "steps": 15,
        "batch_size": BATCH,
        "test": DATA,
        "augment": noise,
        "ema_decay": 0.9,
        "over": ONE,
    } | options
    return training.fit(MODEL, TASK, data, **{"tx": optax.adam(1e-2)} | options)


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a.state), jax.tree.leaves(b.state), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture(scope="module")
def whole():
    lines = []
    return fit(log=lambda *line: lines.append(line), log_every=4), lines


def test_learns_and_reports(whole):
    fit, lines = whole
    assert fit.state.step == 15
    assert fit.summary["accuracy"] > 0.6
    assert fit.seconds > 0
    assert fit.images_per_second > 0
    assert [(kind, step) for kind, step, _ in lines if kind == "test"] == [("test", 5), ("test", 10), ("test", 15)]
    train = [(step, values) for kind, step, values in lines if kind == "train"]
    assert train[-1][0] == 15
    assert train[-1][1]["epoch"] == 3
    assert set(train[0][1]["grad_norm"]) == {"conv1", "conv2", "fc1", "logits"}
    assert train[-1][1]["loss"] < train[0][1]["loss"]


def test_images_a_second_are_those_of_training_alone(monkeypatch):
    seconds = iter(range(10**6))
    hours = [0]
    monkeypatch.setattr("cnn_jax.training.watch.time.perf_counter", lambda: next(seconds) + 3600 * hours[0])

    def evaluated(kind, step, values):
        hours[0] += kind == "test"

    trained = fit(log=evaluated, steps_per_dispatch=5)
    assert trained.images_per_second > BATCH * 5 / 60
    assert trained.seconds < 60


def test_the_log_of_training_by_hand(monkeypatch):
    """Windows of two steps of eight examples, of 32 in all; some examples of the second step were padding."""
    seconds = iter([10, 14, 16])
    monkeypatch.setattr("cnn_jax.training.watch.time.perf_counter", lambda: next(seconds))
    lines = []
    window = Window(lambda *line: lines.append(line), 2, 8, 32)

    def stats(loss, count, norm):
        return {"sums": {"loss": np.array(loss), "count": np.array(count)}, "grad_norm": {"conv1": np.array(norm)}}

    window.start()
    window.add(0, 2, stats([8.0, 16.0], [8, 4], [1.0, 3.0]))
    assert not lines  # one dispatch behind
    window.add(2, 5, stats([2.0, 4.0, 6.0], [8, 8, 8], [5.0, 7.0, 9.0]))
    window.flush()
    assert lines == [
        ("train", 2, {"loss": 2.0, "epoch": 0.5, "images_per_second": 4.0, "grad_norm": {"conv1": 2.0}}),
        ("train", 4, {"loss": 0.375, "epoch": 1.0, "images_per_second": 12.0, "grad_norm": {"conv1": 6.0}}),
        ("train", 5, {"loss": 0.75, "epoch": 1.25, "images_per_second": 12.0, "grad_norm": {"conv1": 9.0}}),
    ]
    assert window.median_rate() == 12  # without the window that compiled


@pytest.mark.parametrize(("epochs", "steps"), [(0.01, 1), (0.3, 2), (1.3, 6)])
def test_epochs_are_steps_to_the_nearest_but_one_at_least(epochs, steps):
    trained = training.fit(Linear(CLASSES), TASK, DATA, epochs=epochs, batch_size=BATCH, over=ONE)
    assert trained.state.step == steps


def test_one_number_that_is_not_finite_is_seen():
    whole, broken = {"kernel": np.ones((2, 3))}, {"kernel": np.array([[1, 2], [np.nan, 3]])}
    state = training.TrainState(np.int32(0), whole, {"mean": np.ones(2)}, np.float32("inf"), None)
    assert is_finite(state)  # an optimiser may hold an infinity
    assert not is_finite(state.replace(params=broken))
    assert not is_finite(state.replace(batch_stats=broken))
    assert not is_finite(state.replace(ema=broken))


def test_same_seed_same_numbers(whole):
    assert_same(whole[0], fit())
    other = fit(seed=1).state.params["logits"]["kernel"]
    assert (np.asarray(other) != np.asarray(whole[0].state.params["logits"]["kernel"])).any()


def test_many_steps_a_dispatch(whole):
    """As on accelerators; XLA may order sums otherwise inside a loop."""
    lines = []
    scanned = fit(steps_per_dispatch=4, log=lambda *line: lines.append(line), log_every=4)
    for a, b in zip(jax.tree.leaves(scanned.state), jax.tree.leaves(whole[0].state), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    assert [(kind, step) for kind, step, _ in lines if kind == "test"] == [("test", 5), ("test", 10), ("test", 15)]


def test_a_stream_is_the_same_data(tmp_path, whole):
    from PIL import Image

    paths = [str(tmp_path / f"{i}.png") for i in range(SIZE)]
    for path, image in zip(paths, IMAGE, strict=True):
        Image.fromarray(image[..., 0]).save(path)
    stream = Stream(Labelled(Files(tuple(paths), LABEL), (8, 8, 1), CLASSES), labels=LABEL, workers=0)
    streamed = fit(stream, test=stream)
    # Rounding differs: there the images are gathered and converted inside the compiled step, here outside.
    for a, b in zip(jax.tree.leaves(streamed.state), jax.tree.leaves(whole[0].state), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    assert streamed.summary["count"] == SIZE
    np.testing.assert_allclose(streamed.summary["loss"], whole[0].summary["loss"], rtol=1e-4)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_rest_ends_the_same(tmp_path, whole, number):
    def send(kind, step, values):
        if kind == "test" and step == 5:
            os.kill(os.getpid(), number)

    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(Interrupted, match=rf"stopped by {number.name} after step \d+: saved") as stopped:
        fit(checkpoints=checkpoints, log=send)
    assert stopped.value.exit_code == 128 + number
    assert 5 <= stopped.value.step <= 7
    assert checkpoints.steps()[-1] == stopped.value.step
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    lines = []
    rest = fit(checkpoints=checkpoints, log=lambda *line: lines.append(line))
    assert lines[0] == ("restored", stopped.value.step, {"damaged": []})
    assert_same(whole[0], rest)
    finished = fit(checkpoints=checkpoints)
    assert_same(whole[0], finished)
    assert finished.summary["loss"] == whole[0].summary["loss"]
    checkpoints.close()


def test_a_crash_goes_on_from_the_last_epoch(tmp_path, whole):
    def crash(kind, step, values):
        if kind == "test" and step == 10:
            raise RuntimeError("power cut")

    for log in (crash, None):
        checkpoints = Checkpoints(tmp_path)
        try:
            rest = fit(checkpoints=checkpoints, log=log)
        except RuntimeError:
            assert [path.name for path in tmp_path.iterdir()] == ["5"]
        checkpoints.close()
    assert_same(whole[0], rest)


@pytest.mark.parametrize(
    ("update", "over", "sentence"),
    [
        (7, ONE, r"the loss or a gradient is not finite at step 8 \(seen in steps 6 to \d+\)"),  # amid an epoch
        (10, ONE, "a parameter or a running statistic is not finite after step 10"),  # at its end
        (15, TWO, "a parameter or a running statistic is not finite after step 15"),  # at the end of all
    ],
)
def test_what_is_not_finite_is_not_saved(tmp_path, update, over, sentence):
    """The rate is NaN in one update: the losses and gradients of its own step are finite still."""
    tx = optax.sgd(lambda step: jnp.where(step == update - 1, jnp.nan, 0.01))
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(NonFinite, match=f"^{sentence}$") as error:
        fit(tx=tx, checkpoints=checkpoints, ema_decay=None, over=over)
    assert error.value.exit_code == 1
    assert {path.name for path in tmp_path.iterdir()} == {str(step) for step in (5, 10) if step < update}
    variables = checkpoints.restore_variables().state
    assert set(variables) == {"params", "batch_stats"}
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(variables))
    checkpoints.close()


def test_a_network_that_computes_nothing_finite():
    """Its parameters are: Adam's first update is as large as the rate."""
    with pytest.raises(NonFinite, match=r"^the loss on the test split is not finite after step 1"):
        fit(tx=optax.adam(1e30), steps=1, ema_decay=None)


def test_a_signal_while_the_last_checkpoint_is_written(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    wait = checkpoints.wait

    def send():
        wait()
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(checkpoints, "wait", send)
    with pytest.raises(Interrupted, match=r"^stopped by SIGTERM after step 5: saved; go on with --resume"):
        fit(checkpoints=checkpoints, steps=5, test=None)
    assert checkpoints.steps() == [5]
    checkpoints.close()


def test_a_checkpoint_between_two_evaluations_has_the_metrics_of_none(tmp_path):
    """The best one is not known by a number that an earlier one had."""

    def send(kind, step, values):
        if kind == "train" and step == 6:
            os.kill(os.getpid(), signal.SIGINT)

    checkpoints = Checkpoints(tmp_path, keep=1, best="accuracy")
    with pytest.raises(Interrupted):
        fit(checkpoints=checkpoints, log=send, log_every=1)
    best, last = checkpoints.steps()
    assert best == 5 < last
    checkpoints.close()


def without(name):
    return {key: values for key, values in DATA.items() if key != name}


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (
            DATA | {"label": LABEL + 5},
            "40 of 40 labels are out of range, the first of them 5: with 3 classes",
        ),
        (DATA | {"label": np.where(LABEL == 1, -1, LABEL)}, "13 of 40 labels are out of range, the first of them -1"),
        (DATA | {"label": LABEL[:7]}, "label has 7 rows and image 40: each needs one an example"),
        ({"image": IMAGE[:0], "label": LABEL[:0]}, "a split without an example: there is nothing to learn from"),
        (without("image"), "a split needs `image`; this one has 'label'"),
        ({}, "a split needs `image`; this one has nothing"),
        (without("label"), "this task needs `label` in a batch, which has image, mask"),
        (DATA | {"image": IMAGE.tolist()}, "image is list: a split holds arrays of numbers or booleans"),
        (DATA | {"name": np.array(["a"] * SIZE)}, "name is of <U1: a split holds arrays of numbers or booleans"),
        ((IMAGE, LABEL), r"a split is a dict of arrays or a stream, such as `dataset.train`; this is \(array"),
        (DATA | {"image": IMAGE.astype(np.int32)}, "images are int32: give uint8, floats, or a `preprocess`"),
        (DATA | {"label": LABEL.astype(np.float32)}, r"label is float32\[8\]: give integers or, for soft labels"),
    ],
)
def test_data_that_fit_nothing(data, sentence):
    with pytest.raises(InputError, match=f"^{sentence}"):
        fit(data, augment=None)
    variables = MODEL.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    with pytest.raises(InputError, match=f"^{sentence}"):
        training.evaluate(MODEL, TASK, variables, data, batch_size=8, over=ONE)


def test_parameters_alone_are_no_variables():
    params = MODEL.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
    with pytest.raises(InputError, match=r'^variables have no "params", but conv1, conv2, fc1, logits: give {"params"'):
        fit(variables=params)


def test_labels_that_do_not_count_may_be_any():
    """Those of masked rows, and those that augmentation makes."""
    few = {"image": IMAGE[:BATCH], "label": LABEL[:BATCH]}
    masked = {name: np.concatenate([values, values]) for name, values in few.items()}
    masked |= {"label": np.where(np.arange(2 * BATCH) < BATCH, masked["label"], -1)}
    masked |= {"mask": np.arange(2 * BATCH) < BATCH}
    variables = MODEL.init(jax.random.key(5), jnp.zeros((1, 8, 8, 1)))
    found, expected = (training.evaluate(MODEL, TASK, variables, data, over=ONE) for data in (masked, few))
    assert found["count"] == BATCH
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5)
    made = fit(
        without("label"), augment=lambda key, batch: batch | {"label": jnp.zeros(BATCH, int)}, steps=1, test=None
    )
    assert made.state.step == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"steps": -3}, "steps -3: it must be 1 or more"),
        ({"log_every": 0}, "log_every 0: it must be 1 or more"),
        ({"steps_per_dispatch": 0}, "steps_per_dispatch 0: it must be 1 or more"),
        ({"steps": None, "epochs": np.inf}, "epochs inf: it must be finite and above 0"),
    ],
)
def test_numbers_that_cannot_be(options, sentence):
    with pytest.raises(InputError, match=f"^{sentence}$"):
        fit(**options)


def test_starts_from_given_variables():
    start = MODEL.init(jax.random.key(5), jnp.zeros((1, 8, 8, 1)))
    still = fit(variables=start, tx=optax.sgd(0.0), steps=1, ema_decay=None, test=None)
    jax.tree.map(np.testing.assert_array_equal, still.state.params, start["params"])
    assert still.summary == {}


def test_a_checkpoint_of_another_model(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    fit(checkpoints=checkpoints, steps=1, test=None)
    with pytest.raises(InputError, match="is of another model, optimiser or dtype"):
        training.fit(MODEL.clone(num_classes=5), tasks.classify(5), DATA, steps=2, batch_size=BATCH, over=ONE,
                     checkpoints=checkpoints)  # fmt: skip
    checkpoints.close()
