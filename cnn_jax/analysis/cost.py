"""What a computation costs: operations and memory read off its program, and memory and time as measured.

    count = cost.count(cost.gradient(loss), params, images)          # nothing is computed or compiled
    count.forward, count.backward, count.kept, count.scopes["ResNet/stage1_block1/conv1"].forward

A FLOP is a multiplication or an addition, so that a "multiply-add" of other tables is two. Counted are convolutions and
matrix products as their algorithm has them; all other arithmetic is counted apart, one for each floating-point number,
maxima among it. What compares, chooses (`where`, `argmax`), sorts or moves numbers is not counted.

A program is counted as it is written. Layers may write a convolution as a sum of shifted products where that is faster,
and then it is found among the elementwise operations: trace those in their plain form (this project's networks inside
`models.traced_for("tpu")`, where batch norm is plain too).
"""

import math
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from cnn_jax.errors import InputError


def _set(names: str) -> frozenset[str]:
    return frozenset(names.split())


# One operation for each number that comes out; of the sums, for each that goes in.
_ARITHMETIC = _set(
    "abs acos acosh add add_any asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp cos cosh digamma div "
    "erf erf_inv erfc exp exp2 expm1 floor igamma igamma_grad_a igammac integer_pow lgamma log log1p logistic max min "
    "mul neg nextafter polygamma pow regularized_incomplete_beta rem round rsqrt sign sin sinh sqrt square sub tan "
    "tanh zeta"
)
_SUMS = _set(
    "cumlogsumexp cummax cummin cumprod cumsum reduce_max reduce_min reduce_prod reduce_sum select_and_scatter_add"
)
_WINDOWS = _set("reduce_window reduce_window_max reduce_window_min reduce_window_sum")
_CALLS = _set("checkpoint closed_call custom_jvp_call custom_vjp_call jit pjit remat remat2")
_VIEWS = _set("broadcast_in_dim copy expand_dims optimization_barrier reshape squeeze")
_UNCOUNTED = _set(
    "cholesky eig eigh ffi_call fft io_callback lu pallas_call pure_callback qr ragged_dot_general "
    "svd triangular_solve while"
)


class Scope(NamedTuple):
    """What one named part of a program costs."""

    forward: int  # FLOPs of convolutions and matrix products
    backward: int  # the same, in what differentiation in reverse has added, what it computes anew included
    elementwise: int  # all other arithmetic, in both directions
    kept: int  # bytes that it computes forward and that are used backward


class Count(NamedTuple):
    """What a program costs, in all and by scope, in FLOPs and bytes.

    A scope is what `jax.named_scope` and the modules of Linen name, such as "ResNet/stage1_block1/conv1"; what it holds
    beside other scopes is counted as its own alone. They come in the order in which they are met.
    """

    forward: int
    backward: int
    elementwise: int
    kept: int  # what the backward pass needs of the forward pass, the arguments aside
    peak: int  # most that is alive at a time, the arguments aside, in the order of the program and with nothing fused
    scopes: dict[str, Scope]
    uncounted: tuple[str, ...]  # operations whose work the program does not tell; bodies of `while` are counted once

    @property
    def flops(self) -> int:
        """Of convolutions and matrix products, in both directions."""
        return self.forward + self.backward


def gradient(function: Callable) -> Callable:
    """A function that gives the sum of all outputs of `function`, and its gradient by the first argument.

    For counting it stands for any loss: what comes before the loss costs the same.
    """

    def total(*arguments):
        return sum(leaf.astype(jnp.float32).sum() for leaf in jax.tree.leaves(function(*arguments)))

    return jax.value_and_grad(total)


def count(function: Callable, *arguments: Any) -> Count:
    """What a call would cost. Nothing is computed, allocated or compiled for it.

    Loops of known length count as often as they run; of the branches of a choice the dearest counts; what is mapped
    over devices counts for all of them. What does not contribute to the result is left out.

    A tap of a convolution that falls into padding counts, as in published tables, but not into padding that makes the
    image grow, nor between pixels that are spread out. So each gradient of a convolution costs what it costs itself,
    if its kernel is not larger than the image.

    Args:
        function: of arrays; `jax.jit`, `jax.grad` and the like may wrap it.
        arguments: arrays, or `jax.ShapeDtypeStruct`s in their place.
    """
    line = _Line(jax.make_jaxpr(function)(*arguments))
    forward_bytes, peak = line.memory()
    found, uncounted = {}, {}
    for scope, backward, products, elementwise in line.work(uncounted):
        sums = found.setdefault(scope, [0, 0, 0, 0])
        sums[backward] += products
        sums[2] += elementwise
    for scope, size in forward_bytes:
        found.setdefault(scope, [0, 0, 0, 0])[3] += size
    scopes = {name: Scope(*sums) for name, sums in found.items()}
    totals = [sum(scope[i] for scope in scopes.values()) for i in range(4)]
    return Count(*totals, peak, scopes, tuple(uncounted))


class Memory(NamedTuple):
    """Bytes that a compiled program takes on a device."""

    arguments: int
    outputs: int  # those aside that take the place of donated arguments
    temporary: int

    @property
    def total(self) -> int:
        """All of them together."""
        return sum(self)


def memory(compiled: jax.stages.Compiled) -> Memory:
    """What XLA says of `jax.jit(function).lower(*arguments).compile()`."""
    found = compiled.memory_analysis()
    outputs = found.output_size_in_bytes - found.alias_size_in_bytes
    return Memory(found.argument_size_in_bytes, outputs, found.temp_size_in_bytes)


def seconds(
    programs: Mapping[str, Callable[[], Any]], *, rounds: int = 5, least: float = 0.05
) -> dict[str, list[float]]:
    """Seconds of a call, one a round. The programs take turns, so that all meet the same machine.

    Args:
        programs: name -> a function without arguments that returns arrays of JAX, which are waited for.
        least: seconds that a program's turn lasts at least, in as many calls as that takes; waited for is the last.

    Raises:
        InputError: no round.
    """
    if rounds < 1:
        raise InputError(f"rounds is {rounds}: it must be 1 or more")

    def turn(program: Callable[[], Any], calls: int) -> float:
        begin = time.perf_counter()
        for _ in range(calls):
            out = program()
        jax.block_until_ready(out)
        return (time.perf_counter() - begin) / calls

    for program in programs.values():
        turn(program, 1)  # compiles
    calls = {name: max(1, round(least / turn(program, 1))) for name, program in programs.items()}
    taken = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            taken[name].append(turn(program, calls[name]))
    return taken


def matrix_product(size: int, *, dtype: jnp.dtype = jnp.float32) -> tuple[Callable[[], jax.Array], int]:
    """A product of two square matrices as a program for `seconds`, and its FLOPs: the measure of a device's peak."""
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)  # a GPU multiplies zeros or ones faster
    multiply = jax.jit(jnp.matmul)
    return lambda: multiply(a, a), 2 * size**3


class _Operation(NamedTuple):
    name: str
    equation: Any
    inputs: list[int]  # the numbers of its values in the line; literals are left out
    outputs: list[int]
    scope: str
    backward: bool


class _Line:
    """A program laid out in one line, functions that it calls in their place, without what nobody uses."""

    def __init__(self, program: ClosedJaxpr, *, scope: str = ""):
        self._bytes: list[int] = []
        self.operations: list[_Operation] = []
        arguments = [self._new(variable) for variable in program.jaxpr.invars]
        self._results = {value for value in self._lay(program, arguments, scope) if value is not None}
        needed = set(self._results)
        kept = []
        for operation in reversed(self.operations):
            if operation.equation.effects or not needed.isdisjoint(operation.outputs):
                needed.update(operation.inputs)
                kept.append(operation)
        self.operations = kept[::-1]

    def _new(self, variable) -> int:
        aval = variable.aval
        dtype = getattr(aval, "dtype", None)
        self._bytes.append(math.prod(aval.shape) * dtype.itemsize if hasattr(dtype, "itemsize") else 0)
        return len(self._bytes) - 1

    def _lay(self, program: ClosedJaxpr | Jaxpr, arguments: list, outside: str) -> list:
        jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
        values = dict(zip(jaxpr.invars, arguments, strict=True))
        values |= {variable: self._new(variable) for variable in jaxpr.constvars}
        for equation in jaxpr.eqns:
            inputs = [None if isinstance(x, Literal) else values[x] for x in equation.invars]
            scope = f"{outside}/{equation.source_info.name_stack}"
            name = equation.primitive.name
            if name in _CALLS:
                outputs = self._lay(_programs(equation)[0], inputs, scope)
            else:
                outputs = [self._new(variable) for variable in equation.outvars]
                backward = "transpose(" in scope
                inputs = [value for value in inputs if value is not None]
                self.operations.append(_Operation(name, equation, inputs, outputs, scope, backward))
            values |= zip(equation.outvars, outputs, strict=True)
        return [None if isinstance(x, Literal) else values[x] for x in jaxpr.outvars]

    def work(self, uncounted: dict) -> list[tuple[str, bool, int, int]]:
        """(scope, backward, FLOPs of products, elementwise operations) of each operation that has any."""
        found = []
        for name, equation, _, _, scope, backward in self.operations:
            if name in _UNCOUNTED:
                uncounted[name] = None
            if inner := [_Line(_closed(program), scope=scope).work(uncounted) for program in _bodies(name, equation)]:
                if name == "cond":
                    inner = [max(inner, key=lambda works: sum(work[2] + work[3] for work in works))]
                times = _times(name, equation.params)
                found += [(s, backward or b, times * p, times * e) for works in inner for s, b, p, e in works]
            elif any(work := (_products(name, equation), _elementwise(name, equation))):
                found.append((_plain(scope), backward, *work))
        return found

    def memory(self) -> tuple[list[tuple[str, int]], int]:
        """(scope, bytes) of what is computed forward and used backward, and the peak of what is alive."""
        same = list(range(len(self._bytes)))  # where the numbers of a value are stored: a view has none of its own
        made: dict[int, _Operation] = {}
        last: dict[int, int] = {}
        crossing: dict[int, None] = {}
        for i, operation in enumerate(self.operations):
            if operation.name in _VIEWS:
                sources = operation.inputs if len(operation.inputs) == len(operation.outputs) else []
                for value, source in zip(operation.outputs, sources, strict=False):
                    same[value] = same[source]
                if sources:
                    continue
            for value in operation.outputs:
                made[value] = operation
                last[value] = i
            for value in map(same.__getitem__, operation.inputs):
                last[value] = i
                if operation.backward and value in made and not made[value].backward:
                    crossing[value] = None
        for value in self._results:
            last[same[value]] = len(self.operations)
        ends: dict[int, int] = {}
        for value, end in last.items():
            if value in made:
                ends[end] = ends.get(end, 0) + self._bytes[value]
        alive = peak = 0
        for i, operation in enumerate(self.operations):
            new = sum(self._bytes[value] for value in operation.outputs if value in made)
            inside = [_Line(_closed(p)).memory()[1] for p in _bodies(operation.name, operation.equation)]
            peak = max(peak, alive + max([new, *inside]))
            alive += new - ends.get(i, 0)
        return [(_plain(made[value].scope), self._bytes[value]) for value in crossing], peak


def _programs(equation) -> list[ClosedJaxpr | Jaxpr]:
    """The programs in an equation's parameters."""
    found = []
    for value in equation.params.values():
        found += [
            x for x in (value if isinstance(value, tuple | list) else [value]) if isinstance(x, ClosedJaxpr | Jaxpr)
        ]
    return found


def _bodies(name: str, equation) -> list[ClosedJaxpr | Jaxpr]:
    """The programs that an operation runs; for sums, scatters and the like, which hold one for two numbers, none."""
    if name == "linear_call":
        return [equation.params["callee"]]
    if name == "custom_linear_solve":  # of its four only this runs
        return [equation.params["jaxprs"].solve]
    return [] if "reduce" in name or "scatter" in name or name in ("sort", "pallas_call") else _programs(equation)


def _closed(program: ClosedJaxpr | Jaxpr) -> ClosedJaxpr:
    return program if isinstance(program, ClosedJaxpr) else ClosedJaxpr(program, ())


def _times(name: str, params: Mapping) -> int:
    if name == "scan":
        return params["length"]
    if name == "shard_map":
        # JAX has named them "manual_axes" and "newly_manual_axes".
        axes = next(value for name, value in params.items() if name.endswith("manual_axes"))
        return math.prod(params["mesh"].shape[axis] for axis in axes)
    return 1


def _plain(scope: str) -> str:
    """Without the marks that transformations leave: "transpose(jvp(ResNet))/conv1" is "ResNet/conv1"."""
    names = re.sub(r"\b\w+\(|\)", "", scope).split("/")
    return "/".join(name for name in names if name not in ("", "checkpoint", "rematted_computation"))


def _products(name: str, equation) -> int:
    """FLOPs of a convolution or a matrix product."""
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        out, shape = equation.outvars[0].aval, equation.invars[0].aval.shape
        return 2 * out.size * math.prod(shape[axis] for axis in contracted)
    if name != "conv_general_dilated":
        return 0
    params, (x, kernel), out = equation.params, (v.aval for v in equation.invars), equation.outvars[0].aval
    numbers = params["dimension_numbers"]
    channels = kernel.shape[numbers.rhs_spec[1]]  # of one group
    work = 2 * out.shape[numbers.out_spec[0]] * out.shape[numbers.out_spec[1]] * channels
    axes = zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], params["lhs_dilation"], strict=True)
    for of_x, of_kernel, of_out, spread in axes:
        length, side, places = x.shape[of_x], kernel.shape[of_kernel], out.shape[of_out]
        # Two of pixel, tap and place settle the third.
        pairs = min(length, places) * side
        work *= min(pairs, length * places) if spread > 1 else pairs
    return work


def _elementwise(name: str, equation) -> int:
    out = equation.outvars[0].aval if equation.outvars else None
    if out is None or not jnp.issubdtype(getattr(out, "dtype", jnp.int32), jnp.floating):
        return 0
    if name in _ARITHMETIC:
        return out.size
    if name in _SUMS:
        return equation.invars[0].aval.size
    if name == "reduce":  # of several arrays at once, with as many initial values behind them
        return sum(array.aval.size for array in equation.invars[: len(equation.outvars)])
    if name in _WINDOWS:
        return out.size * math.prod(equation.params["window_dimensions"])
    if name.startswith("scatter-"):
        return equation.invars[2].aval.size
    return 0
