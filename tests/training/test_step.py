"""One update, against formulas written in NumPy, and against itself in another form."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from networks import Linear

from cnn_jax import models, tasks, training
from cnn_jax.models.layers import BatchNorm

RATE, CLASSES = 0.5, 4


def make_batch(n, seed=0, size=4):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, n).astype(np.int32)
    return {"image": rng.normal(size=(n, size, size, 1)).astype(np.float32), "label": label}


def gradient_by_hand(params, batch):
    x = batch["image"].reshape(len(batch["label"]), -1).astype(np.float64)
    z = x @ np.asarray(params["logits"]["kernel"], np.float64) + np.asarray(params["logits"]["bias"], np.float64)
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    loss = -np.log(p[np.arange(len(p)), batch["label"]]).sum()
    p[np.arange(len(p)), batch["label"]] -= 1
    return {"kernel": x.T @ p / len(p), "bias": p.mean(0)}, loss


def start(tx, model=None, size=4, ema=False):
    return training.create_state(jax.random.key(1), model or Linear(CLASSES), tx, (size, size, 1), ema=ema)


def make_step(tx=None, model=None, **options):
    return jax.jit(
        training.make_train_step(model or Linear(CLASSES), tasks.classify(CLASSES), tx or optax.sgd(RATE), **options)
    )


def assert_close(a, b, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=atol), a, b)


@pytest.fixture(scope="module")
def sgd_step():
    return make_step()


def test_the_update_is_the_formulas(sgd_step, key):
    state, batch = start(optax.sgd(RATE)), make_batch(12)
    new, stats = sgd_step(state, batch, key)
    gradient, loss = gradient_by_hand(state.params, batch)
    for name in gradient:
        expected = np.asarray(state.params["logits"][name]) - RATE * gradient[name]
        np.testing.assert_allclose(new.params["logits"][name], expected, atol=1e-6)
    assert new.step == 1
    assert float(stats["sums"]["count"]) == 12
    np.testing.assert_allclose(stats["sums"]["loss"], loss, rtol=1e-5)
    norm = np.sqrt(sum((values**2).sum() for values in gradient.values()))
    np.testing.assert_allclose(stats["grad_norm"]["logits"], norm, rtol=1e-5)


def test_masked_rows_count_for_nothing(sgd_step, key):
    state, batch = start(optax.sgd(RATE)), make_batch(12)
    mask = np.arange(12) % 3 > 0
    some = {name: values[mask] for name, values in batch.items()}
    batch["image"][~mask] = 1e3  # whatever lies in the padding
    new, stats = sgd_step(state, {**batch, "mask": mask}, key)
    gradient, loss = gradient_by_hand(state.params, some)
    expected = np.asarray(state.params["logits"]["kernel"]) - RATE * gradient["kernel"]
    np.testing.assert_allclose(new.params["logits"]["kernel"], expected, atol=1e-5)
    assert float(stats["sums"]["count"]) == 8
    np.testing.assert_allclose(stats["sums"]["loss"], loss, rtol=1e-5)


@pytest.mark.parametrize("accumulate", [2, 6])
def test_accumulation_is_the_whole_batch(sgd_step, key, accumulate):
    """Also where the parts hold different numbers of real examples."""
    state, batch = start(optax.sgd(RATE)), make_batch(12)
    batch["mask"] = np.arange(12) > 4
    whole, whole_stats = sgd_step(state, batch, key)
    parts, parts_stats = make_step(accumulate=accumulate)(state, batch, key)
    assert_close(whole.params, parts.params)
    assert_close(whole_stats, parts_stats, atol=1e-5)


def test_in_accumulation_the_statistics_go_from_part_to_part(key):
    """Part i holds rows i, i + 2, …; each moves the running mean a tenth of the way to its own."""
    tx, batch = optax.sgd(RATE), make_batch(8)
    state = start(tx, Normed())
    new, _ = make_step(tx, Normed(), accumulate=2)(state, batch, key)
    by_hand = {"params": state.params, "batch_stats": state.batch_stats}
    for part in (batch["image"][::2], batch["image"][1::2]):
        _, changed_in_it = Normed().apply(by_hand, part, train=True, mutable=["batch_stats"])
        by_hand |= changed_in_it
    assert_close(new.batch_stats, by_hand["batch_stats"])
    assert changed(state.batch_stats, new.batch_stats)


def test_the_moving_average_by_hand(key):
    state, decay = start(optax.sgd(RATE), ema=True), 0.15
    step = make_step(ema_decay=decay)
    average = np.asarray(state.params["logits"]["kernel"], np.float64)
    for i in range(3):
        state, _ = step(state, make_batch(8, seed=i), key)
        d = min(decay, (1 + i) / (10 + i))  # 0.1, 0.15, 0.15
        average = d * average + (1 - d) * np.asarray(state.params["logits"]["kernel"], np.float64)
    np.testing.assert_allclose(state.ema["params"]["logits"]["kernel"], average, rtol=1e-5)
    assert state.variables is state.ema


def test_augment_then_adversary_change_the_batch(sgd_step, key):
    state, batch = start(optax.sgd(RATE)), make_batch(8)

    def augment(key, batch):
        return {**batch, "image": -batch["image"]}

    def adversary(key, variables, batch):
        return {**batch, "image": batch["image"] + variables["params"]["logits"]["bias"].sum() + 1}

    changed = adversary(None, {"params": state.params}, augment(None, batch))
    new, _ = make_step(augment=augment, adversary=adversary)(state, batch, key)
    assert_close(new.params, sgd_step(state, changed, key)[0].params)


def test_randomness_follows_key_and_step():
    tx = optax.sgd(RATE)
    model = models.create("simple_cnn", num_classes=CLASSES)
    step, state = make_step(tx, model), start(tx, model, size=8)
    batch = make_batch(8, size=8)

    def loss(seed, number):
        return float(step(state.replace(step=jnp.int32(number)), batch, jax.random.key(seed))[1]["sums"]["loss"])

    assert loss(0, 0) == loss(0, 0)
    assert len({loss(0, 0), loss(1, 0), loss(0, 1)}) == 3  # dropout


def test_bfloat16_computes_what_float32_does(key):
    """To bfloat16's 8 bits; the parameters stay float32."""
    tx, batch = optax.sgd(RATE), make_batch(8, size=8)
    stats = {}
    for dtype in ("float32", "bfloat16"):
        model = models.create("simple_cnn", num_classes=CLASSES, dropout=0.0, dtype=dtype)
        new, stats[dtype] = make_step(tx, model)(start(tx, model, size=8), batch, key)
        assert {x.dtype for x in jax.tree.leaves(new.params)} == {jnp.dtype("float32")}
    exact, rough = (np.array(jax.tree.leaves(stats[dtype])) for dtype in stats)
    np.testing.assert_allclose(rough, exact, rtol=0.03)
    assert (rough != exact).any()


def test_over_fits_16_images_and_is_traced_once(key):
    """Images of noise: there is nothing to learn but the images themselves."""
    task, traces = tasks.classify(CLASSES), []

    def loss(outputs, batch):
        traces.append(1)
        return task.loss(outputs, batch)

    tx, batch = optax.adam(1e-2), make_batch(16, size=8)
    model = models.create("simple_cnn", num_classes=CLASSES)
    step = jax.jit(training.make_train_step(model, task._replace(loss=loss), tx))
    state = start(tx, model, size=8)
    for _ in range(60):
        state, _ = step(state, batch, key)
    assert len(traces) == 1
    evaluated = training.evaluate(
        model, task, state.variables, batch, over=training.parallel(devices=jax.devices()[:1])
    )
    assert evaluated["accuracy"] == 1
    assert evaluated["loss"] < 0.01


def changed(before, after):
    """Paths of the leaves that differ."""
    before, after = flatten_dict(before, sep="/"), flatten_dict(after, sep="/")
    return {path for path in before if (np.asarray(before[path]) != np.asarray(after[path])).any()}


class Normed(nn.Module):
    """Two batch norms of Linen's, each told of training in one of its two ways, and one of ours."""

    @nn.compact
    def __call__(self, images, *, train=False):
        x = nn.BatchNorm(use_running_average=not train, name="first")(images)
        x = nn.BatchNorm(name="second")(nn.Dense(3, name="between")(x), use_running_average=not train)
        return nn.Dense(CLASSES, name="logits")(BatchNorm(train, name="third")(x).mean((1, 2)))


def test_what_is_frozen_stays_and_the_rest_learns_as_if_it_were_constant(key):
    """Also under weight decay and momentum, which move what has no gradient."""
    tx = training.make_optimiser("adam", 0.1, weight_decay=0.1)
    state, batch = start(tx, Normed()), make_batch(8)
    step = make_step(tx, Normed(), freeze=("first", "second"))
    new, stats = step(state, batch, key)
    new, _ = step(new, batch, key)
    assert changed(state.params, new.params) == {
        f"{name}/{leaf}"
        for name, leaves in {
            "between": ("kernel", "bias"),
            "third": ("scale", "bias"),
            "logits": ("kernel", "bias"),
        }.items()
        for leaf in leaves
    }
    assert changed(state.batch_stats, new.batch_stats) == {"third/mean", "third/var"}
    assert set(stats["grad_norm"]) == {"between", "third", "logits"}


@pytest.mark.parametrize("freeze", [(".*/(mean|var)$",), ("first", "second", "third")])
def test_frozen_statistics_are_those_of_evaluation(key, freeze):
    """The loss of a training step is then that of the network as it is evaluated, and independent of the batch."""
    tx, batch = optax.sgd(RATE), make_batch(8)
    state = start(tx, Normed())
    rng = np.random.default_rng(0)
    state = state.replace(
        batch_stats=jax.tree.map(lambda x: rng.uniform(0.5, 2, x.shape).astype(np.float32), state.batch_stats)
    )
    new, stats = make_step(tx, Normed(), freeze=freeze)(state, batch, key)
    loss, _ = tasks.classify(CLASSES).loss(Normed().apply(state.variables, batch["image"]), batch)
    np.testing.assert_allclose(stats["sums"]["loss"], loss.sum(), rtol=1e-5)
    assert changed(state.batch_stats, new.batch_stats) == set()
    assert "logits/kernel" in changed(state.params, new.params)
    _, free = make_step(tx, Normed())(state, batch, key)
    assert abs(free["sums"]["loss"] - loss.sum()) > 0.01


def test_what_lies_before_the_first_layer_that_learns_is_not_differentiated(key):
    """The compiled step of a frozen body has a fraction of the work."""
    model = models.create("resnet18", num_classes=CLASSES, width=4)
    tx = optax.sgd(RATE)
    variables = jax.eval_shape(model.init, key, jnp.zeros((1, 8, 8, 1)))
    state = training.TrainState(jnp.int32(0), variables["params"], variables["batch_stats"], tx.init({}))
    batch = make_batch(8, size=8)
    programs = [
        jax.jit(training.make_train_step(model, tasks.classify(CLASSES), tx, freeze=freeze)).lower(state, batch, key)
        for freeze in ((), ("(?!logits)",))
    ]
    convolutions = [lowered.as_text().count("stablehlo.convolution") for lowered in programs]
    assert convolutions[1] == 16  # forward; of the 20 the first, on one channel, and three of 1×1 are products
    assert convolutions[0] == 3 * 16  # and two gradients of each


def test_states_of_many_keys_at_once_learn_as_each_alone(sgd_step, key):
    tx, batch, keys = optax.sgd(RATE), make_batch(12), jax.random.split(jax.random.key(3), 3)

    def create(key):
        return training.create_state(key, Linear(CLASSES), tx, (4, 4, 1))

    def shapes(state):
        return jax.tree.map(lambda x: (x.shape, x.dtype), state)

    together, _ = jax.vmap(sgd_step, in_axes=(0, None, None))(jax.vmap(create)(keys), batch, key)
    for i, one in enumerate(keys):
        alone = create(one)
        assert_close(jax.tree.map(lambda x, i=i: x[i], together), sgd_step(alone, batch, key)[0])
        assert shapes(jax.eval_shape(create, one)) == shapes(alone)
    assert shapes(jax.eval_shape(lambda: create(keys[0]))) == shapes(alone)
