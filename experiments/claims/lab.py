"""What the claims share: data, seeds, a way to train many small networks, and what a tested claim is."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax import data, models, tasks, training
from cnn_jax.statistics import interval
from experiments.claims.rules import Tests, Verdict, judge


class Claim(NamedTuple):
    """A sentence of the textbook, and what came of it."""

    said: str
    """What introductions say."""
    found: str
    """A paragraph on what was done and seen."""
    number: str
    """The number that decides, with its interval."""
    tests: Tests
    """What decides: one of `rules`."""
    figure: Any
    """A matplotlib figure."""
    caption: str
    numbers: dict[str, float]
    """For `summary.json`."""

    @property
    def verdict(self) -> Verdict:
        """What follows from the tests."""
        return judge(self.tests)


class Lab:
    """Real images, a few seeds, and networks that are trained once for all claims.

    Attributes:
        digits: a data set for classification, in memory.
        seeds: each draws weights, order and examples of its own.
        spare: one more, to choose by what is then tested with the others.
        steps: of a training, with batches of `batch_size`.
    """

    def __init__(self, digits: data.Dataset, *, seeds: int, steps: int, batch_size: int = 32, tiny: bool = False):
        self.digits, self.seeds, self.steps, self.batch_size, self.tiny = digits, range(seeds), steps, batch_size, tiny
        self.labels, self.test_labels = digits.labels("train"), digits.labels("test")
        self.spare = seeds

    @property
    def black(self) -> np.ndarray:
        """A pixel without ink, as networks take it: f32[C]."""
        return (-np.array(self.digits.mean) / np.array(self.digits.std)).astype(np.float32)

    @property
    def classes(self) -> int:
        return self.digits.num_classes

    def shots(self, *wanted: int) -> list[int]:
        """Those of these numbers of examples of each class that there are."""
        least = self.digits.counts("train").min()
        return [n for n in wanted if n <= least][: 2 if self.tiny else None]

    def create(self, **options) -> nn.Module:
        """The textbook's network, with a logit for each class."""
        return models.create("simple_cnn", **{"num_classes": self.classes, **options})

    def test(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """So many images of the test split, as networks take them, and their labels."""
        return np.asarray(self.digits.preprocess(self.digits.test["image"][:count])), self.test_labels[:count]

    @cached_property
    def simple_cnn(self) -> list[dict]:
        """Variables of the textbook's network for each seed, trained on all images."""
        learn = self.learner(self.create(), steps=3 * self.steps)
        return [learn(seed) for seed in self.seeds]

    def learner(
        self,
        model: nn.Module,
        *,
        steps: int | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        augment: Callable | None = None,
        classes: int | None = None,
    ) -> Callable[..., dict]:
        """`learn(seed, rows, labels) -> variables`, compiled once: Adam, from weights and an order that `seed` draws.

        `rows` are those of the training split to learn from, all by default; `labels` i32 those of the whole split. A
        fourth argument are variables to start from, and a fifth another number of steps.
        """
        steps = steps or self.steps
        tx = training.make_optimiser("adam", learning_rate, weight_decay=weight_decay)
        task = tasks.classify(classes or self.digits.num_classes)
        make = training.make_train_step(model, task, tx, augment=augment, preprocess=self.digits.preprocess)
        step = jax.jit(make, donate_argnums=0)
        images = self.digits.train["image"]
        start = self.starter(model)

        def learn(seed: int, rows=None, labels=None, variables: dict | None = None, count: int = steps) -> dict:
            rows = np.arange(len(images)) if rows is None else np.asarray(rows)
            labels = self.labels if labels is None else labels
            key = jax.random.key(1000 + seed)
            # A copy, for a step gives its state's memory away.
            variables = jax.tree.map(jnp.copy, variables) if variables else start(seed)
            params, batch_stats = variables["params"], variables.get("batch_stats", {})
            state = training.TrainState(jnp.int32(0), params, batch_stats, tx.init(params))
            size = min(self.batch_size, len(rows))
            for order in training.Order(len(rows), size, seed).rows(0, count):
                chosen = rows[order]
                state, _ = step(state, {"image": images[chosen], "label": labels[chosen]}, key)
            return state.variables

        return learn

    def starter(self, model: nn.Module) -> Callable[[int], dict]:
        """`start(seed) -> variables` as they are drawn, compiled once."""
        draw = jax.jit(lambda key: model.init(key, jnp.zeros((1, *self.digits.image_shape))))
        return lambda seed: draw(jax.random.key(seed))

    def scorer(self, model: nn.Module) -> Callable[..., float]:
        """`accuracy(variables, images, labels)` of images u8, the test split by default; compiled once a shape."""

        @jax.jit
        def predict(variables, images):
            return model.apply(variables, self.digits.preprocess(images)).argmax(-1)

        def accuracy(variables, images=None, labels=None) -> float:
            images = self.digits.test["image"] if images is None else images
            labels = self.test_labels if labels is None else labels
            parts = [predict(variables, images[i : i + 500]) for i in range(0, len(images), 500)]
            return float((np.concatenate(parts) == labels).mean())

        return accuracy


def several(values: Sequence[float], *, scale: float = 100, unit: str = " %", digits: int = 1) -> str:
    """The mean and its 95 % interval in words, such as "98.1 % ± 0.3"."""
    mean, half = interval(values)
    return f"{scale * mean:.{digits}f}{unit} ± {scale * half:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def means(found: dict[str, list[float]], name: str) -> dict[str, float]:
    """The mean of each way, by a name for `summary.json`."""
    return {f"{name}_{way}": interval(values)[0] for way, values in found.items()}
