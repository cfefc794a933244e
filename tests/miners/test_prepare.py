"""Miners that prepare themselves on the whole batch: the same choice in blocks and on devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dml_jax import UserError, distances, losses, miners
from dml_jax.bound import Bound
from dml_jax.selection import Selection
from tests.losses import test_laws
from tests.losses.loops import common

X, LABELS = test_laws.batch(), test_laws.LABELS


def far_and_rare(block, miner_state, *, scale):
    """Positives farther than the mean positive distance of all anchors, negatives of kept anchors.

    An anchor is kept where its number of far positives is at least that of the anchors on average.
    """
    pos, neg, sims = block.related.pos, block.related.neg, block.sims
    mean, counts = miner_state
    kept = counts[block.anchor_ids] >= jnp.mean(counts)
    return Selection(pos & (sims > scale * mean) & kept[:, None], neg & kept[:, None])


def count_far(whole_batch, *, scale):
    """Two passes: a mean over all anchors, then with it a count for each."""

    def total(block):
        pos = block.related.pos
        return (jnp.sum(jnp.where(pos, block.sims, 0)), jnp.sum(pos)), ()

    def count(block):
        return (), jnp.sum(block.related.pos & (block.sims > scale * block.prepass_sums), -1)

    (distance, pairs), _ = whole_batch.map_blocks(total)
    mean = distance / pairs
    return mean, whole_batch.map_blocks(count, mean)[1]


def keyed(block, miner_state):
    """Pairs that a draw by (key, anchor) and one by the key alone agree on."""
    own = jax.vmap(lambda k: jax.random.uniform(k, block.sims.shape[1:]))(block.keys)
    keep = (own < 0.5) == (miner_state < 0.5)[None, :]
    return Selection(block.related.pos & keep, block.related.neg & keep)


def draw(whole_batch):
    return jax.random.uniform(whole_batch.key, whole_batch.refs.vectors.shape[:1])


FAR = miners.Miner(
    "far",
    Bound(far_and_rare, scale=1.1),
    distances.lp(),
    triplets=False,
    prepare=Bound(count_far, scale=1.1),
)
KEYED = miners.Miner("keyed", keyed, distances.lp(), triplets=False, prepare=draw, draws=True)


def test_equals_the_double_loop():
    d = np.sqrt(np.maximum(2 - 2 * common.cosines(X, X), 0))
    labels = np.asarray(LABELS)
    pos = (labels[:, None] == labels[None, :]) & ~np.eye(22, dtype=bool)
    far = pos & (d > 1.1 * d[pos].mean())
    kept = far.sum(1) >= far.sum(1).mean()
    selection = FAR(X, LABELS).selection
    np.testing.assert_array_equal(selection.pos, far & kept[:, None])
    assert 0 < np.sum(selection.pos) < far.sum()


@pytest.mark.parametrize("miner", [FAR, KEYED], ids=lambda m: m.name)
def test_blocks_and_devices_choose_alike(miner):
    key = jax.random.key(3)
    want = miner(X, LABELS, key=key).selection
    assert 20 < np.sum(want.neg) < 0.8 * 22 * 21
    for block, devices in [(5, 1), (None, 8), (2, 4)]:
        with jax.set_mesh(test_laws.mesh(devices)):
            got = miner(X, LABELS, key=key, block=block).selection
        jax.tree.map(np.testing.assert_array_equal, got, want)
    other = KEYED(X, LABELS, key=jax.random.key(4)).selection
    assert np.any(np.asarray(other.neg) != np.asarray(KEYED(X, LABELS, key=key).selection.neg))


@pytest.mark.parametrize("name", ["contrastive", "lifted_structure", "nca", "cos_face"])
def test_losses_read_it(name):
    """Kernels alone, with a first phase, losses that weigh samples, class weights: all prepare the miner."""
    loss = losses.get(name, miner=FAR)
    made = loss.init(jax.random.key(0), 11, 8)
    value = lambda block: loss.apply(made, X, LABELS, block=block)[0].compute()
    want = value(None)
    plain = losses.get(name).apply(made, X, LABELS)[0].compute()
    assert abs(want - plain) > 1e-3
    np.testing.assert_allclose(value(5), want, rtol=1e-5)
    with jax.set_mesh(test_laws.mesh(8)):
        np.testing.assert_allclose(value(2), want, rtol=1e-5)


def test_a_draw_needs_a_key():
    for call in (KEYED, losses.get("contrastive", miner=KEYED).apply):
        args = (X, LABELS) if call is KEYED else ({}, X, LABELS)
        with pytest.raises(UserError, match="miner 'keyed' draws at random and needs a key"):
            call(*args)
