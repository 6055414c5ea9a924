"""How well does a convolutional network tell classes of images apart?

    python -m experiments.classify                                   # SimpleCNN on 10,000 MNIST digits
    python -m experiments.classify --dataset fashion_mnist --epochs 10
    python -m experiments.classify --dataset path/to/folder --image-size 64 --model resnet18

The defaults are the textbook's program: two 3×3 convolutions of 32 and 64, Adam with rate 0.001, cross entropy; what is
tested is a moving average of its parameters (`--ema None` tests the last ones). Its twelve epochs take about
20 s on 2 CPU cores; README says what they and other settings reach.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from cnn_jax import analysis, cli, data, models, tasks
from cnn_jax.data.augment import Augmentation, named
from cnn_jax.reporting import classification
from experiments import recipe
from experiments.recipe import Recipe


@dataclass(frozen=True)
class Config(Recipe):
    """Train a classifier, measure it, show it, save it."""

    dataset: str = "mnist_10k"  # a name (python -m cnn_jax.data lists them), a prepared TFDS set, or a folder of images
    model: str = "simple_cnn"  # any classifier of models.names(): simple_cnn, resnet9, resnet18, vgg16, …
    ema: float | None = 0.999  # decay of a moving average of the parameters, which is what is tested; None: the last
    label_smoothing: float = 0.0
    augment: tuple[Augmentation, ...] = ()
    norm: Literal["batch", "group"] = "batch"  # of the ResNets
    weights: Path | None = None  # start from these: a PyTorch state dict, .pth or .safetensors


def main(config: Config) -> None:
    over = recipe.check(config)
    dataset = data.load(config.dataset, data_dir=config.data_dir, image_size=config.image_size)
    dataset, config = recipe.small(config, dataset)
    options = {"num_classes": dataset.num_classes, "dtype": config.precision}
    if config.model.startswith("resnet"):
        options |= {"norm": config.norm, "stem": "small" if dataset.image_shape[0] <= 64 else "large"}
    model = models.create(config.model, **options)
    variables = config.weights and models.load_pretrained(
        config.model, config.weights, image_shape=dataset.image_shape, **options
    )
    counts = {split: dataset.counts(split) for split in ("train", "test") if dataset.labels(split) is not None}
    trained = recipe.train(
        "classify",
        config,
        over,
        model,
        tasks.classify(dataset.num_classes, label_smoothing=config.label_smoothing),
        dataset,
        about={"options": options},
        best="accuracy",
        show=("loss", "accuracy"),
        augment=named(config.augment, dataset.num_classes),
        variables=variables,
        announce=partial(classification.print_start, dataset.name, dataset.class_names, counts),
    )
    show(trained, model, dataset, counts)


def show(trained: recipe.Trained, model, dataset: data.Dataset, counts: dict) -> None:
    """Writes `summary.json` and the report, and prints both in short."""
    fit = trained.fit
    evidence = {name: np.concatenate([part[name][part["mask"]] for part in fit.evidence]) for name in fit.evidence[0]}
    classes, rows = np.unique(evidence["label"], return_index=True)  # the first test image of each class
    chosen = dataset.images("test", rows[:3])
    variables = fit.state.variables
    stages = analysis.capture(model, variables, dataset.preprocess(chosen))
    maps = [name for name in stages if stages[name].ndim == 4][:2]
    samples = dataset.samples("train", 40)
    classification.write(
        trained.folder,
        **trained.about,
        counts=counts,
        samples=(samples["image"], samples["label"]),
        evidence=evidence,
        test_images=partial(dataset.images, "test"),
        kernel=next(np.asarray(k) for k in jax.tree.leaves(variables["params"]) if k.ndim == 4),
        insides=[
            (dataset.class_names[label], image, {name: np.asarray(stages[name][i], np.float32) for name in maps})
            for i, (label, image) in enumerate(zip(classes, chosen, strict=False))
        ],
    )


if __name__ == "__main__":
    cli.main(main, Config, __doc__)
