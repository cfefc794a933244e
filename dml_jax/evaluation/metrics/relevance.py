"""Which items of a gallery are relevant to which queries: by equal classes, or by any relation of labels."""

from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Int

from dml_jax.relations import Relation

# The relevance of a block of queries to the whole gallery: this many booleans at a time.
CHUNK = 1 << 24


class Relevance(Protocol):
    """Which items are relevant to which queries; a query is never relevant to itself.

    Attributes:
      relevant: [q], R: how many items are relevant to each query.
    """

    relevant: Int[np.ndarray, " q"]

    def hits(
        self, rows: Int[np.ndarray, " b"], places: Int[np.ndarray, "b k"]
    ) -> Bool[np.ndarray, "b k"]:
        """Returns True where the item at a place is relevant to the query of that row."""
        ...

    def members(self, rows: Int[np.ndarray, " b"]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the relevant items of each query: (which of the rows [m], ascending; places [m])."""
        ...

    def mask(
        self, rows: Int[np.ndarray, " b"], columns: slice = slice(None)
    ) -> Bool[np.ndarray, "b c"]:
        """Returns True where an item of those columns is relevant to the query of that row."""
        ...


class ByClass:
    """Calls relevant what has the query's class. -1 is no class: such an item is relevant to nothing.

    Args:
      classes: of the queries.
      items: the classes of the items.
      self_index: each query's own place among the items, -1 for none.
    """

    def __init__(
        self,
        classes: Int[np.ndarray, " q"],
        items: Int[np.ndarray, " n"],
        self_index: Int[np.ndarray, " q"],
    ) -> None:
        self.classes, self.items, self.self_index = classes, items, self_index
        sizes = np.bincount(items + 1, minlength=max(classes.max(), items.max()) + 2)[1:]
        self.relevant = sizes[classes] - (self_index >= 0)
        self._order = np.argsort(items, kind="stable")
        self._starts = np.searchsorted(items[self._order], np.arange(len(sizes)))
        self._sizes = sizes

    def hits(
        self, rows: Int[np.ndarray, " b"], places: Int[np.ndarray, "b k"]
    ) -> Bool[np.ndarray, "b k"]:
        """See `Relevance.hits`."""
        return self.items[places] == self.classes[rows, None]

    def members(self, rows: Int[np.ndarray, " b"]) -> tuple[np.ndarray, np.ndarray]:
        """See `Relevance.members`."""
        sizes = self._sizes[self.classes[rows]]
        query_index = np.repeat(np.arange(len(rows)), sizes)
        within = np.arange(len(query_index)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        places = self._order[self._starts[self.classes[rows]][query_index] + within]
        other = places != self.self_index[rows][query_index]
        return query_index[other], places[other]

    def mask(
        self, rows: Int[np.ndarray, " b"], columns: slice = slice(None)
    ) -> Bool[np.ndarray, "b c"]:
        """See `Relevance.mask`."""
        found = self.items[None, columns] == self.classes[rows, None]
        return _without(found, self.self_index[rows], columns)


class ByRelation:
    """Calls relevant what a relation calls positive; PML subtracts 1 from R whether or not a query matches itself.

    Args:
      relation: the relation.
      labels: of the queries, as the relation takes them.
      items: the labels of the items; None where the labels are of pairs.
      self_index: each query's own place among the items, -1 for none.
    """

    def __init__(
        self,
        relation: Relation,
        labels: np.ndarray,
        items: np.ndarray | None,
        self_index: Int[np.ndarray, " q"],
    ) -> None:
        self.relation, self.labels, self.items = relation, labels, items
        self.self_index = self_index
        size = max(1, CHUNK // (labels.shape[1] if items is None else len(items)))
        rows = np.arange(len(labels))
        blocks = [rows[i : i + size] for i in range(0, len(rows), size)]
        self.relevant = np.concatenate([self.mask(part).sum(axis=1) for part in blocks])

    def hits(
        self, rows: Int[np.ndarray, " b"], places: Int[np.ndarray, "b k"]
    ) -> Bool[np.ndarray, "b k"]:
        """See `Relevance.hits`."""
        return np.take_along_axis(self.mask(rows), places, axis=1)

    def members(self, rows: Int[np.ndarray, " b"]) -> tuple[np.ndarray, np.ndarray]:
        """See `Relevance.members`."""
        query_index, places = np.nonzero(self.mask(rows))
        return query_index, places

    def mask(
        self, rows: Int[np.ndarray, " b"], columns: slice = slice(None)
    ) -> Bool[np.ndarray, "b c"]:
        """See `Relevance.mask`."""
        if self.items is None:
            anchors, refs = self.labels[rows, columns], None
        else:
            anchors, refs = self.labels[rows], self.items[columns]
        # NumPy's arrays, not JAX's, which would cut labels to 32 bits.
        relation: Any = self.relation
        positive, _ = relation(anchors, refs)
        return _without(np.array(positive), self.self_index[rows], columns)


def _without(
    mask: Bool[np.ndarray, "b c"], self_index: Int[np.ndarray, " b"], columns: slice
) -> Bool[np.ndarray, "b c"]:
    """The mask of those columns without each row's own place; -1 is none."""
    first = columns.start or 0
    rows = np.flatnonzero((self_index >= first) & (self_index < first + mask.shape[1]))
    mask[rows, self_index[rows] - first] = False
    return mask
