"""An index of a gallery: the same nearest neighbours whatever the exact backend, the blocks and the devices.

A backend finds candidates in float32, nearest first. Where the rounding of that search could change the order
of two of them, their distances are computed again in float64, one pair at a time, and sorted by (distance,
id). A query whose candidates might lack a neighbour within the rounding error is searched again with more
candidates. So rounding, which differs between backends and shapes, decides nothing.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float, Int

from dml_jax import names, streams
from dml_jax.errors import UserError
from dml_jax.evaluation.search.candidates import APPROXIMATE, SEARCHES, Found, Search, block_sizes
from dml_jax.evaluation.vectors import (
    as_embeddings,
    as_ids,
    normalize_rows,
    squared_chords,
    without_tiny,
)
from dml_jax.evaluation.vectors import norms as row_norms

# Rows that are centred at a time.
ROWS = 1024
DISTANCES = ("euclidean", "cosine")
# Candidates beyond the neighbours asked for: with fewer, more queries need a second search.
SPARE = 8
# Numbers of candidates are multiples of this, so that few programs are compiled.
STEP = 32
# Candidates of all queries of a block together: many each make the block shorter.
CANDIDATES = 1 << 20
# float64 coordinates in flight while distances are computed again (8 MiB), and float64 distances of queries
# to everything (64 MiB).
CHUNK = 1 << 20
WHOLE = 1 << 23


@dataclass(frozen=True)
class Index:
    """A gallery made ready for searches. Places are its rows in the order of their ids.

    Attributes:
      ids: int64 [n], ascending.
      order: [n], which row of the gallery as given lies at each place.
      vectors: float32 [u, d], the distinct rows: equal ones are searched for once.
      squares: float64 [u], their squared norms.
      distinct: [n], which distinct row lies at each place.
      members: [n] places, grouped by distinct row, ascending in each group.
      starts: [u + 1], where each group begins in `members`.
      centre: [d], subtracted before the search in float32, so that its error follows the spread of
        the embeddings.
      scale: a power of two that brings the largest norm after that near 1, so that nothing over- or
        underflows.
      norms: float64 [u], of the vectors so centred and scaled.
      search: the backend's search among the centred and scaled vectors.
      exact: whether neighbours that the search may have missed are looked for.
    """

    ids: np.ndarray
    order: np.ndarray
    vectors: np.ndarray
    squares: np.ndarray
    distinct: np.ndarray
    members: np.ndarray
    starts: np.ndarray
    centre: np.ndarray
    scale: float
    norms: np.ndarray
    distance: str
    search: Search
    exact: bool
    block: int

    @classmethod
    def build(
        cls,
        gallery: Float[np.ndarray, "n d"],
        *,
        ids: Int[np.ndarray, " n"] | None = None,
        distance: str = "euclidean",
        backend: str = "jax",
        block: int | None = None,
    ) -> "Index":
        """The index of a gallery; arguments and errors as in `neighbours`."""
        names.resolve("distance", dict.fromkeys(DISTANCES), distance)
        search = names.resolve("backend", SEARCHES, backend)
        check_block(block)
        vectors = as_embeddings("gallery", gallery)
        if ids is None:
            ids = np.arange(len(vectors))
        ids = as_ids("gallery_ids", ids, len(vectors))
        order = np.argsort(ids, kind="stable")
        ids = ids[order]
        twice = ids[1:][ids[1:] == ids[:-1]]
        if len(twice):
            raise UserError(f"gallery_ids: {twice[0]} occurs more than once; ids must differ")
        in_order = np.array_equal(order, np.arange(len(order)))
        vectors = vectors if in_order else vectors[order]
        vectors = without_tiny(vectors) if distance == "cosine" else vectors
        first, group = _distinct(vectors)
        vectors = vectors[first] if len(first) < len(vectors) else vectors
        coordinates = partial(_coordinates, distance=distance, side=0)
        parts = [vectors[i : i + ROWS] for i in range(0, len(vectors), ROWS)]
        sums = [coordinates(part).sum(axis=0, dtype=np.float64) for part in parts]
        centre = np.sum(sums, axis=0) / len(vectors)
        largest = max(row_norms(coordinates(part) - centre).max() for part in parts)
        scale = 2.0 ** -np.frexp(largest)[1]
        centred = _centred(coordinates, vectors, centre, scale)
        return cls(
            ids=ids,
            order=order,
            vectors=vectors,
            squares=_squares(vectors),
            distinct=group,
            members=np.argsort(group, kind="stable"),
            starts=np.concatenate([[0], np.cumsum(np.bincount(group))]),
            centre=centre,
            scale=scale,
            norms=row_norms(centred),
            distance=distance,
            search=_when_asked(search, centred, block),
            exact=backend not in APPROXIMATE,
            block=block or block_sizes(len(vectors))[0],
        )

    @property
    def size(self) -> int:
        """How many items the gallery has."""
        return len(self.ids)

    def places(self, ids: Int[np.ndarray, " q"]) -> Int[np.ndarray, " q"]:
        """The place of each id, -1 where the gallery lacks it."""
        at = np.minimum(np.searchsorted(self.ids, ids), self.size - 1)
        return np.where(self.ids[at] == ids, at, -1)

    def nearest(
        self,
        queries: Float[np.ndarray, "q d"],
        k: int,
        *,
        self_index: Int[np.ndarray, " q"] | None = None,
        distances: bool = True,
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Blocks of `(rows of queries, distances float32 [b, k], places [b, k])`.

        Each query is in one block, not always in the order of the queries.
        `self_index` is each query's own place (-1: none), which is left out of its neighbours. Without `distances` the
        places are the same and those that are returned are off by rounding, which saves most of the work on
        the host.
        """
        present = self_index is not None and bool(np.any(self_index >= 0))
        possible = self.size - present
        if not isinstance(k, int | np.integer) or not 1 <= k <= possible:
            raise UserError(
                f"k={k}; possible: 1 to {possible} (a gallery of {self.size}"
                + (" less the query itself)" if present else ")")
            )
        queries = self.prepared(queries)
        return self._blocks(queries, int(k), self_index if present else None, distances)

    def centred(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Queries centred and scaled in float32, as the search takes them, and their norms in float64."""
        coordinates = partial(_coordinates, distance=self.distance, side=1)
        centred = _centred(coordinates, queries, self.centre, self.scale)
        return centred, row_norms(centred)

    def centred_gallery(self) -> np.ndarray:
        """The distinct rows centred and scaled in float32, as the search takes them."""
        coordinates = partial(_coordinates, distance=self.distance, side=0)
        return _centred(coordinates, self.vectors, self.centre, self.scale)

    def rounding(self) -> tuple[float, float]:
        """(u, least): a squared distance of centred vectors in float32 is off by at most u (|q| + |g|)^2 + least.

        That is the rounding of the d products and sums and of the centred vectors, and what underflows.
        """
        dim = len(self.centre)
        least = dim * 2.0**-120
        if self.distance == "cosine":
            # By so much `pairs` may be off, which may be more than the search where all directions are nearly one.
            least += (dim + 16) * 2.0**-50 * self.scale**2
        return (dim + 8) * 2.0**-24, least

    def prepared(self, queries: np.ndarray) -> np.ndarray:
        """The queries as vectors of the index; UserError for another dimension."""
        width = self.vectors.shape[1]
        if queries.shape[1] != width:
            raise UserError(f"queries have {queries.shape[1]} dimensions, the gallery has {width}")
        return without_tiny(queries) if self.distance == "cosine" else queries

    def _blocks(
        self, queries: np.ndarray, k: int, self_index: np.ndarray | None, distances: bool
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        want = k + (self_index is not None)
        count = _rounded(want + SPARE)
        rows = np.arange(len(queries))
        while len(rows):
            again = []
            for unsure, part, squared, places in self._pass(queries, rows, want, count, distances):
                again.append(unsure)
                if self_index is not None:
                    squared, places = _without(squared, places, self_index[part])
                yield part, self._distances(squared), places
            rows = np.concatenate(again)
            count *= 4

    def _distances(self, squared: np.ndarray) -> np.ndarray:
        # Rounding can leave the square of a distance of 0 just below it.
        found = squared / 2 if self.distance == "cosine" else np.sqrt(np.maximum(squared, 0))
        return found.astype(np.float32)

    def _pass(
        self, queries: np.ndarray, rows: np.ndarray, want: int, count: int, distances: bool
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """Blocks of `(rows for which count was too few, other rows, their squared, their places)`."""
        distinct = len(self.vectors)
        if count * 2 > distinct:
            # So many candidates that the float32 search saves nothing.
            size = max(1, WHOLE // distinct)
            for start in range(0, len(rows), size):
                part = rows[start : start + size]
                far, error = self.everything(queries[part])
                order = np.argsort(far, axis=1)
                near = np.take_along_axis(far, order, axis=1)
                errors = np.broadcast_to(error[:, None], near.shape)
                squared, order = self._settled(queries[part], near, order, errors, distances)
                yield part[:0], part, *self._items(squared, order, want)
            return
        # Memory does not grow with the number of candidates.
        size = min(self.block, max(1, CANDIDATES // count))
        # Few sizes, so that few programs are compiled.
        size = min(size, 1 << max(3, (len(rows) - 1).bit_length()))
        waiting: deque[tuple[np.ndarray, np.ndarray, Found]] = deque()
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            centred, norms = self.centred(queries[part])
            pad = size - len(part)
            centred, norms = np.pad(centred, ((0, pad), (0, 0))), np.pad(norms, (0, pad))
            waiting.append((part, norms[: len(part)], self.search(centred, norms**2, count)))
            # One search runs on the devices while the host works on the one before.
            if len(waiting) == 2:
                yield self._resolve(queries, want, distances, *waiting.popleft())
        while waiting:
            yield self._resolve(queries, want, distances, *waiting.popleft())

    def _resolve(
        self,
        queries: np.ndarray,
        want: int,
        distances: bool,
        part: np.ndarray,
        norms: np.ndarray,
        found: Found,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        near, rows, furthest = (np.asarray(a)[: len(part)] for a in found[:3])
        near = near.astype(np.float64)
        # `found.coarse` is what the search left out of its results' bits.
        unit, least = self.rounding()
        with np.errstate(invalid="ignore", over="ignore"):
            errors = unit * (norms[:, None] + self.norms[rows]) ** 2 + found.coarse * near + least
            reached = np.isfinite(near[:, want - 1])
            # An item at most as far as the last one wanted has |g| <= |q| + sqrt(last).
            last = near[:, want - 1] + errors[:, want - 1]
            reach = 2 * norms + np.sqrt(last)
            sure = last + unit * reach**2 + least < furthest
        if self.exact:
            sure &= np.isfinite(furthest)
        sure &= reached
        near, rows, errors = near[sure], rows[sure], errors[sure]
        squared, rows = self._settled(
            queries[part[sure]], near / self.scale**2, rows, errors / self.scale**2, distances
        )
        return part[~sure], part[sure], *self._items(squared, rows, want)

    def _settled(
        self,
        queries: np.ndarray,
        near: np.ndarray,
        rows: np.ndarray,
        errors: np.ndarray,
        distances: bool,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ascending `near` that may be off by `errors`, in their true order, and their rows.

        Those whose order is in doubt, with `distances` all of them, are computed again.
        """
        doubt = np.ones(near.shape, bool)
        if not distances:
            highest = np.maximum.accumulate(near + errors, axis=1)
            lowest = np.minimum.accumulate((near - errors)[:, ::-1], axis=1)[:, ::-1]
            mixed = highest[:, :-1] >= lowest[:, 1:]
            doubt[:, 1:] = mixed
            doubt[:, 0] = False
            doubt[:, :-1] |= mixed
        squared, rows = near.copy(), rows.copy()
        squared[doubt] = self.pairs(queries, np.nonzero(doubt)[0], rows[doubt])
        turned = np.flatnonzero(doubt.any(axis=1))
        order = np.lexsort((rows[turned], squared[turned]), axis=1)
        squared[turned] = np.take_along_axis(squared[turned], order, axis=1)
        rows[turned] = np.take_along_axis(rows[turned], order, axis=1)
        return squared, rows

    def pairs(self, queries: np.ndarray, query_index: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """float64 squared distances of queries `of` to `rows`, each by the same sum in the same order."""
        squared = np.empty(len(rows))
        cosine = self.distance == "cosine"
        query_squares = _squares(queries) if cosine else np.zeros(0)
        size = max(1, CHUNK // queries.shape[1])
        for start in range(0, len(rows), size):
            some = slice(start, start + size)
            vectors = self.vectors[rows[some]].astype(np.float64)
            if cosine:
                products = np.einsum(
                    "md,md->m", vectors, queries[query_index[some]].astype(np.float64)
                )
                both = query_squares[query_index[some]] * self.squares[rows[some]]
                squared[some] = squared_chords(products, both)
            else:
                vectors -= queries[query_index[some]]
                squared[some] = np.einsum("md,md->m", vectors, vectors)
        return squared

    def everything(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float64 squared distances [b, u] by matrix products, and the most they differ from `pairs` [b]."""
        far = np.empty((len(queries), len(self.vectors)))
        rows = normalize_rows if self.distance == "cosine" else _wide
        wide = rows(queries)
        size = max(1, CHUNK // queries.shape[1])
        largest = 0.0
        for start in range(0, len(self.vectors), size):
            vectors = rows(self.vectors[start : start + size])
            squares = np.einsum("nd,nd->n", vectors, vectors)
            if self.distance == "cosine":
                # Zero vectors have cosine 0 with everything.
                squares = np.ones(len(vectors))
            far[:, start : start + size] = squares - 2 * (wide @ vectors.T)
            largest = max(largest, squares.max())
        squares = np.einsum("qd,qd->q", wide, wide)
        if self.distance == "cosine":
            squares = np.ones(len(wide))
        far += squares[:, None]
        unit = (2 * queries.shape[1] + 16) * 2.0**-53
        return far, unit * (np.sqrt(squares) + np.sqrt(largest)) ** 2

    def _items(
        self, squared: np.ndarray, candidates: np.ndarray, want: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """From distinct rows by (distance, row) to the `want` nearest items, by distance and then id."""
        if len(self.vectors) == self.size:
            return squared[:, :want], candidates[:, :want]
        counts = self.starts[candidates + 1] - self.starts[candidates]
        places = self.members[self.starts[candidates[:, :want]]]
        near = squared[:, :want]
        if places.shape[1] < want:
            room = ((0, 0), (0, want - places.shape[1]))
            near, places = np.pad(near, room), np.pad(places, room)
        for i in np.flatnonzero((counts[:, :want] > 1).any(axis=1)):
            # Whole groups up to the distance of the last item wanted; of a group, its first `want`
            # items are enough.
            enough = np.searchsorted(np.cumsum(counts[i]), want)
            groups = np.searchsorted(squared[i], squared[i, enough], side="right")
            taken = np.minimum(counts[i, :groups], want)
            starts = self.starts[candidates[i, :groups]]
            within = np.arange(taken.sum()) - np.repeat(np.cumsum(taken) - taken, taken)
            items = self.members[np.repeat(starts, taken) + within]
            away = np.repeat(squared[i, :groups], taken)
            best = np.lexsort((items, away))[:want]
            near[i], places[i] = away[best], items[best]
        return near, places


def check_block(block: int | None) -> None:
    """UserError for what is no number of rows."""
    if block is not None and block < 1:
        raise UserError(f"block={block!r}; accepted: a positive number of rows, or None")


def _when_asked(
    make: Callable[[np.ndarray, int | None], Search], vectors: np.ndarray, block: int | None
) -> Search:
    """The backend's search, made when it is first used: some look at all distances instead."""
    # The vectors are let go once the search has its own.
    waiting = [vectors]
    made: list[Search] = []

    def search(queries: np.ndarray, squares: np.ndarray, count: int) -> Found:
        if waiting:
            made.append(make(waiting.pop(), block))
        return made[0](queries, squares, count)

    return search


def _rounded(count: int) -> int:
    return -(-count // STEP) * STEP


def _wide(vectors: np.ndarray) -> np.ndarray:
    return vectors.astype(np.float64)


def _squares(vectors: np.ndarray) -> np.ndarray:
    """The squared norms in float64, each by the same sum as a product in `Index.pairs`."""
    squares = np.empty(len(vectors))
    size = max(1, CHUNK // vectors.shape[1])
    for start in range(0, len(vectors), size):
        part = vectors[start : start + size].astype(np.float64)
        squares[start : start + size] = np.einsum("md,md->m", part, part)
    return squares


def _centred(
    coordinates: Callable[[np.ndarray], np.ndarray],
    vectors: np.ndarray,
    centre: np.ndarray,
    scale: float,
) -> np.ndarray:
    centred = np.empty((len(vectors), len(centre)), np.float32)
    for i in range(0, len(vectors), ROWS):
        part = coordinates(vectors[i : i + ROWS])
        centred[i : i + ROWS] = (part - centre) * scale
    return centred


def _coordinates(vectors: np.ndarray, *, distance: str, side: int) -> np.ndarray:
    """Vectors whose squared Euclidean distance gives the distance asked for: twice the cosine's.

    For cosine, unit vectors in float64 with two more dimensions, in which the zero vectors of queries (`side` 1) and
    gallery (0) become unit vectors at right angles to everything else.
    """
    if distance == "euclidean":
        return vectors
    unit = normalize_rows(vectors)
    extra = np.zeros((len(vectors), 2))
    extra[:, side] = ~unit.any(axis=1)
    return np.concatenate([unit, extra], axis=1)


def _distinct(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the first row of each set of rows that are equal bit for bit, ascending; which set each row is in)."""
    words = vectors.view(np.uint32)
    rng = streams.generator("evaluation", len(vectors))
    odd = rng.integers(0, 1 << 63, words.shape[1], dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    digests = np.empty(len(vectors), np.uint64)
    size = max(1, CHUNK // words.shape[1])
    for start in range(0, len(vectors), size):
        digests[start : start + size] = words[start : start + size].astype(np.uint64) @ odd
    _, first, group = np.unique(digests, return_index=True, return_inverse=True)
    twin = first[group]
    other = np.flatnonzero(twin != np.arange(len(vectors)))
    if not np.array_equal(words[other], words[twin[other]]):
        # Different rows with one digest: compare the rows themselves.
        _, first, group = np.unique(words, axis=0, return_index=True, return_inverse=True)
        group = group.reshape(-1)
    order = np.argsort(first)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return first[order], place[group]


def _without(
    squared: np.ndarray, places: np.ndarray, self_index: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Each row less its own place, or less its last one where its own is not there."""
    mine = places == self_index[:, None]
    drop = np.where(mine.any(axis=1), mine.argmax(axis=1), places.shape[1] - 1)
    keep = np.arange(places.shape[1])[None, :] != drop[:, None]
    shape = (len(places), places.shape[1] - 1)
    return squared[keep].reshape(shape), places[keep].reshape(shape)
