"""What the scripts that train have in common: their flags, and the way from a recipe to a trained run."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import optax

from cnn_jax import cli, data, models, reporting, training
from cnn_jax.run import Run, default_path


@dataclass(frozen=True)
class Recipe:
    """The flags of every script that trains; each adds its own and sets other defaults."""

    dataset: str = "mnist_10k"
    model: str = "simple_cnn"
    epochs: float = 12
    batch_size: int = 128
    learning_rate: float = 1e-3
    optimiser: Literal["adam", "sgd", "muon"] = "adam"
    schedule: Literal["constant", "cosine", "one-cycle"] = "constant"
    warmup_epochs: float = 0
    weight_decay: float = 0.0  # decoupled; of kernels only
    clip_norm: float | None = None  # greatest norm of the gradient
    ema: float | None = None  # decay of a moving average of the parameters, which is then what is tested
    accumulate: int = 1  # parts in which a batch goes through the network, to save memory
    precision: Literal["float32", "bfloat16"] = "float32"  # of the computation; parameters are float32
    image_size: int | None = None
    data_dir: Path | None = None  # where prepared data sets are
    seed: int = 0
    parallel: Literal["jit", "pmap"] = "jit"  # over all devices: sharded jit or pmap
    platform: Literal["cpu", "gpu", "tpu"] | None = None  # insist on it
    out: Path | None = None  # the run's folder; runs/DATASET by default, or the next that is free
    resume: bool = False  # go on with the run in --out (by default the latest), or begin it
    tensorboard: bool = False
    tiny: bool = False  # a few steps on a few images


class Trained(NamedTuple):
    """A run as `train` leaves it: its folder, `training.fit`'s result, and what a report says of both."""

    folder: Path
    fit: training.Fit
    about: dict  # for the report: command, description, learning_rate, seconds, images_per_second


def optimiser(config: Recipe, *, steps: int, warmup: int) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """The learning rate by step, and the optimiser that follows it."""
    schedule = training.make_schedule(config.schedule, config.learning_rate, total_steps=steps, warmup_steps=warmup)
    return schedule, training.make_optimiser(
        config.optimiser, schedule, weight_decay=config.weight_decay, clip_norm=config.clip_norm
    )


def small(config: Recipe, dataset: data.Dataset) -> tuple[data.Dataset, Recipe]:
    """With `--tiny`, a few images and steps; otherwise what was given."""
    if not config.tiny:
        return dataset, config
    return dataset.head(train=256, test=128), dataclasses.replace(config, epochs=2, batch_size=32)


def train(
    script: str,
    config: Recipe,
    over: training.Parallel,
    model: nn.Module,
    task: Any,
    dataset: data.Dataset,
    *,
    about: dict,
    best: str,
    show: tuple[str, ...],
    augment: Callable | None = None,
    variables: Any = None,
    announce: Callable[[Any], None],
    free: tuple[str, ...] = (),
) -> Trained:
    """Trains in a run folder, with checkpoints, a log and a progress bar.

    Nothing is written before all that `config` asks for is known to be right.

    Args:
        script: of the experiments, such as "classify".
        about: what `predict` needs to know of the model beside the data set.
        best: the metric by which the best checkpoint is kept.
        show: numbers to print on the way, in training and test.
        announce: called with the model's description before training.
        free: flags of the script that change nothing that is trained.
    """
    steps_per_epoch = dataset.size("train") / config.batch_size
    steps = max(1, round(config.epochs * steps_per_epoch))
    warmup = round(config.warmup_epochs * steps_per_epoch)
    schedule, tx = optimiser(config, steps=steps, warmup=warmup)
    description = models.describe(model, dataset.image_shape)
    # What changes nothing that is trained may change when a run is taken up again.
    settings = {name: value for name, value in vars(config).items() if name not in ("out", "resume", "platform", *free)}
    if config.tiny:  # they are replaced, and no others of a run that is taken up again
        settings |= {"epochs": config.epochs, "batch_size": config.batch_size}
    settings["data"] = dataset.fingerprint()
    out = config.out or default_path(Path("runs") / Path(dataset.name).name, resume=config.resume)
    run = Run(out, settings, resume=config.resume)
    about = {"task": script, "model": config.model, **about, "dataset": dataset.name}
    about |= {"class_names": dataset.class_names, "image_shape": dataset.image_shape}
    about |= {"mean": dataset.mean, "std": dataset.std}
    if not (run.path / "model.json").exists():
        reporting.write_json(run.path / "model.json", about)  # all that predict needs to know
    announce(description)
    checkpoints = training.Checkpoints(run.path / "checkpoints", best=best)
    with reporting.log_run(
        run.path, steps, batch_size=config.batch_size, steps_per_epoch=steps_per_epoch, show=show,
        tensorboard=config.tensorboard,
    ) as log:  # fmt: skip
        fit = training.fit(
            model, task, dataset.train, tx=tx, steps=steps, batch_size=config.batch_size, seed=config.seed,
            test=dataset.test, preprocess=dataset.preprocess, augment=augment, accumulate=config.accumulate,
            ema_decay=config.ema, variables=variables, over=over, log=log, checkpoints=checkpoints,
        )  # fmt: skip
    checkpoints.close()
    return Trained(
        run.path,
        fit,
        {
            "title": f"{config.model} on {dataset.name}",
            "command": cli.command(script),
            "source": dataset.source,
            "class_names": dataset.class_names,
            "description": description,
            "learning_rate": jax.vmap(schedule),
            "metrics": fit.summary,
            "seconds": fit.seconds,
            "images_per_second": fit.images_per_second,
        },
    )
