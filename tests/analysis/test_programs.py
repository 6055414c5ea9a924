"""Programs get the arrays that their functions hold as arguments."""

import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.analysis.programs import program


def test_programs_do_what_their_functions_do(key):
    held = jnp.arange(1000.0)
    traced = []

    def function(key, tree):
        traced.append(1)
        return {"sum": (held * tree["x"]).sum(), "noise": jax.random.normal(key, (2,)), "none": None}

    run = program(function, key, {"x": held})
    for x in (held, 2 * held):
        expected, found = function(key, {"x": x}), run(key, {"x": x})
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), expected, found)
    assert len(traced) == 3  # once for the program, twice beside it


def test_arrays_are_not_written_into_the_program():
    held = jnp.arange(1000.0)
    (call,) = jax.make_jaxpr(program(lambda x: held * x, 1.0))(1.0).jaxpr.eqns
    assert [v.aval.shape for v in call.invars] == [(1000,), ()]
    assert not call.params["jaxpr"].consts
