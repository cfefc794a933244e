"""From embeddings and labels to a table of metrics."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from dml_jax import names, relations
from dml_jax.evaluation import clustering, verification
from dml_jax.evaluation import metrics as table
from dml_jax.evaluation.candidates import APPROXIMATE
from dml_jax.evaluation.metrics import Metric
from dml_jax.evaluation.neighbours import Index, identifiers, matrix, search_recall
from dml_jax.evaluation.ranking import Ranks
from dml_jax.evaluation.relevance import ByClass, ByRelation

DEFAULT_METRICS = (
    "precision_at_1",
    "recall_at_1",
    "recall_at_2",
    "recall_at_4",
    "recall_at_8",
    "r_precision",
    "map_at_r",
)
AVERAGES = ("query", "class", "parent", "each_class")
AMONG = ("all", "same_parent", "other_parents")
LARGEST_R = "max_bin_count"
# Queries that look at this share of the gallery or more have all of their relevant items ranked at once.
DEEP = 1 / 16
# Distances of pairs at a time in verification.
PAIRS = 1 << 23


def evaluate_embeddings(
    embeddings: Float[np.ndarray, "q d"],
    labels: Int[np.ndarray, " q"],
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    gallery: Float[np.ndarray, "n d"] | None = None,
    gallery_labels: Int[np.ndarray, " n"] | None = None,
    ids: Int[np.ndarray, " q"] | None = None,
    gallery_ids: Int[np.ndarray, " n"] | None = None,
    distractors: Float[np.ndarray, "m d"] | None = None,
    distance: str = "euclidean",
    normalize: bool = False,
    relation: Any = None,
    parents: Int[np.ndarray, " q"] | None = None,
    gallery_parents: Int[np.ndarray, " n"] | None = None,
    among: str = "all",
    average: str = "query",
    k: int | str | None = None,
    backend: str = "jax",
    kmeans: str = "faiss",
    block: int | None = None,
) -> dict[str, Any]:
    """Each metric by name, from one pass over the neighbours for each distance that is asked for.

    Without a gallery every item is a query against all others. With one, a query is kept from
    finding itself where both `ids` and `gallery_ids` are given. Queries to which no other item of the gallery
    is relevant ("lone") are left out (PML's rule), unless the metric says otherwise; a mean over none is nan.
    Each query is searched only as deep as its metrics look, and only what the metrics need of its neighbours is
    kept: memory does not grow with the largest class.

    Args:
      embeddings: one row per query.
      labels: integers of any size; for another relation, what it takes.
      metrics: names from `available()`, a number in the place of k.
      gallery: what is searched; the queries themselves by default.
      gallery_labels: as `labels`, wherever there is a gallery.
      ids: the queries' ids; by default their row numbers where there is no gallery.
      gallery_ids: the gallery's ids, all different.
      distractors: embeddings added to the gallery that are relevant to no query.
      distance: `euclidean` or `cosine`, for metrics that do not have a distance of their own.
      normalize: whether embeddings are L2-normalised first (zero stays zero).
      relation: when a label matches another, by name or as a dict (`relations.get`); equal integers by default.
        With a relation that gives no classes there is no mean by class, k-means or OPIS.
      parents: a coarser label of each query (a superclass, a scene, a camera).
      gallery_parents: likewise, wherever there are a gallery and parents.
      among: which items a query is searched among: `all`; `same_parent`, those of its parent (PML's
        WithSameParentLabel tester); `other_parents`, those of all others, leaving one parent out at a time.
        Only of metrics of ranks.
      average: `query`: the mean over queries; `class`: the mean of the means over each class's queries (PML's
        avg_of_avgs); `parent`: likewise over parents; `each_class`: a dict from label to mean (PML's return_per_class,
        which is a list). Metrics that are not of ranks are one number in any case.
      k: how many neighbours the metrics look at that have a k which their names leave open (`metrics.OPEN`): a number,
        "max_bin_count" for the largest R, None for all of them, for r_precision and map_at_r the first R.
      backend: as in `neighbours`. An approximate one adds `search_recall`, the share of the ten nearest that it
        finds, to the result; verification, and metrics that look at all neighbours, stay exact.
      kmeans: `faiss` or `jax`, what clusters the queries into as many clusters as they have classes.
      block: as in `neighbours`.
    Returns: floats by name, but a list for `rho_spectrum@0`, dicts for `each_class`.
    Raises: ValueError for an unknown metric or option, labels that are not integers or not as many as
      embeddings, a gallery without labels, ids on one side only, an id whose label differs between
      queries and gallery; and as in `neighbours`.
    """
    names.resolve("average", dict.fromkeys(AVERAGES), average)
    names.resolve("among", dict.fromkeys(AMONG), among)
    if k is not None and k != LARGEST_R and (not isinstance(k, int | np.integer) or k < 1):
        raise ValueError(f"k={k!r}; accepted: a positive integer, {LARGEST_R!r}, or None")
    chosen = [table.get(name) for name in metrics]
    rule = relations.build(relation)
    data = _gather(
        embeddings,
        labels,
        gallery,
        gallery_labels,
        ids,
        gallery_ids,
        distractors,
        parents,
        gallery_parents,
        rule,
        normalize,
    )
    _check(chosen, data, average, among)
    options = {"distance": distance, "backend": backend, "block": block}

    found: dict[str, Any] = {}
    values: dict[str, np.ndarray] = {}
    lone = np.zeros(0, bool)
    ranked = [metric for metric in chosen if metric.kind == "ranks"]
    if ranked:
        values, lone = _rank_values(ranked, data, among, k, options)
    if any(metric.kind == "pairs" for metric in chosen):
        found |= _pair_values([m for m in chosen if m.kind == "pairs"], data, options)
    for metric in chosen:
        if metric.kind == "ranks":
            scored = np.ones(len(lone), bool) if metric.counts_lone else ~lone
            found[metric.name] = _averaged(values[metric.name], scored, data, average)
        elif metric.kind == "space":
            value = metric.function(data.queries, data.classes)
            found[metric.name] = value.tolist() if isinstance(value, np.ndarray) else value
    found |= _cluster_values([m for m in chosen if m.kind == "clusters"], data, kmeans)
    result = {metric.name: found[metric.name] for metric in chosen}
    if backend in APPROXIMATE and ranked:
        result["search_recall"] = _search_recall(data, options)
    return result


def combined(
    embeddings: Mapping[str, Float[np.ndarray, "n _"]], name: str
) -> Float[np.ndarray, "n d"]:
    """One embedding of several, by a name of the ICML 2020 code's successor: `Combined_A_B-0.5-2`.

    concat_i(w_i e_i) / |concat_i(w_i e_i)|, of normalised e_i: cosine similarities weighted by w_i^2 over their sum.
    The names lie between `Combined_` and the first `-`, the weights after it; without weights all are 1. A zero
    vector stays zero. Other names are looked up as they are.
    Differs from that code, which normalises only if the name of the architecture contains `normalize`; the ICML 2020
    code describes these names in its help text and has no code for them.
    Raises: ValueError for an unknown part, or not as many weights as parts.
    """
    if not name.startswith("Combined_") or name in embeddings:
        return names.resolve("embedding", embeddings, name)
    head, *numbers = name.removeprefix("Combined_").split("-")
    parts = [names.resolve("embedding", embeddings, part) for part in head.split("_")]
    try:
        weights = [float(number) for number in numbers] or [1.0] * len(parts)
    except ValueError:
        weights = []
    if len(weights) != len(parts):
        raise ValueError(f"{name!r} has {len(parts)} parts; accepted: as many weights, or none")
    scaled = [w * clustering.normalized(e) for w, e in zip(weights, parts, strict=True)]
    return clustering.normalized(np.concatenate(scaled, axis=1)).astype(np.float32)


def evaluate_each(
    embeddings: Mapping[str, Float[np.ndarray, "q _"]],
    labels: Int[np.ndarray, " q"],
    *,
    combinations: Sequence[str] = (),
    gallery: Mapping[str, Float[np.ndarray, "n _"]] | None = None,
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """`evaluate_embeddings` of each of several embeddings of the same items, and of `combined` ones, by name."""
    return {
        name: evaluate_embeddings(
            combined(embeddings, name),
            labels,
            gallery=None if gallery is None else combined(gallery, name),
            **options,
        )
        for name in (*embeddings, *combinations)
    }


@dataclass(frozen=True)
class _Data:
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

    def part(self, rows: np.ndarray, items: np.ndarray) -> "_Data":
        """Some queries and some items."""

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

    def placed(self, distance: str, options: Mapping[str, Any]) -> tuple[Index, np.ndarray, Any]:
        """(the gallery's index, each query's own place, what is relevant to it)."""
        index = Index.build(self.gallery, ids=self.gallery_ids, **{**options, "distance": distance})
        own = np.full(len(self.queries), -1)
        if self.ids is not None:
            own = index.places(self.ids)
        if self.classes is not None and self.gallery_classes is not None:
            classes = self.gallery_classes[index.order]
            differ = (own >= 0) & (classes[own] != self.classes)
            if differ.any():
                i = np.argmax(differ)
                raise ValueError(
                    f"id {index.ids[own[i]]} has label {self.names[self.classes[i]]} as a query "
                    f"and {self.names[classes[own[i]]]} in the gallery"
                )
            return index, own, ByClass(self.classes, classes, own)
        labels, items = self.labels, self.gallery_labels
        if items is None:
            return index, own, ByRelation(self.relation, labels[:, index.order], None, own)
        return index, own, ByRelation(self.relation, labels, items[index.order], own)


def _gather(
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
) -> _Data:
    kind = relation.kind

    def prepared(name: str, vectors: np.ndarray) -> np.ndarray:
        found = matrix(name, vectors)
        return clustering.normalized(found).astype(np.float32) if normalize else found

    def checked(name: str, values: Any, size: int) -> np.ndarray:
        if kind.rank == 1:
            return identifiers(name, values, size)
        found = np.asarray(values)
        relation.check(found, None, size, None)
        return found

    queries = prepared("embeddings", embeddings)
    count = len(queries)
    alone = gallery is None
    if gallery is None:
        if gallery_labels is not None or gallery_ids is not None or gallery_parents is not None:
            raise ValueError(
                "gallery_labels, gallery_ids and gallery_parents need a gallery, which is None"
            )
        items, gallery_parents = queries, parents
        ids = gallery_ids = np.arange(count) if ids is None else ids
    else:
        if gallery_labels is None and kind.of_samples:
            raise ValueError("a gallery needs gallery_labels, which are None")
        if (ids is None) != (gallery_ids is None):
            raise ValueError(
                "ids and gallery_ids are compared with each other: give both or neither"
            )
        if (parents is None) != (gallery_parents is None):
            raise ValueError(
                "parents and gallery_parents are compared with each other: give both or neither"
            )
        items = prepared("gallery", gallery)
    size = len(items)
    if kind.of_samples:
        labels = checked("labels", labels, count)
        gallery_labels = labels if alone else checked("gallery_labels", gallery_labels, size)
        if labels.shape[1:] != gallery_labels.shape[1:]:
            raise ValueError(
                f"labels have shape {labels.shape}, gallery_labels {gallery_labels.shape}; accepted: as many columns"
            )
    else:
        labels, gallery_labels = np.asarray(labels), None
        relation.check(labels, None, count, size)
    if ids is not None:
        ids = identifiers("ids", ids, count)
        gallery_ids = identifiers("gallery_ids", gallery_ids, size)
    if parents is not None:
        parents = identifiers("parents", parents, count)
        gallery_parents = identifiers("gallery_parents", gallery_parents, size)

    classes: Any = None
    gallery_classes: Any = None
    labelled = np.zeros(0, np.int64)
    if kind.has_classes:
        both = [relation.classes(labels), relation.classes(gallery_labels)]
        labelled, of = np.unique(np.concatenate(both), return_inverse=True)
        classes, gallery_classes = of[:count], of[count:]
        labels = gallery_labels = None
    if distractors is not None:
        if not kind.has_classes:
            raise ValueError(
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
            raise ValueError("distractors have no parents; accepted: one of the two")
    return _Data(
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


def _check(chosen: Sequence[Metric], data: _Data, average: str, among: str) -> None:
    """Raises ValueError for what the data or the options do not allow."""
    if (among != "all" or average == "parent") and data.parents is None:
        asked = f"among={among!r}" if among != "all" else f"average={average!r}"
        raise ValueError(f"{asked} needs parents, which are None")
    if average in ("class", "each_class") and data.classes is None:
        raise ValueError(
            f"average={average!r} with relation {data.relation.name!r}; accepted: a relation with classes "
            f"({relations.WITH_CLASSES})"
        )
    for metric in chosen:
        if metric.kind != "ranks" and among != "all":
            raise ValueError(
                f"metric {metric.name!r} is not of ranks: among={among!r} is not for it"
            )
        needs_classes = metric.kind in ("clusters", "space") or metric.name == "opis"
        if needs_classes and data.classes is None:
            raise ValueError(
                f"metric {metric.name!r} with relation {data.relation.name!r}; accepted: a relation with classes "
                f"({relations.WITH_CLASSES})"
            )


def _rank_values(
    chosen: Sequence[Metric], data: _Data, among: str, k: int | str | None, options: Mapping
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(each metric's value for each query, whether the query is lone)."""
    count = len(data.queries)
    values = {metric.name: np.zeros(count) for metric in chosen}
    lone = np.ones(count, bool)
    for rows, items in _galleries(data, among):
        if not len(items):
            continue
        part = data if among == "all" else data.part(rows, items)
        for distance in dict.fromkeys(metric.distance or options["distance"] for metric in chosen):
            some = [m for m in chosen if (m.distance or options["distance"]) == distance]
            index, own, relevance = part.placed(distance, options)
            lone[rows] = relevance.relevant == 0
            some = [_at(metric, k, relevance.relevant) for metric in some]
            for at, ranks in _ranks(some, part.queries, index, own, relevance):
                for metric in some:
                    values[metric.name][rows[at]] = metric.function(ranks, relevance.relevant[at])
    return values, lone


def _at(metric: Metric, k: int | str | None, relevant: np.ndarray) -> Metric:
    """The metric with its k, where the name leaves it open."""
    if k is None or metric.name not in table.OPEN:
        return metric
    return table.get(metric.name, max(1, int(relevant.max())) if k == LARGEST_R else int(k))


def _galleries(data: _Data, among: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows of queries, rows of the gallery that they are searched among)."""
    if among == "all":
        yield np.arange(len(data.queries)), np.arange(len(data.gallery))
        return
    for parent in np.unique(data.parents):
        same = data.gallery_parents == parent
        yield (
            np.flatnonzero(data.parents == parent),
            np.flatnonzero(same if among == "same_parent" else ~same),
        )


def _ranks(
    chosen: Sequence[Metric], queries: np.ndarray, index: Index, own: np.ndarray, relevance: Any
) -> Iterator[tuple[np.ndarray, Ranks]]:
    """Blocks of (rows of queries that are not lone, where their relevant neighbours lie)."""
    relevant = relevance.relevant
    included = own >= 0
    depth = np.max([metric.depth(relevant, included) for metric in chosen], axis=0)
    depth = np.minimum(depth, index.size - included)
    scored = np.flatnonzero(relevant > 0)
    deep = depth > max(64, DEEP * index.size)
    rows = scored[deep[scored]]
    if len(rows):
        blocks = index.ranks(queries[rows], lambda at: relevance.members(rows[at]), own=own[rows])
        for at, of, rank in blocks:
            order = np.lexsort((rank, of))
            part = rows[at]
            yield part, Ranks(of[order], rank[order], len(part), index.size, included[part])
    # Queries of like depth together: a few very large classes do not make every search as deep as
    # theirs. Those in the gallery apart from the others: they have one neighbour less.
    level = 2 * np.ceil(np.log2(np.maximum(depth, 1))).astype(int) + included
    rows = scored[~deep[scored]]
    for each in np.unique(level[rows]):
        some = rows[level[rows] == each]
        k = int(depth[some].max())
        for at, _, places in index.nearest(queries[some], k, own=own[some], distances=False):
            part = some[at]
            yield part, Ranks.from_hits(relevance.hits(part, places), included[part])


def _averaged(values: np.ndarray, scored: np.ndarray, data: _Data, average: str) -> Any:
    if average == "query":
        return float(values[scored].mean()) if scored.any() else float("nan")
    groups = data.parents if average == "parent" else data.classes
    found, of = np.unique(groups[scored], return_inverse=True)
    means = np.bincount(of, weights=values[scored]) / np.bincount(of) if len(found) else found
    if average == "each_class":
        return {int(data.names[i]): float(m) for i, m in zip(found, means, strict=True)}
    return float(means.mean()) if len(means) else float("nan")


def _cluster_values(chosen: Sequence[Metric], data: _Data, backend: str) -> dict[str, float]:
    """Labels of the queries against k-means of them, once for each distance."""
    found = {}
    for distance in dict.fromkeys(metric.distance for metric in chosen):
        count = len(np.unique(data.classes))
        if distance == "cosine":
            clusters = clustering.cosine_kmeans(data.queries, count, backend=backend)
        else:
            clusters, _ = clustering.kmeans(data.queries, count, backend=backend)
        for metric in chosen:
            if metric.distance == distance:
                found[metric.name] = metric.function(data.classes, clusters)
    return found


def _pair_values(
    chosen: Sequence[Metric], data: _Data, options: Mapping[str, Any]
) -> dict[str, float]:
    index, own, relevance = data.placed(options["distance"], options)
    blocks = _pair_blocks(data, index, own, relevance)
    found = verification.verify(blocks, sorted({rate for m in chosen for rate in m.rates}))
    return {metric.name: metric.function(found, blocks) for metric in chosen}


def _pair_blocks(
    data: _Data, index: Index, own: np.ndarray, relevance: Any
) -> Callable[[], Iterator[verification.Block]]:
    size = max(1, PAIRS // index.size)

    def blocks() -> Iterator[verification.Block]:
        for start in range(0, len(data.queries), size):
            rows = np.arange(start, min(start + size, len(data.queries)))
            distances = index.everything(data.queries[rows])
            genuine = relevance.mask(rows)
            impostor = ~genuine
            mine = np.flatnonzero(own[rows] >= 0)
            impostor[mine, own[rows][mine]] = False
            classes = rows if data.classes is None else data.classes[rows]
            yield verification.Block(distances, genuine, impostor, classes)

    return blocks


def _search_recall(data: _Data, options: Mapping[str, Any]) -> float:
    """Of the approximate search, for the ten nearest."""
    ids: dict[str, Any] = (
        {} if data.ids is None else {"query_ids": data.ids, "gallery_ids": data.gallery_ids}
    )
    k = min(10, len(data.gallery) - (data.ids is not None))
    return search_recall(data.queries, data.gallery, k, **ids, **options)
