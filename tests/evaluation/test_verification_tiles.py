"""Bins of pairs over all devices: those of exact keys, whatever float32 rounds, in programs without float64."""

import os
import socket
import subprocess
import sys
from functools import partial

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from dml_jax.evaluation import evaluate_embeddings
from dml_jax.evaluation.verification import intervals, tiles
from dml_jax.evaluation.verification import pairs as exact
from dml_jax.evaluation.verification.pairs import Window
from dml_jax.evaluation.verification.tiles import Bins
from dml_jax.mesh import make_mesh
from tests.losses.test_lowering import lowered, refused

METRICS = ("tar@far=0.001", "fnmr@fmr=0.03", "eer", "auc", "opis", "opis@epsilon=0.3")


def some(kind="unit", size=600, dim=24):
    """Embeddings and labels of classes of 1 to about 100."""
    rng = np.random.default_rng(3)
    labels = np.minimum(rng.geometric(0.15, size), 25)
    labels[:2] = 30, 31
    x = rng.normal(size=(40, dim))[labels] + 1.3 * rng.normal(size=(size, dim))
    if kind == "unit":
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    elif kind == "signs":
        x = np.sign(x)
    elif kind == "lengths":
        x *= np.exp(rng.normal(0, 4, (size, 1)))
    elif kind == "tight classes":
        x += 1e3 * rng.normal(size=(40, dim))[labels]
    elif kind == "one is long":
        x[7] *= 1e6
    elif kind == "wide":
        x = np.tile(x, 30) + 0.1 * rng.normal(size=(size, 30 * dim))
    x[40:60] = x[20:40]
    x[60] = 0
    return x.astype(np.float32), labels


def all_bins(pairs):
    """Bins of every kind, as verification makes them."""
    window = pairs.first_window()
    edges = window.edges()
    middle = len(edges) // 2
    yield Bins.of_window(window._replace(shift=max(window.shift, 8)))
    yield Bins.of_window(window._replace(shift=3))
    for count in (3, 40):
        parts = range(middle, middle + 50 * count, 50)
        yield Bins.of_windows([Window.over(*map(int, edges[i : i + 2]), 64) for i in parts])
    low, high = exact.distances_of(edges[[middle - middle // 4, middle + middle // 4]])
    yield Bins.of_steps(np.linspace(low, high, 101))


def wrong_and_in_doubt(pairs, bins):
    """(how many pairs have another bin than that of their keys, the share of those in doubt)."""
    wrong = doubt = count = 0
    for tile in tiles.tiles(pairs, bins):
        a, b = pairs.vectors("queries", tile.rows), pairs.vectors("items", tile.columns)
        rows, columns = (x.reshape(-1) for x in np.indices(tile.codes.shape))
        right = np.maximum(bins.exact(pairs._from_differences(a, b, rows, columns)), -1)
        found = tile.codes.reshape(-1)
        sure = found > 0
        sure_bins = np.where(found > bins.size, -1, found - 1)
        wrong += np.sum(sure & (sure_bins != right))
        doubt, count = doubt + np.sum(~sure), count + len(rows)
        # Those in doubt were resolved, each once.
        resolved = np.full(tile.codes.shape, -1)
        np.add.at(resolved, tile.doubt[:2], 1 + tile.doubt[2])
        mine = np.zeros(tile.codes.shape, bool)
        mine[tile.self_pairs] = True
        mine = mine.reshape(-1)
        np.testing.assert_array_equal(resolved.reshape(-1)[~sure & ~mine], right[~sure & ~mine])
    return wrong, doubt / count


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize(
    "kind", ["unit", "signs", "tight classes", "lengths", "one is long", "wide"]
)
def test_bins_are_those_of_exact_distances(kind, distance):
    embeddings, labels = some(kind)
    pairs = exact.pairs_of(embeddings, labels, distance=distance)
    found = [wrong_and_in_doubt(pairs, bins) for bins in all_bins(pairs)]
    assert [wrong for wrong, _ in found] == [0] * 5
    if kind == "unit":
        fine, _, few, _, steps = (doubt for _, doubt in found)
        assert max(fine, few, steps) < 0.05


def test_bounds_are_needed(monkeypatch):
    """The negative control: without them the bins would be those of float32."""
    embeddings, labels = some("tight classes")
    pairs = exact.pairs_of(embeddings, labels)
    monkeypatch.setattr(tiles, "_bounds", lambda *rest: np.zeros(2, np.float32))
    assert sum(wrong_and_in_doubt(pairs, bins)[0] for bins in all_bins(pairs)) > 0


@pytest.mark.parametrize("kind", ["signs", "tight classes"])
def test_bins_do_not_depend_on_how_many_are_asked_for(kind, monkeypatch):
    embeddings, labels = some(kind)
    rows, columns = (x.reshape(-1) for x in np.indices((300, 300)))
    for distance in ("euclidean", "cosine"):
        pairs = exact.pairs_of(embeddings, labels, distance=distance)
        a = pairs.vectors("queries", slice(0, 300))
        keys = pairs._from_differences(a, a, rows, columns)
        # Windows of single keys, which intervals may hold whole, and the kinds that verification makes.
        single = np.unique(keys[keys > 0])[::50][:, None] + [0, 1]
        narrow = Bins.of_windows([Window.over(*map(int, each), 1) for each in single])
        assert (narrow.exact(keys) >= 0).any()
        for bins in (narrow, *all_bins(pairs)):
            expected = bins.exact(keys)
            np.testing.assert_array_equal(pairs.bins(bins.exact, a, a, rows, columns), expected)
    # Most of them come from a product.
    compute, asked = type(pairs)._from_differences, []

    def counted(self, a, b, rows, columns):
        asked.append(len(rows))
        return compute(self, a, b, rows, columns)

    monkeypatch.setattr(type(pairs), "_from_differences", counted)
    pairs.bins(next(all_bins(pairs)).exact, a, a, rows, columns)
    assert sum(asked) < len(rows) / 20


def test_an_interval_over_a_whole_bin_is_open(monkeypatch):
    """The negative control: with one number for all gaps, a pair whose bin lies within its interval would have none."""
    embeddings, labels = some("tight classes")
    pairs = exact.pairs_of(embeddings, labels)
    a = pairs.vectors("queries", slice(0, 300))
    rows, columns = (x.reshape(-1) for x in np.indices((300, 300)))
    keys = pairs._from_differences(a, a, rows, columns)
    single = np.unique(keys[keys > 0])[::50][:, None] + [0, 1]
    bins = Bins.of_windows([Window.over(*map(int, each), 1) for each in single])
    found = pairs.bins(lambda keys: np.maximum(bins.exact(keys), -1), a, a, rows, columns)
    assert (found != np.maximum(bins.exact(keys), -1)).any()


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_are_the_same_on_devices(distance, monkeypatch):
    monkeypatch.setattr(tiles, "TILE", 128)
    embeddings, labels = some()
    galleries = (
        {},
        {"gallery": embeddings[::2].copy(), "gallery_labels": labels[::2]},
    )
    for given in galleries:
        given |= {"metrics": METRICS, "distance": distance}
        expected = evaluate_embeddings(embeddings, labels, **given)
        assert 0 < expected["tar@far=0.001"] < 1 and 0.5 < expected["auc"] < 1
        for devices in (1, 2, 4, 8):
            with jax.set_mesh(make_mesh(devices)):
                assert evaluate_embeddings(embeddings, labels, **given) == expected
        backwards = Mesh(np.array(jax.devices()[4::-1]), ("data",))
        for mesh in (make_mesh(8, fsdp=2, replicas=2), backwards):
            with jax.set_mesh(mesh):
                assert evaluate_embeddings(embeddings, labels, **given) == expected


def test_devices_share_the_tiles(monkeypatch):
    monkeypatch.setattr(tiles, "TILE", 128)
    embeddings, labels = some()
    pairs = exact.pairs_of(embeddings, labels)
    bins = Bins.of_window(pairs.first_window())
    compute, calls = intervals.codes, []
    monkeypatch.setattr(
        intervals, "codes", lambda *a, **k: calls.append(a[2].tolist()) or compute(*a, **k)
    )
    with jax.set_mesh(make_mesh(4)):
        found = [(t.rows.start, t.columns.start) for t in tiles.tiles(pairs, bins)]
    # Five rows of tiles, of which half are looked at.
    assert len(found) == len(set(found)) == 15 and len(calls) == 4
    assert {tuple(corner) for call in calls for corner in call} == set(found)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_lowers_for_accelerators(distance):
    embeddings, labels = some()
    pairs = exact.pairs_of(embeddings, labels, distance=distance)
    side = tiles._side(pairs, "queries", 0, 1024)
    local = Mesh(np.array(jax.devices()[:1]), ("tiles",))
    where = np.zeros((1, 2), np.int32)
    for bins in all_bins(pairs):
        for fine in (True, False):
            program = partial(
                intervals.codes,
                mesh=local,
                size=1024,
                rows=1024,
                kind=bins.kind,
                cosine=distance == "cosine",
                fine=fine,
            )
            edges, steps = tiles._on_device(bins, 0)
            numbers, bounds = np.zeros(4, np.int32), tiles._bounds(pairs, [side], fine)
            given = (side, side, where, edges, numbers, steps, bounds)
            assert not refused(lowered(program, *given))


WORKER = """
import sys
import jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from dml_jax.evaluation import evaluate_embeddings
from dml_jax.evaluation.verification import tiles
from dml_jax.mesh import make_mesh
from tests.evaluation.test_verification_tiles import METRICS, some

tiles.TILE = 128
mine = []
made = tiles._Source.tile
tiles._Source.tile = lambda self, size, corner, found: mine.append(corner) or made(self, size, corner, found)
with jax.set_mesh(make_mesh()):
    found = evaluate_embeddings(*some(), metrics=METRICS)
print("FOUND", sorted(found.items()), len(set(mine)))
"""


def test_processes_share_the_tiles(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = "--xla_force_host_platform_device_count=2"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, address, str(i)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    printed = [worker.communicate(timeout=300) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], printed
    monkeypatch.setattr(tiles, "TILE", 128)
    expected = evaluate_embeddings(*some(), metrics=METRICS)
    lines = [line for out, _ in printed for line in out.splitlines() if line.startswith("FOUND")]
    # Of 15 tiles, dealt out to four devices, the first process has eight.
    assert lines == [f"FOUND {sorted(expected.items())} {count}" for count in (8, 7)]
