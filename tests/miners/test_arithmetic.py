"""Types and special values: 64-bit mode, 16-bit embeddings, NaN, labels beyond 32 bits, lists."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dml_jax import losses, miners
from tests import draws
from tests.losses import test_laws
from tests.miners import table

LABELS = np.asarray(test_laws.LABELS)
NAMES = [n for n in table.ALL if "/" not in n or n == "angular/40"] + ["batch_easy_hard/hard-hard"]


def make(name):
    return miners.get(name.partition("/")[0], **table.ALL[name])


def embeddings():
    return np.asarray(test_laws.batch(), np.float32)


@pytest.mark.parametrize("name", draws.some(NAMES, 8, "64 bits"))
def test_64_bit_mode(name):
    """Every miner runs there, in blocks, too; of float32 embeddings it draws and chooses the same."""
    draws.tell()
    x, key = embeddings(), 5
    want = make(name)(x, LABELS, key=jax.random.key(key)).indices()
    with jax.enable_x64(True):
        got = make(name)(x, LABELS, key=jax.random.key(key), block=5).indices()
        for g, w in zip(got, want, strict=True):
            np.testing.assert_array_equal(g, w)
        if name in ("random", "intra_random", "random_distance"):
            wide = make(name)(x.astype(np.float64), LABELS, key=jax.random.key(key)).indices()
            assert len(wide[0]) == len(want[0])


@pytest.mark.parametrize("name", NAMES)
def test_16_bit_embeddings_are_compared_in_32_bits(name):
    x, key = jnp.asarray(embeddings(), jnp.bfloat16), jax.random.key(2)
    want = make(name)(x.astype(jnp.float32), LABELS, key=key).indices()
    for g, w in zip(make(name)(x, LABELS, key=key).indices(), want, strict=True):
        np.testing.assert_array_equal(g, w)


def test_angles_of_many_16_bit_embeddings():
    """Where 16 bits would decide otherwise."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(40, 6)), jnp.bfloat16)
    labels = np.arange(40) // 4
    mine = lambda x: np.stack(miners.angular(35)(x, labels).indices(), 1)
    np.testing.assert_array_equal(mine(x), mine(x.astype(jnp.float32)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", ["one", "all"])
def test_rows_of_nan(name, rows):
    """What is chosen is still what the relation allows: no anchor as its own positive, no negative as a positive."""
    x = embeddings()
    x[3 if rows == "one" else slice(None)] = np.nan
    found = make(name)(x, LABELS, key=jax.random.key(1))
    if name.startswith("embeddings") or name in ("intra_random", "rho_distance", "random_distance"):
        return  # these choose by position, or name the anchor's own class on purpose
    indices = found.indices()
    a, p, b, n = indices if len(indices) == 4 else (*indices[:2], indices[0], indices[2])
    assert (LABELS[a] == LABELS[p]).all() and (a != p).all()
    assert (LABELS[b] != LABELS[n]).all()


def test_batch_hard_takes_the_first_where_nothing_is_a_number():
    x = np.full((5, 3), np.nan, np.float32)
    a, p, n = miners.batch_hard()(x, [0, 0, 0, 1, 2]).indices()
    assert (a.tolist(), p.tolist(), n.tolist()) == ([0, 1, 2], [1, 0, 0], [3, 3, 3])
    loss = losses.get("triplet_margin", miner="batch_hard")
    value = loss.apply({}, jnp.asarray(x), jnp.asarray([0, 0, 0, 1, 2]))[0].compute()
    assert np.isnan(value)


@pytest.mark.parametrize("name", ["batch_hard", "multi_similarity", "random", "random_distance"])
@pytest.mark.parametrize("refs", [False, True])
def test_labels_beyond_32_bits(name, refs):
    """2^32 apart, and of 64 bits: other classes, not the same ones."""
    if refs and name == "random_distance":
        return
    x, key = embeddings(), jax.random.key(0)
    wide = np.array([2**40, 2**40 + 2**32, 7, -(2**62), 7 + 2**32, *range(6)], np.int64)[LABELS]
    more = lambda labels: dict(ref_embeddings=x, ref_labels=labels) if refs else {}
    narrow = np.unique(wide, return_inverse=True)[1]
    want = miners.get(name)(x, narrow, key=key, **more(narrow)).indices()
    got = miners.get(name)(x, wide, key=key, **more(wide)).indices()
    for g, w in zip(got, want, strict=True):
        np.testing.assert_array_equal(g, w)


@pytest.mark.parametrize("name", ["batch_hard", "hdc", "distance_weighted"])
def test_lists_are_taken(name):
    x, key = embeddings()[:8], jax.random.key(0)
    labels = LABELS[:8]
    refs = dict(ref_embeddings=x[2:], ref_labels=labels[2:])
    lists = {k: v.tolist() for k, v in refs.items()}
    for more, same in ((refs, lists), ({}, {})):
        want = miners.get(name)(x, labels, key=key, **more).indices()
        got = miners.get(name)(x.tolist(), labels.tolist(), key=key, **same).indices()
        for g, w in zip(got, want, strict=True):
            np.testing.assert_array_equal(g, w)
    ints = miners.get(name)([[1, 0], [2, 1], [0, 3]], [0, 0, 1], key=key)
    assert len(ints.indices()[0])


def test_a_switch_that_is_a_whole_number():
    draw = functools.partial(miners.get, "rho_distance")
    for p_switch in (0, 1):
        a, p, n = draw(p_switch=p_switch)(embeddings(), LABELS, key=jax.random.key(0)).indices()
        assert ((a == p) == bool(p_switch)).all() and len(n)
