"""What several runs say together."""

from collections.abc import Sequence

import numpy as np


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean of two values or more, and half the width of its 95 % interval by Student's t."""
    from scipy.stats import t

    values = np.asarray(values, np.float64)
    return values.mean(), t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
