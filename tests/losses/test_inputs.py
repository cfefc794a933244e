"""What a batch may hold: labels beyond 32 bits, padding of any content, lists; variables of another loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dml_jax import UserError, losses, relations
from tests.losses import table, test_laws
from tests.losses.loops import common

X, LABELS = test_laws.batch(), np.asarray(table.LABELS)
FAR = LABELS.astype(np.int64) * 2**32 + 7  # cut to 32 bits they are all 7


def value(name, labels, **how):
    hyper = how.pop("hyper", {})
    return losses.get(name, **hyper).apply({}, X, labels, **how)[0].compute()


@pytest.mark.parametrize("name", ["contrastive", "multi_similarity", "nt_xent", "n_pairs"])
def test_labels_beyond_32_bits_stay_apart(name):
    want = value(name, LABELS)
    assert value(name, FAR) == want
    assert value(name, -FAR) == want
    assert value(name, (FAR.astype(np.uint64) << np.uint64(20)).tolist()) == want
    # Control: what is cut is one class.
    assert abs(value(name, FAR.astype(np.int32)) - want) > 0.01


def test_references_are_numbered_with_the_batch():
    order = np.random.default_rng(0).permutation(22)
    refs = dict(ref_embeddings=X[order], ref_labels=LABELS[order])
    want = value("contrastive", LABELS, **refs)
    assert value("contrastive", FAR, **refs | {"ref_labels": FAR[order]}) == want


def test_columns_of_a_hierarchy_and_sets():
    tree, sets = table.paths(LABELS), table.label_sets(LABELS)
    for labels, far, relation in (
        (tree, tree.astype(np.int64) << 33, "hierarchy"),
        (sets, sets.astype(np.int64) << 33, "overlap"),
    ):
        hyper = dict(hyper={"relation": relation})
        assert value("contrastive", far, **hyper) == value("contrastive", labels, **hyper)
    same = LABELS[:, None] == LABELS[None, :]
    matrix = dict(hyper={"relation": "matrix"})
    assert value("contrastive", same * 2**40, **matrix) == value("contrastive", same, **matrix)


def test_where_values_count_labels_beyond_32_bits_are_refused():
    for name, hyper in (
        ("arc_face", {}),
        ("proxy_anchor", {}),
        ("manifold", {}),
        ("cross_batch_memory", {"loss": "contrastive"}),
        ("margin", {"learn_beta": True, "per_class": True}),
        ("contrastive", {"reducer": {"name": "class_weighted", "weights": [1.0] * 7}}),
    ):
        loss = losses.get(name, **hyper)
        with pytest.raises(UserError, match="beyond 32 bits") as error:
            loss.apply(loss.init(jax.random.key(0), 7, table.DIM), X, FAR)
        assert "\n" not in str(error.value)


CLASS_LOSSES = [
    name
    for name in sorted(losses.available())
    if name not in ("multiple", "generic_pair", "self_supervised", "cross_batch_memory")
    and losses.has_class_weights(test_laws.make(name))
    and name != "manifold"  # takes any number, modulo K
]


@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_a_label_that_is_no_class(name):
    """An error outside of jit, NaN inside; padding may have any label."""
    loss = losses.get(name)
    variables = loss.init(jax.random.key(0), 7, table.DIM)
    for wrong in (7, -1):
        labels = np.where(np.arange(22) == 3, wrong, LABELS)
        with pytest.raises(UserError, match=f"have the value {wrong}, .* accepted: 0 to 6"):
            loss.apply(variables, X, labels)
        inside = jax.jit(lambda x, y: loss.apply(variables, x, y)[0].compute())
        assert np.isnan(inside(X, labels))
        keep = labels == LABELS
        padded = loss.apply(variables, X, labels, valid=keep)[0].compute()
        np.testing.assert_allclose(
            padded, loss.apply(variables, X[keep], LABELS[keep])[0].compute(), rtol=1e-5
        )


def test_lists_are_taken():
    rows, labels = X.tolist(), LABELS.tolist()
    loss = losses.contrastive()
    assert loss(rows, labels) == loss(X, LABELS)
    assert loss(rows, labels, ref_embeddings=rows, ref_labels=labels) == loss(
        X, LABELS, ref_embeddings=X, ref_labels=LABELS
    )


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["a"] * 22, "accepts integers"),
        (LABELS.astype(float), "labels are float64; relation 'label' accepts integers"),
        ([[0], [1, 2]], "accepted: an array, or a list of integers"),
    ],
)
def test_labels_of_other_types(labels, words):
    with pytest.raises(UserError, match=words):
        losses.contrastive()(X, labels)


def test_miners_can_number_labels_too():
    found, refs = relations.label().prepare_labels([2**40, 5, 2**40], [5, 2**41])
    assert (found.tolist(), refs.tolist()) == ([1, 0, 1], [0, 2])


def test_variables_of_another_loss():
    loss = losses.arc_face()
    made = loss.init(jax.random.key(0), 7, table.DIM)
    with pytest.raises(UserError, match=r"variables\['params'\]\['weights'\].*is missing"):
        loss.apply({}, X, LABELS)
    with pytest.raises(UserError, match=r"has shape \(7, 8\), and embeddings have 5 dimensions"):
        loss.apply(made, X[:, :5], LABELS)
    memory = losses.cross_batch_memory("contrastive", memory_size=30)
    with pytest.raises(UserError, match=r"\['memory'\].*accepted: \(30, 8\)"):
        memory.apply(memory.init(jax.random.key(0), 7, 9), X, LABELS)
    with pytest.raises(UserError, match=r"variables\['state'\].*is missing"):
        memory.apply({"params": {}}, X, LABELS)


def test_a_loss_is_a_function():
    """`loss(embeddings, labels)` and its gradient; one with variables says what to call."""
    loss = losses.multi_similarity()
    want, slope = jax.value_and_grad(lambda x: loss.apply({}, x, LABELS)[0].compute())(X)
    got = jax.value_and_grad(lambda x: loss(x, LABELS))(X)
    np.testing.assert_array_equal(got[0], want)
    np.testing.assert_array_equal(got[1], slope)
    key = dict(key=common.KEY)
    assert losses.triplet_margin(triplets_per_anchor=3)(X, LABELS, **key, block=5) > 0
    with pytest.raises(UserError, match=r"variables \(params\); accepted: variables = loss\.init"):
        losses.arc_face()(X, LABELS)
    with pytest.raises(UserError, match=r"variables \(state\)"):
        losses.dynamic_soft_margin()(X, LABELS)


def test_equal_losses_compile_once():
    first, second = losses.contrastive(neg_margin=0.5), losses.get("contrastive", neg_margin=0.5)
    assert first == second and hash(first) == hash(second)
    assert first != losses.contrastive(neg_margin=0.6)
    x = jnp.asarray(X[:, :3])
    first(x, LABELS)
    before = type(first)._apply._cache_size()
    second(x, LABELS)
    assert type(first)._apply._cache_size() == before
    for name in test_laws.ALL:
        assert test_laws.make(name) == test_laws.make(name)
