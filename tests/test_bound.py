"""Functions with their hyper-parameters: equality, hashing, pickling, and that jit compiles once for equal ones."""

import functools
import pickle

import jax
import jax.numpy as jnp
import pytest

from dml_jax.bound import Bound


def scaled(x, *, scale, shift=0.0):
    return scale * x + shift


def shifted(x, *, scale, shift=0.0):
    return scale * (x + shift)


def test_a_call_has_the_given_keywords_and_more():
    assert Bound(scaled, scale=2.0)(3.0) == 6
    assert Bound(scaled, scale=2.0)(3.0, shift=1.0) == 7
    with pytest.raises(TypeError, match="multiple values"):
        Bound(scaled, scale=2.0)(3.0, scale=1.0)


def test_equal_where_function_and_keywords_are():
    same = Bound(scaled, scale=2.0, shift=1.0), Bound(scaled, shift=1.0, scale=2.0)
    assert same[0] == same[1] and hash(same[0]) == hash(same[1])
    others = (
        Bound(shifted, scale=2.0, shift=1.0),
        Bound(scaled, scale=2.0),
        Bound(scaled, scale=2.0, shift=0.5),
        functools.partial(scaled, scale=2.0, shift=1.0),
    )
    assert all(same[0] != other for other in others)


def test_equal_ones_compile_once():
    traces = []

    def run(function, x):
        traces.append(function)
        return function(x)

    compiled = jax.jit(run, static_argnums=0)
    for scale in (2.0, 2.0, 3.0):
        assert compiled(Bound(scaled, scale=scale), jnp.ones(())) == scale
    assert len(traces) == 2
    partial = functools.partial
    for _ in range(2):  # what Bound is for: these are never equal
        compiled(partial(scaled, scale=2.0), jnp.ones(()))
    assert len(traces) == 4


def test_pickled_and_shown():
    made = Bound(scaled, scale=2.0)
    again = pickle.loads(pickle.dumps(made))
    assert again == made and again(1.0) == 2
    assert repr(made) == "scaled(scale=2.0)"


def test_nothing_can_be_changed():
    made = Bound(scaled, scale=2.0)
    with pytest.raises(AttributeError, match="Bound cannot be changed"):
        made.function = shifted
    with pytest.raises(TypeError):
        made.keywords["scale"] = 3.0
    with pytest.raises(TypeError, match="unhashable"):
        hash(Bound(scaled, scale=[2.0]))
