"""Miners of the user's own, by "package.module:name": with losses, blocks and devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dml_jax import UserError, distances, losses, miners
from dml_jax.parameters import PositiveFloat
from dml_jax.selection import Selection, draw, list_triplets
from tests.losses import test_laws

X, LABELS = test_laws.batch(), test_laws.LABELS


@miners.custom(triplets=False)
def nearer_than(sims, pos, neg, *, radius: PositiveFloat = 1.0) -> Selection:
    """All positives, and the negatives within a radius."""
    return Selection(pos, jnp.where(sims < radius, neg, jnp.zeros_like(neg)))


@miners.custom(triplets=True, distance="cosine", draws=True)
def any_triplet(block) -> Selection:
    """A positive and a negative, both at random, where they are not too alike."""
    first, second = jax.vmap(jax.random.split, out_axes=1)(block.keys)
    pos, neg = block.related.pos, block.related.neg & (block.sims < 0.9)
    return Selection(pos, neg, list_triplets(pos, neg, draw(first, pos), draw(second, neg)))


@miners.custom(triplets=False, takes_block=True)
def first_half(block) -> Selection:
    """The pairs of the first anchors of the batch."""
    kept = (block.anchor_ids < 11)[:, None]
    return Selection(block.related.pos & kept, block.related.neg & kept)


def batch_mean(whole_batch):
    (total, pairs), _ = whole_batch.map_blocks(
        lambda block: ((jnp.sum(block.sims * block.related.pos), jnp.sum(block.related.pos)), ())
    )
    return total / pairs


def below_mean(block, mean) -> Selection:
    return Selection(block.related.pos & (block.sims < mean), block.related.neg)


def nearer_than_average(*, distance=None) -> miners.Miner:
    """A factory without the decorator, of a miner that prepares itself on the whole batch."""
    built = distances.build(distance, "lp")
    return miners.Miner("average", below_mean, built, triplets=False, prepare=batch_mean)


def no_miner():
    return "a text"


OWN = [f"tests.miners.test_custom:{n}" for n in ("nearer_than", "any_triplet", "first_half")]


def test_by_name_and_by_call():
    assert miners.get(OWN[0], radius=0.5) == nearer_than(radius=0.5)
    assert any_triplet().distance == distances.cosine()
    a, p, _, n = nearer_than(radius=0.9)(X, LABELS).indices()
    d = np.asarray(distances.lp()(X, X))
    assert (np.asarray(LABELS)[a] == np.asarray(LABELS)[p]).all()
    _, _, b, _ = nearer_than(radius=0.9)(X, LABELS).indices()
    assert len(n) and (d[b, n] < 0.9).all()
    assert len(n) == ((d < 0.9) & (np.asarray(LABELS)[:, None] != np.asarray(LABELS)[None])).sum()


@pytest.mark.parametrize("name", [*OWN, "tests.miners.test_custom:nearer_than_average"])
def test_blocks_and_devices(name):
    miner, key = miners.get(name), jax.random.key(3)
    want = miner(X, LABELS, key=key).indices()
    assert len(want[0])
    for block, devices in [(5, 1), (None, 8), (2, 4)]:
        with jax.set_mesh(test_laws.mesh(devices)):
            got = miner(X, LABELS, key=key, block=block).indices()
        for g, w in zip(got, want, strict=True):
            np.testing.assert_array_equal(g, w)


@pytest.mark.parametrize("name", [OWN[0], OWN[1], "tests.miners.test_custom:nearer_than_average"])
def test_losses_take_it_by_name(name):
    loss = losses.get("contrastive", neg_margin=1.5, miner=name)
    value = lambda block: loss.apply({}, X, LABELS, key=jax.random.key(0), block=block)[0].compute()
    want = value(None)
    plain = losses.get("contrastive", neg_margin=1.5)
    assert abs(want - plain.apply({}, X, LABELS)[0].compute()) > 1e-3
    with jax.set_mesh(test_laws.mesh(8)):
        np.testing.assert_allclose(value(2), want, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "hyper", "says"),
    [
        (
            "nearer_than",
            {"radius": 0},
            "radius of miner .*nearer_than' is 0; accepted: a number above 0",
        ),
        ("nearer_than", {"radios": 1}, "unknown hyper-parameter .*; did you mean 'radius'"),
        ("nearer_than", {"distance": "euclid"}, "unknown distance 'euclid'"),
        ("nearer", {}, "unknown miner of module tests.miners.test_custom.* 'nearer_than'"),
        ("no_miner", {}, "returned 'a text'; accepted: a function that returns a Miner"),
        ("OWN", {}, "accepted: a function that returns a Miner"),
    ],
)
def test_what_is_no_miner(name, hyper, says):
    with pytest.raises(UserError, match=says):
        miners.get(f"tests.miners.test_custom:{name}", **hyper)


def test_a_draw_needs_a_key():
    with pytest.raises(UserError, match="miner 'any_triplet' draws at random and needs a key"):
        any_triplet()(X, LABELS)
