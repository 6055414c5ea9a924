"""What the scripts that train look at before they read data, so that a mistake in a flag is found at once."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax import models, runtime, training
from cnn_jax.errors import InputError
from experiments.recipe import Recipe, optimiser

KINDS = {"classify": "a classifier", "detect": "a detector", "segment": "a segmenter"}


def check(script: str, config: Recipe) -> training.Parallel:
    """Looks at what needs no data, so that a mistake is found at once; the devices to train on."""
    runtime.configure(platform=config.platform)
    over = training.parallel(config.parallel)
    training.check(
        over, batch_size=config.batch_size, epochs=config.epochs, seed=config.seed, accumulate=config.accumulate,
        ema_decay=config.ema,
    )  # fmt: skip
    if not 0 <= config.warmup_epochs < config.epochs:
        run = f"at least 0 and less than the run's {config.epochs:g}"
        raise InputError(f"warmup epochs {config.warmup_epochs:g}: they must be {run}")
    optimiser(config, steps=100, warmup=int(config.warmup_epochs > 0))  # how many steps there are, the data will tell
    kind = kind_of(models.create(config.model))
    if kind != script:
        raise InputError(
            f"{config.model} is {KINDS[kind]}: train it with experiments.{kind}, or give --model {KINDS[script]} such "
            f"as {type(config).model}"
        )
    return over


def kind_of(model: nn.Module) -> str:
    """The script that trains such a network, by what its outputs are. Nothing is computed for it."""
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    with models.traced_for("tpu"):  # layers in their plain forms are sooner traced
        outputs, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    if isinstance(outputs, list):  # a level of the pyramid each
        return "detect"
    return "classify" if jax.tree.leaves(outputs)[0].ndim == 2 else "segment"
