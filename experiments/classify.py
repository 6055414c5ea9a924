"""How well does a convolutional network tell classes of images apart?

    python -m experiments.classify                                   # SimpleCNN on 10,000 MNIST digits
    python -m experiments.classify --dataset fashion_mnist --epochs 10
    python -m experiments.classify --dataset path/to/folder --image-size 64 --model resnet18

The defaults are the textbook's program: two 3×3 convolutions of 32 and 64, Adam with rate 0.001, cross entropy.
"""

import dataclasses
import json
import shlex
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax import analysis, cli, data, models, reporting, runtime, tasks, training
from cnn_jax.data import augment
from cnn_jax.reporting import classification
from cnn_jax.run import Run, free_path


@dataclass(frozen=True)
class Config:
    """Train a classifier, measure it, show it, save it."""

    dataset: str = "mnist_10k"
    """A name (python -m cnn_jax.data lists them), any TFDS set prepared on this machine, or a folder of images."""
    model: str = "simple_cnn"
    """simple_cnn, resnet18, resnet34, resnet50, resnet101 or resnet152."""
    epochs: float = 12
    batch_size: int = 128
    learning_rate: float = 1e-3
    optimiser: Literal["adam", "sgd"] = "adam"
    schedule: Literal["constant", "cosine", "one-cycle"] = "constant"
    warmup_epochs: float = 0
    weight_decay: float = 0.0
    """Decoupled; of kernels only."""
    clip_norm: float | None = None
    """Greatest norm of the gradient."""
    label_smoothing: float = 0.0
    ema: float | None = None
    """Decay of a moving average of the parameters, which is then what is tested; 0.999, say."""
    augment: tuple[
        Literal["shift", "flip", "crop", "resized_crop", "color", "erase", "rand", "mixup", "cutmix"], ...
    ] = ()
    accumulate: int = 1
    """Parts in which a batch goes through the network, to save memory."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the computation; parameters are float32."""
    norm: Literal["batch", "group"] = "batch"
    """Of the ResNets."""
    weights: Path | None = None
    """Start from these: a PyTorch state dict, .pth or .safetensors."""
    image_size: int | None = None
    data_dir: Path | None = None
    """Where prepared data sets are."""
    seed: int = 0
    parallel: Literal["jit", "pmap"] = "jit"
    """Over all devices: sharded jit or pmap."""
    platform: Literal["cpu", "gpu", "tpu"] | None = None
    """Insist on it."""
    out: Path | None = None
    """The run's folder; runs/DATASET by default, or the next that is free."""
    resume: bool = False
    """Go on with the run in --out, or begin it."""
    tensorboard: bool = False
    tiny: bool = False
    """A few steps on a few images."""


def augmentation(names: tuple[str, ...], num_classes: int):
    """`augment(key, batch)` of the steps named, in their order."""
    steps = {
        "shift": partial(augment.translate, pixels=2),
        "flip": augment.flip,
        "crop": partial(augment.pad_crop, padding=4),
        "resized_crop": augment.random_resized_crop,
        "color": augment.color_jitter,
        "erase": augment.random_erasing,
        "rand": augment.rand_augment,
        "mixup": partial(augment.mixup, num_classes=num_classes),
        "cutmix": partial(augment.cutmix, num_classes=num_classes),
    }
    return augment.compose(*(steps[name] for name in names)) if names else None


def main(config: Config) -> None:
    runtime.configure(platform=config.platform)
    dataset = data.load(config.dataset, data_dir=config.data_dir, image_size=config.image_size)
    if config.tiny:
        dataset, config = dataset.head(train=256, test=128), dataclasses.replace(config, epochs=2, batch_size=32)
    options = {"num_classes": dataset.num_classes, "dtype": jnp.dtype(config.precision)}
    if config.model != "simple_cnn":
        options |= {"norm": config.norm, "stem": "small" if dataset.image_shape[0] <= 64 else "large"}
    model = models.create(config.model, **options)
    variables = config.weights and models.load_pretrained(config.model, config.weights, **options)
    task = tasks.classify(dataset.num_classes, label_smoothing=config.label_smoothing)
    steps_per_epoch = dataset.size("train") / config.batch_size
    steps = max(1, round(config.epochs * steps_per_epoch))
    warmup = round(config.warmup_epochs * steps_per_epoch)
    schedule = training.make_schedule(config.schedule, config.learning_rate, total_steps=steps, warmup_steps=warmup)
    tx = training.make_optimiser(
        config.optimiser, schedule, weight_decay=config.weight_decay, clip_norm=config.clip_norm
    )
    over = training.parallel(config.parallel)
    over.check(config.batch_size)

    # Nothing is written before all of the above is known to be right.
    settings = {name: value for name, value in vars(config).items() if name not in ("out", "resume", "platform")}
    run = Run(config.out or free_path(Path("runs") / Path(config.dataset).name), settings, resume=config.resume)
    description = models.describe(model, dataset.image_shape)
    classification.print_start(
        dataset.name, dataset.class_names, counts(dataset), [tuple(layer) for layer in description.layers], description
    )
    tracker = reporting.Tracker(run.path, tensorboard=config.tensorboard)
    checkpoints = training.Checkpoints(run.path / "checkpoints", best="accuracy")
    with tracker, reporting.Progress(steps, unit_images=config.batch_size) as progress:

        def log(kind: str, step: int, values: dict) -> None:
            epoch = step / steps_per_epoch
            if kind == "restored":
                tracker.truncate_after(step)
                for sentence in [*values["damaged"], f"resumed after step {step}"]:
                    progress.line(sentence)
                return
            tracker.log(step, {k: v for k, v in values.items() if np.ndim(v) == 0}, split=kind, epoch=epoch)
            if kind == "train":
                progress.update(step, {name: values[name] for name in ("loss", "accuracy")})
            else:
                test = f"test loss {values['loss']:.4f}, test accuracy {values['accuracy']:.2%}"
                progress.line(f"epoch {epoch:.4g}: {test}")

        fit = training.fit(
            model,
            task,
            dataset.train,
            tx=tx,
            steps=steps,
            batch_size=config.batch_size,
            seed=config.seed,
            test=dataset.test,
            preprocess=dataset.preprocess,
            augment=augmentation(config.augment, dataset.num_classes),
            accumulate=config.accumulate,
            ema_decay=config.ema,
            variables=variables,
            over=over,
            log=log,
            checkpoints=checkpoints,
        )
    checkpoints.close()
    show(config, dataset, model, description, schedule, fit, run)


def show(config, dataset, model, description, schedule, fit, run) -> None:
    """Writes `summary.json` and the report, and prints both in short."""
    metrics = {name: value for name, value in fit.summary.items() if np.ndim(value) == 0}
    summary = {
        "parameters": description.parameters,
        "trainable_parameters": description.trainable,
        "flops_per_image": description.flops,
        "train_seconds": fit.seconds,
        "images_per_second": fit.images_per_second,
        **{f"test_{name}": value for name, value in metrics.items()},
    }
    reporting.write_json(run.path / "summary.json", summary)
    evidence = {name: np.concatenate([part[name][part["mask"]] for part in fit.evidence]) for name in fit.evidence[0]}
    _, rows = np.unique(evidence["label"], return_index=True)  # the first test image of each class
    chosen = dataset.images("test", rows[:3])
    variables = fit.state.variables
    stages = analysis.capture(model, variables, dataset.preprocess(chosen))
    maps = {name: np.asarray(stages[name], np.float32) for name in stages if stages[name].ndim == 4}
    classification.write(
        run.path,
        title=f"{config.model} on {dataset.name}",
        command=shlex.join(["python", "-m", "experiments.classify", *sys.argv[1:]]),
        source=dataset.source,
        class_names=dataset.class_names,
        counts=counts(dataset),
        samples=dataset.samples("train", 40),
        layers=[tuple(layer) for layer in description.layers],
        history=reporting.read_metrics(run.path / "metrics.jsonl"),
        learning_rate=jax.vmap(schedule),
        summary=summary,
        metrics=fit.summary,
        evidence=evidence,
        test_images=partial(dataset.images, "test"),
        kernel=next(np.asarray(k) for k in jax.tree.leaves(variables["params"]) if k.ndim == 4),
        insides=[
            (dataset.class_names[evidence["label"][row]], image, {name: maps[name][i] for name in list(maps)[:2]})
            for i, (row, image) in enumerate(zip(rows, chosen, strict=False))
        ],
        config=json.loads(run.config_path.read_text()),
    )
    classification.print_end(fit.summary, dataset.class_names, summary, run.path / "report.html")


def counts(dataset) -> dict:
    """{split: images of each class}, of the splits whose labels are known without reading them."""
    found = {split: dataset.counts(split) for split in ("train", "test")}
    return {split: values for split, values in found.items() if values is not None}


if __name__ == "__main__":
    cli.main(main, Config, __doc__)
