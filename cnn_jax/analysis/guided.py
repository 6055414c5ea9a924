"""Guided back-propagation as a transformation of functions: every ReLU passes on positive gradients alone."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cnn_jax.analysis.programs import concerned, replaced
from cnn_jax.errors import InputError


def guided(function: Callable) -> Callable:
    """The same function, with another derivative: what is negative at the output of a ReLU does not go back through it.

    The function's program is read, so that it does not matter where its ReLUs are, or how often one is used: all that
    `jax.nn.relu` and `jax.nn.relu6` (Linen's are the same) have computed, in compiled functions, rematerialised parts
    and loops too. A maximum with 0 that is written out is not known for one.

    Source: Springenberg et al. 2015, "Striving for Simplicity: The All Convolutional Net", section 3.4.

    Raises:
        InputError: when called, where there is no ReLU.
    """
    change = replaced(function, _relu_of)

    def changed(*arguments):
        if not has_relu(function, *arguments):
            raise InputError("guided back-propagation needs a network with ReLUs, jax.nn.relu or relu6: this has none")
        return change(*arguments)

    return changed


def has_relu(function: Callable, *arguments: Any) -> bool:
    """Whether the function's program, for arguments of these shapes, has a ReLU that `guided` knows."""
    return concerned(jax.make_jaxpr(function)(*arguments), _relu_of)


@jax.custom_vjp
def _relu(x: jax.Array) -> jax.Array:
    return jax.nn.relu(x)


_relu.defvjp(lambda x: (jax.nn.relu(x), x), lambda x, dy: (jnp.where(x > 0, jnp.maximum(dy, 0), 0),))


@jax.custom_vjp
def _relu6(x: jax.Array) -> jax.Array:
    return jax.nn.relu6(x)


_relu6.defvjp(lambda x: (jax.nn.relu6(x), x), lambda x, dy: (jnp.where((x > 0) & (x < 6), jnp.maximum(dy, 0), 0),))

_GUIDED = {"relu": _relu, "relu6": _relu6}


def _relu_of(equation) -> Callable | None:
    """What takes the place of an equation that is a ReLU: a compiled function of that name, alone in a `custom_jvp`."""
    if equation.primitive.name == "custom_jvp_call":
        body = equation.params["call_jaxpr"].jaxpr
        return _relu_of(body.eqns[0]) if len(body.eqns) == 1 else None
    return _GUIDED.get(equation.params.get("name")) if equation.primitive.name in ("jit", "pjit") else None
