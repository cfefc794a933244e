"""Exact nearest neighbours: the same ids whatever the backend, the blocks and the devices.

A backend finds candidates in float32; their distances are then computed again in float64, one pair
at a time, and sorted by (distance, id). A query whose candidates might lack a neighbour within the
rounding error of the float32 search is searched again with more candidates. So rounding, which
differs between backends and shapes, decides nothing.
"""

import hashlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from dml_jax import names
from dml_jax.evaluation.candidates import SEARCHES, Search

QUERY_BLOCK = 256
DISTANCES = ("euclidean", "cosine")
# Candidates beyond the neighbours asked for: with fewer, more queries need a second search.
SPARE = 8
# Numbers of candidates are multiples of this, so that few programs are compiled.
STEP = 32
# float64 coordinates in flight while distances are computed again (32 MiB).
CHUNK = 1 << 22


def neighbours(
    queries: Float[np.ndarray, "q d"],
    gallery: Float[np.ndarray, "n d"],
    k: int,
    *,
    query_ids: Int[np.ndarray, " q"] | None = None,
    gallery_ids: Int[np.ndarray, " n"] | None = None,
    exclude_self: bool | None = None,
    distance: str = "euclidean",
    backend: str = "jax",
    block: int | None = None,
) -> tuple[Float[np.ndarray, "q k"], Int[np.ndarray, "q k"]]:
    """The `k` nearest of the gallery to each query, nearest first, the lower id first among equals.

    euclidean: |q - g|; cosine: 1 - q.g / (|q| |g|), and 1 where either is the zero vector.

    Args:
      queries: embeddings, used as float32.
      gallery: embeddings, used as float32.
      k: how many neighbours, as many as the gallery holds at most (besides the query itself).
      query_ids: the queries' ids, `gallery_ids[:q]` by default.
      gallery_ids: the gallery's ids, all different, the row numbers by default.
      exclude_self: leave the gallery's item with the query's id out, whatever else lies at the same
        place; a query whose id the gallery lacks loses nothing. By default where `query_ids` are
        given.
      distance: `euclidean` or `cosine`.
      backend: `jax` (over the `data` axis of the mesh in context) or `faiss` (GPUs where it has
        any); same results.
      block: how many rows of queries and of the gallery the `jax` backend compares at a time.
    Returns: distances float32 [q, k] and ids int64 [q, k].
    Raises: ValueError for an array of another shape, values that are not finite, repeated gallery
      ids, a `k` that is not possible, an unknown distance or backend.
    Differs from faiss and PML: those order ties and near ties by rounding and, where ties keep self
      out of the k + 1 neighbours that they find, drop the last of these instead.
    """
    index = Index.build(gallery, ids=gallery_ids, distance=distance, backend=backend, block=block)
    queries = matrix("queries", queries)
    if query_ids is None and exclude_self:
        if len(queries) > index.size:
            raise ValueError(
                f"exclude_self needs query_ids: {len(queries)} queries "
                f"are not rows of a gallery of {index.size}"
            )
        query_ids = np.arange(len(queries)) if gallery_ids is None else np.asarray(gallery_ids)
        query_ids = query_ids[: len(queries)]
    own = None
    if query_ids is not None and exclude_self is not False:
        own = index.places(identifiers("query_ids", query_ids, len(queries)))
    blocks = index.nearest(queries, k, own=own)
    distances = np.empty((len(queries), k), np.float32)
    ids = np.empty((len(queries), k), np.int64)
    for rows, near, places in blocks:
        distances[rows], ids[rows] = near, index.ids[places]
    return distances, ids


@dataclass(frozen=True)
class Index:
    """A gallery made ready for searches. Places are its rows in the order of their ids.

    Attributes:
      ids: int64 [n], ascending.
      order: [n], which row of the gallery as given lies at each place.
      vectors: float32 [u, d], the distinct rows: equal ones are searched for once.
      members: [n] places, grouped by distinct row, ascending in each group.
      starts: [u + 1], where each group begins in `members`.
      centre: [d], subtracted before the search in float32, so that its error follows the spread of
        the embeddings.
      scale: a power of two that brings the largest norm after that near 1, so that nothing over- or
        underflows.
      search: the backend's search among the centred and scaled vectors.
    """

    ids: np.ndarray
    order: np.ndarray
    vectors: np.ndarray
    members: np.ndarray
    starts: np.ndarray
    centre: np.ndarray
    scale: float
    distance: str
    search: Search
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
        if block is not None and block < 1:
            raise ValueError(f"block={block!r}; accepted: a positive number of rows, or None")
        vectors = matrix("gallery", gallery)
        if ids is None:
            ids = np.arange(len(vectors))
        ids = identifiers("gallery_ids", ids, len(vectors))
        order = np.argsort(ids, kind="stable")
        ids = ids[order]
        twice = ids[1:][ids[1:] == ids[:-1]]
        if len(twice):
            raise ValueError(f"gallery_ids: {twice[0]} occurs more than once; ids must differ")
        vectors = _prepare(vectors[order], distance, zero=0)
        first = _first_equal(vectors)
        distinct, counts = np.unique(first, return_counts=True)
        members = np.argsort(first, kind="stable")
        vectors = vectors[distinct]
        centre = vectors.mean(axis=0, dtype=np.float64)
        scale = 2.0 ** -np.frexp(_norms(vectors - centre).max())[1]
        return cls(
            ids=ids,
            order=order,
            vectors=vectors,
            members=members,
            starts=np.concatenate([[0], np.cumsum(counts)]),
            centre=centre,
            scale=scale,
            distance=distance,
            search=search(_centred(vectors, centre, scale), block),
            block=block or QUERY_BLOCK,
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
        own: Int[np.ndarray, " q"] | None = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Blocks of `(rows of queries, distances float32 [b, k], places [b, k])`.

        Each query is in one block, not always in the order of the queries.
        `own` is each query's own place (-1: none), which is left out of its neighbours.
        """
        if queries.shape[1] + 2 * (self.distance == "cosine") != self.vectors.shape[1]:
            width = self.vectors.shape[1] - 2 * (self.distance == "cosine")
            raise ValueError(f"queries have {queries.shape[1]} dimensions, the gallery has {width}")
        present = own is not None and bool(np.any(own >= 0))
        possible = self.size - present
        if not isinstance(k, int | np.integer) or not 1 <= k <= possible:
            raise ValueError(
                f"k={k}; possible: 1 to {possible} (a gallery of {self.size}"
                + (" less the query itself)" if present else ")")
            )
        return self._blocks(_prepare(queries, self.distance, zero=1), k, own if present else None)

    def _blocks(
        self, queries: np.ndarray, k: int, own: np.ndarray | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        want = k + (own is not None)
        count = _rounded(want + SPARE)
        rows = np.arange(len(queries))
        while len(rows):
            again = []
            for unsure, part, squared, places in self._pass(queries, rows, want, count):
                again.append(unsure)
                if own is not None:
                    squared, places = _without(squared, places, own[part])
                yield part, self._distances(squared), places
            rows = np.concatenate(again)
            count *= 4

    def _distances(self, squared: np.ndarray) -> np.ndarray:
        found = squared / 2 if self.distance == "cosine" else np.sqrt(squared)
        return found.astype(np.float32)

    def _pass(
        self, queries: np.ndarray, rows: np.ndarray, want: int, count: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """Blocks of `(rows for which count was too few, other rows, their squared, their places)`."""
        distinct = len(self.vectors)
        if count * 2 > distinct:
            # So many candidates that the float32 search saves nothing.
            size = max(1, CHUNK // distinct)
            for start in range(0, len(rows), size):
                part = rows[start : start + size]
                everything = np.broadcast_to(np.arange(distinct), (len(part), distinct))
                squared = self._exact(queries[part], everything)
                yield part[:0], part, *self._items(squared, everything, want)
            return
        # Memory stays that of the first pass when later ones look at more candidates.
        size = max(1, self.block * _rounded(want + SPARE) // count)
        # Few sizes, so that few programs are compiled.
        size = min(size, 1 << max(3, (len(rows) - 1).bit_length()))
        waiting: deque = deque()
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            centred = np.zeros((size, queries.shape[1]), np.float32)
            centred[: len(part)] = _centred(queries[part], self.centre, self.scale)
            waiting.append((part, centred, self.search(centred, count)))
            # One search runs on the devices while the host works on the one before.
            if len(waiting) == 2:
                yield self._resolve(queries, want, *waiting.popleft())
        while waiting:
            yield self._resolve(queries, want, *waiting.popleft())

    def _resolve(
        self, queries: np.ndarray, want: int, part: np.ndarray, centred: np.ndarray, found: tuple
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        near, candidates = (np.asarray(a)[: len(part)] for a in found)
        candidates = np.sort(candidates, axis=1)
        squared = self._exact(queries[part], candidates)
        last = np.partition(squared, want - 1, axis=1)[:, want - 1] * self.scale**2
        # The search is off by at most (d + 8) u (|q| + |g|)^2, rounding of the centred vectors
        # included, and by what underflows. An item at most as far as the last one wanted has
        # |g| <= |q| + sqrt(last): so far up the search could have put it, not further.
        dim = queries.shape[1]
        reach = 2 * _norms(centred[: len(part)]) + np.sqrt(last)
        error = (dim + 8) * 2.0**-24 * reach**2 + dim * 2.0**-120
        furthest = near.max(axis=1)
        sure = np.isfinite(furthest) & (last + error < furthest)
        return part[~sure], part[sure], *self._items(squared[sure], candidates[sure], want)

    def _exact(self, queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """float64 squared distances [b, c], each pair by the same sum in the same order."""
        squared = np.empty(candidates.shape)
        width = max(1, CHUNK // (max(1, len(queries)) * queries.shape[1]))
        for start in range(0, candidates.shape[1], width):
            some = slice(start, start + width)
            apart = self.vectors[candidates[:, some]].astype(np.float64)
            apart -= queries[:, None, :]
            squared[:, some] = np.einsum("bcd,bcd->bc", apart, apart)
        return squared

    def _items(
        self, squared: np.ndarray, candidates: np.ndarray, want: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """From distinct rows (ascending) to the `want` nearest items, by distance and then id."""
        order = np.argsort(squared, axis=1, kind="stable")
        squared = np.take_along_axis(squared, order, axis=1)
        candidates = np.take_along_axis(candidates, order, axis=1)
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


def matrix(name: str, embeddings: np.ndarray) -> Float[np.ndarray, "n d"]:
    """The embeddings as float32 [n, d]; ValueError for another shape, none, or not finite."""
    found = np.asarray(embeddings, dtype=np.float32)
    if found.ndim != 2 or 0 in found.shape:
        raise ValueError(
            f"{name} have shape {found.shape}; accepted: [items, dimensions], not empty"
        )
    finite = np.isfinite(found).all(axis=1)
    if not finite.all():
        raise ValueError(f"{name}: row {np.argmin(finite)} has values that are not finite")
    # One zero: -0.0 would make equal rows differ in their bytes.
    return found + np.float32(0)


def identifiers(name: str, values: np.ndarray, size: int) -> Int[np.ndarray, " n"]:
    """The values as int64 [size]; ValueError where they are not integers or not as many."""
    found = np.asarray(values)
    if found.shape != (size,) or found.dtype.kind not in "iu":
        raise ValueError(
            f"{name} have shape {found.shape} and type {found.dtype}; accepted: {size} integers"
        )
    return found.astype(np.int64)


def _rounded(count: int) -> int:
    return -(-count // STEP) * STEP


def _norms(vectors: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))


def _centred(vectors: np.ndarray, centre: np.ndarray, scale: float) -> np.ndarray:
    return ((vectors - centre) * scale).astype(np.float32)


def _prepare(vectors: np.ndarray, distance: str, *, zero: int) -> np.ndarray:
    """Vectors whose squared Euclidean distance gives the distance asked for: twice the cosine's.

    For cosine, unit vectors with two more dimensions, in which the zero vectors of queries and
    gallery become unit vectors at right angles to everything else.
    """
    if distance == "euclidean":
        return vectors
    norms = _norms(vectors)
    extra = np.zeros((len(vectors), 2))
    extra[:, zero] = norms == 0
    unit = vectors / np.where(norms == 0, 1, norms)[:, None]
    return np.concatenate([unit, extra], axis=1).astype(np.float32)


def _first_equal(vectors: np.ndarray) -> np.ndarray:
    """For each row the first row that equals it bit for bit."""
    first: dict[bytes, int] = {}
    digests = (hashlib.blake2b(row, digest_size=16).digest() for row in vectors)
    return np.fromiter(
        (first.setdefault(digest, i) for i, digest in enumerate(digests)), np.int64, len(vectors)
    )


def _without(
    squared: np.ndarray, places: np.ndarray, own: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Each row less its own place, or less its last one where its own is not there."""
    mine = places == own[:, None]
    drop = np.where(mine.any(axis=1), mine.argmax(axis=1), places.shape[1] - 1)
    keep = np.arange(places.shape[1])[None, :] != drop[:, None]
    shape = (len(places), places.shape[1] - 1)
    return squared[keep].reshape(shape), places[keep].reshape(shape)
