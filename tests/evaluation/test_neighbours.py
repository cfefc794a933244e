"""Neighbours: every backend, block and number of devices against a brute force in float64."""

import contextlib
import dataclasses

import jax
import numpy as np
import pytest

from dml_jax.evaluation import neighbours, search_recall
from dml_jax.evaluation.search import candidates
from dml_jax.evaluation.search.candidates import faiss_search, jax_search
from dml_jax.evaluation.search.index import Index
from dml_jax.evaluation.search.ranks import Ranker

BACKENDS = ("jax", "faiss")


def brute(queries, gallery, k, *, query_ids=None, gallery_ids=None, distance="euclidean"):
    """The k nearest by (float64 distance, id), the item with the query's id left out."""
    ids = np.arange(len(gallery)) if gallery_ids is None else gallery_ids
    queries, gallery = (np.float32(a).astype(np.float64) for a in (queries, gallery))
    distances, found = [], []
    for i, query in enumerate(queries):
        squared = ((gallery - query) ** 2).sum(axis=1)
        if distance == "cosine":
            lengths = np.linalg.norm(gallery, axis=1) * np.linalg.norm(query)
            cosines = (gallery @ query) / np.where(lengths > 0, lengths, 1)
            # What only rounding tells apart is a tie.
            squared = np.round(2 - 2 * cosines, 13)
        order = np.lexsort((ids, squared))
        if query_ids is not None:
            order = order[ids[order] != query_ids[i]]
        order = order[:k]
        near = squared[order]
        distances.append(near / 2 if distance == "cosine" else np.sqrt(near))
        found.append(ids[order])
    return np.float32(distances), np.array(found)


def clustered(seed, size, dim):
    """Embeddings with duplicates: pairs, and one that occurs forty times."""
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(size, dim)).astype(np.float32)
    found[size // 2 : size // 2 + 60] = found[:60]
    found[-40:] = found[5]
    return found, rng.permutation(10 * size)[:size]


def grid(seed, size, dim):
    """Embeddings in {0, 1}^dim: nearly every neighbour is tied with many others."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2, (size, dim)).astype(np.float32), rng.permutation(size)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("make", [clustered, grid])
@pytest.mark.parametrize("k", [1, 40, 399])
def test_equals_brute_force_with_duplicates_and_ties(backend, make, k):
    items, ids = make(0, 400, 10)
    distances, found = neighbours(items, items, k, query_ids=ids, gallery_ids=ids, backend=backend)
    expected = brute(items, items, k, query_ids=ids, gallery_ids=ids)
    np.testing.assert_array_equal(found, expected[1])
    np.testing.assert_allclose(distances, expected[0], rtol=1e-6)
    assert distances.dtype == np.float32 and found.dtype == np.int64
    # Control: rows in place of ids break the ties the other way.
    by_row = brute(items, items, k, query_ids=np.arange(400))[1]
    assert (ids[by_row] != found).any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_separate_gallery(backend, distance):
    rng = np.random.default_rng(3)
    queries = rng.normal(size=(37, 6)) * rng.uniform(0.1, 9, (37, 1))
    gallery = rng.normal(size=(301, 6)) * rng.uniform(0.1, 9, (301, 1))
    distances, found = neighbours(queries, gallery, 20, distance=distance, backend=backend)
    expected = brute(queries, gallery, 20, distance=distance)
    np.testing.assert_array_equal(found, expected[1])
    np.testing.assert_allclose(distances, expected[0], rtol=1e-6)
    other = {"euclidean": "cosine", "cosine": "euclidean"}[distance]
    assert (brute(queries, gallery, 20, distance=other)[1] != found).any()


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_blocks_change_nothing(block):
    items, ids = clustered(1, 300, 5)
    expected = neighbours(items[:9], items, 30, query_ids=ids[:9], gallery_ids=ids)
    found = neighbours(items[:9], items, 30, query_ids=ids[:9], gallery_ids=ids, block=block)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("make", [clustered, grid])
def test_devices_change_nothing(count, make):
    """Also where the gallery does not divide by the devices, and k is more than a device holds."""
    items, ids = make(2, 403, 9)
    mesh = jax.make_mesh((count,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    for k in (3, 70):
        expected = neighbours(items, items, k, query_ids=ids, gallery_ids=ids)
        with jax.set_mesh(mesh):
            found = neighbours(items, items, k, query_ids=ids, gallery_ids=ids, block=32)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("devices", [None, 4])
def test_candidates_are_the_nearest(devices):
    """The searches themselves, before anything is computed again; the mesh's other axes do not matter."""
    rng = np.random.default_rng(4)
    items, queries = (rng.normal(size=(n, 4)).astype(np.float32) for n in (130, 8))
    squared = ((queries[:, None] - items[None]) ** 2).sum(axis=2)
    expected = np.argsort(squared, axis=1)[:, :50]
    context = contextlib.nullcontext()
    if devices:
        axes = (jax.sharding.AxisType.Auto,) * 2
        context = jax.set_mesh(jax.make_mesh((devices, 2), ("data", "model"), axis_types=axes))
    with context:
        for make in (jax_search, faiss_search):
            found = make(items, 16)(queries, (queries**2).sum(axis=1), 50)
            near, rows = map(np.asarray, found[:2])
            np.testing.assert_array_equal(np.sort(rows, axis=1), np.sort(expected, axis=1))
            np.testing.assert_allclose(near, np.take_along_axis(squared, rows, axis=1), rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_self_is_excluded_by_id(backend):
    items = np.zeros((70, 3), np.float32)
    items[0] = 1
    ids = np.arange(100, 170)
    _, found = neighbours(items, items, 68, query_ids=ids, gallery_ids=ids, backend=backend)
    for row, own in zip(found[1:], ids[1:], strict=True):
        np.testing.assert_array_equal(row, [i for i in ids[1:] if i != own])
    np.testing.assert_array_equal(found[0], ids[1:-1])
    # Queries of ids that the gallery lacks lose nothing, nor does anyone where it is not asked for.
    _, found = neighbours(
        items[1:3], items, 3, query_ids=[101, 7], gallery_ids=ids, backend=backend
    )
    np.testing.assert_array_equal(found, [[102, 103, 104], [101, 102, 103]])
    _, found = neighbours(items[1:2], items, 2, gallery_ids=ids, backend=backend)
    np.testing.assert_array_equal(found, [[101, 102]])
    off = {"query_ids": [101], "exclude_self": False}
    _, found = neighbours(items[1:2], items, 2, gallery_ids=ids, backend=backend, **off)
    np.testing.assert_array_equal(found, [[101, 102]])
    _, found = neighbours(items[:2], items, 2, exclude_self=True, backend=backend)
    np.testing.assert_array_equal(found, [[1, 2], [2, 3]])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale, shift", [(1e-25, 0), (1e25, 0), (1e-5, 1)])
def test_hard_numbers(backend, scale, shift):
    """Squares that float32 cannot hold, and a collapsed model: all embeddings close to one point."""
    rng = np.random.default_rng(5)
    items = (scale * rng.normal(size=(300, 4)) + shift).astype(np.float32)
    expected = brute(items, items, 10, query_ids=np.arange(300))[1]
    np.testing.assert_array_equal(
        neighbours(items, items, 10, exclude_self=True, backend=backend)[1], expected
    )
    # Control: what float32 makes of it is another order.
    with np.errstate(all="ignore"):
        norms = (items * items).sum(axis=1)
        squared = norms[:, None] + norms[None, :] - 2 * items @ items.T
    np.fill_diagonal(squared, np.inf)
    assert (np.argsort(squared, axis=1, kind="stable")[:, :10] != expected).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_queries_far_from_the_gallery(backend):
    """Their squared distances overflow float32 next to the gallery's; all are tied in float64."""
    rng = np.random.default_rng(7)
    queries = np.full((2, 3), 1e25) * np.array([[1], [-1]])
    _, found = neighbours(queries, rng.normal(size=(200, 3)), 4, backend=backend)
    np.testing.assert_array_equal(found, [[0, 1, 2, 3]] * 2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_near_ties_beyond_float32(backend):
    """Unit vectors as seen from the origin: only their rounding tells their distances apart."""
    items = np.random.default_rng(9).normal(size=(400, 24))
    items = (items / np.linalg.norm(items, axis=1, keepdims=True)).astype(np.float32)
    queries = np.zeros((2, 24), np.float32)
    distances, found = neighbours(queries, items, 5, backend=backend)
    np.testing.assert_array_equal(found, brute(queries, items, 5)[1])
    assert len(np.unique(distances)) < 5


@pytest.mark.parametrize("case", ["collapsed", "outlier"])
def test_one_pass_is_enough(case, monkeypatch):
    """The bound on rounding follows the neighbourhood: not the mean, nor the largest embedding."""
    # No groups, which may be crowded.
    monkeypatch.setattr(candidates, "CROWDED", -1.0)
    items = np.random.default_rng(8).normal(size=(300, 4))
    if case == "collapsed":
        items = 1 + 1e-4 * items
    else:
        items[7] *= 1e3
    index = Index.build(items)
    counts = []

    def search(queries, squares, count):
        counts.append(count)
        return index.search(queries, squares, count)

    rows = [i for i in range(300) if i != 7]
    for _ in dataclasses.replace(index, search=search).nearest(np.float32(items[rows]), 5):
        pass
    assert set(counts) == {32}


@pytest.mark.parametrize("count", [1, 8])
def test_groups_change_nothing(count, monkeypatch):
    """Few neighbours of many items, class by class: with one group in the search, and where groups are crowded."""
    rng = np.random.default_rng(10)
    classes = np.arange(6000) // 60
    items = (rng.normal(size=(100, 5))[classes] + 0.3 * rng.normal(size=(6000, 5))).astype(
        np.float32
    )
    items[4000:4100] = items[:100]
    ids = rng.permutation(6000)
    rows = rng.permutation(6000)[:40]
    expected = brute(items[rows], items, 9, query_ids=ids[rows], gallery_ids=ids)
    assert candidates._plan(32, 6000, 2048, 3)[0] > 1
    mesh = jax.make_mesh((count,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    for crowded in (candidates.CROWDED, 1e9):
        monkeypatch.setattr(candidates, "CROWDED", crowded)
        with jax.set_mesh(mesh):
            found = neighbours(items[rows], items, 9, query_ids=ids[rows], gallery_ids=ids)
        np.testing.assert_array_equal(found[1], expected[1])
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    # Control: in crowded groups neighbours do get lost, and the search says so.
    index = Index.build(items)
    centred = ((items[rows] - index.centre) * index.scale).astype(np.float32)
    search = jax_search(((items - index.centre) * index.scale).astype(np.float32), None)
    near, _, furthest, _ = search(centred, (centred**2).sum(axis=1), 64)
    assert (np.asarray(near)[:, -1] > np.asarray(furthest)).any()


@pytest.mark.parametrize("k", [3, 500])
@pytest.mark.parametrize("backend", ["jax", "faiss"])
def test_a_zero_vector_has_its_neighbours_by_id(backend, k):
    """Under cosine all are as far from it as each other, whatever their rounding."""
    items = np.random.default_rng(3).normal(size=(600, 5)).astype(np.float32)
    items[[7, 300]] = 0
    ids = np.random.default_rng(4).permutation(600)
    given = {"gallery_ids": ids, "distance": "cosine", "backend": backend}
    far, found = neighbours(items[[7]], items, k, query_ids=ids[[7]], **given)
    np.testing.assert_array_equal(found[0], np.delete(np.arange(600), ids[7])[:k])
    assert (far == 1).all()
    # From elsewhere zero vectors are as far as what is at right angles.
    far, found = neighbours(np.float32([[1, 0, 0, 0, 0]]), items[[7, 300]], 2, distance="cosine")
    assert (far == 1).all() and found[0].tolist() == [0, 1]


@pytest.mark.parametrize("count", [32, 128, 512])
def test_what_a_search_keeps_of_each_group(count):
    """Groups are as large as the chance that one holds too many allows, and hold enough rows."""
    group, kept = candidates._plan(count, 60_502, 2048, 30)
    # Rows drawn at random: how often more than `kept` of `count` share a group.
    rng = np.random.default_rng(0)
    crowded = 0
    for _ in range(300):
        groups = rng.permutation(60_502)[:count] // group
        crowded += np.bincount(groups).max() > kept
    assert group > 8 and crowded / 300 < 0.05
    assert candidates._plan(100, 100, 100, 1) == (1, 1)


def test_only_what_is_in_doubt_is_computed_again(monkeypatch):
    """The same places, from a small part of the float64 distances."""
    rng = np.random.default_rng(11)
    items = rng.normal(size=(3000, 16)).astype(np.float32)
    items[50:70] = items[30:50]
    index = Index.build(items)
    pairs = Index.pairs
    counts = []

    def counted(self, queries, of, rows):
        counts.append(len(rows))
        return pairs(self, queries, of, rows)

    monkeypatch.setattr(Index, "pairs", counted)
    own = np.arange(100)
    found = []
    for distances in (True, False):
        places = np.zeros((100, 300), int)
        for rows, _, near in index.nearest(items[:100], 300, self_index=own, distances=distances):
            places[rows] = near
        found.append((places, sum(counts)))
        counts.clear()
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert found[1][1] < 0.3 * found[0][1]


@pytest.mark.parametrize("make", [clustered, grid])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_ranks_are_places_among_all_neighbours(make, distance):
    items, ids = make(12, 300, 4)
    items[7] = 0
    index = Index.build(items, ids=ids, distance=distance)
    own = index.places(ids[:50])
    own[40:] = -1
    order = np.zeros((50, 300), int)
    for part, k in ((np.arange(40), 299), (np.arange(40, 50), 300)):
        for rows, _, places in index.nearest(items[part], k, self_index=own[part]):
            order[part[rows], :k] = places
    rng = np.random.default_rng(13)
    wanted = [np.sort(rng.permutation(300)[:9]) for _ in range(50)]
    wanted = [places[places != mine] for places, mine in zip(wanted, own, strict=True)]

    def members(rows):
        of = np.repeat(np.arange(len(rows)), [len(wanted[row]) for row in rows])
        return of, np.concatenate([wanted[row] for row in rows])

    counts = np.array([len(places) for places in wanted])
    for rows, of, ranks in Ranker(index).ranks(items[:50], members, counts, self_index=own):
        _, places = members(rows)
        np.testing.assert_array_equal(order[rows[of], ranks - 1], places)


@pytest.mark.parametrize("backend", ["approx_max_k", "faiss_ivf", "faiss_hnsw", "jax"])
def test_search_recall(backend):
    rng = np.random.default_rng(14)
    items = rng.normal(size=(2000, 24)).astype(np.float32)
    ids = rng.permutation(9000)[:2000]
    given = {"query_ids": ids, "gallery_ids": ids}
    found = search_recall(items, items, 10, backend=backend, sample=200, **given)
    # The cells looked into are a third of them; their recall on data without structure is far from 1.
    assert 0.5 < found < 1 if backend == "faiss_ivf" else 0.9 < found <= 1
    # By hand, for the same queries.
    rows = np.sort(np.random.Generator(np.random.Philox(key=0)).permutation(2000)[:200])
    some = {"query_ids": ids[rows], "gallery_ids": ids}
    near = neighbours(items[rows], items, 10, backend=backend, **some)[1]
    exact = brute(items[rows], items, 10, **some)[1]
    assert found == np.mean([len(set(a) & set(b)) / 10 for a, b in zip(near, exact, strict=True)])


def test_cosine_of_zero_vectors():
    items = np.array([[0, 0], [2, 0], [-1, 0], [0, 0]], np.float32)
    distances, found = neighbours(items, items, 3, exclude_self=True, distance="cosine")
    np.testing.assert_array_equal(found, [[1, 2, 3], [0, 3, 2], [0, 3, 1], [0, 1, 2]])
    np.testing.assert_allclose(distances, [[1, 1, 1], [1, 1, 2], [1, 1, 2], [1, 1, 1]], rtol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("k", [5, 150])
def test_equal_cosines_are_ties(backend, k):
    """Multiples of vectors of small whole numbers: hardly any two have unit vectors of equal bits."""
    rng = np.random.default_rng(15)
    items = rng.integers(-2, 3, (400, 4)) * rng.integers(1, 1000, (400, 1))
    items[[3, 350]] = 0
    items, ids = items.astype(np.float32), rng.permutation(400)
    given = {"query_ids": ids, "gallery_ids": ids, "distance": "cosine"}
    distances, found = neighbours(items, items, k, backend=backend, **given)
    expected = brute(items, items, k, **given)
    np.testing.assert_array_equal(found, expected[1])
    np.testing.assert_allclose(distances, expected[0], rtol=1e-6, atol=1e-7)
    # Control: unit vectors in float32 give another order.
    units = np.float32(items / np.maximum(np.linalg.norm(items, axis=1, keepdims=True), 1e-9))
    by_units = neighbours(units, units, k, query_ids=ids, gallery_ids=ids)[1]
    assert (by_units != found).any()


def test_ranks_of_equal_cosines():
    """What looks at everything agrees with what searches, ties and zero vectors included."""
    rng = np.random.default_rng(16)
    items = (rng.integers(-1, 2, (300, 3)) * rng.integers(1, 100, (300, 1))).astype(np.float32)
    index = Index.build(items, distance="cosine")
    own = np.arange(60)
    order = np.zeros((60, 299), int)
    for rows, _, places in index.nearest(items[:60], 299, self_index=own):
        order[rows] = places
    for rows, of, ranks in Ranker(index).ranks(
        items[:60],
        lambda rows: (np.repeat(np.arange(len(rows)), 3), np.tile([70, 80, 90], len(rows))),
        np.full(60, 3),
        self_index=own,
    ):
        assert (order[rows[of], ranks - 1] == np.tile([70, 80, 90], len(rows))).all()
    np.testing.assert_array_equal(
        order, brute(items[:60], items, 299, query_ids=own, distance="cosine")[1]
    )


def test_few_programs_are_compiled():
    rng = np.random.default_rng(6)
    items = rng.normal(size=(200, 3)).astype(np.float32)
    before = candidates._nearest._cache_size()
    for count, k in ((200, 3), (190, 5), (130, 9), (129, 20)):
        neighbours(items[:count], items, k)
    assert candidates._nearest._cache_size() - before == 1


def test_places_of_unknown_ids():
    index = Index.build(np.eye(3), ids=np.array([30, 10, 20]))
    np.testing.assert_array_equal(index.places(np.array([10, 30, 5, 15, 99])), [0, 2, -1, -1, -1])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"k": 6}, "k=6; possible: 1 to 5"),
        ({"k": 5, "exclude_self": True}, "k=5; possible: 1 to 4 .* less the query itself"),
        ({"k": 0}, "k=0; possible"),
        ({"k": 1.5}, "k=1.5; possible"),
        ({"distance": "cosin"}, "unknown distance 'cosin'; did you mean 'cosine'"),
        ({"backend": "torch"}, "unknown backend 'torch'; accepted: approx_max_k, faiss, "),
        ({"block": 0}, "block=0; accepted"),
        ({"gallery_ids": [1, 2, 3, 2, 5]}, "gallery_ids: 2 occurs more than once"),
        ({"gallery_ids": [1, 2]}, "gallery_ids have shape .* accepted: 5 integers"),
        ({"query_ids": [0.0, 1.0, 2.0]}, "query_ids have .* type float64"),
        ({"queries": np.ones((3, 7))}, "queries have 7 dimensions, the gallery has 2"),
        ({"queries": np.ones(3)}, r"queries have shape \(3,\)"),
        ({"gallery": np.full((5, 2), np.nan)}, "gallery: row 0 has values that are not finite"),
        ({"queries": np.ones((9, 2)), "exclude_self": True}, "exclude_self needs query_ids"),
    ],
)
def test_errors(change, message):
    arguments = {"queries": np.ones((3, 2)), "gallery": np.arange(10.0).reshape(5, 2), "k": 2}
    with pytest.raises(ValueError, match=message):
        neighbours(**(arguments | change))
