"""Guided back-propagation as a transformation of functions: every ReLU passes on positive gradients alone."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

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

    def changed(*arguments):
        program, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
        if not _has_relu(program):
            raise InputError("guided back-propagation needs a network with ReLUs, jax.nn.relu or relu6: this has none")
        flat = jaxpr_as_fun(_rewritten(program))(*jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shape), flat)

    return changed


def has_relu(function: Callable, *arguments: Any) -> bool:
    """Whether there is a ReLU for `guided` in the function's program, for arguments of these shapes."""
    return _has_relu(jax.make_jaxpr(function)(*arguments))


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


def _parts(value: Any) -> list[Any]:
    return list(value) if isinstance(value, tuple | list) else [value]


def _has_relu(value: Any) -> bool:
    """Whether a program, or a parameter of an equation that may hold programs, has a ReLU in it."""
    programs = [part for part in _parts(value) if isinstance(part, ClosedJaxpr | Jaxpr)]
    return any(
        _relu_of(equation) is not None or any(map(_has_relu, equation.params.values()))
        for program in programs
        for equation in getattr(program, "jaxpr", program).eqns
    )


def _rewritten(program: ClosedJaxpr | Jaxpr) -> ClosedJaxpr | Jaxpr:
    """The program with its ReLUs replaced, as it takes and gives the same."""
    is_open = not isinstance(program, ClosedJaxpr)
    jaxpr, consts = (program, ()) if is_open else (program.jaxpr, program.consts)

    def run(*arguments):
        found = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))
        for equation in jaxpr.eqns:
            inputs = [atom.val if isinstance(atom, Literal) else found[atom] for atom in equation.invars]
            outputs = _computed(equation, inputs)
            found.update(zip(equation.outvars, outputs, strict=True))
        return [atom.val if isinstance(atom, Literal) else found[atom] for atom in jaxpr.outvars]

    kinds = (v.aval for v in jaxpr.invars)
    new = jax.make_jaxpr(run)(*(jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type) for a in kinds))
    return new.jaxpr if is_open else new


def _computed(equation, inputs: list) -> list:
    relu = _relu_of(equation)
    if relu is not None:
        return [relu(*inputs)]
    if equation.primitive.name.startswith("custom_") and _has_relu(equation.params.get("call_jaxpr")):
        # The derivative that such a function was given says nothing of its ReLUs.
        return jaxpr_as_fun(_rewritten(equation.params["call_jaxpr"]))(*inputs)
    params = {name: _each(value) if _has_relu(value) else value for name, value in equation.params.items()}
    with equation.ctx.manager:
        outputs = equation.primitive.bind(*inputs, **equation.primitive.get_bind_params(params))
    return outputs if equation.primitive.multiple_results else [outputs]


def _each(value: Any) -> Any:
    new = [_rewritten(part) for part in _parts(value)]
    return tuple(new) if isinstance(value, tuple | list) else new[0]
