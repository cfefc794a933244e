"""Evaluation: embeddings of a split, exact neighbours, retrieval metrics, and pictures and tables
of them."""

from dml_jax.evaluation.curves import training_curves
from dml_jax.evaluation.embed import embed, pixels
from dml_jax.evaluation.evaluate import DEFAULT_METRICS, evaluate_embeddings
from dml_jax.evaluation.gallery import retrieval_gallery
from dml_jax.evaluation.metrics import (
    Metric,
    available,
    get,
    map_at_r,
    precision_at_1,
    r_precision,
    recall_at_k,
)
from dml_jax.evaluation.neighbours import neighbours
from dml_jax.evaluation.table import format_table

__all__ = [
    "DEFAULT_METRICS",
    "Metric",
    "available",
    "embed",
    "evaluate_embeddings",
    "format_table",
    "get",
    "map_at_r",
    "neighbours",
    "pixels",
    "precision_at_1",
    "r_precision",
    "recall_at_k",
    "retrieval_gallery",
    "training_curves",
]
