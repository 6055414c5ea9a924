"""How well does a convolutional network find objects, and say what and where they are?

    python -m experiments.detect                                   # digits in cluttered scenes, on a CPU
    python -m experiments.detect --dataset scenes/fashion_mnist    # clothes in scenes
    python -m experiments.detect --dataset photos/annotations.json --image-size 512 --model fcos_resnet50_fpn
    python -m experiments.detect --model fcos_resnet18_fpn --backbone runs/resnet18

The data set is `scenes/NAME`, scenes made of the items of that set; a JSON file in COCO's form, beside its images; or a
prepared set of tensorflow-datasets with boxes. The defaults reach AP 0.800 and AP50 0.978 of the test scenes (seed 0;
8 minutes on 2 CPU cores; jax 0.10.2, flax 0.12.8). A backbone comes from `python -m experiments.classify --model
resnet18 --out runs/resnet18`.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from cnn_jax import analysis, cli, data, models, tasks
from cnn_jax.data.geometry import Augmentation, named
from cnn_jax.reporting import detection
from experiments import checks, recipe, runs
from experiments.recipe import Recipe


@dataclass(frozen=True)
class Config(Recipe):
    """Train a detector, measure it, show it, save it."""

    dataset: str = "scenes/mnist_10k"  # scenes/NAME, a JSON file in COCO's form, or a prepared TFDS set
    model: str = "fcos_small"  # fcos_small, or fcos_resnet18_fpn … fcos_resnet152_fpn
    epochs: float = 4
    batch_size: int = 16
    optimiser: Literal["adam", "sgd", "muon"] = "muon"
    learning_rate: float = 1e-2
    schedule: str = "one-cycle"
    clip_norm: float | None = 10.0
    scenes: int = 12_000  # to train on, of a set of scenes
    augment: tuple[Augmentation, ...] = ()
    weights: str | None = None  # a file, package or Hugging Face id to start from
    backbone: Path | None = None  # start from the network of this run of experiments.classify


def main(config: Config) -> None:
    over = checks.check("detect", config)
    scenes = 256 if config.tiny else config.scenes
    dataset = data.load_annotated(
        config.dataset, "boxes", data_dir=config.data_dir, image_size=config.image_size, scenes=scenes, seed=config.seed
    )
    dataset, config = recipe.small(config, dataset)
    options = {"num_classes": dataset.num_classes, "dtype": config.precision}
    if config.model != "fcos_small" and dataset.image_shape[0] <= 64:
        options |= {"stem": "small", "extra_levels": 0}
    model = models.create(config.model, **options)
    task_options = {"nms_threshold": 0.5}
    sizes = {split: dataset.size(split) for split in ("train", "test")}
    objects = {split: counts for split in sizes if (counts := dataset.counts(split)) is not None}
    trained = recipe.train(
        "detect",
        config,
        over,
        model,
        tasks.detect(dataset.num_classes, strides=model.strides, **task_options),
        dataset,
        about={"options": options, "task_options": task_options},
        best="ap",
        show=("loss", "ap"),
        augment=named(config.augment),
        variables=runs.start(config, model, options, dataset.image_shape),
        announce=partial(detection.print_start, dataset.name, sizes, objects, dataset.class_names),
    )
    evidence = [jax.tree.map(lambda x, part=part: np.asarray(x)[part["mask"]], part) for part in trained.fit.evidence]
    evidence = jax.tree.map(lambda *parts: np.concatenate(parts), *evidence)
    image = dataset.images("test", np.array([0]))
    stages = analysis.capture(model, trained.fit.state.variables, dataset.preprocess(image))
    samples = dataset.samples("train", 12)
    detection.write(
        trained.folder,
        **trained.about,
        objects=objects,
        samples=samples,
        predicted=evidence["predicted"],
        true=evidence["true"],
        losses=evidence["loss"],
        test_images=partial(dataset.images, "test"),
        inside=(image[0], {name: np.asarray(maps[0], np.float32) for name, maps in stages.items() if maps.ndim == 4}),
    )


if __name__ == "__main__":
    cli.main(main, Config, __doc__)
