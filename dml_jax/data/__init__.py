"""Data: sources by name, augmentation, and the pipelines that turn plans into batches."""

from dml_jax.data import augment
from dml_jax.data.base import (
    DecodeError,
    Images,
    Source,
    Subset,
    hierarchy,
    hold_out,
    label_sets,
    subset,
)
from dml_jax.data.folder import files, files_below
from dml_jax.data.pipeline import eval_batches, train_batches
from dml_jax.data.sources import available, load

__all__ = [
    "DecodeError",
    "Images",
    "Source",
    "Subset",
    "augment",
    "available",
    "eval_batches",
    "files",
    "files_below",
    "hierarchy",
    "hold_out",
    "label_sets",
    "load",
    "subset",
    "train_batches",
]
