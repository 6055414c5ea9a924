"""Functions as programs: compiled apart from the arrays that they hold, or with some of their operations replaced."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

Replacement = Callable[[Any], Callable | None]


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


def replaced(function: Callable, replacement: Replacement) -> Callable:
    """The same function, to be called with pytrees of arrays, with some of the operations of its program replaced.

    They are found in compiled functions, rematerialised parts and the bodies of loops and branches too. A function with
    derivatives of its own in which one is found is taken apart: those derivatives say nothing of what replaces it.

    Args:
        function: traceable.
        replacement: of an equation of a jaxpr, the function of its inputs that takes its place; None to leave it.
    """

    def changed(*arguments):
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
        flat = jaxpr_as_fun(_rewritten(closed, replacement))(*jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shape), flat)

    return changed


def concerned(value: Any, replacement: Replacement) -> bool:
    """Whether a program, or a parameter of an equation that may hold programs, has an equation to be replaced."""
    programs = [part for part in _parts(value) if isinstance(part, ClosedJaxpr | Jaxpr)]
    return any(
        replacement(equation) is not None or any(concerned(of, replacement) for of in equation.params.values())
        for program in programs
        for equation in getattr(program, "jaxpr", program).eqns
    )


def _parts(value: Any) -> list[Any]:
    return list(value) if isinstance(value, tuple | list) else [value]


def _rewritten(value: Any, replacement: Replacement) -> Any:
    """A program, or some, as they take and give the same."""
    if not isinstance(value, ClosedJaxpr | Jaxpr):
        parts = [_rewritten(part, replacement) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    is_open = not isinstance(value, ClosedJaxpr)  # from JAX 0.12 on it is the same class as Jaxpr
    jaxpr, consts = (value, ()) if is_open else (value.jaxpr, value.consts)

    def run(*arguments):
        found = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))
        for equation in jaxpr.eqns:
            inputs = [atom.val if isinstance(atom, Literal) else found[atom] for atom in equation.invars]
            found.update(zip(equation.outvars, _computed(equation, inputs, replacement), strict=True))
        return [atom.val if isinstance(atom, Literal) else found[atom] for atom in jaxpr.outvars]

    kinds = (v.aval for v in jaxpr.invars)
    new = jax.make_jaxpr(run)(*(jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type) for a in kinds))
    return new.jaxpr if is_open else new


def _computed(equation: Any, inputs: list, replacement: Replacement) -> list:
    instead = replacement(equation)
    if instead is not None:
        return [instead(*inputs)]
    params = {
        name: _rewritten(value, replacement) if concerned(value, replacement) else value
        for name, value in equation.params.items()
    }
    if equation.primitive.name.startswith("custom_") and params.get("call_jaxpr") is not equation.params.get(
        "call_jaxpr"
    ):
        return jaxpr_as_fun(params["call_jaxpr"])(*inputs)
    with equation.ctx.manager:
        outputs = equation.primitive.bind(*inputs, **equation.primitive.get_bind_params(params))
    return outputs if equation.primitive.multiple_results else [outputs]
