"""Which items of a gallery are relevant to which queries: by equal classes, or by any relation of labels."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from dml_jax.relations import Relation

# The relevance of a block of queries to the whole gallery: this many booleans at a time.
CHUNK = 1 << 24


class ByClass:
    """Relevant is what has the query's class. -1 is no class: such an item is relevant to nothing.

    Attributes:
      relevant: [q], R: how many items are relevant, the query itself not among them.
    """

    def __init__(
        self,
        classes: Int[np.ndarray, " q"],
        items: Int[np.ndarray, " n"],
        own: Int[np.ndarray, " q"],
    ) -> None:
        self.classes, self.items, self.own = classes, items, own
        sizes = np.bincount(items + 1, minlength=max(classes.max(), items.max()) + 2)[1:]
        self.relevant = sizes[classes] - (own >= 0)
        self._order = np.argsort(items, kind="stable")
        self._starts = np.searchsorted(items[self._order], np.arange(len(sizes)))
        self._sizes = sizes

    def hits(
        self, rows: Int[np.ndarray, " b"], places: Int[np.ndarray, "b k"]
    ) -> Bool[np.ndarray, "b k"]:
        """Whether the items at those places are relevant to the queries at those rows."""
        return self.items[places] == self.classes[rows, None]

    def members(self, rows: Int[np.ndarray, " b"]) -> tuple[np.ndarray, np.ndarray]:
        """The relevant items of each query: (which of the rows [m], ascending; places [m])."""
        sizes = self._sizes[self.classes[rows]]
        of = np.repeat(np.arange(len(rows)), sizes)
        within = np.arange(len(of)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        places = self._order[self._starts[self.classes[rows]][of] + within]
        other = places != self.own[rows][of]
        return of[other], places[other]

    def mask(
        self, rows: Int[np.ndarray, " b"], columns: slice = slice(None)
    ) -> Bool[np.ndarray, "b c"]:
        """Whether each item of those columns is relevant to each of the queries at those rows."""
        found = self.items[None, columns] == self.classes[rows, None]
        return _without(found, self.own[rows], columns)


class ByRelation:
    """Relevant is what the relation calls positive; PML subtracts 1 from R whether or not a query matches itself."""

    def __init__(
        self, relation: Relation, labels: Any, items: Any | None, own: Int[np.ndarray, " q"]
    ) -> None:
        self.relation, self.labels, self.items, self.own = relation, labels, items, own
        size = max(1, CHUNK // (labels.shape[1] if items is None else len(items)))
        rows = np.arange(len(labels))
        blocks = [rows[i : i + size] for i in range(0, len(rows), size)]
        self.relevant = np.concatenate([self.mask(part).sum(axis=1) for part in blocks])

    def hits(self, rows: np.ndarray, places: np.ndarray) -> np.ndarray:
        """As `ByClass.hits`."""
        return np.take_along_axis(self.mask(rows), places, axis=1)

    def members(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `ByClass.members`."""
        of, places = np.nonzero(self.mask(rows))
        return of, places

    def mask(self, rows: np.ndarray, columns: slice = slice(None)) -> np.ndarray:
        """As `ByClass.mask`."""
        if self.items is None:
            positive, _ = self.relation(self.labels[rows, columns], None)
        else:
            positive, _ = self.relation(self.labels[rows], self.items[columns])
        return _without(np.array(positive), self.own[rows], columns)


def _without(mask: np.ndarray, own: np.ndarray, columns: slice) -> np.ndarray:
    """The mask of those columns without each row's own place; -1 is none."""
    first = columns.start or 0
    rows = np.flatnonzero((own >= first) & (own < first + mask.shape[1]))
    mask[rows, own[rows] - first] = False
    return mask
