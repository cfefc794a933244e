"""What some losses do beside their kernel: drawn triplets, learned margins, chosen pairs, weighed samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from dml_jax import losses, miners
from dml_jax.errors import UserError
from dml_jax.selection import draw_triplets
from tests.losses import table
from tests.losses.loops import common, ranking

LABELS = table.LABELS
KEY = jax.random.key(5)


def batch(seed=0):
    return np.random.default_rng(seed).normal(size=(len(LABELS), table.DIM)).astype(np.float32)


def test_drawn_triplets_are_triplets():
    same = LABELS[:, None] == LABELS[None, :]
    pos, neg = same & ~np.eye(len(LABELS), dtype=bool), ~same
    keys = jax.random.split(KEY, len(LABELS))
    drawn = draw_triplets(jnp.asarray(pos), jnp.asarray(neg), keys, 50).triplets
    weight, positive, negative = map(np.asarray, (drawn.weight, drawn.positive, drawn.negative))
    np.testing.assert_array_equal(weight.sum(1), 50 * pos.any(1))
    rows = np.flatnonzero(pos.any(1))
    assert all(pos[a, positive[a]].all() and neg[a, negative[a]].all() for a in rows)
    # 50 draws leave out one of at most 5 positives about once in 70,000 times.
    assert all(set(positive[a]) == set(np.flatnonzero(pos[a])) for a in rows)


def test_many_draws_approach_the_mean_of_each_anchor():
    x, distance = batch(), common.distance(batch())
    rows = [
        common.mean(max(distance[a, i] - distance[a, j] + 0.05, 0) for i in p for j in n)
        for a, p, n in common.each_anchor(LABELS)
        if p
    ]
    loss = losses.get("triplet_margin", triplets_per_anchor=4000, reducer="mean")
    got = loss.apply({}, x, LABELS, key=KEY)[0].compute()
    np.testing.assert_allclose(got, np.mean(rows), rtol=0.01)


def test_the_running_histogram_is_of_the_drawn_triplets():
    """Anchors count alike: 4,000 triplets of each, drawn once for the histogram and the loss."""
    x, d = batch(), common.distance(batch())
    found = [
        [d[a, i] - d[a, j] for i in p for j in n] for a, p, n in common.each_anchor(LABELS) if p
    ]
    histogram = np.mean([ranking.soft_margin_histogram(row) for row in found], axis=0)
    loss = losses.get("dynamic_soft_margin", triplets_per_anchor=4000)
    mean, state = loss.apply(loss.init(KEY, 9, 4), x, LABELS, key=KEY)
    np.testing.assert_allclose(state["histogram"], histogram, atol=0.003)
    below = np.cumsum(histogram)
    want = common.mean(
        common.mean(below[min(int((m + 2) / 0.4), 9)] * m for m in row) for row in found
    )
    np.testing.assert_allclose(mean.compute(), want, atol=0.01)
    few = losses.get("dynamic_soft_margin", triplets_per_anchor=1)
    _, drawn = few.apply(few.init(KEY, 9, 4), x, LABELS, key=KEY)
    assert np.abs(drawn["histogram"] - histogram).max() > 0.02


@pytest.mark.parametrize("name", ["triplet_margin", "margin", "dynamic_soft_margin"])
def test_draws_depend_on_key_and_anchor_alone(name):
    loss = losses.get(name, triplets_per_anchor=3)
    made = loss.init(KEY, 9, 4)
    value = lambda key, **how: loss.apply(made, batch(), LABELS, key=key, **how)[0].compute()
    want = value(KEY)
    assert value(jax.random.key(6)) != want
    np.testing.assert_allclose(value(KEY, block=5), want, rtol=1e-6)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        np.testing.assert_allclose(value(KEY, block=2), want, rtol=1e-6)
    with pytest.raises(ValueError, match="triplets_per_anchor=3 at random and needs a key"):
        value(None)


@pytest.mark.parametrize("count", [0, 2.0, True, "al"])
def test_bad_number_of_triplets(count):
    with pytest.raises(ValueError, match="accepted: 'all' or a whole number of at least 1"):
        losses.get("triplet_margin", triplets_per_anchor=count)


def test_learned_beta():
    x = batch()
    assert losses.get("margin").init(KEY, 9, 4) == {}
    one = losses.get("margin", learn_beta=True, beta=1.1)
    each = losses.get("margin", learn_beta=True, beta=1.1, per_class=True)
    assert each.init(KEY, 9, 4)["params"]["beta"].shape == (9,)
    value = lambda variables, loss: loss.apply(variables, x, LABELS)[0].compute()
    got, slope = jax.value_and_grad(value)(one.init(KEY, 9, 4), one)
    want, slopes = jax.value_and_grad(value)(each.init(KEY, 9, 4), each)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(slope["params"]["beta"], slopes["params"]["beta"].sum(), rtol=1e-5)
    assert not slopes["params"]["beta"][7:].any()
    few = each.init(KEY, 3, 4)
    with pytest.raises(UserError, match="class"):
        value(few, each)
    # Inside of jit labels cannot be looked at.
    traced = jax.jit(lambda labels: each.apply(few, x, labels)[0].compute())
    assert np.isnan(traced(jnp.asarray(LABELS)))
    with pytest.raises(ValueError, match="takes relation 'hierarchy' or 'label'"):
        losses.get("margin", learn_beta=True, per_class=True, relation="matrix")


@pytest.mark.parametrize("name", ["instance", "lifted_structure", "n_pairs"])
def test_no_references(name):
    with pytest.raises(ValueError, match="compares the batch with itself"):
        losses.get(name).apply({}, batch(), LABELS, ref_embeddings=batch(1), ref_labels=LABELS)


def test_swap_takes_references():
    x, refs = batch(), batch(1)
    near, between = (np.sqrt(np.maximum(2 - 2 * common.cosines(a, refs), 0)) for a in (x, refs))
    want = common.non_zero(
        near[a, i] - min(near[a, j], between[i, j]) + 0.05
        for a in range(22)
        for i in range(22)
        for j in range(22)
        if LABELS[a] == LABELS[i] != LABELS[j]
    )
    loss = losses.get("triplet_margin", swap=True)
    got = loss.apply({}, x, LABELS, ref_embeddings=refs, ref_labels=LABELS)[0].compute()
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_nca_weighs_anchors_by_how_often_they_were_chosen():
    """Against references a triplet counts for its anchor alone."""
    x, refs = batch(), batch(1)
    others = dict(ref_embeddings=refs, ref_labels=LABELS)
    anchors, *_ = miners.get("triplet_margin")(x, LABELS, **others).indices()
    counts = np.bincount(anchors, minlength=22)
    near = np.exp(2 * common.cosines(x, refs))
    rows = [-np.log(near[a, LABELS[a] == LABELS].sum() / near[a].sum()) for a in range(22)]
    loss = losses.get("nca", miner="triplet_margin")
    got = loss.apply({}, x, LABELS, **others)[0].compute()
    np.testing.assert_allclose(got, np.mean(rows * counts / counts.max()), rtol=1e-5)


def test_hard_anchors_keep_their_loss():
    """NCA where the probability of a positive is e^-300 (PML drops the anchor), tuplet at duplicates."""
    x = jnp.asarray([[1.0, 0], [-1, 0], [1, 1e-3], [1, -1e-3]])
    loss = losses.get("nca", softmax_scale=75)
    value, slope = jax.value_and_grad(
        lambda x: loss.apply({}, x, jnp.asarray([0, 0, 1, 2]))[0].compute()
    )(x)
    np.testing.assert_allclose(value, (300 + np.log(2) + np.log(3)) / 2, rtol=1e-3)
    assert np.isfinite(slope).all() and np.abs(slope).max() > 1e-3


def test_first_proxies_of_proxy_nca_pp_are_small():
    """N(0, 1/64), as the authors draw them; those of proxy_nca are N(0, 1), as PML's."""
    for name, size in (("proxy_nca_pp", 1 / 8), ("proxy_nca", 1.0)):
        weights = losses.get(name).init(KEY, 300, 40)["params"]["weights"]
        np.testing.assert_allclose(jnp.std(weights), size, rtol=0.02)


def test_angular_of_vectors_as_they_are():
    """A distance that trusts its vectors: the formula of the products themselves, also in blocks, with a singleton."""
    x = jnp.asarray(0.7 * np.random.default_rng(3).normal(size=(9, 4)), jnp.float32)
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2, 3])

    def naive(x):
        slope, found = np.tan(np.radians(40.0)) ** 2, []
        for a in range(9):
            for p in range(9):
                if a != p and labels[a] == labels[p]:
                    far = x[np.flatnonzero(labels != labels[a])]
                    apart = 2 * (1 + slope) * (x[a] @ x[p])
                    total = jnp.sum(jnp.exp(4 * slope * far @ (x[a] + x[p]) - apart))
                    found.append(jnp.log(1 + total))
        return jnp.mean(jnp.stack(found))

    raw = losses.get("angular", distance={"name": "cosine", "normalize_embeddings": False})
    expected = jax.value_and_grad(naive)(x)
    for block in (None, 4):
        value = lambda x, block=block: raw.apply({}, x, labels, block=block)[0].compute()
        found = jax.value_and_grad(value)(x)
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
        np.testing.assert_allclose(
            found[1], expected[1], atol=1e-5 * float(jnp.abs(found[1]).max())
        )
    # Control: normalised vectors have another loss.
    assert abs(losses.get("angular").apply({}, x, labels)[0].compute() - expected[0]) > 0.1
