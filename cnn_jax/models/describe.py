"""What a network is made of: a table of its layers, with their parameters and their floating-point operations."""

import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from cnn_jax.models.platform import traced_for


class Layer(NamedTuple):
    """A row of the table. Shape and FLOPs are those of one image; the shape is without the leading N."""

    name: str  # the path in the model, such as "stage1_block1/conv1"
    type: str  # the name of the module's class, such as "Conv"
    output_shape: tuple[int, ...]
    parameters: int
    flops: int


class Description(NamedTuple):
    """The table and its totals: all parameters, those of them that are trained, and the FLOPs of one image.

    `print` shows it in columns.
    """

    layers: list[Layer]
    parameters: int
    trainable: int
    flops: int

    def __str__(self) -> str:
        rows = [("layer", "type", "output", "parameters", "FLOPs")]
        for name, kind, shape, parameters, flops in self.layers:
            rows.append((name, kind, " × ".join(map(str, shape)), f"{parameters:,}", f"{flops:,}"))
        rows.append(("in all", "", "", f"{self.parameters:,}", f"{self.flops:,}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        line = "  ".join(f"{{:{side}{width}}}" for side, width in zip("<<<>>", widths, strict=True))
        return "\n".join(line.format(*row) for row in rows)


def describe(
    model: nn.Module, image_shape: tuple[int, int, int], *, trainable: Callable[[str], bool] = lambda path: True
) -> Description:
    """The layers of a model in the order in which they run. Nothing is computed, allocated or compiled for it.

    FLOPs are those of the convolutions and dense layers in one forward pass: two for each multiplication and its
    addition, where other tables count one "multiply-add". Biases, norms, activations, pooling and sums are not
    counted; in convolutional networks they come to about one in a hundred.

    A layer is a module that has parameters of its own or calls no other module. What is a mere function, such as ReLU
    or pooling, has no row. A module that runs twice has two rows, and its parameters in the first.

    What training costs, in FLOPs, memory and time: `python -m experiments.cost --models NAME`, or `analysis.cost`.

    Args:
        model: called with images f32[1,H,W,C].
        image_shape: (H,W,C).
        trainable: whether the parameter at that path, such as "stage1_block1/conv1/kernel", is trained.
    """
    calls = []

    def record(run, args, kwargs, context):
        earlier = len(calls)
        out = run(*args, **kwargs)
        if context.method_name == "__call__":
            module = context.module
            calls.append((module.path, type(module), len(calls) == earlier, _shape((args, kwargs)), _shape(out)))
        return out

    # On a CPU too, layers in their plain forms have the same shapes and are sooner traced.
    with nn.intercept_methods(record), traced_for("tpu"):
        images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images)
    params = flatten_dict(variables.get("params", {}))
    own = {}
    for path, leaf in params.items():
        own.setdefault(path[:-1], {})[path[-1]] = leaf

    layers, seen = [], set()
    for path, kind, calls_none, inputs, outputs in calls:
        if calls_none or path in own:
            here = own.get(path, {})
            count = 0 if path in seen else sum(leaf.size for leaf in here.values())
            seen.add(path)
            flops = 0
            if "kernel" in here:
                # Each number in the kernel is used once at every place. This holds for strides, dilation and groups.
                places = inputs if issubclass(kind, nn.ConvTranspose) else outputs
                flops = 2 * here["kernel"].size * math.prod(places[1:-1])
            layers.append(Layer("/".join(path), kind.__name__, outputs[1:], count, flops))
    return Description(
        layers=layers,
        parameters=sum(leaf.size for leaf in params.values()),
        trainable=sum(leaf.size for path, leaf in params.items() if trainable("/".join(path))),
        flops=sum(layer.flops for layer in layers),
    )


def _shape(tree) -> tuple[int, ...]:
    """The shape of the first array in it."""
    return next((leaf.shape for leaf in jax.tree.leaves(tree) if hasattr(leaf, "shape")), ())
