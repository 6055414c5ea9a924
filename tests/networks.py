"""Networks in tests: what they are made of, without computing; and computed, without waiting for the compiler."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class Linear(nn.Module):
    """Softmax regression: its gradient can be written by hand, and it is soon compiled."""

    classes: int

    @nn.compact
    def __call__(self, images, *, train=False):
        return nn.Dense(self.classes, name="logits")(images.reshape(len(images), -1))


def compiled(function, *args):
    """The result, as NumPy's arrays; a small program that runs once is not worth optimising."""
    options = {"xla_backend_optimization_level": "0"}
    return jax.tree.map(np.asarray, jax.jit(function).lower(*args).compile(options)(*args))


def filled(model, images):
    """Variables for these images: norms as they might be after training, and kernels that keep the scale."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        name = path[-1].key
        if name in ("scale", "var", "layer_scale"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        deviation = np.prod(leaf.shape[:-1]) ** -0.5 if name == "kernel" else 0.2
        return rng.normal(0, deviation, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(model.init, jax.random.key(0), images))


def outline(model, *shape):
    """(number of parameters, {stage: shape without N}, {"params", …} as shapes) for images of that shape."""

    def run(images):
        _, state = model.init_with_output(jax.random.key(0), images, mutable=True)
        return state

    state = jax.eval_shape(run, jnp.ones(shape))
    stages = {name: value[0].shape[1:] for name, value in state.pop("intermediates").items()}
    return sum(leaf.size for leaf in jax.tree.leaves(state["params"])), stages, state
