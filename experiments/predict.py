"""What is in a picture?

    python -m experiments.predict runs/mnist photo.png another.jpg

Names the likeliest classes of image files with a network that `experiments.classify` has trained. For MNIST's digits
and Fashion-MNIST, pictures are brought into those sets' form first (light on black; digits cut out and centred): a
digit written on paper and photographed will do. What was done is said beside each picture.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from tyro.conf import Positional

from cnn_jax import cli, models, reporting, runtime, training
from cnn_jax.data import images, paper
from cnn_jax.errors import InputError


@dataclass(frozen=True)
class Config:
    """Name what is in pictures."""

    run: Positional[Path]  # folder of the run
    pictures: Positional[tuple[Path, ...]]  # image files
    top: int = 3  # classes to name
    platform: Literal["cpu", "gpu", "tpu"] | None = None  # insist on it


def main(config: Config) -> None:
    runtime.configure(platform=config.platform)
    if not config.pictures:
        raise InputError("no picture given: name one image file or more after the run's folder")
    if config.top < 1:
        raise InputError(f"top is {config.top}: it must be 1 or more")
    about, variables = load_run(config.run)
    # All are read before anything is said.
    read = [read_picture(path, about) for path in config.pictures]
    batch = np.stack([picture for picture, _ in read]).astype(np.float32) / 255
    batch = (batch - np.float32(about["mean"])) / np.float32(about["std"])
    model = models.create(about["model"], **about["options"])
    logits = jax.jit(lambda variables, images: model.apply(variables, images))(variables, batch)
    for path, (_, done), p in zip(config.pictures, read, np.asarray(jax.nn.softmax(logits)), strict=True):
        likeliest = np.argsort(-p, kind="stable")[: config.top]
        rows = [[about["class_names"][i], f"{p[i]:.1%}"] for i in likeliest]
        reporting.print_table(f"{path}{': ' * bool(done)}{'; '.join(done)}", ["class", "probability"], rows)


def load_run(folder: Path) -> tuple[dict, dict]:
    """What a run's `model.json` says, and the variables of its newest whole checkpoint."""
    if not folder.is_dir():
        raise InputError(
            f"there is no run folder {folder}: make one with python -m experiments.classify --out {folder}"
        )
    try:
        about = json.loads((folder / "model.json").read_text())
    except FileNotFoundError:
        raise InputError(f"{folder} holds no classifier: give the --out of a run of experiments.classify") from None
    except ValueError as error:
        raise InputError(f"{folder / 'model.json'} is damaged ({error}): train again in another folder") from None
    checkpoints = training.Checkpoints(folder / "checkpoints", read_only=True)
    restored = checkpoints.restore_variables()
    checkpoints.close()
    if restored is None:
        raise InputError(f"the run in {folder} has saved nothing yet: let it finish an epoch first")
    for sentence in restored.damaged:
        print(f"{sentence}: step {restored.step} is used instead")
    return about, restored.state


def read_picture(path: Path, about: dict) -> tuple[np.ndarray, list[str]]:
    """A picture as the run's data set has them, u8[H,W,C], and what was done to it."""
    shape = tuple(about["image_shape"])
    if about["dataset"] in ("mnist", "mnist_10k", "fashion_mnist"):
        return paper.read(path, shape, centred=about["dataset"] != "fashion_mnist")
    return images.read(path, shape), []


if __name__ == "__main__":
    cli.main(main, Config, __doc__)
