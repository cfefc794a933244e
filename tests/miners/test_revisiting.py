"""Miners of the ICML 2020 study: exact probabilities, the same draw in blocks and on devices, edges."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dml_jax import losses, miners, pairwise
from dml_jax.relations import SAME_LABEL
from tests import draws
from tests.losses import test_laws
from tests.miners import chances, table

# Unbalanced, with a singleton; distances between 0.1 and 1.9.
LABELS = np.array([0, 0, 0, 1, 1, 2, 3, 3, 3, 3])
DRAWS = 3000


def embeddings(labels=LABELS, seed=0):
    rng = np.random.default_rng(seed)
    x = 0.5 * rng.normal(size=(labels.max() + 1, 4))[labels] + 0.5 * rng.normal(
        size=(len(labels), 4)
    )
    x[:-1, 0] += 1.2  # most are near each other, the last is far
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def distances(x, r):
    return np.linalg.norm(x[:, None].astype(float) - r[None].astype(float), axis=-1)


@functools.cache
def sampler(miner):
    draw = lambda x, y, refs, key: miner(x, y, **refs, key=key).selection.triplets
    return jax.jit(jax.vmap(draw, (None, None, None, 0)))


def sample(miner, x, y, refs=None, draws=DRAWS):
    """(positive, negative, weight), each [draws, b, k]."""
    keys = jax.random.split(jax.random.key(7), draws)
    listed = sampler(miner)(x, y, refs or {}, keys)
    return tuple(np.asarray(v) for v in (listed.positive, listed.negative, listed.weight))


def deviations(miner, x, y, want):
    """The deviation of each anchor's draws from `want(a)`."""
    positive, negative, weight = (v[:, :, 0] for v in sample(miner, x, y))
    found = []
    for a in range(len(y)):
        kept = weight[:, a] > 0
        pairs = zip(positive[kept, a].tolist(), negative[kept, a].tolist(), strict=True)
        found.append(chances.chi_square(collections.Counter(pairs), want(a), DRAWS))
    return np.array(found)


CASES = [
    ("semihard", {}, {}),
    ("semihard", {"margin": 0.5}, {"margin": 0.5}),
    ("softhard", {}, {}),
    ("distance", {}, {}),
    ("distance", {"lower_cutoff": 0.9}, {"cutoff": 0.9}),
    ("rho_distance", {"p_switch": 0.35}, {"p_switch": 0.35}),
] + [
    ("parametric", dict(mode=mode, n_support=7, support_lim=[0.2, 1.4]), {"mode": mode})
    for mode in ("uniform", "hards", "semihards", "veryhards")
]


@pytest.mark.parametrize(("name", "hyper", "naive"), CASES)
def test_draws_have_the_exact_probabilities(name, hyper, naive):
    x = embeddings()
    d = distances(x, x)
    want = lambda a: chances.CHANCES[name](d, LABELS, a, **naive)
    assert not want(5)  # a singleton
    found = deviations(miners.get(name, **hyper), x, LABELS, want)
    assert (found < 5).all(), found


@pytest.mark.parametrize(
    ("name", "hyper", "wrong"),
    [
        ("semihard", {}, {"margin": 0.3}),
        ("distance", {}, {"dim": 5}),
        ("distance", {}, {"cutoff": 0.6}),
        ("rho_distance", {}, {"p_switch": 0.3}),
        ("parametric", dict(n_support=7, support_lim=(0.2, 1.4)), {"mode": "hards"}),
    ],
)
def test_negative_control_of_the_probabilities(name, hyper, wrong):
    """Draws do not have the probabilities of slightly other weights."""
    x = embeddings()
    d = distances(x, x)
    try:
        found = deviations(
            miners.get(name, **hyper),
            x,
            LABELS,
            lambda a: chances.CHANCES[name](d, LABELS, a, **wrong),
        )
    except AssertionError as error:
        assert "probability 0" in str(error)
        return
    assert found.max() > 15, found


def test_random_distance_over_all_permutations():
    y = np.array([0, 0, 1, 1, 2])
    x = embeddings(y)
    d = distances(x, x)
    want = [chances.random_distance(d, y, a) for a in range(5)]
    miner = miners.get("random_distance")
    found = deviations(miner, x, y, want.__getitem__)
    assert (found < 5).all(), found
    with pytest.raises(AssertionError, match="probability 0"):
        deviations(miner, x, y, lambda a: chances.distance(d, y, a))


@pytest.mark.parametrize("refs", [False, True])
def test_random_draws_as_many_distinct_triplets_as_samples(refs):
    x, y = embeddings(), LABELS
    given, columns = {}, y
    if refs:
        columns = np.array([0, 1, 1, 3, 2, 0])
        given = dict(ref_embeddings=embeddings(columns), ref_labels=columns)
    every = {
        (a, p, n)
        for a in range(len(y))
        for p in range(len(columns))
        for n in range(len(columns))
        if columns[p] == y[a] != columns[n] and (refs or p != a)
    }
    positive, negative, weight = sample(miners.get("random"), x, y, given)
    counts = collections.Counter()
    for p, n, w in zip(positive, negative, weight, strict=True):
        a, slot = np.nonzero(w)
        drawn = list(zip(a.tolist(), p[a, slot].tolist(), n[a, slot].tolist(), strict=True))
        assert len(set(drawn)) == len(drawn) == len(y)
        counts.update(drawn)
    assert set(counts) <= every
    total, share = len(every), len(y) / len(every)
    seen = np.array([counts[t] for t in every]) / DRAWS
    # Inclusion is a draw without replacement: its variance is share (1 - share), its sum is fixed.
    statistic = np.sum((seen - share) ** 2) * DRAWS / (share * (1 - share)) * (total - 1) / total
    assert abs(statistic - (total - 1)) < 5 * np.sqrt(2 * total), (statistic, total)
    # Negative control: anchors drawn alike would be another distribution.
    anchors = np.bincount([a for a, _, _ in counts.elements()], minlength=len(y)) / DRAWS
    assert anchors.max() > 1.2


def test_random_takes_all_of_few_triplets():
    """Three samples, two triplets."""
    y = np.array([0, 0, 1])
    a, p, n = miners.get("random")(embeddings(y), y, key=jax.random.key(0)).indices()
    assert (a.tolist(), p.tolist(), n.tolist()) == ([0, 1], [1, 0], [2, 2])


def test_intra_random_draws_classes_then_samples():
    x = embeddings()
    positive, negative, weight = sample(miners.get("intra_random"), x, LABELS)
    assert (weight.sum((1, 2)) == len(LABELS)).all()
    _, a, slot = np.nonzero(weight)
    at = np.nonzero(weight)
    drawn = zip(a.tolist(), positive[at].tolist(), negative[at].tolist(), strict=True)
    size = np.bincount(LABELS)
    want = {
        (int(i), int(j), int(k)): 1 / 4 / size[c] ** 3
        for c in range(4)
        for i in np.flatnonzero(c == LABELS)
        for j in np.flatnonzero(c == LABELS)
        for k in np.flatnonzero(c == LABELS)
    }
    found = collections.Counter(drawn)
    assert abs(chances.chi_square(found, want, DRAWS * len(LABELS))) < 5
    by_sample = {t: size[LABELS[t[0]]] / 10 / size[LABELS[t[0]]] ** 3 for t in want}
    assert chances.chi_square(found, by_sample, DRAWS * len(LABELS)) > 15
    assert len(np.unique(slot)) == len(LABELS)


def test_n_pair_draws_one_positive_and_keeps_all_negatives():
    x, keys = embeddings(), jax.random.split(jax.random.key(3), DRAWS)
    kept = jax.jit(jax.vmap(lambda key: miners.get("n_pair")(x, LABELS, key=key).selection))(keys)
    pos, neg = np.asarray(kept.pos), np.asarray(kept.neg)
    for a in range(len(LABELS)):
        same, others = chances.partners(LABELS, a)
        assert (pos[:, a].sum(-1) == bool(same)).all()
        want = np.isin(np.arange(len(LABELS)), others) & bool(same)
        assert (neg[:, a] == want[None, :]).all()
        counts = collections.Counter(np.nonzero(pos[:, a])[1].tolist())
        if same:
            assert chances.chi_square(counts, chances.uniformly(same), DRAWS) < 5


def test_lifted_keeps_all_pairs_of_anchors_with_a_positive():
    kept = miners.get("lifted")(embeddings(), LABELS).selection
    for a in range(len(LABELS)):
        same, others = chances.partners(LABELS, a)
        assert np.flatnonzero(kept.pos[a]).tolist() == same
        assert np.flatnonzero(kept.neg[a]).tolist() == (others if same else [])


RANDOM = [
    "distance",
    "intra_random",
    "n_pair",
    "parametric",
    "random",
    "random_distance",
    "rho_distance",
    "semihard",
    "softhard",
]


@pytest.mark.parametrize("name", draws.some(RANDOM, 5, "keys"))
def test_the_draw_is_by_key_and_anchor(name):
    """Blocks and devices choose alike; another key does not; without a key there is a clear error."""
    draws.tell()
    x, y = test_laws.batch(), test_laws.LABELS
    miner, key = miners.get(name), jax.random.key(3)
    want = miner(x, y, key=key).indices()
    for block, devices in [(5, 2), (None, 8)]:
        with jax.set_mesh(test_laws.mesh(devices)):
            got = miner(x, y, key=key, block=block).indices()
        for g, w in zip(got, want, strict=True):
            np.testing.assert_array_equal(g, w)
    other = miner(x, y, key=jax.random.key(4)).indices()
    assert any(g.shape != w.shape or (g != w).any() for g, w in zip(other, want, strict=True))
    with pytest.raises(ValueError, match=f"miner '{name}' draws at random and needs a key"):
        miner(x, y)


@pytest.mark.parametrize("name", ["semihard", "distance", "rho_distance", "n_pair", "parametric"])
def test_other_anchors_do_not_change_an_anchor_s_positive(name):
    """Samples of other classes change places: each anchor that stays draws the same positive."""
    x, y = embeddings(), LABELS
    order = np.array([0, 1, 2, 9, 5, 8, 3, 4, 6, 7])
    key, miner = jax.random.key(11), miners.get(name)
    first, second = miner(x, y, key=key).indices(), miner(x[order], y[order], key=key).indices()
    for a in range(3):
        assert first[1][first[0] == a].tolist() == second[1][second[0] == a].tolist()


@pytest.mark.parametrize("name", sorted({*RANDOM, "lifted"}))
def test_padding_is_never_drawn(name):
    x, y = jnp.asarray(embeddings()), jnp.asarray(LABELS)
    valid = jnp.asarray(np.arange(len(LABELS)) % 4 != 1)
    rows = (x, y, valid)
    how = dict(relation=SAME_LABEL, exclude_self=True, key=jax.random.key(0))
    draw = jax.jit(
        lambda key: pairwise.map_blocks(
            lambda block: ((), block.selection),
            rows,
            rows,
            mine=miners.get(name).mining(),
            **{**how, "key": key},
        )[1]
    )
    for seed in range(5):
        kept = draw(jax.random.key(seed))
        pos, neg = kept.pairs()
        for mask in (pos, neg):
            assert not np.asarray(mask)[~valid].any()
            assert not np.asarray(mask)[:, ~valid].any()
        assert np.asarray(pos).any()
        if name in ("random", "intra_random"):
            assert float(pos.sum()) == float(valid.sum())


@pytest.mark.parametrize("name", sorted({*RANDOM, "lifted"} - {"random"}))
def test_references(name):
    """Against others nothing is the sample itself; miners that name it refuse."""
    x, y = embeddings(), LABELS
    more = dict(ref_embeddings=embeddings(seed=1), ref_labels=LABELS, key=jax.random.key(0))
    miner = miners.get(name)
    if name in table.BATCH_ALONE:
        with pytest.raises(ValueError, match=f"miner '{name}' draws from the batch itself"):
            miner(x, y, **more)
        return
    found = miner(x, y, **more).indices()
    assert 5 in found[0]  # the singleton has its copy
    assert (y[found[0]] == y[found[1]]).all()
    assert (y[found[-2 if len(found) == 4 else 0]] != y[found[-1]]).all()


@pytest.mark.parametrize("name", sorted({*RANDOM, "lifted"}))
def test_edges(name):
    """One class, all alone, all equal, opposite and long vectors: what there is to draw, and no NaN."""
    x, y = embeddings(), LABELS
    raw = {"name": "lp", "normalize_embeddings": False}
    mine = lambda x, y, **hyper: miners.get(name, **hyper)(x, y, key=jax.random.key(1)).indices()
    alone = mine(x, np.arange(10))
    assert len(alone[0]) == (10 if name == "intra_random" else 0)
    one = mine(x, np.zeros(10, int))
    assert (len(one[-1]) > 0) == (name in ("intra_random", "rho_distance"))
    for z, hyper in [
        (np.ones_like(x), {}),
        (x * np.where(np.arange(10) % 2, 1, -1)[:, None].astype(np.float32), {}),
        (10 * x, {"distance": raw}),
        (np.zeros_like(x), {}),
    ]:
        found = mine(z, y, **hyper)
        assert all((column >= 0).all() and (column < 10).all() for column in found)
        if name in ("semihard", "softhard", "distance"):
            assert found[0].tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9]
            assert (y[found[0]] == y[found[1]]).all()
            assert (y[found[0]] != y[found[2]]).all()


def test_an_opposite_negative_takes_all_the_weight():
    angles = np.array([0.0, 0.3, np.pi, 1.0])
    plane = np.stack([np.cos(angles), np.sin(angles)], 1)
    x = np.concatenate([plane, np.zeros((4, 6))], 1).astype(np.float32)
    _, negative, weight = sample(miners.get("distance"), x, np.array([0, 0, 1, 2]), draws=50)
    assert (weight[:, 0] == 1).all() and (negative[:, 0] == 2).all()


@pytest.mark.parametrize(
    ("name", "hyper", "match"),
    [
        ("distance", {"distance": "cosine"}, "miner 'distance' has a similarity as its distance"),
        ("rho_distance", {"p_switch": 1.5}, "p_switch of miner 'rho_distance' is 1.5; accepted"),
        ("parametric", {"support_lim": (1.0, 0.5)}, "the lower limit first"),
        ("parametric", {"mode": "hard"}, "did you mean 'hards'"),
        ("semihard", {"gap": 1}, "unknown hyper-parameter of miner 'semihard': 'gap'"),
    ],
)
def test_errors(name, hyper, match):
    with pytest.raises(ValueError, match=match):
        miners.get(name, **hyper)(embeddings(), LABELS, key=jax.random.key(0))


@pytest.mark.parametrize("p_switch", [0.5, 1.0])
def test_losses_of_switched_triplets(p_switch):
    """Triplets (a, a, p) in triplet and pair losses: the loop over the drawn triplets, and gradients."""
    x, y, key = embeddings(), LABELS, jax.random.key(5)
    miner = miners.get("rho_distance", p_switch=p_switch)
    a, p, n = miner(x, y, key=key).indices()
    pushed = y[a] == y[n]
    assert (a[pushed] == p[pushed]).all() and 0 < pushed.mean() <= 1
    assert (p_switch == 1) == pushed.all()

    def d(x, i, j):
        # A pair of a sample with itself has the distance 0 and no gradient.
        apart = i != j
        size = jnp.sum((x[i] - x[j]) ** 2, -1)
        return jnp.where(apart, jnp.sqrt(jnp.where(apart, size, 1)), 0)

    naive = {
        "triplet_margin": lambda x: jnp.mean(jax.nn.relu(d(x, a, p) - d(x, a, n) + 0.9)),
        "contrastive": lambda x: (
            jnp.mean(jax.nn.relu(d(x, a, p) - 0.1)) + jnp.mean(jax.nn.relu(1.1 - d(x, a, n)))
        ),
    }
    unit = lambda x: x / jnp.linalg.norm(x, axis=1, keepdims=True)
    hyper = {
        "triplet_margin": dict(margin=0.9),
        "contrastive": dict(pos_margin=0.1, neg_margin=1.1),
    }
    for name, want in naive.items():
        loss = losses.get(name, miner=miner, reducer="mean", **hyper[name])

        def value(x, block, loss=loss):
            mean, _ = loss.apply({}, x, y, key=key, block=block)
            return mean.compute(), mean.stats

        wanted = jax.jit(jax.value_and_grad(lambda x, want=want: want(unit(x))))(x)
        graded = jax.jit(jax.value_and_grad(value, has_aux=True), static_argnums=1)
        (got, stats), slope = graded(x, None)
        assert got > 0.05
        test_laws.assert_same((got, slope), wanted, rtol=2e-5)
        np.testing.assert_allclose(stats["in_play/push_triplets"], pushed.mean(), rtol=1e-6)
        with jax.set_mesh(test_laws.mesh(4)):
            (again, shared), share = graded(x, 2)
        test_laws.assert_same((again, share, shared), (got, slope, stats))


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        *(("rho_distance", loss) for loss in ("triplet_margin", "margin", "nt_xent", "cos_face")),
        ("intra_random", "contrastive"),
        ("random", "triplet_margin"),
        ("n_pair", "triplet_margin"),
    ],
)
def test_losses_are_finite(name, loss):
    """Duplicates, equal and zero vectors; the same value and gradient on devices."""
    y = test_laws.LABELS
    made = losses.get(loss, miner=name)
    variables = made.init(jax.random.key(0), 11, 8)

    @functools.partial(jax.jit, static_argnums=1)
    def graded(x, block):
        value = lambda x: made.apply(variables, x, y, key=jax.random.key(2), block=block)[0]
        return jax.value_and_grad(lambda x: value(x).compute())(x)

    for edge in ("duplicates", "all equal", "a zero vector", "opposite vectors"):
        test_laws.assert_finite(graded(test_laws.EDGES[edge][1](test_laws.batch()), None))
    want = graded(test_laws.batch(), None)
    with jax.set_mesh(test_laws.mesh(4)):
        got = graded(test_laws.batch(), 2)
    test_laws.assert_same(got, want)
    assert want[0] > 0
