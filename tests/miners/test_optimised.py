"""Every miner compiled as users' programs are: it chooses what the tests' own programs choose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dml_jax import miners
from tests import optimised
from tests.losses import test_laws
from tests.miners import table, test_choices

# The first row of every miner.
NAMES = [next(n for n in table.ALL if n.partition("/")[0] == name) for name in miners.available()]


@pytest.mark.parametrize("name", NAMES)
def test_chooses_alike(name):
    """Weights of pairs, of the batch, of vectors a thousand times as long, and of rows that are equal."""
    miner, key, labels = test_choices.make(name), jax.random.key(5), test_laws.LABELS
    pairs = lambda x: miner(x, labels, key=key).selection.pairs()
    users, quick = optimised.jit(pairs), jax.jit(pairs)
    x = jnp.asarray(test_laws.batch())
    for change in (lambda x: x, lambda x: 1e10 * x, lambda x: jnp.ones_like(x)):
        got, want = users(change(x)), quick(change(x))
        for g, w in zip(got, want, strict=True):
            np.testing.assert_array_equal(g, w)
        if change(x) is x:
            assert np.sum(want[0]) and np.sum(want[1])
