"""The samplers that look at stored embeddings: the intended algorithms, against naive ones."""

import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from dml_jax import miners, samplers
from dml_jax.revisiting import samplers as study
from dml_jax.samplers.hard_classes import class_centers
from dml_jax.sampling import Classes
from tests.samplers.common import HYPER, batch_of, get, given, plan_of
from tests.samplers.test_samplers import LABELS, SIZES

STORAGE = [name for name in HYPER if get(name).needs == "embeddings"]
CORESETS = ["greedy_coreset", "greedy_coreset-softened", "d2_coreset"]


def points(n, dim, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, dim))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def nearest(x):
    """Each row's squared distance to its nearest other row."""
    distances = ((x[:, None] - x[None]) ** 2).sum(-1)
    np.fill_diagonal(distances, np.inf)
    return distances.min(1)


@pytest.mark.parametrize("name", STORAGE)
def test_steps_can_be_planned_in_any_order(name):
    sampler = get(name)
    how = {"seed": 3, "epoch": 2, **given(name, LABELS)}
    rows = sampler.rows(sampler.inputs(LABELS, batch_of(name), **how))
    backwards = [rows(step) for step in reversed(range(sampler.steps(LABELS, batch_of(name))))]
    np.testing.assert_array_equal(backwards[::-1], plan_of(name, LABELS, seed=3, epoch=2))


@pytest.mark.parametrize("name", STORAGE)
def test_the_embeddings_decide(name):
    sampler, embeddings = get(name), given(name, LABELS)["embeddings"]
    plans = lambda e: np.stack(
        [sampler.plan(LABELS, 8, seed=0, epoch=k, embeddings=e) for k in range(4)]
    )
    assert (plans(embeddings) != plans(embeddings[::-1])).any()


@pytest.mark.parametrize("name", STORAGE)
@pytest.mark.parametrize("kind", ["equal", "zero", "line"])
def test_degenerate_embeddings(name, kind):
    """As of a network that collapsed: the plan is still one."""
    embeddings = {
        "equal": np.ones((26, 3)),
        "zero": np.zeros((26, 3)),
        "line": np.outer(np.arange(26) // 5, [1.0, 2.0, -1.0]),  # rank 1, with duplicates
    }[kind].astype("f")
    plan = get(name).plan(LABELS, 8, seed=0, epoch=0, embeddings=embeddings)
    assert plan.shape[1] == 8
    if name in CORESETS:
        assert all(len(set(row)) == 4 for row in plan[:, ::2])


@pytest.mark.parametrize("name", CORESETS)
def test_heads_are_different_and_followed_by_their_class(name):
    sampler = samplers.get(name.split("-")[0], **HYPER[name] | {"m": 3}, length=12 * 200)
    plan = sampler.plan(LABELS, 12, seed=0, epoch=0, embeddings=points(26, 5))
    groups = plan.reshape(200, 4, 3)
    assert (LABELS[groups] == LABELS[groups][:, :, :1]).all()
    assert all(len(set(row)) == 4 for row in groups[:, :, 0])
    for group in groups.reshape(-1, 3):
        size = SIZES[LABELS[group[0]]]
        if size >= 3:
            assert len(set(group)) == 3
        elif size == 2:  # with replacement among the others of its class
            assert group[1] == group[2] != group[0]
    used = {tuple(g[1:]) for g in groups.reshape(-1, 3) if LABELS[g[0]] == 3}
    assert len(used) == 12  # ordered pairs of four images


def naive_k_centre(x, first, count):
    picks = [first]
    while len(picks) < count:
        far = [min(((p - x[i]) ** 2).sum() for i in picks) for p in x]
        picks.append(int(np.argmax(far)))
    return picks


def test_greedy_is_k_centre():
    x = points(40, 4)
    choose = lambda seed, count: study.k_center_greedy(
        np.random.default_rng(seed), x, count, softened=False
    )
    for seed in range(5):
        picks = choose(seed, 12)
        assert picks == naive_k_centre(x, picks[0], 12)
    firsts = {choose(seed, 1)[0] for seed in range(300)}
    assert len(firsts) == 40


def test_softened_greedy_picks_among_the_farthest():
    x = points(100, 4)
    seen = set()
    for seed in range(100):
        picks = study.k_center_greedy(np.random.default_rng(seed), x, 6, softened=True)
        for k in range(1, 6):
            far = np.min([((x - x[i]) ** 2).sum(1) for i in picks[:k]], axis=0)
            place = (far > far[picks[k]]).sum()
            assert place < 3
            seen.add(place)
    assert seen == {0, 1, 2}


def spread(plan, embeddings, m):
    return np.mean([np.sqrt(nearest(embeddings[row[::m]])).mean() for row in plan])


def test_greedy_spreads():
    """In clusters of unlike sizes a coreset spreads over all; random images crowd in the large ones.

    The reference code looks positions up in another big batch, and its spread is that of random images: .57 beside
    .61 of random ones and .91 as intended.
    """
    rng = np.random.default_rng(0)
    clusters = rng.zipf(1.6, 2000) % 40
    embeddings = points(40, 8)[clusters] + 0.15 * rng.normal(size=(2000, 8))
    labels = np.arange(2000) // 4
    how = {"seed": 0, "epoch": 0, "embeddings": embeddings}
    plan = samplers.get("greedy_coreset", length=56 * 40).plan(labels, 56, **how)
    random = samplers.get("class_random", length=56 * 40).plan(labels, 56, seed=0, epoch=0)
    assert spread(plan, embeddings, 2) > 1.5 * spread(random, embeddings, 2)


def test_d2_draws_by_density_and_distance():
    x = points(7, 2) * np.linspace(0.5, 2, 7)[:, None]
    power, draws = 1.5, 20_000
    rng = np.random.default_rng(0)
    picks = np.array([study.d2_sampling(rng, x, 3, power=power) for _ in range(draws)])

    density = scipy.stats.multivariate_normal(x.mean(0), np.cov(x.T)).pdf(x)
    squares = ((x[:, None] - x[None]) ** 2).sum(-1)
    exact = np.zeros((7, 7, 7))
    uniform = np.zeros((7, 7, 7))
    first = np.bincount(picks[:, 0], minlength=7) / draws
    for a in range(7):
        second = np.where(np.arange(7) == a, 0, density * squares[:, a] ** power)
        for b in set(range(7)) - {a}:
            left = ~np.isin(np.arange(7), [a, b])
            third = np.where(left, density * (squares[:, a] + squares[:, b]) ** power, 0)
            exact[a, b] = first[a] * second[b] / second.sum() * third / third.sum()
            uniform[a, b] = first[a] / 6 * left / 5
    counts = np.zeros((7, 7, 7))
    np.add.at(counts, tuple(picks.T), 1)

    def p_value(expected):
        many = expected * draws > 5
        seen = np.append(counts[many], counts[~many].sum() + 1)
        wanted = np.append(expected[many] * draws, expected[~many].sum() * draws + 1)
        return scipy.stats.chi2.sf(((seen - wanted) ** 2 / wanted).sum(), len(seen) - 1)

    assert p_value(exact) > 1e-3
    assert p_value(uniform) < 1e-12
    # The first is the nearest to a draw from the normal distribution.
    near = scipy.stats.multivariate_normal(x.mean(0), np.cov(x.T)).rvs(draws, random_state=1)
    near = ((near[:, None] - x[None]) ** 2).sum(-1).argmin(1)
    np.testing.assert_allclose(first, np.bincount(near, minlength=7) / draws, atol=0.02)


def test_fid_is_the_frechet_distance():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 6)) * np.arange(1, 7)
    # More rows than dimensions, so that the matrix roots of the naive form exist.
    places = rng.permuted(np.tile(np.arange(60), (4, 1)), axis=1)[:, :20]
    costs = study.frechet_costs(x, places)
    for row, cost in zip(places, costs, strict=True):
        a, b = np.cov(x.T), np.cov(x[row].T)
        exact = ((x.mean(0) - x[row].mean(0)) ** 2).sum() + np.trace(
            a + b - 2 * scipy.linalg.sqrtm(a @ b).real
        )
        np.testing.assert_allclose(cost, exact, rtol=1e-7)
    few = study.frechet_costs(x, places[:, :3])  # a singular covariance
    assert np.isfinite(few).all() and (few > costs).all()
    np.testing.assert_allclose(study.frechet_costs(x, np.arange(60)[None]), 0, atol=1e-9)


def test_disthist_is_mean_deviation_and_wasserstein():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 4))
    places = rng.permuted(np.tile(np.arange(30), (3, 1)), axis=1)[:, :9]
    weight, bins = 20.0, 15
    costs = study.histogram_costs(x, places, bins=bins, weight=weight)
    pairs = lambda x: np.array(
        [np.linalg.norm(x[i] - x[j]) for i in range(len(x)) for j in range(i)]
    )
    limits = (pairs(x).min(), pairs(x).max())
    target, edges = np.histogram(pairs(x), bins, limits)
    middles = (edges[1:] + edges[:-1]) / 2
    for row, cost in zip(places, costs, strict=True):
        own, _ = np.histogram(pairs(x[row]), bins, limits)
        exact = np.linalg.norm(x.mean(0) - x[row].mean(0))
        exact += np.linalg.norm(x.std(0) - x[row].std(0))
        exact += weight * scipy.stats.wasserstein_distance(middles, middles, target, own)
        np.testing.assert_allclose(cost, exact, rtol=1e-9)


@pytest.mark.parametrize("name", ["fid_batchmatch", "disthist_batchmatch"])
def test_a_batch_is_the_best_of_the_candidates(name, monkeypatch):
    function = {"fid_batchmatch": "frechet_costs", "disthist_batchmatch": "histogram_costs"}[name]
    costs, seen = getattr(study, function), []

    def watch(x, places, **hyper):
        seen.append((x, places, costs(x, places, **hyper)))
        return seen[-1][-1]

    monkeypatch.setattr(study, function, watch)
    sampler = samplers.get(name, big_batch=40, candidates=6, length=8 * 30)
    embeddings = points(26, 3)
    plan = sampler.plan(LABELS, 8, seed=0, epoch=0, embeddings=embeddings)
    assert len(seen) == len(plan) == 30
    assert all(places.shape == (6, 8) and len(x) == 40 for x, places, _ in seen)
    for row, (x, places, cost) in zip(plan, seen, strict=True):
        np.testing.assert_array_equal(embeddings[row], x[places[cost.argmin()]])
        # Every group is of one class of the big batch, at different places of it.
        groups = places.reshape(6, 4, 2)
        assert (groups[..., 0] != groups[..., 1]).all()
    assert (LABELS[plan].reshape(30, 4, 2)[..., :1] == LABELS[plan].reshape(30, 4, 2)).all()


def test_a_projection_keeps_distances_on_average():
    x = points(10, 50)
    project = lambda seed: study.project_randomly(np.random.default_rng(seed), x, 8)
    ratios = [nearest(project(seed)[:2])[0] / nearest(x[:2])[0] for seed in range(400)]
    assert project(0).shape == (10, 8)
    np.testing.assert_allclose(np.mean(ratios), 1, atol=0.1)
    assert np.std(ratios) > 0.1


def test_class_centers():
    x = points(26, 4) * np.arange(1, 27)[:, None]
    found = class_centers(x, Classes.of(LABELS))
    for c, label in enumerate(sorted(SIZES)):
        mean = np.mean([row / np.linalg.norm(row) for row in x[label == LABELS]], axis=0)
        np.testing.assert_allclose(found[c], mean / np.linalg.norm(mean), rtol=1e-5)


def test_hard_classes_are_the_nearest():
    classes, m = 60, 2
    labels = np.repeat(np.arange(classes), 3)
    embeddings = points(classes, 4)[labels] * 3
    sampler = samplers.get("hard_classes", m=m, group=4, length=classes * 3 * 4)
    plan = sampler.plan(labels, 20, seed=0, epoch=0, embeddings=embeddings)
    centres = class_centers(embeddings, Classes.of(labels))
    seeds = []
    for row in labels[plan].reshape(len(plan), 10, m):
        assert (row == row[:, :1]).all()
        chosen = list(row[:, 0])
        assert len(set(chosen)) == 10
        # Three groups, of 4, 4 and 2: the seeds come first.
        expected = chosen[:3]
        for seed, size in zip(chosen[:3], (4, 4, 2), strict=True):
            order = sorted(
                set(range(classes)) - set(expected), key=lambda c: -centres[seed] @ centres[c]
            )
            expected += order[: size - 1]
        assert chosen == expected
        seeds += chosen[:3]
    _, counts = np.unique(seeds, return_counts=True)
    assert len(counts) == classes and counts.max() - counts.min() <= 2
    images = plan.reshape(-1, m)
    assert (images[:, 0] != images[:, 1]).all()
    # Harder than classes at random.
    alike = lambda plan: np.mean(
        [np.sort(c @ c.T)[:, -2].mean() for c in centres[labels[plan[:, ::m]]]]
    )
    random = samplers.get("m_per_class", m=m).plan(labels, 20, seed=0, epoch=0)
    assert alike(plan) > alike(random) + 0.1


def test_hard_classes_when_the_batch_holds_them_all():
    sampler = samplers.get("hard_classes", m=2, group=3, length=14 * 20)
    plan = sampler.plan(LABELS, 14, seed=0, epoch=0, embeddings=points(26, 3))
    assert all(sorted(set(row)) == sorted(SIZES) for row in LABELS[plan])


@pytest.mark.parametrize("name", ["multi_similarity", "batch_hard"])
@pytest.mark.parametrize("subset", [None, 15])
def test_tuples_to_weights(name, subset):
    embeddings = points(26, 4).astype("f")
    sampler = samplers.get(
        "tuples_to_weights", miner=name, subset=subset, block=7, length=26 * 1000
    )
    plan = sampler.plan(LABELS, 26, seed=0, epoch=3, embeddings=embeddings)
    mined = np.unique(plan)
    if subset is not None:
        assert len(mined) <= subset
        again = sampler.plan(LABELS, 26, seed=0, epoch=4, embeddings=embeddings)
        assert set(np.unique(again)) != set(mined)
        return
    found = np.concatenate(miners.get(name)(embeddings, LABELS).indices())
    counts = np.bincount(found, minlength=26)
    exact = counts / counts.sum()
    assert exact.max() > 1.5 * exact[exact > 0].min()  # or uniform draws would pass
    np.testing.assert_allclose(
        np.bincount(plan.ravel(), minlength=26) / plan.size, exact, atol=0.006
    )


def test_tuples_to_weights_draws_uniformly_where_nothing_is_mined():
    sampler = samplers.get(
        "tuples_to_weights",
        miner={"name": "triplet_margin", "type_of_triplets": "hard"},
        length=26_000,
    )
    apart = np.eye(7, dtype="f")[np.unique(LABELS, return_inverse=True)[1]]
    plan = sampler.plan(LABELS, 26, seed=0, epoch=0, embeddings=apart)
    np.testing.assert_allclose(
        np.bincount(plan.ravel(), minlength=26) / plan.size, 1 / 26, atol=0.006
    )
