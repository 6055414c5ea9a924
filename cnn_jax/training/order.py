"""Which rows of the data a step sees: a function of (seed, step) alone, so that a resumed run sees the same."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@lru_cache(maxsize=4)
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(size).astype(np.int32)


@dataclass(frozen=True)
class Order:
    """The order of a run's data: which of `size` rows each step of `batch_size` sees.

    Each epoch goes through all rows in an order of its own. No row is dropped: a batch that reaches the end of an
    epoch goes on with the next.
    """

    size: int
    batch_size: int
    seed: int

    def rows(self, first: int, last: int) -> np.ndarray:
        """i32[last - first, batch_size]: the rows of these steps, `last` not included, counted from the run's start."""
        begin, end = first * self.batch_size, last * self.batch_size
        epochs = range(begin // self.size, -(-end // self.size))
        ahead = np.concatenate([_permutation(self.size, self.seed, epoch) for epoch in epochs])
        offset = begin - epochs[0] * self.size
        return ahead[offset : offset + end - begin].reshape(last - first, self.batch_size)


def in_order(size: int, batch_size: int) -> np.ndarray:
    """i32[S, batch_size]: every row once, as it lies; the last batch is padded with −1."""
    steps = -(-size // batch_size)
    rows = np.full(steps * batch_size, -1, np.int32)
    rows[:size] = np.arange(size)
    return rows.reshape(steps, batch_size)
