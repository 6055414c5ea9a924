"""Attacks against closed forms on linear models, and what must hold on any model."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import filled

from cnn_jax import tasks, training
from cnn_jax.analysis import adversarial
from cnn_jax.errors import InputError
from cnn_jax.models.layers import Conv, max_pool

SHAPE = (6, 5, 4, 2)
BOUNDS = (0.0, 1.0)


@pytest.fixture(scope="module")
def images():
    """f32[6,5,4,2], many of whose pixels are near or at a bound."""
    return np.random.default_rng(0).uniform(-0.3, 1.3, SHAPE).clip(0, 1).astype(np.float32)


@pytest.fixture(scope="module")
def slope():
    values = np.random.default_rng(1).normal(size=SHAPE[1:]).astype(np.float32)
    values[0, 0] = 0  # a pixel that does not matter stays
    return values


def linear(slope):
    return adversarial.raising(lambda images: jnp.tensordot(images, slope, axes=3))


def change(found, images):
    return (np.asarray(found, np.float64) - images).reshape(len(images), -1)


def optimum_l2(images, slope, epsilon):
    """argmax slope·x within the ball and [0,1]: along the slope, but not over a border, as far as the ball goes."""
    found = []
    for image in images.astype(np.float64):
        low, high = 0.0, 1e4
        for _ in range(200):
            middle = (low + high) / 2
            inside = np.linalg.norm((image + middle * slope).clip(0, 1) - image) <= epsilon
            low, high = (middle, high) if inside else (low, middle)
        found.append((image + low * slope).clip(0, 1))
    return np.stack(found)


def test_on_a_linear_model_attacks_are_closed_forms(key, images, slope):
    @partial(jax.jit, static_argnames=("attack", "norm"))
    def run(attack, norm, epsilon):
        return attack(key, linear(slope), images, epsilon=epsilon, norm=norm)

    def value(images):
        return (np.asarray(images) * slope).sum((1, 2, 3))

    large_steps = partial(adversarial.pgd, step_size=0.4)
    for epsilon in (0.05, 0.4):
        signs = (images + epsilon * np.sign(slope)).clip(0, 1)
        np.testing.assert_allclose(run(adversarial.fgsm, "linf", epsilon), signs, atol=1e-6)
        along = (images + epsilon * slope / np.linalg.norm(slope)).clip(0, 1)
        np.testing.assert_allclose(run(adversarial.fgsm, "l2", epsilon), along, atol=1e-6)
        # PGD reaches the best point of all, in value; in place too, but for the pixels that do not matter.
        np.testing.assert_allclose(value(run(adversarial.pgd, "linf", epsilon)), value(signs), atol=1e-5)
        best = optimum_l2(images, slope, epsilon)
        assert (value(best) > value(along) + 1e-3).any()  # the bounds hold some pixels back, and others go further
        np.testing.assert_allclose(value(run(large_steps, "l2", epsilon)), value(best), atol=1e-5)


def test_projection_is_the_nearest_point(images):
    rng = np.random.default_rng(2)
    for epsilon, spread in [(0.3, 0.05), (0.5, 0.3), (1.0, 1.0), (2.0, 30.0)]:
        candidates = images + spread * rng.normal(size=SHAPE).astype(np.float32)
        project = partial(adversarial.project, images, candidates, epsilon=epsilon, bounds=BOUNDS)
        found = np.asarray(project(norm="l2"), np.float64)
        lengths = np.linalg.norm(change(found, images), axis=1)
        assert (lengths <= epsilon * (1 + 1e-6)).all()
        # No other point of the set is nearer: else the way from the projection to it would come nearer too.
        others = images + np.asarray(optimum_l2(images, 1e-3 * rng.normal(size=SHAPE[1:]), epsilon)) - images
        towards = ((others - found) * (candidates - found)).reshape(len(images), -1).sum(1)
        assert (towards <= 1e-4 * epsilon * spread).all()
        clipped = candidates.clip(0, 1)
        free = np.linalg.norm(change(clipped, images), axis=1) <= epsilon
        np.testing.assert_allclose(found[free], clipped[free], atol=1e-6)
        np.testing.assert_allclose(lengths[~free], epsilon, rtol=1e-5)
        np.testing.assert_allclose(
            project(norm="linf"), np.clip(candidates, np.maximum(images - epsilon, 0), np.minimum(images + epsilon, 1))
        )


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_where_nothing_rises_no_direction_is_steepest(norm):
    gradient = jnp.zeros((2, 3, 3, 1)).at[1, 0, 0, 0].set(1e-30)  # whose square is 0 in float32
    found = adversarial.steepest(gradient, norm=norm)
    np.testing.assert_array_equal(found[0], 0)
    np.testing.assert_allclose(found[1, ..., 0], np.diag([1, 0, 0]), rtol=1e-6)


def test_starts_are_drawn_evenly_from_the_ball(key):
    images = np.full((2000, 1, 3, 1), 0.5, np.float32)
    draw = jax.jit(partial(adversarial.draw, epsilon=0.25, bounds=BOUNDS), static_argnames="norm")
    flat, round_ = (change(draw(key, images, norm=norm), images) for norm in ("linf", "l2"))
    np.testing.assert_allclose(np.abs(flat).mean(0), 0.125, rtol=0.05)
    radius = np.linalg.norm(round_, axis=1) / 0.25
    np.testing.assert_allclose((radius**3).mean(), 0.5, rtol=0.05)  # the share of the ball within a radius is its cube
    np.testing.assert_allclose(round_.mean(0), 0, atol=0.01)


class Small(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = max_pool(nn.relu(Conv(6)(4 * x - 2)))
        return nn.Dense(4)(x.reshape(len(x), -1))


@pytest.fixture(scope="module")
def network():
    """(images f32[6,8,8,2], attack(key, epsilon, norm, restarts), margin(images)) of a small network."""
    images = np.random.default_rng(0).uniform(-0.2, 1.2, (6, 8, 8, 2)).clip(0, 1).astype(np.float32)
    logits = partial(Small().apply, filled(Small(), images))
    objective = adversarial.fooling(logits, np.asarray(logits(images)).argmax(-1))

    @partial(jax.jit, static_argnames=("norm", "restarts"))
    def attack(key, epsilon, norm, restarts=1):
        return adversarial.pgd(key, objective, images, epsilon=epsilon, norm=norm, steps=4, restarts=restarts)

    return images, attack, jax.jit(lambda images: objective(images)[1])


@pytest.mark.parametrize("norm", adversarial.NORMS)
def test_what_holds_on_any_model(key, network, norm):
    images, attack, margin = network
    before = margin(images)
    for epsilon in (0.01, 0.1, 3.0):
        found = np.asarray(attack(key, epsilon, norm))
        assert found.min() >= 0
        assert found.max() <= 1
        moved = change(found, images)
        length = np.abs(moved).max(1) if norm == "linf" else np.linalg.norm(moved, axis=1)
        assert (length <= epsilon * (1 + 1e-6) + 1e-7).all()
        assert (margin(found) >= before - 1e-6).all()
    found = np.asarray(attack(key, 0.1, norm))
    assert (margin(found) > before + 0.01).all()
    np.testing.assert_array_equal(attack(key, 0.1, norm), found)
    assert (np.asarray(attack(jax.random.key(3), 0.1, norm)) != found).any()
    np.testing.assert_array_equal(attack(key, 0.0, norm), images)


def test_more_restarts_are_never_worse(key, network):
    _, attack, margin = network
    one, three = (np.asarray(margin(attack(key, 0.1, "linf", restarts))) for restarts in (1, 3))
    assert (three >= one - 1e-6).all()
    assert (three > one).any()


def test_the_program_does_not_grow_with_the_steps(key, images, slope):
    def size(steps, restarts):
        attack = partial(adversarial.pgd, objective=linear(slope), images=images, epsilon=0.1)
        return len(str(jax.make_jaxpr(lambda key: attack(key, steps=steps, restarts=restarts))(key)))

    assert abs(size(10, 1) - size(1000, 10)) < 50


def test_objectives_of_classification():
    scores = jnp.array([[2.0, 1.0, 0.0], [0.0, 3.0, 3.5]])
    logits, labels = (lambda images: scores), np.array([0, 1])
    entropy, margin = adversarial.fooling(logits, labels)(None)
    np.testing.assert_allclose(entropy, optax.softmax_cross_entropy_with_integer_labels(scores, labels), rtol=1e-6)
    np.testing.assert_allclose(margin, [-1, 0.5])  # the second is an error
    to_entropy, to_margin = adversarial.fooling(logits, np.array([2, 2]), targeted=True)(None)
    np.testing.assert_allclose(to_margin, [-2, 0.5])  # the second is what it is to be taken for
    np.testing.assert_allclose(to_entropy, -optax.softmax_cross_entropy_with_integer_labels(scores, np.array([2, 2])))


def test_targets_are_reached(key, images):
    kernel = np.random.default_rng(3).normal(size=(*SHAPE[1:], 4)).astype(np.float32)

    def logits(images):
        return jnp.tensordot(images, kernel, axes=3)

    before = np.asarray(logits(images)).argmax(-1)
    for shift in (1, 2):
        targets = (before + shift) % 4
        objective = adversarial.fooling(logits, targets, targeted=True)
        found = jax.jit(partial(adversarial.pgd, objective=objective, images=images, epsilon=0.5, steps=10))(key)
        np.testing.assert_array_equal(np.asarray(logits(found)).argmax(-1), targets)


def two_classes(slope):
    """Logits whose difference is slope·(x - ½)."""

    def logits(images):
        score = jnp.tensordot(images - 0.5, slope, axes=3)
        return jnp.stack([jnp.zeros_like(score), score], axis=-1)

    return logits


@pytest.mark.parametrize("norm", adversarial.NORMS)
def test_robust_accuracy_of_a_linear_model_is_that_of_its_margins(key, slope, norm):
    rng = np.random.default_rng(5)
    images = rng.uniform(0.4, 0.6, (23, *SHAPE[1:])).astype(np.float32)
    score = ((images - 0.5) * slope).sum((1, 2, 3))
    labels = (score > 0).astype(np.int32)
    labels[:3] = 1 - labels[:3]  # errors without an attack
    reach = np.abs(slope).sum() if norm == "linf" else np.linalg.norm(slope)  # the most that an epsilon of 1 changes
    epsilons = [0.03, 0.0, 0.01, 0.3] if norm == "linf" else [0.2, 0.0, 0.1, 0.4]
    attack = partial(adversarial.pgd, norm=norm, steps=10)
    found = adversarial.robust_accuracy(
        key, two_classes(slope), images, labels, epsilons=epsilons, attack=attack, batch_size=5
    )
    right = np.arange(23) >= 3
    expected = np.stack([right & (np.abs(score) > epsilon * reach) for epsilon in epsilons])
    np.testing.assert_array_equal(found.robust, expected)
    np.testing.assert_allclose(found.accuracy, expected.mean(1))
    np.testing.assert_array_equal(found.epsilons, epsilons)
    assert len(set(found.accuracy)) >= 3


def test_the_curve_never_rises(key):
    """Though an attack of one large step misses what small ones find."""

    def valley(images):
        return jnp.stack([jnp.zeros(len(images)), 0.05 - jnp.square(images[:, 0, 0, 0] - 0.6)], axis=-1)

    images, labels = np.full((1, 1, 1, 1), 0.2, np.float32), np.array([0])
    found = adversarial.robust_accuracy(key, valley, images, labels, epsilons=[0.8, 0.4, 0.1], attack=adversarial.fgsm)
    np.testing.assert_array_equal(found.accuracy, [0, 0, 1])
    alone = adversarial.robust_accuracy(key, valley, images, labels, epsilons=[0.8], attack=adversarial.fgsm)
    assert alone.accuracy == [1]


class Flat(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=False):
        return nn.Dense(3)(x.reshape(len(x), -1))


def test_an_adversary_in_a_training_step(key):
    model, task, tx = Flat(), tasks.classify(3), optax.sgd(0.0)
    batch = {"image": np.random.default_rng(0).integers(0, 256, (8, 4, 4, 1), np.uint8), "label": np.arange(8) % 3}

    def loss(variables, images, batch):
        assert images.dtype == jnp.float32
        return task.loss(model.apply(variables, images), batch)[0]

    attack = partial(adversarial.fgsm, epsilon=0.1)
    adversary = adversarial.adversary(attack, loss)
    state = training.create_state(key, model, tx, (4, 4, 1))
    images = batch["image"] / np.float32(255)
    changed = adversary(key, state.variables, batch)
    objective = adversarial.raising(lambda images: loss(state.variables, images, batch))
    np.testing.assert_allclose(changed["image"], attack(key, objective, images), atol=1e-6)
    np.testing.assert_array_equal(changed["label"], batch["label"])
    _, stats = jax.jit(training.make_train_step(model, task, tx, adversary=adversary))(state, batch, key)
    np.testing.assert_allclose(stats["sums"]["loss"], loss(state.variables, changed["image"], batch).sum(), rtol=1e-5)


def test_bad_arguments(key, images, slope):
    pgd = partial(adversarial.pgd, key, linear(slope), images)
    curve = partial(adversarial.robust_accuracy, key, two_classes(slope), images)
    labels = np.zeros(6, int)
    for call, sentence in [
        (lambda: pgd(epsilon=0.1, norm="l1"), "unknown norm 'l1'"),
        (lambda: pgd(epsilon=-0.1), "epsilon -0.1: it must be 0 or above"),
        (lambda: pgd(epsilon=float("nan")), "epsilon nan: it must be 0 or above"),
        (lambda: pgd(epsilon=0.1, steps=0), "steps is 0: expected 1 or more"),
        (lambda: pgd(epsilon=0.1, restarts=0), "restarts is 0: expected 1 or more"),
        (lambda: pgd(epsilon=0.1, step_size=0.0), "step size 0.0: it must be above 0"),
        (lambda: pgd(epsilon=0.1, bounds=(0, 0.5)), "images from 0 to 1, outside of the bounds 0 and 0.5"),
        (lambda: pgd(epsilon=0.1, bounds=(1, 0)), "the lowest pixel must be below the highest"),
        (lambda: adversarial.fgsm(key, linear(slope), images[0], epsilon=0.1), r"shape \(5, 4, 2\) and float32"),
        (lambda: adversarial.fgsm(key, linear(slope), (images > 0.5), epsilon=0.1), "and bool: expected floating"),
        (lambda: curve(labels + 2, epsilons=[0.1]), "labels from 2 to 2: the network has classes 0 to 1"),
        (
            lambda: curve(labels[:4], epsilons=[0.1]),
            r"labels of shape \(4,\) and int64: expected integers of shape \(6,\)",
        ),
        (lambda: curve(labels / 2, epsilons=[0.1]), "and float64: expected integers"),
        (lambda: curve(labels, epsilons=[]), "epsilons: give at least one"),
        (lambda: curve(labels, epsilons=[0.1, -1]), "epsilon -1.0: it must be 0 or above"),
        (lambda: curve(labels, epsilons=[0.1], batch_size=0), "batch_size is 0: it must be 1 or more"),
        (lambda: adversarial.fooling(two_classes(slope), labels - 1)(images), "labels from -1 to -1"),
    ]:
        with pytest.raises(InputError, match=sentence):
            call()
