"""Relations beyond equal labels: sets of labels, paths in a tree, matrices; with losses, wrappers and miners."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dml_jax import losses, miners, relations
from tests import draws
from tests.losses import table
from tests.losses.loops import common
from tests.losses.loops.ranking import happier
from tests.losses.test_laws import RELATED, batch, mesh, variables

LABELS = table.LABELS
SETS, PATHS = table.label_sets(LABELS), table.paths(LABELS)
SHARED = SETS @ SETS.T
# The references of some tests: five more samples than anchors, other classes.
REF_LABELS = np.concatenate([LABELS[::-1], [6, 2, 0, 5, 1]])
REFS = np.concatenate([batch(seed=3), batch(seed=4)[:5]])
KEY = jax.random.key(3)


def related(spec, a, r):
    return [np.asarray(mask) for mask in relations.build(spec)(jnp.asarray(a), jnp.asarray(r))]


def value(loss, labels, x=None, **more):
    x = batch() if x is None else x
    return loss.apply(variables(loss), x, jnp.asarray(labels), **more)[0].compute()


def test_label_sets_by_hand():
    a = [[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]]
    r = [[1, 1, 1, 0, 0], [0, 2, 1, 1, 1], [1, 0, 0, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]]
    none, empty = [0, 0, 0, 1, 1], [1, 1, 1, 1, 1]
    for spec, want in [
        ("overlap", [1, 1, 1, 0, 0]),
        ({"name": "overlap", "threshold": 2}, [1, 1, 0, 0, 0]),
        ({"name": "overlap", "threshold": 3}, [1, 0, 0, 0, 0]),
        ({"name": "overlap", "measure": "jaccard", "threshold": 0.4}, [1, 1, 0, 0, 0]),  # 2 of 5
        ({"name": "overlap", "measure": "jaccard", "threshold": 0.41}, [1, 0, 0, 0, 0]),
        ({"name": "overlap", "measure": "jaccard", "threshold": 1 / 3}, [1, 1, 1, 0, 0]),
        ({"name": "overlap", "measure": "jaccard", "threshold": 1e-9}, [1, 1, 1, 0, 0]),
    ]:
        pos, neg = related(spec, a, r)
        np.testing.assert_array_equal(pos, [want, [0] * 5], err_msg=str(spec))
        np.testing.assert_array_equal(neg, [none, empty], err_msg=str(spec))


def test_every_ratio_reaches_itself():
    """m of n labels at the threshold m / n, whose float may be above or below; one label less does not."""
    for m, n in [(1, 3), (3, 5), (6, 10), (7, 10), (1, 49), (29, 30), (41, 60), (60, 60)]:
        rows = np.tril(np.ones((n, n), int))
        spec = {"name": "overlap", "measure": "jaccard", "threshold": m / n}
        want = np.arange(1, n + 1) >= m
        np.testing.assert_array_equal(related(spec, rows, rows[-1:])[0][:, 0], want)


@pytest.mark.parametrize("level", [0, 1, 2, -1])
def test_a_level_is_a_column(level):
    pos, neg = related({"name": "hierarchy", "level": level}, PATHS, PATHS[::-1])
    np.testing.assert_array_equal(pos, PATHS[:, None, level] == PATHS[None, ::-1, level])
    np.testing.assert_array_equal(neg, ~pos)


@pytest.mark.parametrize("name", [name for name in RELATED if name not in table.DRAWN])
def test_pairs_between_are_left_out(name):
    """Every loss on label sets that share two or more, one, or none, against its double loop."""
    hyper, naive = table.LOSSES[name]
    loss = losses.get(name.partition("/")[0], relation=table.TWO_SHARED, **hyper)
    want = naive(batch().astype(np.float64), SETS, None)
    np.testing.assert_allclose(value(loss, SETS), want, rtol=2e-5)
    assert (SHARED == 1).any()


def test_what_the_pairs_between_would_do():
    """The negative control of the test above: as negatives they give another number."""
    want = value(losses.get("nt_xent", relation=table.TWO_SHARED), SETS)
    assert abs(value(losses.get("nt_xent", relation="matrix"), SHARED >= 2) - want) > 0.05 * want


@pytest.mark.parametrize(
    "name", ["histogram", "lifted_structure", "margin", "nt_xent", "smooth_ap"]
)
def test_sets_are_the_matrix_of_their_overlap(name):
    """Where one label in common is enough nothing is between: the matrix says the same, on devices, too."""
    want = value(losses.get(name, relation="matrix"), SHARED >= 1)
    loss = losses.get(name, relation="overlap")
    np.testing.assert_allclose(value(loss, SETS), want, rtol=1e-6)
    with jax.set_mesh(mesh(4)):
        np.testing.assert_allclose(value(loss, SETS.astype(bool), block=2), want, rtol=1e-5)


@pytest.mark.parametrize(
    "hyper",
    [
        dict(name="nt_xent"),
        dict(name="margin", learn_beta=True, per_class=True, nu=0.1),
        dict(name="n_pairs"),
        dict(name="cos_face", miner="batch_hard"),
        dict(name="proxy_anchor"),
        dict(name="manifold"),
        dict(name="contrastive", reducer={"name": "class_weighted", "weights": range(1, 12)}),
        dict(name="multiple", losses=["soft_triple", "contrastive"]),
    ],
    ids=lambda hyper: hyper["name"],
)
@pytest.mark.parametrize("level", [-1, 0])
def test_a_level_is_what_its_labels_are(hyper, level):
    """Losses that read classes, too: value and state by a level of the tree are those by its column."""
    relation = {"name": "hierarchy", "level": level}
    if "losses" in hyper:
        inside = [{"name": name, "relation": relation} for name in hyper["losses"]]
        graded = losses.get("multiple", losses=inside)
    else:
        graded = losses.get(relation=relation, **hyper)
    plain = losses.get(**hyper)
    more = dict(valid=jnp.asarray(LABELS != 2))
    want = plain.apply(variables(plain), batch(), LABELS // 4 if level == 0 else LABELS, **more)
    got = graded.apply(variables(graded), batch(), PATHS, **more)
    np.testing.assert_allclose(got[0].compute(), want[0].compute(), rtol=1e-6)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(
    ("hyper", "of"),
    [
        (dict(name="contrastive", relation=table.TWO_SHARED, miner="batch_hard"), table.label_sets),
        (dict(name="happier", relation="hierarchy"), table.paths),
    ],
    ids=["overlap", "hierarchy"],
)
def test_other_references(hyper, of, devices):
    """27 references for 22 anchors: batch_hard by hand, a ranking against anchors one by one."""
    loss, x = losses.get(**hyper), batch()
    more = dict(ref_embeddings=REFS, ref_labels=of(REF_LABELS), block=3)
    with jax.set_mesh(mesh(devices)):
        got = value(loss, of(LABELS), x, **more)
    rows = [
        value(loss, of(LABELS[i : i + 1]), x[i : i + 1], **{**more, "block": None})
        for i in range(len(x))
    ]
    if hyper["name"] == "happier":
        np.testing.assert_allclose(got, np.mean(rows), rtol=1e-5)
        return
    d = np.sqrt(np.maximum(2 - 2 * common.cosines(x, REFS), 0))
    shared = SETS @ of(REF_LABELS).T
    pull, push = [], []
    for a in range(len(x)):
        if (shared[a] >= 2).any() and (shared[a] == 0).any():
            pull.append(max(d[a, j] for j in np.flatnonzero(shared[a] >= 2)))
            push.append(1 - min(d[a, j] for j in np.flatnonzero(shared[a] == 0)))
    np.testing.assert_allclose(got, common.non_zero(pull) + common.non_zero(push), rtol=1e-5)


def test_rankings_of_a_tree_by_hand():
    """Of two levels, references at ranks 1 (coarse), 2 (other), 3 (fine) of 3, without the anchor.

    Relevances are 1/2 and 1. Rank 1: H-rank 1/2 of 1. Rank 3: H-rank 1 + 1/2 of rank 1 + 2, those ahead being
    less relevant; far ahead, so that rho would count: it is 0 here.
    """
    query, angles = jnp.asarray([[1.0, 0.0]]), jnp.asarray([0.2, 0.6, 1.2])
    refs = jnp.stack([jnp.cos(angles), jnp.sin(angles)], 1)
    loss = losses.get("happier", relation="hierarchy", rho=0.0, tau=1e-4)
    labels = dict(ref_embeddings=refs, ref_labels=jnp.asarray([[0, 1], [1, 2], [0, 0]]))
    # Each negative ahead counts 1/2 + sigmoid(delta / tau) = 3/2; behind, 0.
    want = 1 - (0.5 / 1 + 1.5 / (1 + 3 / 2 + 3 / 2)) / 1.5
    np.testing.assert_allclose(value(loss, [[0, 0]], query, **labels), want, atol=1e-4)


@pytest.mark.parametrize("relation", ["label", "hierarchy"])
def test_one_level_is_the_precision_of_roadmap(relation):
    labels = LABELS if relation == "label" else LABELS[:, None]
    plain = losses.get("roadmap", lambda_=0.0)
    slope = jax.value_and_grad(lambda x: value(plain, LABELS, x))
    want = slope(batch())
    loss = losses.get("happier", relation=relation, alpha=3.0)
    got = jax.value_and_grad(lambda x: value(loss, labels, x))(batch())
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=0, atol=1e-6 * np.abs(w).max())
    apart = losses.get("happier", relation="hierarchy")
    assert abs(value(apart, PATHS) - want[0]) > 0.05


@pytest.mark.parametrize("alpha", [0.0, 2.0])
def test_how_fast_relevance_falls(alpha):
    want = happier(batch().astype(np.float64), PATHS, None, alpha)
    got = value(losses.get("happier", relation="hierarchy", alpha=alpha), PATHS)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert abs(want - happier(batch().astype(np.float64), PATHS, None)) > 0.01


def test_the_surrogate_is_above_the_loss():
    """1 - H-AP by its definition on the ranking itself, for embeddings good and bad."""
    loss = losses.get("happier", relation="hierarchy")
    for seed in range(5):
        near = 0 if seed else 100 * np.eye(table.DIM)[PATHS[:, 2]]
        x = (batch(seed=seed) + near).astype(np.float32)
        s, rows = common.cosines(x, x), []
        np.fill_diagonal(s, 2)
        for a in range(22):
            level = (PATHS[a] == PATHS).sum(1)
            gain = np.array([v / (level == v).sum() if v else 0 for v in level])
            gain = gain[np.argsort(-s[a], kind="stable")]
            ranked = [np.minimum(gain[: k + 1], gain[k]).sum() / (k + 1) for k in range(22)]
            rows.append(1 - sum(ranked) / gain.sum())
        assert value(loss, PATHS, x) >= np.mean(rows) - 1e-5


def test_the_memory_of_a_ranking_is_that_of_its_rows():
    """Temporaries at 256 anchors: several arrays [a, n], far from one [a, n, n]."""
    n, loss = 256, losses.get("happier", relation="hierarchy")
    step = jax.grad(lambda x, y: loss.apply({}, x, y)[0].compute())
    shapes = (jax.ShapeDtypeStruct((n, 8), jnp.float32), jax.ShapeDtypeStruct((n, 3), jnp.int32))
    memory = jax.jit(step).lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 40 * 4 * n * n < 4 * n**3 / 6


def test_the_method_with_its_clustering_term():
    """0.9 happier + 0.1 normalized_softmax on the finest level, as the paper adds them."""
    parts = [{"name": n, "relation": "hierarchy"} for n in ("happier", "normalized_softmax")]
    loss = losses.get("multiple", losses=parts, weights=[0.9, 0.1])
    made = variables(loss)
    ranking, clusters = losses.get(**parts[0]), losses.get("normalized_softmax")
    want = 0.9 * ranking.apply({}, batch(), PATHS)[0].compute()
    inner = {"params": made["params"]["1"]}
    want += 0.1 * clusters.apply(inner, batch(), LABELS)[0].compute()
    np.testing.assert_allclose(value(loss, PATHS), want, rtol=1e-6)


def multi_similarity(x, y, w, anchors):
    """The double loop with some of the samples as anchors."""
    everyone = list(common.each_anchor(y))
    s = common.cosines(x, x)
    pull = lambda a, p: math.log(1 + sum(math.exp(-2 * (s[a, j] - 0.5)) for j in p)) / 2
    push = lambda a, n: math.log(1 + sum(math.exp(50 * (s[a, j] - 0.5)) for j in n)) / 50
    return np.mean([pull(a, p) + push(a, n) for a, p, n in (everyone[i] for i in anchors)])


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize(
    ("inner", "of", "naive"),
    [
        (
            dict(name="multi_similarity", relation=table.TWO_SHARED),
            table.label_sets,
            multi_similarity,
        ),
        (dict(name="happier", relation="hierarchy"), table.paths, happier),
    ],
    ids=["overlap", "hierarchy"],
)
def test_a_queue_of_label_rows(inner, of, naive, devices):
    """Two steps, the second with padding, against the same references by hand."""
    labels, more = of(LABELS), of(REF_LABELS[:22])
    loss = losses.get("cross_batch_memory", loss=inner, memory_size=40, label_size=labels.shape[1])
    keep = jnp.arange(22) != 5
    with jax.set_mesh(mesh(devices)):
        first, state = loss.apply(variables(loss), batch(), labels, block=4)
        second, after = loss.apply({"state": state}, REFS[:22], more, valid=keep, block=4)
    np.testing.assert_allclose(first.compute(), value(losses.get(**inner), labels), rtol=1e-5)
    # The second batch has the slots from 22 on, and needs 21: three samples of the first are overwritten.
    rest = np.asarray(keep)
    np.testing.assert_array_equal(after["labels"][22:], more[rest][:18])
    np.testing.assert_array_equal(after["labels"][3:22], labels[3:])
    x = np.concatenate([REFS[:22][rest], batch()[3:]]).astype(np.float64)
    y = np.concatenate([more[rest], labels[3:]])
    want = naive(x, y, None, anchors=range(21))
    np.testing.assert_allclose(second.compute(), want, rtol=2e-5)


def test_views_do_not_read_labels():
    loss = losses.get("self_supervised", loss="nt_xent")
    np.testing.assert_array_equal(value(loss, PATHS), value(loss, LABELS))
    ranking = {"name": "happier", "relation": "hierarchy"}
    both = losses.get("multiple", losses=[{"name": "self_supervised", "loss": "nt_xent"}, ranking])
    want = value(loss, LABELS) + value(losses.get(**ranking), PATHS)
    np.testing.assert_allclose(value(both, PATHS), want, rtol=1e-6)


# These choose by position, or push samples of a class apart: their choice is not what a relation allows.
FREE = (
    "embeddings_already_packaged_as_triplets",
    "intra_random",
    "random_distance",
    "rho_distance",
)
MINERS = [{"name": name} for name in miners.available() if name not in FREE]


def chosen(miner, labels, relation, **more):
    return miners.get(**miner)(
        batch(), jnp.asarray(labels), relation=relation, key=KEY, **more
    ).indices()


@pytest.mark.parametrize(
    "miner", draws.some(MINERS, 6, "relations"), ids=lambda miner: miner["name"]
)
def test_miners_take_relations(miner):
    """A level chooses as its column does, sets as their matrix; what is chosen is what the relation allows."""
    draws.tell()
    one = chosen(miner, PATHS, {"name": "hierarchy", "level": 1})
    for got, want in zip(one, chosen(miner, LABELS // 2, None), strict=True):
        np.testing.assert_array_equal(got, want)
    assert sum(map(len, one)) > 0
    for got, want in zip(
        chosen(miner, SETS, "overlap"), chosen(miner, SHARED >= 1, "matrix"), strict=True
    ):
        np.testing.assert_array_equal(got, want)
    indices = chosen(miner, SETS, table.TWO_SHARED)
    (a, p), (b, n) = (
        (indices[:2], indices[-2:])
        if len(indices) == 4
        else (
            (indices[0], indices[1]),
            (indices[0], indices[2]),
        )
    )
    assert len(a) + len(b) > 0
    assert (SHARED[a, p] >= 2).all() and (a != p).all() and (SHARED[b, n] == 0).all()
    refs = dict(ref_embeddings=REFS, ref_labels=table.label_sets(REF_LABELS))
    shared = SETS @ table.label_sets(REF_LABELS).T
    indices = chosen(miner, SETS, table.TWO_SHARED, **refs)
    assert (shared[indices[-2 if len(indices) == 4 else 0], indices[-1]] == 0).all()


def test_a_mined_choice_by_hand():
    """batch_hard among sets: the farthest that shares two, the nearest that shares none."""
    d = common.distance(batch())
    a, p, n = chosen({"name": "batch_hard"}, SETS, table.TWO_SHARED)
    for anchor, positive, negative in zip(a, p, n, strict=True):
        allowed = (SHARED[anchor] >= 2) & (np.arange(22) != anchor)
        assert positive == np.argmax(np.where(allowed, d[anchor], -1))
        assert negative == np.argmin(np.where(SHARED[anchor] == 0, d[anchor], 9))
    assert len(a) > 15


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: relations.get("overlp"), "did you mean 'overlap'"),
        (lambda: relations.get("label", threshold=1), "hyper-parameter of relation 'label'"),
        (lambda: relations.get("overlap", threshold=0), "accepted: a number above 0"),
        (lambda: relations.get("overlap", threshold="2"), "is '2'; accepted: a number"),
        (lambda: relations.get("overlap", measure="jacard"), "did you mean 'jaccard'"),
        (lambda: relations.get("overlap", measure="jaccard", threshold=2), "above 0, to 1"),
        (lambda: relations.get("hierarchy", level="fine"), "accepted: a whole number"),
        (lambda: losses.get("happier", relation="overlap"), "relation 'hierarchy' or 'label', not"),
        (
            lambda: losses.get("arc_face", relation="overlap"),
            "relation 'hierarchy' or 'label', not",
        ),
        (lambda: losses.get("n_pairs", relation=table.TWO_SHARED), "reads the classes"),
        (
            lambda: losses.get(
                "multiple", losses=["nt_xent", {"name": "happier", "relation": "hierarchy"}]
            ),
            "hierarchy, label, which take other labels",
        ),
        (
            lambda: losses.get("self_supervised", loss={"name": "nt_xent", "relation": "overlap"}),
            "with relation 'label'",
        ),
        (
            lambda: losses.get(
                "cross_batch_memory", loss={"name": "nt_xent", "relation": "overlap"}
            ),
            "label_size=None for relation 'overlap'; accepted: a positive integer",
        ),
        (
            lambda: losses.get("cross_batch_memory", loss="nt_xent", label_size=3),
            "label_size=3 for relation 'label'; accepted: None",
        ),
        (
            lambda: value(losses.get("nt_xent", relation={"name": "hierarchy", "level": 3}), PATHS),
            "level=3, and labels of 3 levels; accepted: -3 to 2",
        ),
        (
            lambda: value(losses.get("nt_xent", relation="overlap"), LABELS),
            r"relation 'overlap' takes \(22, labels\)",
        ),
        (
            lambda: value(
                losses.get("nt_xent", relation="overlap"),
                SETS,
                ref_embeddings=REFS,
                ref_labels=SETS,
            ),
            r"accepted: \(27, 14\)",
        ),
        (
            lambda: value(
                losses.get(
                    "cross_batch_memory",
                    loss={"name": "nt_xent", "relation": "overlap"},
                    memory_size=30,
                    label_size=9,
                ),
                SETS,
            ),
            r"label_size=9, and labels of shape \(22, 14\); accepted: \(22, 9\)",
        ),
        (lambda: chosen({"name": "batch_hard"}, LABELS[:5], "label"), r"takes \(22,\)"),
        (lambda: chosen({"name": "batch_hard"}, LABELS, "hierarchy"), r"takes \(22, labels\)"),
    ],
)
def test_errors(make, words):
    with pytest.raises(ValueError, match=words) as error:
        make()
    assert "\n" not in str(error.value)
