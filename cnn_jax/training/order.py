"""Which rows of the data a step sees: a function of (seed, step) alone, so that a resumed run sees the same."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@lru_cache(maxsize=4)
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(size).astype(np.int32)


@dataclass(frozen=True)
class Order:
    """The rows of each step: `order[step]` is i32[batch_size], for steps from `start` up to `stop`.

    Each epoch goes through all `size` rows in an order of its own. No row is dropped: a batch that reaches the end of
    an epoch goes on with the next. As a sequence it begins at `start`; it is small and can be sent to another process.
    """

    size: int
    batch_size: int
    seed: int
    stop: int
    start: int = 0

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.rows(self.start + index)

    def rows(self, step: int) -> np.ndarray:
        """i32[batch_size]: the rows of this step, counted from the start of the run."""
        first, last = step * self.batch_size, (step + 1) * self.batch_size
        epochs = range(first // self.size, (last - 1) // self.size + 1)
        ahead = np.concatenate([_permutation(self.size, self.seed, epoch) for epoch in epochs])
        offset = first - epochs[0] * self.size
        return ahead[offset : offset + self.batch_size]


def in_order(size: int, batch_size: int) -> np.ndarray:
    """i32[S, batch_size]: every row once, as it lies; the last batch is padded with −1."""
    steps = -(-size // batch_size)
    rows = np.full(steps * batch_size, -1, np.int32)
    rows[:size] = np.arange(size)
    return rows.reshape(steps, batch_size)
