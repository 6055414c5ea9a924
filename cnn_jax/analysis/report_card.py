"""Attribution methods by measures of faithfulness, beside a random map and an edge detector: one table.

methods = {
    "gradient": lambda key, score, images: attribution.gradient(score, images),
    "Grad-CAM": lambda key, score, images: cam.grad_cam(score, images, stage="conv2"),
}
card = report_card(key, score, images, methods, judged=class_score(model, variables, labels, probability=True))
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.analysis import faithfulness
from cnn_jax.analysis.faithfulness import Method
from cnn_jax.analysis.scores import Score, check_images
from cnn_jax.statistics import interval

# What the columns of a report card say.
MEASURES = {
    "completeness": "|sum of the map − difference of the score to the baseline|, in parts of |sum| + |difference|: "
    "0 is complete, 1 nothing of it",
    "insertion": "mean score while pixels come back to a blurred image, those of the greatest values first: "
    "high is good",
    "deletion": "mean score while pixels are covered, those of the greatest values first: low is good",
    "sensitivity": "greatest change of the map under small changes of the image, in parts of the map: low is good; "
    "of maps that are not blank",
    "infidelity": "squared error of the map's sum over a square, at its best scale, as the fall of the score when the "
    "square is covered, in parts of the error of a map of zeros: low is good, 1 is nothing",
    "randomisation": "rank correlation with the map of the network whose modules are drawn anew, from the last to the "
    "first, mean over these: near 0 is good, 1 is a map that knows nothing of the network; of maps that are not blank, "
    "before or after",
    "blank": "how many maps are the same everywhere, which say nothing: low is good",
    "pointing": "how often the greatest value lies on the object, where it is known from the data: high is good",
}
SHARES = ("blank", "pointing")  # whose values are 0 or 1


def random_map(key: jax.Array, images: Any) -> jax.Array:
    """Uniform in [0,1], whatever the image: f32[N,H,W]."""
    return jax.random.uniform(key, images.shape[:3])


@jax.jit
def _edges(images):
    gray = jnp.pad(images.mean(-1), ((0, 0), (1, 1), (1, 1)), mode="edge")
    height, width = images.shape[1:3]

    def part(i, j):
        return gray[:, i : i + height, j : j + width]

    down = sum(w * (part(2, j) - part(0, j)) for j, w in enumerate((1, 2, 1)))
    right = sum(w * (part(i, 2) - part(i, 0)) for i, w in enumerate((1, 2, 1)))
    return jnp.sqrt(jnp.square(down) + jnp.square(right))


def edges(images: Any) -> jax.Array:
    """The length of Sobel's gradient of the mean over channels, whatever the network: f32[N,H,W]."""
    return _edges(check_images(images))


BASELINES: dict[str, Method] = {
    "random map": lambda key, score, images: random_map(key, images),
    "edges": lambda key, score, images: edges(images),
}


class Card(NamedTuple):
    """Methods by measures."""

    methods: tuple[str, ...]
    """Those that were given, and behind them the baselines."""
    measures: tuple[str, ...]
    """Keys of `MEASURES`."""
    values: np.ndarray
    """f32[methods,measures,N], for each image; of randomisation the mean over draws. NaN where there is none."""
    mean: np.ndarray
    """f64[methods,measures], over the images that have a value."""
    low: np.ndarray
    """f64[methods,measures], where the 95 % interval of the mean begins: by Student's t over images, of randomisation
    over draws of the network; of shares Wilson's, over images. NaN for a single image or draw."""
    high: np.ndarray
    """f64[methods,measures], where it ends."""

    def table(self) -> list[list[str]]:
        """Rows of text with a header: means ± half of the interval; of pointing the interval; blank maps by number."""
        count = self.values.shape[-1]

        def cell(measure, mean, low, high):
            if measure == "blank":
                return f"{round(mean * count)} of {count}"
            if measure in SHARES:
                return f"{mean:.2f} [{low:.2f}, {high:.2f}]"
            mean_text = f"{round(mean, 2) + 0.0:.2f}"  # no −0.00
            return mean_text if np.isnan(low) else f"{mean_text} ± {high - mean:.2f}"

        numbers = zip(self.methods, self.mean, self.low, self.high, strict=True)
        return [["", *self.measures], *([method, *map(cell, self.measures, *row)] for method, *row in numbers)]


def report_card(
    key: jax.Array,
    score: Score,
    images: Any,
    methods: Mapping[str, Method],
    *,
    judged: Callable | None = None,
    objects: Any = None,
    baseline: Any = 0.0,
    radius: float = 0.02,
    samples: int = 200,
    draws: int = 5,
    batch_size: int = 64,
    progress: Callable[[str], None] = lambda method: None,
) -> Card:
    """All measures of all methods, and of a random map and an edge detector; see `MEASURES`.

    Args:
        key: all methods have the same noise, squares and networks drawn anew.
        score: what is explained.
        methods: {name: method}.
        judged: the score that insertion and deletion look at, such as the probability where a logit is explained; None
            for `score`.
        objects: as for `pointing_game`; None leaves it out.
        baseline: what says nothing, for completeness, deletion and infidelity.
        radius: of `max_sensitivity`, which takes 10 samples.
        samples: of `infidelity`.
        draws: how often the network's modules are drawn anew, for an interval; of a large network that takes minutes.
        progress: called with the name of each method before it is measured; of a large network that takes minutes.
    """
    images = check_images(images)
    judged = score if judged is None else judged
    of_maps, of_squares, of_noise, of_networks = jax.random.split(key, 4)
    options = {"batch_size": batch_size}
    rows, intervals = [], []
    every = {**methods, **BASELINES}
    measures = tuple(name for name in MEASURES if name != "pointing" or objects is not None)
    for name, method in every.items():
        progress(name)
        maps = method(of_maps, score, images)
        total, difference = faithfulness.completeness(score, images, maps, baseline=baseline, **options)
        size = jnp.abs(total) + jnp.abs(difference)
        row = {
            "completeness": jnp.abs(total - difference) / jnp.where(size > 0, size, 1),
            "insertion": faithfulness.insertion(judged, images, maps, **options).area,
            "deletion": faithfulness.deletion(judged, images, maps, baseline=baseline, **options).area,
            "sensitivity": faithfulness.max_sensitivity(of_noise, method, score, images, radius=radius),
            "infidelity": faithfulness.infidelity(
                of_squares, score, images, maps, baseline=baseline, samples=samples, **options
            ).relative,
            "blank": faithfulness.blank(maps),
        }
        if objects is not None:
            row["pointing"] = faithfulness.pointing_game(maps, objects)
        drawn = _mean(faithfulness.cascade(of_networks, method, score, images, draws=draws).similarity, 1)
        row = {measure: _mean(drawn, 0) if measure == "randomisation" else row[measure] for measure in measures}
        rows.append([np.asarray(values, np.float32) for values in row.values()])
        over = row | {"randomisation": _mean(drawn, 1)}
        intervals.append([_interval(np.asarray(values), measure in SHARES) for measure, values in over.items()])
    return Card(tuple(every), measures, np.array(rows), *np.moveaxis(np.array(intervals), -1, 0))


def _mean(values: Any, axis: int) -> np.ndarray:
    """Of those that are numbers; NaN where there are none."""
    values = np.asarray(values)
    known = np.isfinite(values)
    count = known.sum(axis)
    return np.where(count > 0, np.where(known, values, 0).sum(axis) / np.maximum(count, 1), np.nan)


def _interval(values: np.ndarray, is_share: bool) -> tuple[float, float, float]:
    """(mean, low, high) of the values that are numbers."""
    values = values[np.isfinite(values)]
    if not len(values):
        return np.nan, np.nan, np.nan
    if is_share:
        from scipy.stats import binomtest

        found = binomtest(int(values.sum()), len(values)).proportion_ci(0.95, method="wilson")
        return values.mean(), found.low, found.high
    mean, half = interval(values)
    return mean, mean - half, mean + half
