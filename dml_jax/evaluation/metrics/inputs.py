"""Checks what is evaluated, queries and a gallery, and brings it to one form."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dml_jax import relations
from dml_jax.errors import UserError
from dml_jax.evaluation.metrics.relevance import ByClass, ByRelation
from dml_jax.evaluation.search.index import Index
from dml_jax.evaluation.vectors import as_embeddings, as_ids, normalize_rows


@dataclass(frozen=True)
class Data:
    """Queries and gallery, checked and of one form.

    Attributes:
      queries, gallery: float32 [q, d] and [n, d].
      labels, gallery_labels: what the relation takes, or None where the relation gives classes.
      classes, gallery_classes: their classes from 0 on, -1 for none; None where the relation gives no classes.
      names: [c], the label of each class.
      ids, gallery_ids: both or neither.
    """

    queries: np.ndarray
    gallery: np.ndarray
    labels: Any
    gallery_labels: Any
    classes: Any
    gallery_classes: Any
    names: np.ndarray
    ids: Any
    gallery_ids: Any
    parents: Any
    gallery_parents: Any
    relation: relations.Relation

    def subset(self, rows: np.ndarray, items: np.ndarray) -> "Data":
        """Keeps some queries and some items."""

        def some(array: Any, at: np.ndarray) -> Any:
            return None if array is None else array[at]

        of_pairs = self.labels is not None and self.gallery_labels is None
        return replace(
            self,
            queries=self.queries[rows],
            gallery=self.gallery[items],
            labels=self.labels[rows][:, items] if of_pairs else some(self.labels, rows),
            gallery_labels=some(self.gallery_labels, items),
            classes=some(self.classes, rows),
            gallery_classes=some(self.gallery_classes, items),
            ids=some(self.ids, rows),
            gallery_ids=some(self.gallery_ids, items),
            parents=some(self.parents, rows),
            gallery_parents=some(self.gallery_parents, items),
        )

    def build_index(
        self, distance: str, options: Mapping[str, Any]
    ) -> tuple[Index, np.ndarray, Any]:
        """Returns (the gallery's index, each query's own place in it, what is relevant to each query)."""
        index = Index.build(self.gallery, ids=self.gallery_ids, **{**options, "distance": distance})
        self_index = np.full(len(self.queries), -1)
        if self.ids is not None:
            self_index = index.places(self.ids)
        if self.classes is not None and self.gallery_classes is not None:
            classes = self.gallery_classes[index.order]
            differ = (self_index >= 0) & (classes[self_index] != self.classes)
            if differ.any():
                i = np.argmax(differ)
                raise UserError(
                    f"id {index.ids[self_index[i]]} has label {self.names[self.classes[i]]} as a query "
                    f"and {self.names[classes[self_index[i]]]} in the gallery"
                )
            return index, self_index, ByClass(self.classes, classes, self_index)
        labels, items = self.labels, self.gallery_labels
        if items is None:
            return (
                index,
                self_index,
                ByRelation(self.relation, labels[:, index.order], None, self_index),
            )
        return index, self_index, ByRelation(self.relation, labels, items[index.order], self_index)


def gather(
    embeddings: np.ndarray,
    labels: Any,
    gallery: np.ndarray | None,
    gallery_labels: Any,
    ids: Any,
    gallery_ids: Any,
    distractors: np.ndarray | None,
    parents: Any,
    gallery_parents: Any,
    relation: relations.Relation,
    normalize: bool,
) -> Data:

    def prepared(name: str, vectors: np.ndarray) -> np.ndarray:
        found = as_embeddings(name, vectors)
        return normalize_rows(found).astype(np.float32) if normalize else found

    def checked(name: str, values: Any, size: int) -> np.ndarray:
        if relation.label_rank == 1:
            return as_ids(name, values, size)
        found = np.asarray(values)
        relation.check(found, None, size, None)
        return found

    queries = prepared("embeddings", embeddings)
    count = len(queries)
    alone = gallery is None
    if gallery is None:
        if gallery_labels is not None or gallery_ids is not None or gallery_parents is not None:
            raise UserError(
                "gallery_labels, gallery_ids and gallery_parents need a gallery, which is None"
            )
        items, gallery_parents = queries, parents
        ids = gallery_ids = np.arange(count) if ids is None else ids
    else:
        if gallery_labels is None and relation.of_samples:
            raise UserError("a gallery needs gallery_labels, which are None")
        if (ids is None) != (gallery_ids is None):
            raise UserError(
                "ids and gallery_ids are compared with each other: give both or neither"
            )
        if (parents is None) != (gallery_parents is None):
            raise UserError(
                "parents and gallery_parents are compared with each other: give both or neither"
            )
        items = prepared("gallery", gallery)
    size = len(items)
    if relation.of_samples:
        labels = checked("labels", labels, count)
        gallery_labels = labels if alone else checked("gallery_labels", gallery_labels, size)
        if labels.shape[1:] != gallery_labels.shape[1:]:
            raise UserError(
                f"labels have shape {labels.shape}, gallery_labels {gallery_labels.shape}; accepted: as many columns"
            )
    else:
        labels, gallery_labels = np.asarray(labels), None
        relation.check(labels, None, count, size)
    if ids is not None:
        ids = as_ids("ids", ids, count)
        gallery_ids = as_ids("gallery_ids", gallery_ids, size)
    if parents is not None:
        parents = as_ids("parents", parents, count)
        gallery_parents = as_ids("gallery_parents", gallery_parents, size)

    classes: Any = None
    gallery_classes: Any = None
    labelled = np.zeros(0, np.int64)
    if relation.has_classes:
        both = [relation.classes(labels), relation.classes(gallery_labels)]
        labelled, number = np.unique(np.concatenate(both), return_inverse=True)
        classes, gallery_classes = number[:count], number[count:]
        labels = gallery_labels = None
    if distractors is not None:
        if not relation.has_classes:
            raise UserError(
                f"distractors with relation {relation.name!r}; accepted: a relation with classes "
                f"({relations.WITH_CLASSES})"
            )
        added = prepared("distractors", distractors)
        items = np.concatenate([items, added])
        gallery_classes = np.concatenate([gallery_classes, np.full(len(added), -1)])
        if gallery_ids is not None:
            fresh = gallery_ids.max() + 1 + np.arange(len(added))
            gallery_ids = np.concatenate([gallery_ids, fresh])
        if gallery_parents is not None:
            raise UserError("distractors have no parents; accepted: one of the two")
    return Data(
        queries,
        items,
        labels,
        gallery_labels,
        classes,
        gallery_classes,
        labelled,
        ids,
        gallery_ids,
        parents,
        gallery_parents,
        relation,
    )
