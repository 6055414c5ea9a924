"""CNNs, measured: what every introduction says of them, tested on real digits.

    python -m experiments.textbook                # the page: runs/textbook/report.html
    python -m experiments.textbook --tiny         # the same in seconds, with numbers that say little
    python -m experiments.textbook --only relu hunger

Each claim has a paragraph, a figure, a number with its 95 % interval over seeds, and a verdict, which follows from the
numbers by a rule that its function in `experiments.claims` states.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cnn_jax import cli, data, runtime
from cnn_jax.errors import unknown
from cnn_jax.reporting import textbook as report
from cnn_jax.run import Run, default_path
from experiments.claims import labels, layers, moving, seeing, trust
from experiments.claims.lab import Lab

CLAIMS = seeing.CLAIMS | moving.CLAIMS | layers.CLAIMS | labels.CLAIMS | trust.CLAIMS
NOTES = (
    "Every introduction to convolutional networks says what follows. Here each sentence is put to the test, on real "
    "images and with networks that a laptop trains in seconds. A verdict is no opinion: it follows from the number "
    "beside it, by a rule written down before.",
)


@dataclass(frozen=True)
class Config:
    """Test what is said of CNNs."""

    dataset: str = "mnist_10k"  # a small set of grey images
    only: tuple[str, ...] = ()  # of the claims; all by default
    seeds: int = 3
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
    digits = data.load(config.dataset, data_dir=config.data_dir)
    if config.tiny:
        lab = Lab(digits.head(train=1000, test=100), seeds=2, steps=2, batch_size=16, tiny=True)
    else:
        lab = Lab(digits, seeds=config.seeds, steps=config.steps)
    run = Run(config.out or default_path(Path("runs/textbook")), vars(config))
    began, claims = time.perf_counter(), {}
    for name in config.only or CLAIMS:
        since = time.perf_counter()
        claims[name] = claim = CLAIMS[name](lab)
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


if __name__ == "__main__":
    cli.main(main, Config, __doc__)
