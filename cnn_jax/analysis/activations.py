"""What a network computes on the way."""

from typing import Any

import flax.linen as nn
import jax


def capture(model: nn.Module, variables: Any, images: jax.Array) -> dict[str, jax.Array]:
    """The stages that a model names with `tap`, in the order in which it computes them.

    Args:
        images: f32[N,H,W,C], as the model takes them.

    Returns:
        {stage: array with leading N}, such as {"conv1": f32[N,28,28,32], …, "logits": f32[N,10]}. Stages of a
        submodule are named "submodule/stage".
    """
    names = []

    def compute(variables, images):
        found = stages(model, variables, images)
        names[:] = found  # jit would return a dict sorted by name
        return list(found.values())

    values = jax.jit(compute)(variables, images)
    return dict(zip(names, values, strict=True))


def stages(model: nn.Module, variables: Any, images: jax.Array) -> dict[str, jax.Array]:
    """The same as `capture`, to be traced as a part of a larger program."""
    _, changed = model.apply(variables, images, train=False, mutable=["intermediates"])
    return _named(changed["intermediates"])


def _named(tree: dict, prefix: str = "") -> dict[str, jax.Array]:
    """{"conv1": (x,), "block": {"out": (y,)}} as {"conv1": x, "block/out": y}."""
    found = {}
    for name, value in tree.items():
        if isinstance(value, tuple):
            found[prefix + name] = value[0]
        else:
            found |= _named(value, f"{prefix}{name}/")
    return found
