"""From embeddings and labels to a table of metrics."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from dml_jax import names, relations
from dml_jax.errors import UserError
from dml_jax.evaluation import clustering
from dml_jax.evaluation.metrics import table as table
from dml_jax.evaluation.metrics.inputs import gather
from dml_jax.evaluation.metrics.metric import Metric
from dml_jax.evaluation.metrics.scoring import (
    LARGEST_R,
    approximate_recall,
    averaged,
    cluster_values,
    pair_values,
    rank_values,
)
from dml_jax.evaluation.search.candidates import APPROXIMATE, SEARCHES
from dml_jax.evaluation.search.index import DISTANCES, check_block
from dml_jax.evaluation.vectors import normalize_rows

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


def evaluate_embeddings(
    embeddings: Float[np.ndarray, "q d"],
    labels: Int[np.ndarray, " q"],
    *,
    metrics: str | Sequence[str | Metric] = DEFAULT_METRICS,
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
    """Computes each metric, from one pass over the neighbours for each distance that is asked for.

    Without a gallery every item is a query against all others. With one, a query is kept from
    finding itself where both `ids` and `gallery_ids` are given. Queries to which no other item of the gallery
    is relevant are left out (PML's rule), unless the metric says otherwise; a mean over none is nan.
    Each query is searched only as deep as its metrics look, and only what the metrics need of its neighbours is
    kept: memory does not grow with the largest class.

    Args:
      embeddings: one row per query.
      labels: integers of any size; for another relation, what it takes.
      metrics: names from `available()` with a number in the place of k, or `Metric` objects; one text may name several,
        with commas between them.
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

    Raises:
      UserError: an unknown metric or option, labels that are not integers or not as many as embeddings, a gallery
        without labels, ids on one side only, an id whose label differs between queries and gallery; and as in
        `neighbours`.

    >>> embeddings = np.array([[0.0], [0.1], [0.2], [5.0], [5.1]])
    >>> evaluate_embeddings(embeddings, np.array([0, 0, 1, 1, 1]), metrics="recall_at_1, map_at_r")
    {'recall_at_1': 0.8, 'map_at_r': 0.8}
    """
    rule = relations.build(relation)
    chosen = check_options(
        metrics=metrics,
        distance=distance,
        relation=rule,
        parents=parents is not None,
        among=among,
        average=average,
        k=k,
        backend=backend,
        kmeans=kmeans,
        block=block,
    )
    data = gather(
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
    options = {"distance": distance, "backend": backend, "block": block}

    found: dict[str, Any] = {}
    values: dict[str, np.ndarray] = {}
    no_positives = np.zeros(0, bool)
    ranked = [metric for metric in chosen if metric.kind == "ranks"]
    if ranked:
        values, no_positives = rank_values(ranked, data, among, k, options)
    if any(metric.kind == "pairs" for metric in chosen):
        found |= pair_values([m for m in chosen if m.kind == "pairs"], data, options)
    for metric in chosen:
        if metric.kind == "ranks":
            scored = ~no_positives | metric.counts_no_positives
            found[metric.name] = averaged(values[metric.name], scored, data, average)
        elif metric.kind == "space":
            value = metric.function(data.queries, data.classes)
            found[metric.name] = value.tolist() if isinstance(value, np.ndarray) else value
    found |= cluster_values([m for m in chosen if m.kind == "clusters"], data, kmeans)
    result = {metric.name: found[metric.name] for metric in chosen}
    if backend in APPROXIMATE and ranked:
        result["search_recall"] = approximate_recall(data, options)
    return result


def check_options(
    *,
    metrics: str | Sequence[str | Metric],
    distance: str = "euclidean",
    relation: Any = None,
    parents: bool = False,
    among: str = "all",
    average: str = "query",
    k: int | str | None = None,
    backend: str = "jax",
    kmeans: str = "faiss",
    block: int | None = None,
) -> list[Metric]:
    """Validates the options of an evaluation and returns its metrics.

    Args:
      metrics: as in `evaluate_embeddings`, like all that follow but `parents`.
      distance: `euclidean` or `cosine`.
      relation: when a label matches another.
      parents: True where there are parents.
      among: which items a query is searched among.
      average: how values of queries become one.
      k: how many neighbours metrics look at whose names leave it open.
      backend: what searches.
      kmeans: what clusters.
      block: how many rows are compared at a time.

    Raises:
      UserError: options that are unknown or do not go together.

    >>> [metric.title for metric in check_options(metrics="auc", distance="cosine")]
    ['AUC']
    """
    chosen = table.select(metrics)
    for kind, accepted, given in (
        ("distance", DISTANCES, distance),
        ("average", AVERAGES, average),
        ("among", AMONG, among),
        ("backend", SEARCHES, backend),
        ("backend of k-means", clustering.BACKENDS, kmeans),
    ):
        names.resolve(kind, dict.fromkeys(accepted), given)
    check_block(block)
    number = isinstance(k, int | np.integer) and not isinstance(k, bool) and k >= 1
    if k is not None and k != LARGEST_R and not number:
        raise UserError(f"k={k!r}; accepted: a positive integer, {LARGEST_R!r}, or None")
    if (among != "all" or average == "parent") and not parents:
        asked = f"among={among!r}" if among != "all" else f"average={average!r}"
        raise UserError(f"{asked} needs parents, which are None")
    rule = relations.build(relation)
    classless = (
        ""
        if rule.has_classes
        else f"with relation {rule.name!r}; accepted: a relation with classes ({relations.WITH_CLASSES})"
    )
    if average in ("class", "each_class") and classless:
        raise UserError(f"average={average!r} {classless}")
    for metric in chosen:
        if metric.kind != "ranks" and among != "all":
            raise UserError(
                f"metric {metric.name!r} is not of ranks: among={among!r} is not for it"
            )
        if (metric.kind in ("clusters", "space") or "classes" in metric.needs) and classless:
            raise UserError(f"metric {metric.name!r} {classless}")
    return chosen


def combined(
    embeddings: Mapping[str, Float[np.ndarray, "n _"]], name: str
) -> Float[np.ndarray, "n d"]:
    """Makes one embedding of several, by a name of the ICML 2020 code's successor: `Combined_A_B-0.5-2`.

    concat_i(w_i e_i) / |concat_i(w_i e_i)|, of normalised e_i: cosine similarities weighted by w_i^2 over their sum.
    The names lie between `Combined_` and the first `-`, the weights after it; without weights all are 1. A zero
    vector stays zero. Other names are looked up as they are.
    Differs from that code, which normalises only if the name of the architecture contains `normalize`; the ICML 2020
    code describes these names in its help text and has no code for them.

    Args:
      embeddings: by name.
      name: one of them, or a combination.

    Raises:
      UserError: as `parts`.

    >>> combined({"a": np.array([[2.0]]), "b": np.array([[0.0, 5.0]])}, "Combined_a_b-3-4")
    array([[0.6, 0. , 0.8]], dtype=float32)
    """
    weights = parts(name, tuple(embeddings))
    if name in weights:
        return embeddings[name]
    scaled = [w * normalize_rows(embeddings[part]) for part, w in weights.items()]
    return normalize_rows(np.concatenate(scaled, axis=1)).astype(np.float32)


def parts(name: str, known: Sequence[str]) -> dict[str, float]:
    """Returns the embeddings that a name stands for, with their weights: itself, or the parts of a `combined` one.

    Args:
      name: of an embedding, or of a combination.
      known: the names that there are.

    Raises:
      UserError: a part that is not known or comes twice, or not as many weights as parts.

    >>> parts("Combined_a_b-3-4", ["a", "b"])
    {'a': 3.0, 'b': 4.0}
    """
    if not name.startswith("Combined_") or name in known:
        names.resolve("embedding", dict.fromkeys(known), name)
        return {name: 1.0}
    head, *numbers = name.removeprefix("Combined_").split("-")
    found = head.split("_")
    for part in found:
        names.resolve("embedding", dict.fromkeys(known), part)
    try:
        weights = [float(number) for number in numbers] or [1.0] * len(found)
    except ValueError:
        weights = []
    if len(weights) != len(found) or not np.isfinite(weights).all():
        raise UserError(f"{name!r} has {len(found)} parts; accepted: as many weights, or none")
    if len(set(found)) != len(found):
        raise UserError(f"{name!r} names a part twice; accepted: each once, with its weight")
    return dict(zip(found, weights, strict=True))


def evaluate_each(
    embeddings: Mapping[str, Float[np.ndarray, "q _"]],
    labels: Int[np.ndarray, " q"],
    *,
    combinations: Sequence[str] = (),
    gallery: Mapping[str, Float[np.ndarray, "n _"]] | None = None,
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """Evaluates each of several embeddings of the same items, and `combined` ones; returns the results by name.

    Args:
      embeddings: of the queries, by name.
      labels: as in `evaluate_embeddings`.
      combinations: names of `combined` embeddings.
      gallery: of the items, by the same names.
      **options: as in `evaluate_embeddings`.

    >>> both = {"a": np.eye(4), "b": np.eye(4)[[0, 0, 1, 1]]}
    >>> evaluate_each(both, np.array([0, 0, 1, 1]), metrics="precision_at_1")
    {'a': {'precision_at_1': 0.5}, 'b': {'precision_at_1': 1.0}}
    """
    return {
        name: evaluate_embeddings(
            combined(embeddings, name),
            labels,
            gallery=None if gallery is None else combined(gallery, name),
            **options,
        )
        for name in (*embeddings, *combinations)
    }
