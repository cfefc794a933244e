"""Evaluation: embeddings of a split, neighbours, metrics of retrieval, clustering and verification, and pictures and
tables of them."""

from dml_jax.evaluation.after import (
    alpha_query_expansion,
    binary,
    database_augmentation,
    int8,
    rescored,
    signs,
    whitening,
)
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
from dml_jax.evaluation.maps import check_map, embedding_map, principal_axes
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
from dml_jax.evaluation.report import Set, write_report
from dml_jax.evaluation.reranking import k_reciprocal
from dml_jax.evaluation.spread import class_distances, rho_spectrum, singular_values
from dml_jax.evaluation.storage import FITTED, after_training, check_steps
from dml_jax.evaluation.summary import distance_histograms
from dml_jax.evaluation.table import format_table
from dml_jax.evaluation.verification import Roc, roc_curve

__all__ = [
    "DEFAULT_METRICS",
    "FITTED",
    "Metric",
    "Ranks",
    "Roc",
    "Set",
    "after_training",
    "alpha_query_expansion",
    "available",
    "binary",
    "check_map",
    "check_steps",
    "class_distances",
    "combined",
    "database_augmentation",
    "distance_histograms",
    "embed",
    "embedding_map",
    "evaluate_each",
    "evaluate_embeddings",
    "format_table",
    "get",
    "int8",
    "k_reciprocal",
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
    "principal_axes",
    "r_precision",
    "recall_at_k",
    "rescored",
    "retrieval_gallery",
    "rho_spectrum",
    "roc_curve",
    "search_recall",
    "signs",
    "singular_values",
    "training_curves",
    "whitening",
    "write_report",
]
