"""Reducers that PML has wrong or cannot do, by hand; the rest is in tests/losses/test_golden.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from dml_jax import losses, miners, reducers
from tests.losses import table
from tests.losses.loops import common

X = np.random.default_rng(4).normal(size=(22, 8)).astype(np.float32)
Y = table.LABELS
WEIGHTS = tuple((np.arange(7) / 2).tolist())
BY_CLASS = {"name": "class_weighted", "weights": WEIGHTS}
D = common.distance(X.astype(float))


def value(name, block=None, devices=1, **spec):
    loss = losses.get(name, **spec)
    mesh = jax.make_mesh(
        (devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )
    with jax.set_mesh(mesh):
        return loss.apply({}, X, Y, block=block)[0].compute()


def by_anchor(pairs):
    """The means of the pairs of each anchor; 0 for an anchor without."""
    return [common.mean(row) for row in pairs]


PULL = [[D[a, j] for j in p] for a, p, _ in common.each_anchor(Y)]
PUSH = [[max(1 - D[a, j], 0) for j in n] for a, _, n in common.each_anchor(Y)]
FORMS = [(None, 1), (5, 1), (2, 4)]


@pytest.mark.parametrize(("block", "devices"), FORMS)
def test_class_weights_by_hand(block, devices):
    """Rows (PML multiplies each of multi_similarity's rows with all weights) and pairs."""
    s = common.cosines(X.astype(float), X.astype(float))
    rows = []
    for a, p, n in common.each_anchor(Y):
        pull = np.log1p(sum(np.exp(-2 * (s[a, j] - 0.5)) for j in p)) / 2
        push = np.log1p(sum(np.exp(50 * (s[a, j] - 0.5)) for j in n)) / 50
        rows.append(WEIGHTS[Y[a]] * (pull + push))
    got = value("multi_similarity", block, devices, reducer=BY_CLASS)
    np.testing.assert_allclose(got, np.mean(rows), rtol=1e-5)
    pairs = [
        common.mean(WEIGHTS[Y[a]] * v for a, row in enumerate(side) for v in row)
        for side in (PULL, PUSH)
    ]
    got = value("contrastive", block, devices, reducer=BY_CLASS)
    np.testing.assert_allclose(got, sum(pairs), rtol=1e-5)


@pytest.mark.parametrize(("block", "devices"), FORMS)
@pytest.mark.parametrize("inner", ["mean", "avg_non_zero"])
def test_per_anchor_by_hand(inner, block, devices):
    reducer = {"name": "per_anchor", "reducer": inner}
    reduce = {"mean": common.mean, "avg_non_zero": common.non_zero}[inner]
    want = reduce(by_anchor(PULL)) + reduce(by_anchor(PUSH))
    got = value("contrastive", block, devices, reducer=reducer)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert abs(value("contrastive", reducer="mean") - want) > 0.01


@pytest.mark.parametrize(("block", "devices"), FORMS)
def test_per_anchor_counts_a_pair_of_several_triplets_once(block, devices):
    """A triplet miner has a positive in as many triplets as it has negatives; PML's matrix of values has it once."""
    a, p, n = miners.get("triplet_margin")(X, Y).indices()
    pull, push = ({(i, j) for i, j in zip(a, other, strict=True)} for other in (p, n))
    rows = lambda pairs, value: [
        [value(D[i, j]) for i, j in sorted(pairs) if i == anchor] for anchor in range(22)
    ]
    want = common.mean(by_anchor(rows(pull, lambda d: d)))
    want += common.mean(by_anchor(rows(push, lambda d: max(1 - d, 0))))
    how = dict(reducer="per_anchor", miner="triplet_margin")
    np.testing.assert_allclose(value("contrastive", block, devices, **how), want, rtol=1e-5)
    # Control: by triplets, as the plain mean weighs them, it is another number.
    weighed = [[D[i, j] for i, j in zip(a, p, strict=True) if i == k] for k in range(22)]
    assert abs(common.mean(by_anchor(weighed)) - common.mean(by_anchor(rows(pull, abs)))) > 0.002


@pytest.mark.parametrize("inner", ["mean", "avg_non_zero"])
def test_padding_is_no_anchor(inner):
    """An anchor without pairs counts as 0, and padding does not count."""
    loss, keep = losses.get("contrastive", reducer={"name": "per_anchor", "reducer": inner}), Y != 1
    padded = loss.apply({}, X, Y, valid=jnp.asarray(keep), block=4)[0].compute()
    np.testing.assert_allclose(padded, loss.apply({}, X[keep], Y[keep])[0].compute(), rtol=1e-5)


@pytest.mark.parametrize(("block", "devices"), FORMS)
def test_a_reducer_for_each_term(block, devices):
    reducer = {"name": "multiple", "positive": "sum", "default": "per_anchor"}
    want = sum(map(sum, PULL)) + common.mean(by_anchor(PUSH))
    got = value("contrastive", block, devices, reducer=reducer)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_references_of_another_number_than_the_batch():
    """PML's per_anchor scatters into [B, B] and cannot take them."""
    loss = losses.get("contrastive", reducer="per_anchor")
    refs = np.concatenate([X, X[:9]])
    got = loss.apply({}, X, Y, ref_embeddings=refs, ref_labels=np.concatenate([Y, Y[:9]]))[0]
    d = np.sqrt(np.maximum(2 - 2 * common.cosines(X.astype(float), refs.astype(float)), 0))
    labels = np.concatenate([Y, Y[:9]])
    pull = [d[a][labels == Y[a]].mean() for a in range(22)]
    push = [np.maximum(1 - d[a][labels != Y[a]], 0).mean() for a in range(22)]
    np.testing.assert_allclose(got.compute(), np.mean(pull) + np.mean(push), rtol=1e-5)


def test_errors():
    with pytest.raises(ValueError, match="did you mean 'positive'"):
        value("contrastive", reducer={"name": "multiple", "positve": "mean"})
    with pytest.raises(ValueError, match="accepted: relation 'hierarchy' or 'label'"):
        losses.get("contrastive", reducer=BY_CLASS, relation="matrix")
    assert reducers.build(BY_CLASS) == reducers.get("class_weighted", weights=jnp.asarray(WEIGHTS))


def test_a_class_without_a_weight_shows():
    """NaN for the anchor of that class; not for padding of it, whatever its label."""
    few = reducers.get("class_weighted", weights=[1.0, 2.0])
    values, labels = jnp.asarray([0.5, 0.25, 4.0]), jnp.asarray([0, 1, 2])
    assert jnp.isnan(few.sums(values, jnp.ones(3), labels=labels).total)
    sums = few.sums(values, jnp.asarray([1.0, 1.0, 0.0]), labels=labels)
    assert (float(sums.total), float(sums.weight)) == (1.0, 2.0)
