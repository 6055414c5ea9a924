"""What do the networks cost?

    python -m experiments.cost                                   # all of them, by their programs: nothing is computed
    python -m experiments.cost --models resnet18 mobilenet_v2    # some
    python -m experiments.cost --models resnet50 --time          # compiled and measured as well
    python -m experiments.cost --models simple_cnn --image-size 28

Parameters, FLOPs beside those that others publish, the memory that training keeps for the gradient; with `--time` the
memory of the compiled training step, the time of a forward pass and of a training step, images a second, and the share
of the speed that a product of large matrices reaches on the same device in the same run. Layer by layer in the report.
Images have the size of the publication, or 224×224, or what `--image-size` says.

The whole table takes a minute and a half on two CPU cores. FLOPs of all published networks agree within 1 %.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cnn_jax import analysis, cli, models, runtime, training
from cnn_jax.reporting import cost as report
from cnn_jax.reporting import page, write_json
from cnn_jax.run import Run, default_path
from experiments.zoo import Member, counted, member

NOTES = (
    "A FLOP is a multiplication or an addition: a multiply-add is two. Counted are convolutions and matrix products of "
    "the traced program, every convolution in its plain form: that some are computed as sums of shifted products on a "
    "CPU changes neither result nor work. Other arithmetic, such as norms and activations, is counted apart, one "
    "operation for each number; comparisons and choices are not. JAX resizes maps by a matrix product, which other "
    "tables leave out. Published counts of EfficientNet-Lite are timm's, which hold the norms too: what differs is "
    "without these.",
    "Images are not differentiated by, so that the first convolution has one gradient. Kept is what the forward pass "
    "holds for the gradients, each number once, arguments aside; peak is the most that is alive at a time in training "
    "with nothing fused, in the order of the program. Compiled is what the compiler takes for a training step of the "
    "batch, with parameters, optimiser and images.",
    "Times are medians of rounds in which a forward pass, a training step (Adam) and a product of square matrices take "
    "turns; the share of the peak is FLOPs over time, over the best speed of the product.",
)


@dataclass(frozen=True)
class Config:
    """Count and measure what networks cost."""

    models: tuple[str, ...] = ()  # all, if none is named
    image_size: int | None = None
    time: bool = False  # compile and measure too; some networks take minutes to compile
    batch_size: int | None = None  # images in what is measured; 2 on a CPU, 32 elsewhere
    rounds: int = 5
    precision: Literal["float32", "bfloat16"] = "float32"  # of the computation; parameters are float32
    platform: Literal["cpu", "gpu", "tpu"] | None = None  # insist on it
    out: Path | None = None  # runs/cost by default, or the next that is free
    tiny: bool = False  # two networks on small images


def main(config: Config) -> None:
    runtime.configure(platform=config.platform)
    cli.at_least(config, image_size=1, batch_size=1, rounds=1)
    names = config.models or (("simple_cnn", "resnet18") if config.tiny else models.names())
    side = 32 if config.tiny and not config.image_size else config.image_size
    members = [member(name, side=side, dtype=config.precision) for name in names]
    run = Run(config.out or default_path(Path("runs/cost")), vars(config))
    networks, layers = [], {}
    for name, of in zip(names, members, strict=True):
        print(f"{name} …", flush=True)
        row, layers[name] = counted(name, of)
        if config.time:
            row |= measured(of, config, row)
        networks.append(row)
    if len(names) == 1:
        report.print_layers(names[0], layers[names[0]])
    path = report.write(
        run.path,
        command=cli.command("cost"),
        networks=networks,
        layers=layers,
        notes=NOTES,
        peak=max((row["peak_flops_per_second"] for row in networks if config.time), default=None),
        footer=page.footer(run.path),
    )
    summary = {f"{row['name']}_{key}": x for row in networks for key, x in row.items() if not isinstance(x, str)}
    write_json(run.path / "summary.json", summary)
    print(f"report: {path}")


def measured(of: Member, config: Config, row: dict) -> dict:
    """Memory and time of the compiled network, and the speed of a matrix product."""
    cpu = jax.default_backend() == "cpu"
    size = config.batch_size or (2 if cpu else 32)
    tx, key = optax.adam(1e-3), jax.random.key(0)
    batch = jax.device_put(of.batch(size))
    state = training.create_state(key, of.model, tx, of.image_shape)
    variables = jax.tree.map(jnp.copy, state.variables)
    step = jax.jit(training.make_train_step(of.model, of.task, tx), donate_argnums=0).lower(state, batch, key).compile()
    images = batch["image"].astype(jnp.float32) / 255
    forward = jax.jit(of.model.apply).lower(variables, images).compile()

    def train():
        nonlocal state
        state, stats = step(state, batch, key)
        return stats

    product, flops = analysis.cost.matrix_product(2048 if cpu else 8192, dtype=config.precision)
    programs = {"forward": lambda: forward(variables, images), "train": train, "product": product}
    taken = analysis.cost.seconds(programs, rounds=1 if config.tiny else config.rounds)
    peak = flops / min(taken["product"])
    found = {"peak_flops_per_second": peak, "batch_size": size, "compiled": analysis.cost.memory(step).total}
    for what, prefix, work in (("forward", "", row["flops"]), ("train", "train_", row["train_flops"])):
        seconds = float(np.median(taken[what]))
        found |= {f"{what}_ms": 1000 * seconds, f"{what}_ms_per_image": 1000 * seconds / size}
        found |= {f"{prefix}images_per_second": size / seconds, f"{prefix}share_of_peak": work * size / seconds / peak}
    return found


if __name__ == "__main__":
    cli.main(main, Config, __doc__)
