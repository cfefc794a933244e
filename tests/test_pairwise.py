"""The driver by itself: what a block holds, and that blocks and devices give the same sums and rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from dml_jax import UserError, blocks, distances, pairwise, reducers, relations
from dml_jax.pairwise import Mining, Samples
from dml_jax.selection import Selection

LABELS = jnp.asarray([0, 1, 0, 2, 1, 0, 3])
X = jnp.asarray(np.random.default_rng(0).normal(size=(7, 3)), jnp.float32)
VALID = jnp.asarray([True, True, True, True, False, True, True])
BATCH = Samples(X, LABELS, VALID)
HOW = dict(relation=relations.label(), exclude_self=True)
FORMS = [(None, 1), (3, 1), (None, 4), (1, 2)]


def mesh(devices):
    return jax.make_mesh(
        (devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )


@pytest.mark.parametrize(("block", "devices"), FORMS)
def test_what_a_block_holds(block, devices):
    """Every field, put together again from all blocks."""

    def look(block):
        sums = {"pairs": jnp.sum(block.related.pos), "valid": jnp.sum(block.anchor_valid)}
        rows = {
            "id": block.anchor_ids,
            "label": block.anchor_labels,
            "valid": block.anchor_valid,
            "pos": block.related.pos,
            "neg": block.related.neg,
            "sims": block.sims,
            "self": block.self_sims,
            "arg": block.anchor_args["weight"],
            "refs": jnp.broadcast_to(block.ref_labels, block.sims.shape),
            "value": jnp.broadcast_to(block.ref_values, block.sims.shape),
            "shared": jnp.broadcast_to(block.prepass_sums, block.anchor_ids.shape),
        }
        assert block.refs_include_batch and block.keys is None
        assert block.selection is block.related
        return sums, rows

    with jax.set_mesh(mesh(devices)):
        sums, rows = jax.jit(
            lambda: pairwise.map_blocks(
                look,
                BATCH,
                BATCH,
                distance=distances.cosine(),
                anchor_args={"weight": jnp.arange(7.0)},
                ref_values=10 * jnp.arange(7.0),
                prepass_sums=jnp.asarray(5.0),
                block=block,
                **HOW,
            )
        )()
    labels, there = np.asarray(LABELS), np.asarray(VALID)
    both = there[:, None] & there[None, :] & ~np.eye(7, dtype=bool)
    same = labels[:, None] == labels[None, :]
    np.testing.assert_array_equal(rows["pos"], both & same)
    np.testing.assert_array_equal(rows["neg"], both & ~same)
    np.testing.assert_array_equal(rows["id"], np.arange(7))
    np.testing.assert_array_equal(rows["label"], labels)
    np.testing.assert_array_equal(rows["valid"], there)
    np.testing.assert_array_equal(rows["arg"], np.arange(7))
    np.testing.assert_array_equal(rows["refs"], np.tile(labels, (7, 1)))
    np.testing.assert_array_equal(rows["value"], np.tile(10 * np.arange(7), (7, 1)))
    np.testing.assert_array_equal(rows["shared"], 5)
    np.testing.assert_allclose(rows["sims"], distances.cosine()(X, X), rtol=1e-6)
    np.testing.assert_allclose(rows["self"], 1, rtol=1e-6)
    assert (int(sums["pairs"]), int(sums["valid"])) == ((both & same).sum(), 6)


@pytest.mark.parametrize(("block", "devices"), FORMS)
def test_a_miner_is_prepared_once_and_chooses_alike(block, devices):
    """Its state is of the whole batch; keys depend on the position alone; gradients do not pass through it."""

    def prepare(whole_batch):
        assert whole_batch.refs_include_batch and whole_batch.key is not None
        count = lambda block: (jnp.sum(block.related.neg), ())
        return whole_batch.map_blocks(count)[0] / whole_batch.anchors.vectors.shape[0]

    def select(block, keys, miner_state):
        draws = jax.vmap(lambda k: jax.random.uniform(k, block.related.neg.shape[1:]))(keys)
        keep = draws < miner_state / 7
        return Selection(block.related.pos, block.related.neg & keep)

    def value(x, block):
        batch = BATCH._replace(vectors=x)
        kernel = lambda block: {"all": (block.sims, block.selection.neg)}
        mean = pairwise.pairwise(
            kernel,
            batch,
            batch,
            reducer=reducers.mean(),
            mine=Mining(select, prepare),
            key=jax.random.key(1),
            distance=distances.lp(),
            block=block,
            **HOW,
        )
        return mean.compute(), mean.stats

    graded = jax.jit(jax.value_and_grad(value, has_aux=True), static_argnums=1)
    (want, _), want_gradient = graded(X, None)
    with jax.set_mesh(mesh(devices)):
        (got, stats), gradient = graded(X, block)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(gradient, want_gradient, atol=1e-6)
    assert 0 < stats["in_play/negatives"] < 1 == stats["in_play/positives"]
    assert not np.asarray(gradient)[4].any()  # padding


def test_weights_of_references_multiply():
    """References may have weights in the place of `valid`."""
    weights = jnp.asarray([1.0, 0, 2, 1, 1, 3, 1])
    kernel = lambda block: {"all": (jnp.ones_like(block.sims), block.selection.pos)}
    mean = pairwise.pairwise(
        kernel,
        BATCH,
        BATCH._replace(valid=weights),
        reducer=reducers.mean(),
        distance=distances.lp(),
        **HOW,
    )
    assert float(mean.weight) == (2 + 3) + (1 + 3) + (1 + 2) + 1  # of 0, 2 and 5, and of 1 with 4


@pytest.mark.parametrize("block", [0, -1, 2.0, True])
def test_bad_blocks(block):
    with pytest.raises(UserError, match="accepted: a positive integer, or None"):
        blocks.map_anchors(lambda *_: ((), ()), X, X, block=block)


def test_several_terms_are_divided_apart():
    sums = reducers.Sums(*(jnp.asarray(v) for v in (6.0, 3.0, 0.0)))
    more = reducers.Sums(*(jnp.asarray(v) for v in (1.0, 4.0, 0.0)))
    total, weight = pairwise.combine({"a": sums, "b": more}, reducers.mean())
    assert (float(total), float(weight)) == (2.25, 1)
    assert pairwise.combine({"a": sums}, reducers.mean()) == (6.0, 3.0)
    with pytest.raises(UserError, match="did you mean 'positive'"):
        pairwise.combine({"positive": sums}, reducers.multiple(positve="sum"))
