"""How well does a convolutional network tell, for every pixel, what it belongs to?

    python -m experiments.segment                                       # digits in cluttered scenes, on a CPU
    python -m experiments.segment --dataset photos                      # photos/images/*, photos/masks/*
    python -m experiments.segment --model unet_resnet18 --backbone runs/mnist_10k

The data set is `scenes/NAME`, scenes made of the items of that set; `nuclei`; a folder of images with one of masks; a
JSON file in COCO's form; or a prepared set of tensorflow-datasets with maps. The defaults reach a mean IoU of 0.613 of
the test scenes (seed 0; 12 minutes on 2 CPU cores with another program beside it; jax 0.10.2, flax 0.12.8).
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from cnn_jax import analysis, cli, data, models, tasks
from cnn_jax.data.geometry import Augmentation, named
from cnn_jax.reporting import segmentation
from experiments import recipe
from experiments.recipe import Recipe


@dataclass(frozen=True)
class Config(Recipe):
    """Train a segmenter, measure it, show it, save it."""

    dataset: str = "scenes/mnist_10k"  # scenes/NAME, or a folder with images/ and masks/
    model: str = "unet_small"  # unet_small, unet, unet_resnet18 …, deeplabv3_resnet50 …
    epochs: float = 4
    batch_size: int = 16
    learning_rate: float = 6e-3
    schedule: str = "one-cycle"
    scenes: int = 10_000  # to train on, of a set of scenes
    loss: tuple[Literal["cross_entropy", "focal", "dice"], ...] = ("cross_entropy",)  # summed
    class_weights: tuple[float, ...] = ()  # one a class; of scenes the ground has 0.2 by default
    augment: tuple[Augmentation, ...] = ()
    weights: Path | None = None  # start from these: a PyTorch state dict, .pth or .safetensors
    backbone: Path | None = None  # start from the network of this run of experiments.classify


def main(config: Config) -> None:
    over = recipe.check(config)
    scenes = 256 if config.tiny else config.scenes
    dataset = data.load_annotated(
        config.dataset, "map", data_dir=config.data_dir, image_size=config.image_size, scenes=scenes, seed=config.seed
    )
    dataset, config = recipe.small(config, dataset)
    options = {"num_classes": dataset.num_classes, "dtype": config.precision}
    if "resnet" in config.model:
        options |= {"stem": "small" if dataset.image_shape[0] <= 64 else "large"}
    model = models.create(config.model, **options)
    variables = None
    if config.weights:
        variables = models.load_pretrained(config.model, config.weights, **options)
    elif config.backbone:
        variables = recipe.with_backbone(model, config.backbone, dataset.image_shape, seed=config.seed)
    weights = config.class_weights or None
    if weights is None and config.dataset.startswith("scenes/"):
        weights = (0.2, *[1.0] * (dataset.num_classes - 1))  # most pixels are ground
    task = tasks.segment(
        dataset.num_classes, losses=dict.fromkeys(config.loss, 1.0), class_weights=weights, auxiliary=1.0
    )
    sizes = {split: dataset.size(split) for split in ("train", "test")}
    trained = recipe.train(
        "segment",
        config,
        over,
        model,
        task,
        dataset,
        about={"options": options},
        best="miou",
        show=("loss", "miou"),
        augment=named(config.augment),
        variables=variables,
        announce=partial(segmentation.print_start, dataset.name, sizes, dataset.class_names),
    )
    variables = trained.fit.state.variables
    losses = np.concatenate([np.asarray(part["loss"])[part["mask"]] for part in trained.fit.evidence])
    predict = jax.jit(lambda images: task.predict(model.apply(variables, dataset.preprocess(images))))

    def shown(rows):
        batch = dataset.rows("test", rows)
        return batch["image"], batch["map"], np.asarray(predict(batch["image"]))

    first = np.arange(min(6, len(losses)))
    worst = np.argsort(-losses, kind="stable")[:6]
    image = dataset.images("test", first[:1])
    stages = analysis.capture(model, variables, dataset.preprocess(image))
    samples = dataset.samples("train", 12)
    segmentation.write(
        trained.folder,
        **trained.about,
        samples=(samples["image"], samples["map"]),
        shown=shown(first),
        worst=shown(worst),
        inside=(image[0], {name: np.asarray(maps[0], np.float32) for name, maps in stages.items() if maps.ndim == 4}),
    )


if __name__ == "__main__":
    cli.main(main, Config, __doc__)
