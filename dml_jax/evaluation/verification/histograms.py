"""Histograms of the distances of all pairs: whole numbers, whose sums over tiles, devices and processes are exact."""

from collections.abc import Sequence

import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float, Int

from dml_jax.evaluation.verification.pairs import Pairs, Window
from dml_jax.evaluation.verification.tiles import Bins, tiles
from dml_jax.mesh import data_mesh

# Codes that are counted at a time, which stay in the cache.
COUNTED = 1 << 18


def histograms(
    pairs: Pairs, windows: Sequence[Window], *, complete: bool = False
) -> list[Int[np.ndarray, "2 buckets"]]:
    """Counts impostors and genuine pairs in each bucket of each window, in one pass over the pairs.

    Args:
      pairs: all of them.
      windows: disjoint, ascending, from `Window.over`.
      complete: True where the only window holds every key, as `Pairs.first_window` does.
    """
    bins = Bins.of_window(windows[0]) if complete else Bins.of_windows(windows)
    counts = np.zeros((2, bins.size), np.int64)

    def count(codes: np.ndarray) -> np.ndarray:
        flat = codes.reshape(-1)
        found = np.zeros(bins.size + 2, np.int64)
        for start in range(0, len(flat), COUNTED):
            found += np.bincount(flat[start : start + COUNTED], minlength=bins.size + 2)
        return found[1:-1]

    for tile in tiles(pairs, bins):
        rows, columns, places = tile.doubt
        np.add.at(counts, (tile.genuine[rows, columns].astype(int), places), tile.weight)
        if bins.complete:
            genuine = count(tile.codes[tile.genuine])
            impostors = count(tile.codes) - count(tile.codes[tile.self_pairs]) - genuine
            counts += tile.weight * np.stack([impostors, genuine])
    counts = _of_all_processes(counts)
    return np.split(counts, np.cumsum([window.buckets for window in windows[:-1]]), axis=1)


def histograms_by_class(
    pairs: Pairs, at: Float[np.ndarray, " t"]
) -> Int[np.ndarray, "2 classes t"]:
    """Counts impostors and genuine pairs of each class's queries, for each threshold those beyond the one before.

    Args:
      pairs: with classes.
      at: thresholds at equal steps; pairs beyond the last one are not counted.
    """
    classes = np.asarray(pairs.classes)
    bins = Bins.of_steps(at)
    counts = np.zeros((2, int(classes.max()) + 1, len(at)), np.int64)

    def add(queries: slice, who: np.ndarray, genuine: np.ndarray, places: np.ndarray) -> None:
        """Counts pairs to the classes of their queries."""
        some, local = np.unique(classes[queries], return_inverse=True)
        keys = (genuine * len(some) + local[who]) * len(at) + places
        found = np.bincount(keys, minlength=2 * len(some) * len(at))
        counts[:, some] += found.reshape(2, len(some), len(at))

    for tile in tiles(pairs, bins):
        within = (tile.codes > 0) & (tile.codes <= bins.size)
        within[tile.self_pairs] = False
        # Of one axis: for two NumPy takes several times as long.
        kept = np.flatnonzero(within)
        a, b, in_doubt = tile.doubt
        places = np.concatenate([tile.codes.reshape(-1)[kept] - 1, in_doubt])
        kept = np.concatenate([kept, a * within.shape[1] + b])
        rows, columns = np.divmod(kept, within.shape[1])
        genuine = tile.genuine.reshape(-1)[kept]
        add(tile.rows, rows, genuine, places)
        if tile.weight == 2:
            add(tile.columns, columns, genuine, places)
    return _of_all_processes(counts)


def _of_all_processes(counts: np.ndarray) -> np.ndarray:
    """The sum over the processes of the mesh in context, each of which counted its share of the tiles."""
    mesh = data_mesh()
    if mesh is None or len({device.process_index for device in mesh.devices.flat}) == 1:
        return counts
    # In halves, since JAX would cut numbers of 64 bits.
    halves = np.asarray(multihost_utils.process_allgather(counts.view(np.uint32)))
    return np.ascontiguousarray(halves).view(np.int64).reshape(-1, *counts.shape).sum(axis=0)
