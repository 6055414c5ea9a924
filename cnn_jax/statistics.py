"""What several runs or images say together."""

from typing import Any

import numpy as np


def interval(values: Any) -> tuple[np.ndarray, np.ndarray]:
    """The mean over the last axis, and half the width of its 95 % interval by Student's t: NaN for one value.

    Args:
        values: [...,N].
    """
    from scipy.stats import t

    values = np.asarray(values, np.float64)
    count = values.shape[-1]
    mean = values.mean(-1)
    if count < 2:
        return mean, np.full_like(mean, np.nan)
    return mean, t.ppf(0.975, count - 1) * values.std(-1, ddof=1) / np.sqrt(count)
