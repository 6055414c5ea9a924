"""What do the gradients of a CNN look like as it learns, and how curved is its loss?

    python -m experiments.gradients                          # SimpleCNN on digits; minutes on two CPU cores
    python -m experiments.gradients --model resnet20 --image-size 32 --steps 200

Trains a network and looks at it at the start, on the way and at the end: norms of gradient, update and weight of each
kernel, those that vanish or explode flagged; gradients of single examples, the cosines between them and the gradient
noise scale; the Hessian's trace (Hutchinson), its largest eigenvalues and its spectral density (Lanczos). Noise scale
and trace come with their standard errors.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cnn_jax import cli, data, models, runtime, tasks, training
from cnn_jax.analysis import curvature, gradients
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
    looks: int = 3  # from the start to the end of training
    examples: int = 64  # between whose gradients cosines are measured
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
    model = models.create(config.model, num_classes=dataset.num_classes)
    task, tx, key = tasks.classify(dataset.num_classes), optax.adam(config.learning_rate), jax.random.key(config.seed)
    options = {"preprocess": dataset.preprocess}
    step = jax.jit(training.make_train_step(model, task, tx, **options))
    state = training.create_state(key, model, tx, dataset.image_shape)
    run = Run(config.out or default_path(Path("runs/gradients")), vars(config))

    def losses(params, batch, batch_stats):
        outputs = model.apply({"params": params, "batch_stats": batch_stats}, dataset.preprocess(batch["image"]))
        return task.loss(outputs, batch)[0]

    @jax.jit
    def sizes(params, after, batch, batch_stats):
        gradient = jax.grad(lambda params: losses(params, batch, batch_stats).mean())(params)
        update = jax.tree.map(jnp.subtract, after, params)
        outputs = model.apply({"params": params, "batch_stats": batch_stats}, dataset.preprocess(batch["image"]))
        entering = gradients.at_output(lambda outputs: task.loss(outputs, batch)[0], outputs)
        return entering, {
            kind: gradients.norms(x) for kind, x in (("gradient", gradient), ("update", update), ("weight", params))
        }

    order = training.Order(dataset.size("train"), min(batch_size, dataset.size("train")), config.seed).rows(0, steps)
    at = np.linspace(0, steps - 1, looks).round().astype(int)
    history, output, found = {kind: {} for kind in ("gradient", "update", "weight")}, [], []
    whole = np.arange(dataset.size("train"))
    batches = [dataset.rows("train", whole[:count]) for count in (examples, noisy, curved)]
    for i, rows in enumerate(order):
        batch, before = dataset.rows("train", rows), state
        state, _ = step(state, batch, key)
        if i % max(1, steps // 20) == 0 or i == steps - 1:
            entering, norms = sizes(before.params, state.params, batch, before.batch_stats)
            output.append(float(entering))
            for kind, of in norms.items():
                for path, norm in of.items():
                    history[kind].setdefault(path, {})[i] = float(norm)
        if i in at:
            found.append(look(i, before, losses, *batches, lanczos, probes, key))
            print(found[-1]["said"], flush=True)
    of_kernels = {kind: {path: x for path, x in of.items() if path.endswith("kernel")} for kind, of in history.items()}
    recorded = {path: np.array(list(of.values())) for path, of in history["gradient"].items()}
    path = report.write(
        run.path,
        title=f"Gradients: {config.model} on {dataset.name}",
        command=cli.command("gradients"),
        history=of_kernels,
        flow=gradients.verdicts(recorded, state.params, output=output),
        looks=found,
    )
    print(f"report: {path}")


def look(i: int, state, losses, few, many, curved, lanczos: int, probes: int, key) -> dict:
    """Cosines between the gradients of a few examples, the noise of many, the curvature of the mean loss of some."""

    def each(params, batch):
        return losses(params, batch, state.batch_stats)

    def mean(params):
        return each(params, curved).mean()

    noise = gradients.noise_scale(each, state.params, many)
    cosines = np.asarray(gradients.cosines(gradients.per_example(each, state.params, few)))
    pairs = cosines[~np.eye(len(cosines), dtype=bool)]
    trace = curvature.trace(key, mean, state.params, probes=probes)
    spectrum = curvature.spectrum(key, mean, state.params, steps=lanczos, probes=probes)
    top = curvature.eigenvalues(key, mean, state.params, count=min(5, lanczos), steps=lanczos)
    numbers = {"loss": float(jax.jit(mean)(state.params)), "noise_scale": float(noise.unbiased)}
    numbers |= {"noise_scale_error": float(noise.standard_error)}
    numbers |= {"mean_cosine": float(pairs.mean()), "negative_cosines": float((pairs < 0).mean())}
    numbers |= {"trace": float(trace.mean), "trace_error": float(trace.standard_error)}
    numbers |= {f"eigenvalue_{k}": float(value) for k, value in enumerate(np.asarray(top.values), start=1)}
    said = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in numbers.items())
    return {"step": i, "numbers": numbers, "density": curvature.density(spectrum), "said": f"step {i}: {said}"}


if __name__ == "__main__":
    cli.main(main, Config, __doc__)
