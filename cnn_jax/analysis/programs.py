"""Functions compiled apart from the arrays that they hold."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun


def program(function: Callable, *examples: Any) -> Callable:
    """The function compiled, for arguments of the shapes of these; arrays that it holds become arguments too.

    `jax.jit` writes such arrays into the program: `lambda images: model.apply(variables, images)` would carry its
    weights as text, be compiled for as long as that takes, and again for other weights.

    Args:
        function: traceable, of any pytrees of arrays.
        examples: its arguments, or their shapes.
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*examples)

    @jax.jit
    def run(held, leaves):
        return jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, held))(*leaves)

    return lambda *args: jax.tree.unflatten(jax.tree.structure(shape), run(closed.consts, jax.tree.leaves(args)))
