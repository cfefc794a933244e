"""Draws, the loop over positives and the lookup under a mask, by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from dml_jax.selection import draw, each_positive, first_place, rows_at

MASK = np.array([[0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 0]], bool)


def test_first_place_of_each_row():
    np.testing.assert_array_equal(first_place(jnp.asarray(MASK)), [1, 4, 0])


def test_no_default_type_changes_a_draw():
    draws = lambda: draw(jax.random.split(jax.random.key(0), 3), jnp.asarray(MASK), 40)
    found = np.asarray(draws())
    assert [set(found[i]) for i in (0, 2)] == [{1, 3}, {0, 1, 2}]
    with jax.enable_x64(True):
        np.testing.assert_array_equal(draws(), found)


def test_each_positive_sees_every_positive_once_with_its_weight():
    """The k-th turn is the k-th positive of every row; rows that have no k-th weigh nothing."""
    weights = jnp.asarray(MASK * np.array([[9.0, 2, 9, 3], [9, 9, 9, 9], [4, 5, 6, 9]]))

    def note(one, weight, carry):
        turn, seen, order = carry
        return turn + 1, seen + one * weight[:, None], order + one * turn

    zeros = jnp.zeros(MASK.shape)
    turns, seen, order = each_positive(note, weights, (1, zeros, zeros))
    assert int(turns) == 1 + 3
    np.testing.assert_array_equal(seen, weights)
    np.testing.assert_array_equal(order, [[0, 1, 0, 2], [0, 0, 0, 0], [1, 2, 3, 0]])


def test_rows_at_is_the_matmul_with_the_mask():
    one = np.array([[0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], bool)
    rows = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    slopes = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
    value, pull = jax.vjp(lambda rows: rows_at(jnp.asarray(one), rows), rows)
    np.testing.assert_array_equal(value, one.astype(np.float32) @ rows)
    np.testing.assert_allclose(pull(slopes)[0], one.T.astype(np.float32) @ slopes, rtol=1e-6)
