"""CNNs, measured: what every introduction says of them, tested on real images.

    python -m experiments.textbook                # the page: runs/textbook/report.html
    python -m experiments.textbook --tiny         # the same in seconds, with numbers that say little
    python -m experiments.textbook --only relu hunger

Each claim has a paragraph, a figure, a number with its 95 % interval over seeds, and a verdict, which follows from the
tests of `experiments.claims.rules` that its numbers are put to. The page shows them all.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from cnn_jax import cli, data, runtime
from cnn_jax.errors import InputError, unknown
from cnn_jax.reporting import textbook as report
from cnn_jax.run import Run, default_path
from experiments.claims import labels, layers, moving, seeing, trust
from experiments.claims.lab import Lab

CLAIMS = seeing.CLAIMS | moving.CLAIMS | layers.CLAIMS | labels.CLAIMS | trust.CLAIMS
NOTES = (
    "Every introduction to convolutional networks says what follows. Here each sentence is put to the test, on real "
    "images and with networks that a laptop trains in seconds. A verdict is no opinion: a sentence holds if all the "
    "tests under it are met, in part if some are, and not if none is. ± is half of a 95 % interval over seeds; "
    "“clearly” means that the whole interval of the differences, seed by seed, lies on that side.",
    "What does not hold was not shown with these networks, images and seeds; elsewhere it may be true.",
)


@dataclass(frozen=True)
class Config:
    """Test what is said of CNNs."""

    dataset: str = "mnist_10k"  # a small set of small images
    only: tuple[str, ...] = ()  # of the claims; all by default
    seeds: int = 4
    steps: int = 150  # of a training
    platform: Literal["cpu", "gpu", "tpu"] | None = None  # insist on it
    data_dir: Path | None = None  # where prepared data sets are
    out: Path | None = None  # the run's folder; runs/textbook by default, or the next that is free
    tiny: bool = False  # two seeds, a few steps


def main(config: Config) -> None:
    runtime.configure(platform=config.platform)
    for name in config.only:
        if name not in CLAIMS:
            raise unknown("claim", name, CLAIMS)
    cli.at_least(config, seeds=2, steps=1)  # two for an interval
    names = config.only or tuple(CLAIMS)
    images = drawn(data.load(config.dataset, data_dir=config.data_dir), names, tiny=config.tiny)
    if config.tiny:
        lab = Lab(images, seeds=2, steps=2, batch_size=16, tiny=True)
    else:
        lab = Lab(images, seeds=config.seeds, steps=config.steps)
    run = Run(config.out or default_path(Path("runs/textbook")), vars(config))
    began, claims = time.perf_counter(), {}
    for name in names:
        since = time.perf_counter()
        claim = claims[name] = CLAIMS[name](lab)
        print(f"{claim.said}\n  {claim.verdict}: {claim.number} ({time.perf_counter() - since:.0f} s)", flush=True)
    path = report.write(
        run.path,
        title="CNNs, measured",
        command=cli.command("textbook"),
        claims=claims,
        notes=NOTES,
        seconds=time.perf_counter() - began,
    )
    print(f"report: {path}")


def drawn(dataset: data.Dataset, names: Iterable[str], *, tiny: bool) -> data.Dataset:
    """The set in an order drawn by lot, so that its first images are a sample; cut down if tiny.

    Raises:
        InputError: the claims cannot be tested with it.
    """
    labels = None if not isinstance(dataset.train, dict) else dataset.labels("train")
    if labels is None or not isinstance(dataset.test, dict):
        raise InputError(f"the textbook needs images in memory with one label each, and {dataset.name} has none such")
    height, width, _ = dataset.image_shape
    if min(height, width) < 16:
        raise InputError(
            f"the textbook needs images of 16×16 or more, and those of {dataset.name} are {height}×{width}"
        )
    if "transfer" in names and dataset.num_classes < 4:
        raise InputError(
            f"the claim 'transfer' needs 4 classes or more, and {dataset.name} has {dataset.num_classes}: name others "
            "by --only"
        )
    counts = {"train": 1000, "test": 100} if tiny else {"train": None, "test": None}
    rng = np.random.default_rng(0)
    cut = {split: dataset.rows(split, rng.permutation(dataset.size(split))[:count]) for split, count in counts.items()}
    dataset, least = replace(dataset, **cut), 40
    of_class = dataset.counts("train")
    if of_class.min() < least:
        name = dataset.class_names[of_class.argmin()]
        raise InputError(
            f"the textbook needs {least} training images of each class, and {dataset.name} has {of_class.min()} of "
            f"{name!r}" + " with --tiny" * tiny
        )
    return dataset


if __name__ == "__main__":
    cli.main(main, Config, __doc__)
