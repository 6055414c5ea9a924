"""What do the gradients of a CNN look like as it learns, and how curved is its loss?

    python -m experiments.gradients                          # SimpleCNN on digits; minutes on two CPU cores
    python -m experiments.gradients --model resnet20 --image-size 32 --steps 200

Records the norms of each kernel's gradient, update and weight while a network trains, as the training step has them
(batch norm and dropout as in training), and flags those that vanish or explode. Looks closer before the first step, on
the way and after the last: at gradients of single examples, the cosines between them and the gradient noise scale; the
Hessian's trace (Hutchinson), its largest eigenvalues and its spectral density (Lanczos). For these the network computes
as in evaluation (running statistics, no dropout), where the loss of an example depends on that example alone. Noise
scale and trace come with their standard errors.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cnn_jax import cli, data, models, runtime, tasks, training
from cnn_jax.analysis import curvature, gradients
from cnn_jax.errors import InputError
from cnn_jax.reporting import gradients as report
from cnn_jax.run import Run, default_path


@dataclass(frozen=True)
class Config:
    """Look at gradients and curvature while a network learns."""

    dataset: str = "mnist_10k"  # a small set of images
    model: str = "simple_cnn"
    image_size: int | None = None
    steps: int = 300
    batch_size: int = 128
    learning_rate: float = 1e-3  # of Adam
    looks: int = 3  # from before the first step to after the last
    examples: int = 64  # between whose gradients cosines are measured; of this and the next two, at most all there are
    noisy: int = 4000  # examples of the noise scale, whose gradients are summed; several times as many as it
    curved: int = 256  # images whose mean loss the Hessian is of
    lanczos: int = 30  # steps of Lanczos' method
    probes: int = 4  # random vectors for trace and density
    seed: int = 0
    platform: Literal["cpu", "gpu", "tpu"] | None = None  # insist on it
    data_dir: Path | None = None  # where prepared data sets are
    out: Path | None = None  # the run's folder; runs/gradients by default, or the next that is free
    tiny: bool = False  # two looks, a few steps


def main(config: Config) -> None:
    runtime.configure(platform=config.platform)
    cli.at_least(config, steps=1, batch_size=1, looks=2, examples=2, noisy=2, curved=1, lanczos=1, probes=1)
    dataset = data.load(config.dataset, data_dir=config.data_dir, image_size=config.image_size)
    steps, looks, lanczos, probes = config.steps, config.looks, config.lanczos, config.probes
    examples, noisy, curved, batch_size = config.examples, config.noisy, config.curved, config.batch_size
    if config.tiny:
        dataset = dataset.head(train=64, test=16)
        steps, looks, lanczos, probes, examples, noisy, curved, batch_size = 3, 2, 3, 2, 4, 16, 8, 16
    if looks > steps + 1:
        raise InputError(f"--looks is {looks}: before, between and after {steps} steps there are {steps + 1}")
    model = models.create(config.model, num_classes=dataset.num_classes)
    task, tx, key = tasks.classify(dataset.num_classes), optax.adam(config.learning_rate), jax.random.key(config.seed)
    step = jax.jit(training.make_train_step(model, task, tx, preprocess=dataset.preprocess))
    state = training.create_state(key, model, tx, dataset.image_shape)
    run = Run(config.out or default_path(Path("runs/gradients")), vars(config))

    @jax.jit
    def record(before, after, batch):
        """The size of the gradient at the output, and norms of gradient, update and weight, of one training step."""
        _, _, dropout = jax.random.split(jax.random.fold_in(key, before.step), 3)  # as the step draws it

        def loss(params):
            outputs, _ = model.apply(
                {"params": params, "batch_stats": before.batch_stats},
                dataset.preprocess(batch["image"]),
                train=True,
                rngs={"dropout": dropout},
                mutable=["batch_stats"],
            )
            return task.loss(outputs, batch)[0].mean(), outputs

        gradient, outputs = jax.grad(loss, has_aux=True)(before.params)
        update = jax.tree.map(jnp.subtract, after.params, before.params)
        kinds = {"gradient": gradient, "update": update, "weight": before.params}
        entering = gradients.at_output(lambda outputs: task.loss(outputs, batch)[0], outputs)
        return entering, {kind: gradients.norms(tree) for kind, tree in kinds.items()}

    def losses(batch_stats, params, batch):
        outputs = model.apply({"params": params, "batch_stats": batch_stats}, dataset.preprocess(batch["image"]))
        return task.loss(outputs, batch)[0]

    look = jax.jit(partial(measure, key, losses, lanczos=lanczos, probes=probes))  # compiled once for all looks
    size = dataset.size("train")
    counts = {"examples": min(examples, size), "noisy": min(noisy, size), "curved": min(curved, size)}
    batches = [dataset.rows("train", np.arange(count)) for count in counts.values()]
    found, history, output = {}, {kind: {} for kind in ("gradient", "update", "weight")}, []
    order = training.Order(size, min(batch_size, size), config.seed).rows(0, steps)
    at = np.linspace(0, steps, looks).round().astype(int)
    for i in range(steps + 1):
        if i in at:
            found[i] = told(look(state.params, state.batch_stats, *batches))
            said = (f"{name.replace('_', ' ')} {value:.4g}" for name, value in found[i][0].items())
            print(f"step {i}: {', '.join(said)}", flush=True)
        if i == steps:
            break
        batch, before = dataset.rows("train", order[i]), state
        state, _ = step(state, batch, key)
        if i % max(1, steps // 20) == 0 or i == steps - 1:
            entering, norms = record(before, state, batch)
            output.append(float(entering))
            for kind, of in norms.items():
                for path, norm in of.items():
                    history[kind].setdefault(path, {})[i] = float(norm)
    of_kernels = {kind: {path: x for path, x in of.items() if path.endswith("kernel")} for kind, of in history.items()}
    recorded = {path: np.array(list(of.values())) for path, of in history["gradient"].items()}
    path = report.write(
        run.path,
        title=f"Gradients: {config.model} on {dataset.name}",
        command=cli.command("gradients"),
        history=of_kernels,
        flow=gradients.verdicts(recorded, state.params, output=output),
        looks=found,
        note="As in evaluation (running statistics, no dropout). Cosines between {examples:,} examples, noise scale of "
        "{noisy:,}, Hessian of the mean loss of {curved:,}, all from the training set.".format(**counts),
    )
    print(f"report: {path}")


def measure(key, losses, params, batch_stats, few, many, curved, *, lanczos: int, probes: int) -> dict:
    """Cosines between the gradients of a few examples, the noise of many, the curvature of the mean loss of some."""
    each = partial(losses, batch_stats)

    def mean(params):
        return each(params, curved).mean()

    return {
        "loss": mean(params),
        "noise": gradients.noise_scale(each, params, many),
        "cosines": gradients.cosines(gradients.per_example(each, params, few)),
        "trace": curvature.trace(key, mean, params, probes=probes),
        "eigenvalues": curvature.eigenvalues(key, mean, params, count=min(5, lanczos), steps=lanczos).values,
        "spectrum": curvature.spectrum(key, mean, params, steps=lanczos, probes=probes),
    }


def told(found: dict) -> tuple[dict[str, float], tuple[np.ndarray, np.ndarray]]:
    """The numbers of a look, and the density of the Hessian's eigenvalues."""
    cosines = np.asarray(found["cosines"])
    pairs = cosines[~np.eye(len(cosines), dtype=bool)]
    noise, trace = found["noise"], found["trace"]
    numbers = {"loss": found["loss"], "noise_scale": noise.unbiased, "noise_scale_error": noise.standard_error}
    numbers |= {"mean_cosine": pairs.mean(), "negative_cosines": (pairs < 0).mean()}
    numbers |= {"trace": trace.mean, "trace_error": trace.standard_error}
    numbers |= {f"eigenvalue_{k}": value for k, value in enumerate(np.asarray(found["eigenvalues"]), start=1)}
    return {name: float(value) for name, value in numbers.items()}, curvature.density(found["spectrum"])


if __name__ == "__main__":
    cli.main(main, Config, __doc__)
