"""The ranks of chosen items among all neighbours of a query: by counting what is nearer, not by sorting.

The devices count in float32 and mark what rounding leaves undecided (`counting`); that is computed again in float64,
pair by pair, as `Index.nearest` does it, and equal distances are ordered by id. Where a query has too much of it, or
too many chosen items, its distances are float64 matrix products, and what these leave undecided is computed again.
"""

from collections import deque
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from dml_jax.evaluation.search import counting
from dml_jax.evaluation.search.index import WHOLE, Index

# Queries that are counted for at a time, on CPUs and on accelerators: a tile of distances stays in a CPU's cache.
BLOCKS = (256, 2048)
# Numbers of intervals of a query that programs are compiled for; the others are rounded up.
WIDTHS = (8, 64, 512, 4096)
# Distances in all that take less time in float64 on the host than a program takes to be compiled.
FEW = 1 << 24
# The share of the gallery that may be undecided for a query before its distances are computed in float64.
UNDECIDED = 1 / 64
# Undecided pairs that are resolved at a time.
PAIRS = 1 << 20
# Above the squares of centred queries whose distances float32 can tell apart.
LARGE = 2.0**40

Wanted = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class _Chosen(NamedTuple):
    """A block of queries and what is chosen for them: of each item the query, its place, and its squared distance."""

    queries: np.ndarray
    own: np.ndarray
    of: np.ndarray
    places: np.ndarray
    squared: np.ndarray

    def part(self, rows: slice) -> "_Chosen":
        """Keeps a stretch of the queries."""
        items = slice(*np.searchsorted(self.of, [rows.start, rows.stop]))
        of = self.of[items] - rows.start
        return _Chosen(
            self.queries[rows], self.own[rows], of, self.places[items], self.squared[items]
        )


class Ranker:
    """Ranks among the items of an index; the gallery is put on the devices when it is first counted.

    Args:
      index: of the gallery.
    """

    def __init__(self, index: Index) -> None:
        self.index = index
        self._sizes = np.diff(index.starts)

    @cached_property
    def _count(self) -> counting.Count:
        return counting.counter(self.index.centred_gallery(), self._sizes)

    @cached_property
    def _keys(self) -> np.ndarray:
        # Members ascend within a distinct row, so these do among all.
        return self.index.distinct[self.index.members] * self.index.size + self.index.members

    @property
    def _most(self) -> int:
        """The most chosen items of a query that are counted for: sorting all distances costs less than more."""
        return min(64 + self.index.vectors.shape[1] // 4, WIDTHS[-1]) if _on_cpu() else WIDTHS[-1]

    def ranks(
        self,
        queries: Float[np.ndarray, "q d"],
        wanted: Wanted,
        counts: Int[np.ndarray, " q"],
        *,
        self_index: Int[np.ndarray, " q"],
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yields `(rows of queries, query_index [m], ranks [m])`, for the items that are chosen for these rows.

        The ranks are those that `Index.nearest` with k = n would give, whatever backend it has. Each query is in one
        block, not always in the order of the queries.

        Args:
          queries: `[q, d]`.
          wanted: from rows of queries to `(query_index [m], places [m])`: of each of the m chosen items the query of
            these rows that it is chosen for, ascending, and its place.
          counts: how many items `wanted` gives for each query.
          self_index: each query's own place (-1: none), which is left out of its neighbours.

        Raises:
          UserError: queries of another dimension than the gallery.
        """
        queries = self.index.prepared(queries)

        def chosen(rows: np.ndarray) -> _Chosen:
            return self._chosen(queries[rows], self_index[rows], *wanted(rows))

        few = len(queries) * len(self.index.vectors) <= FEW
        many = few | (counts > self._most)
        left = [np.flatnonzero(many)]
        for rows, block, sure, before, words in self._counted(
            np.flatnonzero(~many), counts, chosen
        ):
            left.append(rows[~sure])
            if not sure.any():
                continue
            words[~sure] = 0
            query, item = counting.marked(words)
            keep = sure[block.of]
            block = block._replace(
                of=block.of[keep], places=block.places[keep], squared=block.squared[keep]
            )
            # Queries that are left for later have no items any more.
            of = (np.cumsum(sure) - 1)[block.of]
            yield rows[sure], of, self._resolved(block, before[keep], query, item)
        rows = np.concatenate(left)
        size = max(1, WHOLE // self.index.size)
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            of, places = wanted(some)
            yield some, of, self._in_float64(queries[some], self_index[some], of, places)

    def _chosen(
        self, queries: np.ndarray, own: np.ndarray, of: np.ndarray, places: np.ndarray
    ) -> _Chosen:
        squared = self.index.pairs(queries, of, self.index.distinct[places])
        return _Chosen(queries, own, of, places, squared)

    def _counted(
        self, rows: np.ndarray, counts: np.ndarray, chosen: Callable[[np.ndarray], _Chosen]
    ) -> Iterator[tuple[np.ndarray, _Chosen, np.ndarray, np.ndarray, np.ndarray]]:
        """Blocks of (rows, what is chosen, True where counts hold, what they say of each item, marks)."""
        index = self.index
        most = BLOCKS[0] if _on_cpu() else BLOCKS[1]
        size = min(most, index.block)
        enough = UNDECIDED * len(index.vectors) + counting.BITS
        waiting: deque[tuple[np.ndarray, _Chosen, np.ndarray, np.ndarray, tuple[Array, Array]]]
        waiting = deque()

        def finished() -> tuple[np.ndarray, _Chosen, np.ndarray, np.ndarray, np.ndarray]:
            some, block, squares, column, found = waiting.popleft()
            counts, words = (np.array(array)[: len(some)] for array in found)
            sure = np.bitwise_count(words).sum(axis=1) <= enough
            return some, block, sure & (squares <= LARGE), counts[block.of, column], words

        # Queries of like numbers of chosen items together: a few large classes do not make all slower.
        rows = rows[np.argsort(counts[rows], kind="stable")]
        while len(rows):
            width = WIDTHS[np.searchsorted(WIDTHS, counts[rows[0]])]
            some = rows[: min(size, int(np.searchsorted(counts[rows], width, "right")))]
            rows = rows[len(some) :]
            block = chosen(some)
            column = np.arange(len(block.of)) - np.searchsorted(block.of, block.of)
            centred, norms = index.centred(block.queries)
            low = np.full((size, width), -1, np.float32)
            high = low.copy()
            low[block.of, column], high[block.of, column] = self._interval(block, norms)
            centred = np.pad(centred, ((0, size - len(some)), (0, 0)))
            squares = np.pad(norms**2, (0, size - len(some)))
            found = self._count(centred, squares, low, high)
            waiting.append((some, block, norms**2, column, found))
            # One block is counted on the devices while the host works on the one before.
            if len(waiting) == 2:
                yield finished()
        while waiting:
            yield finished()

    def _interval(self, block: _Chosen, norms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whatever is nearer than a chosen item has a float32 distance of at most high, the others at least low."""
        unit, least = self.index.rounding()
        with np.errstate(over="ignore", invalid="ignore"):  # such queries are `LARGE`
            scaled = block.squared * self.index.scale**2
            # The error at a distance s is less than unit (|q| + |g|)^2, where |g| <= |q| + s.
            error = unit * (2 * norms[block.of] + np.sqrt(np.maximum(scaled, 0))) ** 2 + least
            low, high = (a.astype(np.float32) for a in (scaled - error, scaled + error))
        return np.nextafter(low, np.float32(-np.inf)), np.nextafter(high, np.float32(np.inf))

    def _in_float64(
        self, queries: np.ndarray, own: np.ndarray, of: np.ndarray, places: np.ndarray
    ) -> np.ndarray:
        """The ranks of chosen items from float64 distances to everything."""
        index = self.index
        far, errors = index.everything(queries)
        ranks = np.empty(len(of), np.int64)
        ends = np.searchsorted(of, np.arange(len(far) + 1))
        unsure, before, items = [], [], []
        for i, (line, error) in enumerate(zip(far, 2 * errors, strict=True)):
            mine = slice(ends[i], ends[i + 1])
            here = line[index.distinct[places[mine]]]
            increasing = np.sort(line[index.distinct] if index.size > len(line) else line)
            first = np.searchsorted(increasing, here - error, side="left")
            last = np.searchsorted(increasing, here + error, side="right")
            ranks[mine] = first + 1
            if own[i] >= 0:
                ranks[mine] -= line[index.distinct[own[i]]] < here
            # Other items lie so near that rounding could change their order, or have an equal distance.
            several = np.flatnonzero(last - first > 1)
            several = several[np.argsort(here[several], kind="stable")]
            first, last, here = first[several], last[several], here[several]
            # Intervals ascend: how many items lie in those before each, in all and beyond its own beginning.
            reached = np.concatenate([[0], last[:-1]])
            new = last - np.maximum(first, reached)
            before.append(first - (np.cumsum(new) - new - np.maximum(reached - first, 0)))
            unsure.append(ends[i] + several)
            items.append(np.flatnonzero(_within(line, here - error, here + error)))
        counts, order = np.concatenate(before), np.argsort(np.concatenate(unsure))
        at = np.concatenate(unsure)[order]
        block = self._chosen(queries, own, of[at], places[at])
        query = np.repeat(np.arange(len(far)), [len(each) for each in items])
        ranks[at] = self._resolved(block, counts[order], query, np.concatenate(items))
        return ranks

    def _resolved(
        self, block: _Chosen, before: np.ndarray, query: np.ndarray, item: np.ndarray
    ) -> np.ndarray:
        """The ranks of chosen items, from counts of what is not marked and from the marks.

        Marks are ascending by query and then by item.
        """
        if len(item) > PAIRS and len(block.queries) > 1:
            size = len(block.queries)
            parts = [slice(0, size // 2), slice(size // 2, size)]
            ranks = []
            for rows in parts:
                at = slice(*np.searchsorted(query, [rows.start, rows.stop]))
                counts = before[slice(*np.searchsorted(block.of, [rows.start, rows.stop]))]
                ranks.append(
                    self._resolved(block.part(rows), counts, query[at] - rows.start, item[at])
                )
            return np.concatenate(ranks)
        index = self.index
        away = index.pairs(block.queries, query, item)
        # Every chosen item is marked: its own distance is in its interval.
        key = query * len(index.vectors) + item
        at = np.searchsorted(key, block.of * len(index.vectors) + index.distinct[block.places])
        # Stable: rows at one distance stay in the order of their first places.
        order = np.lexsort((away, query))
        at = np.argsort(order)[at]
        query, item, away = query[order], item[order], away[order]
        # Stretches of marked rows at one distance from one query.
        change = (query[1:] != query[:-1]) | (away[1:] != away[:-1])
        starts = np.flatnonzero(np.concatenate([[True], change]))
        stretch = np.cumsum(np.concatenate([[0], change]))
        total = np.concatenate([[0], np.cumsum(self._sizes[item])])
        first = starts[stretch[at]]
        last = np.concatenate([starts[1:], [len(item)]])[stretch[at]]
        ranks = 1 + before + total[first] - total[np.searchsorted(query, block.of)]
        # Where all at the distance are single items they are in the order of their places.
        single = total[last] - total[first] == last - first
        ranks[single] += (at - first)[single]
        several = np.flatnonzero(~single)
        length = (last - first)[several]
        which = np.repeat(several, length)
        mark = np.arange(len(which)) + np.repeat(
            first[several] - np.cumsum(length) + length, length
        )
        smaller = self._members_before(item[mark], block.places[which])
        ranks += np.bincount(which, smaller, minlength=len(ranks)).astype(np.int64)
        return ranks - self._own_first(block)

    def _members_before(self, items: np.ndarray, places: np.ndarray) -> np.ndarray:
        """How many members of distinct rows have smaller places than others."""
        index = self.index
        found = np.searchsorted(self._keys, items * index.size + places)
        return found - index.starts[items]

    def _own_first(self, block: _Chosen) -> np.ndarray:
        """True for chosen items behind the query's own, which was counted though it is none of its neighbours."""
        rows = np.flatnonzero(block.own >= 0)
        away = np.full(len(block.own), np.inf)
        away[rows] = self.index.pairs(block.queries, rows, self.index.distinct[block.own[rows]])
        away, own = away[block.of], block.own[block.of]
        return (away < block.squared) | ((away == block.squared) & (own < block.places))


def _within(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """True for values in any of the intervals, whose beginnings and ends ascend."""
    if not len(low):
        return np.zeros(len(values), bool)
    # The first interval that does not end before a value has the lowest beginning of those.
    at = np.searchsorted(high, values, side="left")
    return (at < len(low)) & (low[np.minimum(at, len(low) - 1)] <= values)


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"
