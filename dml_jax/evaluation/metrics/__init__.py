"""Metrics: a typed factory for each, and the functions that compute them.

`metrics.recall_at_k(k=4)` is a `Metric`, what `evaluation.get("recall_at_4")` looks up; `metrics.of_ranks` and
`metrics.of_embeddings` make one of a function of one's own. The functions of ranks themselves are in
`metrics.ranking`.
"""

from dml_jax.evaluation.metrics.factories import (
    ami,
    auc,
    class_distances,
    eer,
    epsilon_opis,
    f1,
    fnmr_at_fmr,
    map_at_r,
    mean_average_precision,
    mean_reciprocal_rank,
    minp,
    ndcg,
    nmi,
    opis,
    precision_at_k,
    r_precision,
    recall_at_k,
    revisiting_map,
    revisiting_map_c,
    revisiting_recall,
    rho_spectrum,
    tar_at_far,
)
from dml_jax.evaluation.metrics.metric import Metric, of_embeddings, of_ranks
from dml_jax.evaluation.metrics.table import available, get, metric_names, select

__all__ = [
    "Metric",
    "ami",
    "auc",
    "available",
    "class_distances",
    "eer",
    "epsilon_opis",
    "f1",
    "fnmr_at_fmr",
    "get",
    "map_at_r",
    "mean_average_precision",
    "mean_reciprocal_rank",
    "metric_names",
    "minp",
    "ndcg",
    "nmi",
    "of_embeddings",
    "of_ranks",
    "opis",
    "precision_at_k",
    "r_precision",
    "recall_at_k",
    "revisiting_map",
    "revisiting_map_c",
    "revisiting_recall",
    "rho_spectrum",
    "select",
    "tar_at_far",
]
