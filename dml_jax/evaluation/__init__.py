"""Evaluation: embeddings of a split, neighbours, metrics of retrieval, clustering and verification, and pictures and
tables of them."""

from dml_jax.evaluation.clustering import kmeans
from dml_jax.evaluation.curves import training_curves
from dml_jax.evaluation.embed import embed, pixels
from dml_jax.evaluation.evaluate import (
    DEFAULT_METRICS,
    combined,
    evaluate_each,
    evaluate_embeddings,
)
from dml_jax.evaluation.gallery import retrieval_gallery
from dml_jax.evaluation.metrics import Metric, available, get
from dml_jax.evaluation.neighbours import neighbours, search_recall
from dml_jax.evaluation.ranking import (
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
from dml_jax.evaluation.spread import class_distances, rho_spectrum, singular_values
from dml_jax.evaluation.table import format_table

__all__ = [
    "DEFAULT_METRICS",
    "Metric",
    "Ranks",
    "available",
    "class_distances",
    "combined",
    "embed",
    "evaluate_each",
    "evaluate_embeddings",
    "format_table",
    "get",
    "kmeans",
    "map_at_r",
    "mean_average_precision",
    "mean_inverse_negative_penalty",
    "mean_reciprocal_rank",
    "ndcg",
    "neighbours",
    "pixels",
    "precision_at_1",
    "precision_at_k",
    "r_precision",
    "recall_at_k",
    "retrieval_gallery",
    "rho_spectrum",
    "search_recall",
    "singular_values",
    "training_curves",
]
