"""The laws of every loss: DESIGN's contract, over the table in tests/losses/table.py."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from dml_jax import losses
from dml_jax.mesh import batch_axes
from dml_jax.pairwise import Samples
from tests import draws, optimised
from tests.losses import table
from tests.losses.loops import common, ranking

ALL = sorted(table.LOSSES)
# One miner of each kind of selection: pairs, listed triplets, intervals of triplets.
MINED = [
    ("multi_similarity", "multi_similarity"),
    ("contrastive", "batch_hard"),
    ("nt_xent", "triplet_margin"),
    ("triplet_margin", "multi_similarity"),
    ("triplet_margin", "batch_hard"),
    ("triplet_margin", "triplet_margin"),
    ("cos_face", "batch_hard"),
    ("proxy_anchor", "multi_similarity"),
    ("lifted_structure", "triplet_margin"),
    ("margin", "multi_similarity"),
    ("margin", "batch_hard"),
    ("margin/per_class", "triplet_margin"),
    ("n_pairs", "multi_similarity"),
    ("nca", "triplet_margin"),
    ("triplet_margin/swap", "batch_hard"),
    ("cross_batch_memory", "multi_similarity"),
    ("soft_triple", "triplet_margin"),
    ("smooth_ap", "triplet_margin"),
    ("angular", "batch_hard"),
    ("dynamic_soft_margin", "triplet_margin"),
    ("multi_similarity/overlap", "batch_hard"),
    ("happier/hierarchy", "multi_similarity"),
    ("revisiting_margin/parity", "triplet_margin"),
    ("revisiting_n_pair", "multi_similarity"),
    ("revisiting_quadruplet", "triplet_margin"),
    ("revisiting_snr", "batch_hard"),
]
CASES = [(name, None) for name in ALL] + MINED
# Draws belong to positions in the batch: tests/losses/test_revisiting.py has their padding.
FIXED = [name for name in ALL if name not in table.DRAWN]
# Of module scope, so that pytest takes all laws of a loss together and one process compiles its program.
each_loss = pytest.mark.parametrize("name", ALL, scope="module")
each_case = pytest.mark.parametrize(("name", "miner"), CASES, scope="module")
LABELS = jnp.asarray(table.LABELS)


def batch(dtype=np.float32, seed=0):
    """Loosely clustered embeddings, so that every loss has active and inactive terms."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(table.CLASSES, table.DIM))
    return (centers[table.LABELS] + rng.normal(size=(len(table.LABELS), table.DIM))).astype(dtype)


def make(name, miner=None):
    apart = table.APART | table.ELSEWHERE
    hyper = apart[name] if name in apart else table.LOSSES[name][0]
    return losses.get(name.partition("/")[0], miner=miner, **hyper)


def variables(loss, seed=1):
    return loss.init(jax.random.key(seed), table.CLASSES, table.DIM)


def class_weights(loss):
    """[classes, dim] or [classes, centers, dim]; None for a loss without."""
    return variables(loss).get("params", {}).get("weights")


def learned(loss):
    """What a double loop is given: the class weights, or else all parameters there are, in float64."""
    params = variables(loss).get("params", {})
    return jax.tree.map(lambda v: np.asarray(v, float), params.get("weights", params))


def references(name, embeddings):
    """The second view of a batch for the losses that compare two."""
    return {"ref_embeddings": common.second_view(embeddings)} if name in table.VIEWS else {}


@functools.cache
def graded(name, miner=None, block=None, as_users=False):
    """value_and_grad with respect to (embeddings, params), compiled once for all tests; or as users' programs are."""
    loss = make(name, miner)

    def value(embeddings, params, state, labels, valid):
        variables = {"params": params, "state": state}
        more = dict(valid=valid, block=block, key=common.KEY) | references(name, embeddings)
        return loss.apply(variables, embeddings, labels, **more)[0].compute()

    compiled = optimised.jit if as_users else jax.jit
    return compiled(jax.value_and_grad(value, argnums=(0, 1)))


def labels_of(name, labels=LABELS):
    """The labels that a row takes, made of classes."""
    make_labels = table.LABELLED.get(name)
    return labels if make_labels is None else jnp.asarray(make_labels(labels))


def evaluate(name, embeddings, labels=LABELS, miner=None, block=None, valid=None):
    """Value and gradients; of a whole batch on one device by the program that users run."""
    whole = len(labels) == len(LABELS) and not batch_axes()
    as_users = whole and miner is None and block is None
    loss, labels = make(name, miner), labels_of(name, labels)
    valid = jnp.ones(len(labels), bool) if valid is None else valid
    made = variables(loss)
    params, state = made.get("params", {}), made.get("state", {})
    return graded(name, miner, block, as_users)(embeddings, params, state, labels, valid)


def evaluate_with(name, embeddings, labels, valid):
    """As `evaluate`, of labels as the row takes them."""
    made = variables(make(name))
    params, state = made.get("params", {}), made.get("state", {})
    run = graded(name, as_users=True)
    return run(embeddings, params, state, jnp.asarray(labels), jnp.asarray(valid))


def assert_same(got, want, rtol=1e-5):
    """Value and every gradient, relative to the largest entry of each."""
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        g, w = np.asarray(g, np.float64), np.asarray(w, np.float64)
        np.testing.assert_allclose(g, w, rtol=0, atol=rtol * max(np.abs(w).max(), 1e-3))


def assert_finite(result):
    for leaf in jax.tree.leaves(result):
        assert np.isfinite(np.asarray(leaf)).all()


@functools.cache
def mesh(devices):
    return jax.make_mesh(
        (devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )


def test_the_table_has_every_loss():
    names = {name.partition("/")[0] for name in ALL}
    assert losses.available() == sorted({*names, *table.APART, *table.ELSEWHERE})


@each_loss
def test_equals_the_double_loop(name):
    x = batch()
    labels = np.asarray(labels_of(name, table.LABELS))
    want = table.LOSSES[name][1](x.astype(np.float64), labels, learned(make(name)))
    got, _ = evaluate(name, x)
    assert abs(want) > 0.05
    np.testing.assert_allclose(got, want, rtol=2e-5)


@pytest.mark.parametrize("name", [n for n in ALL if not make(n).takes_block])
def test_a_loss_without_blocks_says_so(name):
    with pytest.raises(ValueError, match="no form in blocks; accepted: block=None"):
        evaluate(name, batch(), block=5)


# (devices, block): one with blocks and one with devices in each run, or all of them.
WAYS = [[(1, 5), (8, None)], [(4, 2), (8, None)], [(1, 5), (2, None)]]
ALL_WAYS = sorted({way for ways in WAYS for way in ways}, key=str)


@each_case
def test_blocks_and_devices_equal_dense(name, miner):
    """22 anchors and 11 classes divide by none of the device counts but 2: padding is at work, too."""
    draws.tell()
    x, want = batch(), evaluate(name, batch(), miner=miner)
    for devices, block in ALL_WAYS if draws.ALL else WAYS[draws.turn((name, miner), 3)]:
        block = block if make(name).takes_block else None
        with jax.set_mesh(mesh(devices)) if devices > 1 else contextlib.nullcontext():
            assert_same(evaluate(name, x, miner=miner, block=block), want)


@pytest.mark.parametrize("name", draws.some([n for n in ALL if make(n).takes_block], 6, "blocks"))
def test_blocks_as_users_compile_them(name):
    draws.tell()
    x, made = batch(), variables(make(name))
    arrays = x, made.get("params", {}), made.get("state", {}), labels_of(name), jnp.ones(22, bool)
    assert_same(graded(name, None, 5, True)(*arrays), evaluate(name, x))


def test_devices_negative_control():
    """What the law above rules out: the mean of per-device losses is another number."""
    x = batch()
    want, _ = evaluate("multi_similarity", x)
    parts = [evaluate("multi_similarity", x[i : i + 11], LABELS[i : i + 11])[0] for i in (0, 11)]
    assert abs(np.mean(parts) - want) > 0.05 * want


@pytest.mark.parametrize("name", FIXED, scope="module")
def test_order_of_the_batch_does_not_matter(name):
    x, order = batch(), np.random.default_rng(3).permutation(len(LABELS))
    if (
        name == "n_pairs"
    ):  # which pair stands for its class is a matter of the order within the class
        for label in np.unique(LABELS):
            order[table.LABELS[order] == label] = np.flatnonzero(label == table.LABELS)
    value, (gradient, rest) = evaluate(name, x)
    got, (got_gradient, got_rest) = evaluate(name, x[order], LABELS[order])
    assert_same((got, got_gradient, got_rest), (value, gradient[order], rest), rtol=2e-5)


@pytest.mark.parametrize(
    ("name", "miner"),
    draws.some([case for case in CASES if case[0] in FIXED], 30, "padding"),
    scope="module",
)
def test_padding_equals_dropping_rows(name, miner):
    """Padding of either label, with values that would show; its gradient is exactly 0."""
    draws.tell()
    x, keep = batch(), np.arange(len(LABELS)) % 5 != 2
    padded = jnp.where(keep[:, None], x, 7.0 * x[::-1])
    value, (gradient, rest) = evaluate(name, padded, miner=miner, valid=jnp.asarray(keep))
    want, (want_gradient, want_rest) = evaluate(name, x[keep], LABELS[keep], miner=miner)
    assert_same((value, gradient[keep], rest), (want, want_gradient, want_rest))
    assert not np.asarray(gradient)[~keep].any()


@pytest.mark.parametrize("name", [*ALL, *table.APART], scope="module")
def test_padding_may_hold_anything(name):
    """Rows that are not valid and hold NaN, infinity and labels of no class: no part in value or gradient."""
    keep = np.arange(22) % 5 != 2
    poisoned, zeros = (batch() for _ in range(2))
    poisoned[~keep] = [[np.nan], [np.inf], [-np.inf], [1e38], [np.nan]][: (~keep).sum()]
    zeros[~keep] = 0
    labels = np.asarray(labels_of(name))
    strange = np.where(keep.reshape(-1, *[1] * (labels.ndim - 1)), labels, -5)
    got, (gradient, rest) = evaluate_with(name, poisoned, strange, keep)
    want, (want_gradient, want_rest) = evaluate_with(name, zeros, labels, keep)
    assert_finite((got, gradient, rest))
    assert_same((got, gradient, rest), (want, want_gradient, want_rest), rtol=1e-6)


EDGES = {
    "no positives": (np.arange(22) % 11, lambda x: x),  # labels made unique below
    "one class": (np.zeros(22), lambda x: x),
    "duplicates": (table.LABELS, lambda x: x[np.arange(22) // 2]),
    "all equal": (table.LABELS, lambda x: np.ones_like(x)),
    "a zero vector": (table.LABELS, lambda x: x * (np.arange(22) != 4)[:, None]),
    "opposite vectors": (table.LABELS, lambda x: np.concatenate([x[:11], -x[:11]])),
    "large": (table.LABELS, lambda x: 1e10 * x),
    "huge": (table.LABELS, lambda x: 1e15 * x),
    "tiny": (table.LABELS, lambda x: 1e-15 * x),
}


@each_case
def test_edge_cases_are_finite(name, miner):
    for edge, (labels, change) in EDGES.items():
        if edge in ("large", "huge") and name in table.VIEWS:
            continue  # its value, a sum of fourth powers, is beyond float32
        result = evaluate(name, change(batch()), jnp.asarray(labels, jnp.int32), miner=miner)
        try:
            assert_finite(result)
        except AssertionError:
            raise AssertionError(f"{name} with {miner} is not finite: {edge}") from None


@each_case
def test_a_nan_shows(name, miner):
    """One NaN of one embedding is never a loss that looks sound, even where a miner would leave its pairs out."""
    x = batch()
    x[3, 2] = np.nan
    assert not np.isfinite(evaluate(name, x, miner=miner)[0])
    assert np.isfinite(evaluate(name, batch(), miner=miner)[0])


# Losses that count, or keep in play, only values on one side of a bound.
BOUNDED = (
    "angular",
    "circle",
    "contrastive",
    "dynamic_soft_margin",
    "histogram",
    "manifold",
    "ranked_list",
    "threshold_consistent_margin",
    "triplet_margin",
    "triplet_margin/swap",
)


@pytest.mark.parametrize("name", BOUNDED)
def test_a_nan_passes_bounds(name):
    """Without the check of `apply`: the kernels themselves let NaN through."""
    loss, x = make(name), batch()
    x[3, 2] = np.nan
    step = lambda x: loss.step(
        variables(loss), Samples(x, LABELS, jnp.ones(22, bool)), None, None, None
    )
    assert np.isnan(jax.jit(step)(x)[0].compute())


@each_loss
def test_perfect_alignment_is_finite(name):
    """Embeddings that point where their class weights point (where arccos has no derivative)."""
    weights = class_weights(make(name))
    weights = batch()[:11] if weights is None else np.asarray(weights)
    if weights.ndim == 3:
        weights = weights[:, 0]
    assert_finite(evaluate(name, weights[table.LABELS]))


PAIR = [n for n in ALL if not losses.has_class_weights(make(n)) and n not in table.VIEWS]
RELATED = [
    n
    for n in PAIR
    if isinstance(make(n), losses.PairLoss | losses.SumsLoss)
    and not make(n).reads_classes
    and n.partition("/")[0] != "happier"  # reads classes, too
    and n not in table.LABELLED
]


@pytest.mark.parametrize(
    "name",
    draws.some([n for n in PAIR if not getattr(make(n), "regularizers", ())], 15, "alone"),
    scope="module",
)
def test_a_sample_alone_has_no_loss(name):
    draws.tell()
    value, (gradient, _) = evaluate(name, batch()[:1], LABELS[:1])
    assert float(value) == 0
    assert not np.asarray(gradient).any()


@pytest.mark.parametrize("name", ["nt_xent", "sup_con", "triplet_margin"])
@pytest.mark.parametrize("labels", [np.arange(22), np.zeros(22)], ids=["unique", "one class"])
def test_nothing_to_compare_is_zero(name, labels):
    value, (gradient, _) = evaluate(name, batch(), jnp.asarray(labels, jnp.int32))
    assert float(value) == 0
    assert not np.asarray(gradient).any()


@pytest.mark.parametrize("name", draws.some(ALL, 20, "bfloat16"), scope="module")
def test_bfloat16_in_float32_inside(name):
    """The loss of bfloat16 embeddings is the float32 loss of the same (rounded) numbers."""
    draws.tell()
    x = jnp.asarray(batch(), jnp.bfloat16)
    loss = make(name)
    y = x.astype(jnp.float32)
    views = jax.tree.map(lambda v: v.astype(jnp.bfloat16), references(name, y))
    mean, _ = loss.apply(variables(loss), x, labels_of(name), key=common.KEY, **views)
    assert mean.total.dtype == jnp.float32
    same = jax.tree.map(lambda v: v.astype(jnp.float32), views)
    want, _ = loss.apply(variables(loss), y, labels_of(name), key=common.KEY, **same)
    np.testing.assert_allclose(mean.compute(), want.compute(), rtol=1e-6)


@pytest.mark.parametrize("name", ["multi_similarity", "cos_face"])
def test_traced_once(name):
    loss, traces = make(name), []

    @jax.jit
    def value(embeddings):
        traces.append(1)
        return loss.apply(variables(loss), embeddings, LABELS)[0].compute()

    for seed in range(3):
        value(batch(seed=seed))
    assert len(traces) == 1
    before = type(loss)._apply._cache_size()
    for seed in range(3):
        losses.get(name).apply(variables(loss), batch(seed=seed), LABELS)
    assert type(loss)._apply._cache_size() <= before + 1


@pytest.mark.parametrize("name", draws.some(RELATED, 12, "matrix"), scope="module")
def test_the_batch_as_matrix_of_positives(name):
    """The same positives as labels and as a boolean matrix; on devices, too."""
    draws.tell()
    x, matrix = batch(), LABELS[:, None] == LABELS[None, :]
    loss = losses.get(name.partition("/")[0], relation="matrix", **table.LOSSES[name][0])
    want, _ = evaluate(name, x)
    got = loss.apply(variables(loss), x, matrix, key=common.KEY)[0].compute()
    np.testing.assert_allclose(got, want, rtol=1e-6)
    if name == "multi_similarity":
        with jax.set_mesh(mesh(8)):
            got = loss.apply({}, x, matrix, block=2)[0].compute()
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_references_keep_a_sample_beside_its_copy():
    """Against separate references nothing is 'self': the batch's own copy is a positive."""
    x, loss = batch(), losses.get("contrastive", reducer="sum")
    alone = loss.apply({}, x, LABELS)[0]
    again = loss.apply({}, x, LABELS, ref_embeddings=x, ref_labels=LABELS)[0]
    np.testing.assert_allclose(alone.compute(), again.compute(), rtol=1e-5)
    mean = losses.get("contrastive", reducer="mean")
    assert mean.apply({}, x, LABELS)[0].compute() > 1.2 * (
        mean.apply({}, x, LABELS, ref_embeddings=x, ref_labels=LABELS)[0].compute()
    )


def test_the_stats_count_what_the_miner_left():
    x = batch()
    mean, _ = losses.get("multi_similarity", miner="batch_hard").apply({}, x, LABELS)
    pairs = (table.LABELS[:, None] == table.LABELS[None, :]) & ~np.eye(22, dtype=bool)
    anchors = pairs.any(1).sum()
    np.testing.assert_allclose(mean.stats["in_play/anchors"], 1)
    np.testing.assert_allclose(mean.stats["in_play/positives"], anchors / pairs.sum(), rtol=1e-6)


def test_the_running_histogram_is_a_moving_average():
    """Two steps of dynamic_soft_margin against the double loop; its state has no derivative."""
    loss, x, z = make("dynamic_soft_margin"), batch(), batch(seed=2)
    _, state = loss.apply(variables(loss), x, LABELS)
    first = ranking.soft_margin_histogram(ranking.margins(x.astype(float), table.LABELS))
    np.testing.assert_allclose(state["histogram"], first, rtol=1e-5, atol=1e-7)
    mean, after = loss.apply({"state": state}, z, LABELS)
    second = ranking.soft_margin_histogram(ranking.margins(z.astype(float), table.LABELS))
    want = 0.99 * first + 0.01 * second
    np.testing.assert_allclose(after["histogram"], want, rtol=1e-5, atol=1e-7)
    naive = ranking.dynamic_soft_margin(z.astype(float), table.LABELS, None, want)
    np.testing.assert_allclose(mean.compute(), naive, rtol=2e-5)
    with jax.set_mesh(mesh(4)):
        again = loss.apply({"state": state}, z, LABELS, block=2)[1]
    np.testing.assert_allclose(again["histogram"], after["histogram"], rtol=1e-5, atol=1e-7)
    _, kept = loss.apply({"state": state}, z, jnp.arange(22))
    np.testing.assert_array_equal(kept["histogram"], state["histogram"])
    slope = jax.grad(lambda x: loss.apply(variables(loss), x, LABELS)[1]["histogram"].sum())(x)
    assert not np.asarray(slope).any()


def test_recall_at_each_k_has_its_temperature():
    """Several k are the mean of each by itself, with its own temperature (k itself in the authors' code)."""
    x, of = (
        batch(),
        lambda **hyper: losses.get("recall_at_k", **hyper).apply({}, batch(), LABELS)[0],
    )
    got = of(k=(1, 4), k_temperature=(1.0, 4.0)).compute()
    want = [of(k=(k,), k_temperature=float(k)).compute() for k in (1, 4)]
    np.testing.assert_allclose(got, np.mean(want), rtol=1e-6)
    assert abs(got - of(k=(1, 4)).compute()) > 0.004
    s, rows = common.cosines(x, x), list(common.each_anchor(table.LABELS))
    ranks = {(a, i): 1 + ranking.step(0.01, s[a], i, p + n) for a, p, n in rows for i in p}
    by_hand = common.mean(
        1 - min(sum(common.logistic((4 - ranks[a, i]) / 4) for i in p), 4) / min(len(p), 4)
        for a, p, _ in rows
        if p
    )
    np.testing.assert_allclose(want[1], by_hand, rtol=1e-5)


def test_rankings_among_other_references_have_no_anchor_in_them():
    """Average precision of a query among references, by hand: relevant at ranks 1 and 3 of 3."""
    query, labels = jnp.asarray([[1.0, 0.0]]), jnp.asarray([0])
    angles = jnp.asarray([0.2, 0.6, 1.2])
    refs = jnp.stack([jnp.cos(angles), jnp.sin(angles)], 1)
    more = dict(ref_embeddings=refs, ref_labels=jnp.asarray([0, 1, 0]))
    # A positive at rank k itself is half a hit of recall@k: sigmoid(0).
    for name, hyper, want in [
        ("smooth_ap", dict(temperature=1e-4), 1 - (1 + 2 / 3) / 2),
        ("pnp", dict(anneal=1e-4), 1 / 2),
        ("recall_at_k", dict(k=[1, 2], k_temperature=0.1), 1 - (1 / 2 + 1 / 2) / 2),
    ]:
        got = losses.get(name, **hyper).apply({}, query, labels, **more)[0].compute()
        np.testing.assert_allclose(got, want, atol=1e-4, err_msg=name)
