"""Evaluation: embeddings of a split, neighbours, metrics of retrieval, clustering and verification, and steps after
training. Reports of what it finds are in `dml_jax.report`."""

from dml_jax.evaluation.clustering import kmeans
from dml_jax.evaluation.embed import embed, pixels
from dml_jax.evaluation.evaluate import (
    DEFAULT_METRICS,
    combined,
    evaluate_each,
    evaluate_embeddings,
)
from dml_jax.evaluation.metrics.metric import Metric
from dml_jax.evaluation.metrics.ranking import (
    Ranks,
    map_at_r,
    mean_average_precision,
    mean_inverse_negative_penalty,
    mean_reciprocal_rank,
    ndcg,
    precision_at_1,
    precision_at_k,
    r_precision,
    recall_at_k,
)
from dml_jax.evaluation.metrics.table import available, get, metric_names
from dml_jax.evaluation.postprocess import (
    FITTED,
    after_training,
    alpha_query_expansion,
    binary,
    check_steps,
    database_augmentation,
    int8,
    k_reciprocal,
    rescored,
    signs,
    whitening,
)
from dml_jax.evaluation.search.neighbours import neighbours, search_recall
from dml_jax.evaluation.spectrum import (
    class_distances,
    principal_axes,
    rho_spectrum,
    singular_values,
)
from dml_jax.evaluation.verification import Roc, roc_curve

__all__ = [
    "DEFAULT_METRICS",
    "FITTED",
    "Metric",
    "Ranks",
    "Roc",
    "after_training",
    "alpha_query_expansion",
    "available",
    "binary",
    "check_steps",
    "class_distances",
    "combined",
    "database_augmentation",
    "embed",
    "evaluate_each",
    "evaluate_embeddings",
    "get",
    "int8",
    "k_reciprocal",
    "kmeans",
    "map_at_r",
    "mean_average_precision",
    "mean_inverse_negative_penalty",
    "mean_reciprocal_rank",
    "metric_names",
    "ndcg",
    "neighbours",
    "pixels",
    "precision_at_1",
    "precision_at_k",
    "principal_axes",
    "r_precision",
    "recall_at_k",
    "rescored",
    "rho_spectrum",
    "roc_curve",
    "search_recall",
    "signs",
    "singular_values",
    "whitening",
]
