"""What is seen of a training while it goes on: seconds, statistics, and whether all is finite."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from cnn_jax.training.state import TrainState


class NonFinite(Exception):
    """The loss, a gradient, a parameter or what is tested is not finite."""

    exit_code = 1


def is_finite(state: TrainState) -> bool:
    """Whether all that the model computes with is finite. An optimiser's state may well hold an infinity.

    On the host, where a checkpoint takes it anyway: compiling a program for it would take seconds.
    """
    model = jax.device_get((state.params, state.batch_stats, state.ema))
    return all(np.isfinite(x).all() for x in jax.tree.leaves(model))


class Clock:
    """Seconds of training."""

    def __init__(self):
        self.seconds = 0.0

    def start(self) -> None:
        """From now on it counts."""
        self._since = time.perf_counter()

    def stop(self) -> None:
        """Until it is started again it does not."""
        self.seconds += time.perf_counter() - self._since


class Window:
    """Statistics on their way from the devices to the log.

    They are fetched a window at a time, one dispatch behind, so that the devices are never without work.
    """

    def __init__(self, log: Callable, every: int, batch_size: int, size: int):
        self._log, self._every, self._batch_size, self._size = log, every, batch_size, size
        self._waiting: list[tuple[int, int, Any]] = []
        self._rates: list[float] = []

    def start(self) -> None:
        """From now on the devices train."""
        self._since = time.perf_counter()

    def add(self, first: int, last: int, stats: dict) -> None:
        """Takes the statistics of the steps from `first` until before `last`, one row each, on the devices."""
        self._waiting.append((first, last, stats))
        if last - self._waiting[0][0] > self._every:
            held = self._waiting.pop()
            self.flush()
            self._waiting = [held]

    def flush(self) -> None:
        """Fetches all that waits, checks that it is finite, and logs it, a window of steps at a time."""
        if not self._waiting:
            return
        first, last = self._waiting[0][0], self._waiting[-1][1]
        fetched = jax.device_get([stats for _, _, stats in self._waiting])
        stats = jax.tree.map(lambda *parts: np.concatenate(parts), *fetched)
        self._waiting = []
        finite = np.all([np.isfinite(x) for x in jax.tree.leaves(stats)], axis=0)
        if not finite.all():
            bad = first + int(np.argmin(finite)) + 1
            raise NonFinite(f"the loss or a gradient is not finite at step {bad} (seen in steps {first + 1} to {last})")
        now = time.perf_counter()
        rate = (last - first) * self._batch_size / max(now - self._since, 1e-9)
        self._since = now
        self._rates.append(rate)
        for begin in range(0, last - first, self._every):
            end = min(begin + self._every, last - first)
            sums = {name: float(values[begin:end].sum()) for name, values in stats["sums"].items()}
            count = sums.pop("count")
            means = {name: value / max(count, 1) for name, value in sums.items()}
            norms = {layer: float(values[begin:end].mean()) for layer, values in stats["grad_norm"].items()}
            epoch = (first + end) * self._batch_size / self._size
            self._log("train", first + end, {**means, "epoch": epoch, "images_per_second": rate, "grad_norm": norms})

    def median_rate(self) -> float:
        """Images a second."""
        # The first window holds the compilation.
        return float(np.median(self._rates[1:] or self._rates))
