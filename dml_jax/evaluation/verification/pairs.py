"""All pairs of a query and an item of the gallery, their exact distances, and where a first histogram is fine.

A pair of a query and an item of the gallery is genuine where the item is relevant, an impostor elsewhere; a query's
pair with itself is neither.

A distance is computed in float64 from the differences of the vectors' coordinates; it is 0 where its square is within
the rounding of the vectors' own squares about their median. It is then rounded to 32 significant bits, which makes
ties of distances that only rounding tells apart. The bits of such a number, read as an integer, are its *key*: keys
are ordered as the distances are, and histograms count keys. Only the host computes keys, of the pairs for which
float32 on the devices does not suffice (`tiles`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from dml_jax import names
from dml_jax.errors import UserError
from dml_jax.evaluation.metrics.relevance import ByClass, Relevance
from dml_jax.evaluation.search.index import DISTANCES
from dml_jax.evaluation.vectors import ZERO_NORM, as_embeddings, as_ids, norms

# Buckets of the first histogram (counts of more do not stay in the cache, which costs where there are many pairs).
BUCKETS, BUCKETS_OF_FEW, FEW = 1 << 16, 1 << 18, 1 << 24
# A float64 number has 53 significant bits; so many of them are rounded away in a key.
ROUNDED_BITS = 21
KEYS_PER_POWER_OF_TWO = 1 << (52 - ROUNDED_BITS)
# The first histogram resolves distances down to 2^-16 of the large ones.
POWERS = 16
# Queries and items whose distances tell where the first histogram has to be fine, and genuine pairs that do.
SAMPLE, GENUINE_SAMPLE = 256, 1 << 13
# The shares of the sampled distances of impostors and of genuine pairs, at either end, that it may leave out.
TRIMMED = (1e-4, 1e-3)
# Rows of which the centre is the median; odd, so that the median of whole numbers is a whole number.
CENTRE_SAMPLE = 1023
# float64 numbers in flight on the host, and those that stay in its cache.
CHUNK, CACHED = 1 << 22, 1 << 16
# The share of a block's pairs from which on all of its distances are first taken from a matrix product.
DENSE = 1 / 8


class Window(NamedTuple):
    """A histogram of the keys in [low, high): key k is in bucket (k - start) >> shift.

    The first bucket reaches down to `low`, the last one up to `high`.
    """

    low: int
    high: int
    start: int
    shift: int
    buckets: int

    @classmethod
    def over(cls, low: int, high: int, buckets: int) -> "Window":
        """Divides a range of keys into at most so many buckets of equal width."""
        shift = max(0, math.ceil(math.log2((high - low) / buckets)))
        return cls(low, high, low, shift, -(-(high - low) >> shift))

    def edges(self) -> Int[np.ndarray, " buckets_and_1"]:
        """Returns the keys at which the buckets begin, and `high`."""
        inner = self.start + (np.arange(1, self.buckets, dtype=np.int64) << self.shift)
        return np.concatenate([[self.low], inner, [self.high]])


def keys_of(distances: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Returns the keys of distances: they are rounded to 32 significant bits, and ordered as the distances are.

    >>> keys_of(np.array([0.5, 0.5 + 1e-16, 0.5 + 1e-9])) - keys_of(np.array([0.5]))
    array([0, 0, 4])
    """
    bits = np.ascontiguousarray(distances, np.float64).view(np.int64)
    return (bits + (1 << (ROUNDED_BITS - 1))) >> ROUNDED_BITS


def distances_of(keys: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Returns the distances that have these keys.

    >>> distances_of(keys_of(np.array([0.0, 0.75, 3.0])))
    array([0.  , 0.75, 3.  ])
    """
    return (np.asarray(keys, np.int64) << ROUNDED_BITS).view(np.float64)


@dataclass(frozen=True)
class Pairs:
    """All pairs of queries and items.

    Attributes:
      queries: float32 [q, d].
      items: float32 [n, d].
      self_index: [q], each query's own place among the items, -1 for none.
      relevance: which items are relevant to which queries.
      classes: [q], the queries' classes, for OPIS.
      distance: `euclidean` or `cosine`.
      symmetric: True where the queries are the items, in this order, and relevance goes both ways: half of the pairs
        stand for all.
    """

    queries: Float[np.ndarray, "q d"]
    items: Float[np.ndarray, "n d"]
    self_index: Int[np.ndarray, " q"]
    relevance: Relevance
    classes: Int[np.ndarray, " q"] | None
    distance: str
    symmetric: bool

    @classmethod
    def of(
        cls,
        queries: Float[np.ndarray, "q d"],
        items: Float[np.ndarray, "n d"],
        self_index: Int[np.ndarray, " q"],
        relevance: Relevance,
        classes: Int[np.ndarray, " q"] | None,
        distance: str,
    ) -> "Pairs":
        """Makes the pairs; `symmetric` is found out."""
        symmetric = (
            queries is items
            and isinstance(relevance, ByClass)
            and np.array_equal(self_index, np.arange(len(items)))
        )
        return cls(queries, items, self_index, relevance, classes, distance, symmetric)

    @property
    def genuine(self) -> int:
        """How many pairs are genuine."""
        return int(self.relevance.relevant.sum())

    @property
    def impostors(self) -> int:
        """How many pairs are impostors."""
        pairs = len(self.queries) * len(self.items) - int((self.self_index >= 0).sum())
        return pairs - self.genuine

    @cached_property
    def centre(self) -> Float[np.ndarray, " d"]:
        """The median of the items' coordinates, over some rows: what is subtracted before distances are computed."""
        count = min(len(self.items), CENTRE_SAMPLE)
        rows = _spaced(len(self.items), count - (count + 1) % 2)
        return np.median(self._scaled(self.items, rows), axis=0)

    def _scaled(self, vectors: np.ndarray, rows: np.ndarray | slice) -> Float[np.ndarray, "b d"]:
        """Some of the vectors in float64, divided by their norms for cosine."""
        found = vectors[rows].astype(np.float64)
        return found / self._divisors(found)[:, None] if self.distance == "cosine" else found

    def _divisors(self, vectors: np.ndarray) -> Float[np.ndarray, " n"]:
        """The vectors' norms; inf for zero vectors, which makes them zero."""
        lengths = norms(vectors)
        return np.where(lengths <= ZERO_NORM, np.inf, lengths)

    @cached_property
    def largest(self) -> float:
        """No distance is larger."""
        if self.distance == "cosine":
            return 2.0
        size = max(1, CHUNK // self.items.shape[1])
        return sum(
            max(
                float(norms(vectors[i : i + size] - self.centre).max())
                for i in range(0, len(vectors), size)
            )
            for vectors in (self.queries, self.items)
        )

    def first_window(self) -> Window:
        """The window of the first pass: over all keys, fine where the distances of a sample of pairs are."""
        top = int(keys_of(np.array([self.largest * (1 + 1e-6)]))[0]) + 1
        low, high = np.inf, 0.0
        for sample, share in zip(self._sampled_distances(), TRIMMED, strict=True):
            positive = np.sort(sample[sample > 0])
            cut = int(share * len(positive))
            if len(positive):
                low, high = min(low, positive[cut]), max(high, positive[len(positive) - 1 - cut])
        if high == 0:
            low = high = self.largest
        start, end = map(int, keys_of(np.array([low, high])))
        start = max(start, end - POWERS * KEYS_PER_POWER_OF_TWO, 0)
        few = len(self.queries) * len(self.items) <= FEW
        buckets = BUCKETS_OF_FEW if few else BUCKETS
        shift = max(0, math.ceil(math.log2((end - start + 1) / (buckets - 2))))
        # The first and the last bucket are for what the sample has nothing of.
        return Window(0, top, start - (1 << shift), shift, buckets)

    def _sampled_distances(self) -> tuple[np.ndarray, np.ndarray]:
        """Distances of some impostors and of some genuine pairs."""
        rows = _spaced(len(self.queries), max(1, min(SAMPLE, CHUNK // len(self.items))))
        columns = _spaced(len(self.items), SAMPLE)
        relevant = self.relevance.hits(rows, np.tile(columns, (len(rows), 1)))
        relevant |= self.self_index[rows, None] == columns[None, :]
        query_index, at = np.nonzero(~relevant)
        impostors = self._some_distances(rows[query_index], columns[at])
        query_index, places = self.relevance.members(rows)
        kept = _spaced(len(query_index), GENUINE_SAMPLE)
        return impostors, self._some_distances(rows[query_index[kept]], places[kept])

    def _some_distances(self, rows: np.ndarray, places: np.ndarray) -> np.ndarray:
        found = np.empty(len(rows))
        size = max(1, CHUNK // self.items.shape[1])
        for start in range(0, len(rows), size):
            some = slice(start, start + size)
            apart = self._scaled(self.queries, rows[some]) - self._scaled(self.items, places[some])
            found[some] = np.einsum("md,md->m", apart, apart)
        return found / 2 if self.distance == "cosine" else np.sqrt(found)

    def vectors(self, which: str, rows: slice) -> "Vectors":
        """Returns some of the queries or items in float64.

        Args:
          which: `queries` or `items`.
          rows: some of them.
        """
        given = (self.queries if which == "queries" else self.items)[rows].astype(np.float64)
        zero = None
        if self.distance == "cosine":
            divisors = self._divisors(given)
            given, zero = given / divisors[:, None], np.isinf(divisors)
        centred = given - self.centre
        return Vectors(given, centred, np.einsum("nd,nd->n", centred, centred), zero)

    def bins(
        self,
        bin_of: Callable[[np.ndarray], np.ndarray],
        a: "Vectors",
        b: "Vectors",
        rows: Int[np.ndarray, " m"],
        columns: Int[np.ndarray, " m"],
    ) -> Int[np.ndarray, " m"]:
        """Returns the bins of listed pairs: those of their keys, whichever pairs are asked for together.

        Args:
          bin_of: keys -> bins; keys of one bin have no key of another one between them.
          a: some queries.
          b: some items.
          rows: places in a, ascending.
          columns: places in b.
        """
        if len(rows) <= DENSE * len(a.squares) * len(b.squares):
            return bin_of(self._from_differences(a, b, rows, columns))
        found = np.empty(len(rows), np.int64)
        size = max(1, CHUNK // 8 // len(b.squares))
        for start in range(0, len(a.squares), size):
            part = slice(*np.searchsorted(rows, [start, start + size]))
            i, j = rows[part], columns[part]
            sums = a.squares[start : start + size, None] + b.squares
            squared = sums - 2 * (a.centred[start : start + size] @ b.centred.T)
            flat = (i - start) * len(b.squares) + j
            squared, sums = squared.reshape(-1)[flat], sums.reshape(-1)[flat]
            # Twice the rounding of products and of differences; it covers what is made zero, too.
            error = (a.centred.shape[1] + 8) * 2.0**-50 * sums
            low, high = (
                self._keys(np.maximum(s, 0), a, b, i, j) for s in (squared - error, squared + error)
            )
            found[part] = bin_of(low)
            open_ = np.flatnonzero(low != high)
            open_ = open_[bin_of(high[open_]) != found[part][open_]] + part.start
            if len(open_):
                exact = self._from_differences(a, b, rows[open_], columns[open_])
                found[open_] = bin_of(exact)
        return found

    def _from_differences(
        self, a: "Vectors", b: "Vectors", rows: np.ndarray, columns: np.ndarray
    ) -> np.ndarray:
        squared = np.empty(len(rows))
        size = max(1, CACHED // a.given.shape[1])
        for start in range(0, len(rows), size):
            some = slice(start, start + size)
            apart = a.given[rows[some]]
            apart -= b.given[columns[some]]
            np.einsum("md,md->m", apart, apart, out=squared[some])
        sums = a.squares[rows] + b.squares[columns]
        # Equal vectors are at distance 0 and not at that of rounding.
        squared[squared <= (a.given.shape[1] + 8) * 2.0**-52 * sums] = 0
        return self._keys(squared, a, b, rows, columns)

    def _keys(
        self, squared: np.ndarray, a: "Vectors", b: "Vectors", rows: np.ndarray, columns: np.ndarray
    ) -> np.ndarray:
        """The keys of squared distances; zero vectors have cosine 0 with everything."""
        distances = squared / 2 if self.distance == "cosine" else np.sqrt(squared)
        if a.zero is not None and b.zero is not None and (a.zero.any() or b.zero.any()):
            distances[a.zero[rows] | b.zero[columns]] = 1
        return keys_of(distances)


class Vectors(NamedTuple):
    """Some vectors in float64.

    Attributes:
      given: [b, d], divided by their norms for cosine.
      centred: [b, d], less the centre.
      squares: [b], of the norms of these.
      zero: [b], which were zero vectors; None where they are as others.
    """

    given: Float[np.ndarray, "b d"]
    centred: Float[np.ndarray, "b d"]
    squares: Float[np.ndarray, " b"]
    zero: np.ndarray | None


def _spaced(size: int, count: int) -> Int[np.ndarray, " m"]:
    """At most `count` of the numbers below `size`, at equal steps."""
    return np.unique(np.linspace(0, size - 1, min(size, count)).astype(np.int64))


def pairs_of(
    embeddings: Float[np.ndarray, "q d"],
    labels: Int[np.ndarray, " q"],
    *,
    gallery: Float[np.ndarray, "n d"] | None = None,
    gallery_labels: Int[np.ndarray, " n"] | None = None,
    self_index: Int[np.ndarray, " q"] | None = None,
    distance: str = "euclidean",
) -> Pairs:
    """Makes the pairs whose curve `roc_curve` draws; arguments and errors as there.

    >>> pairs = pairs_of(np.eye(4), np.array([0, 0, 1, 1]))
    >>> pairs.genuine, pairs.impostors
    (4, 8)
    """
    names.resolve("distance", dict.fromkeys(DISTANCES), distance)
    queries = as_embeddings("embeddings", embeddings)
    labels = as_ids("labels", labels, len(queries))
    items, others = queries, labels
    if gallery is None or gallery_labels is None:
        if gallery is not None or gallery_labels is not None or self_index is not None:
            raise UserError("a gallery needs gallery_labels, and these and self_index a gallery")
        self_index = np.arange(len(queries))
    else:
        items = as_embeddings("gallery", gallery)
        others = as_ids("gallery_labels", gallery_labels, len(items))
        if items.shape[1] != queries.shape[1]:
            raise UserError(
                f"queries have {queries.shape[1]} dimensions, the gallery has {items.shape[1]}"
            )
        self_index = (
            np.full(len(queries), -1)
            if self_index is None
            else as_ids("self_index", self_index, len(queries))
        )
    _, number = np.unique(np.concatenate([labels, others]), return_inverse=True)
    classes, of_items = number[: len(labels)], number[len(number) - len(others) :]
    relevance = ByClass(classes, of_items, self_index)
    return Pairs.of(queries, items, self_index, relevance, classes, distance)
