"""Data: sources by name, augmentation, and the pipelines that turn plans into batches."""

from dml_jax.data import augment
from dml_jax.data.augment import Augmentation
from dml_jax.data.base import (
    ArrayReader,
    DecodeError,
    FileReader,
    Images,
    Source,
    Subset,
    hierarchy,
    integer_labels,
    label_sets,
    subset,
)
from dml_jax.data.datasets.archive import archive
from dml_jax.data.datasets.cars196 import cars196
from dml_jax.data.datasets.cub200 import cub200
from dml_jax.data.datasets.folder import files, files_below, folder
from dml_jax.data.datasets.glyphs import glyphs
from dml_jax.data.datasets.grocery_store import grocery_store
from dml_jax.data.datasets.hugging_face import hugging_face
from dml_jax.data.datasets.inaturalist2018 import inaturalist2018
from dml_jax.data.datasets.inshop import inshop
from dml_jax.data.datasets.omniglot import omniglot
from dml_jax.data.datasets.parquet import parquet
from dml_jax.data.datasets.sop import sop
from dml_jax.data.datasets.tfds import tfds
from dml_jax.data.datasets.webdataset import webdataset
from dml_jax.data.decoding import decode
from dml_jax.data.identity import ClassImages, differences, fingerprint, relative_name
from dml_jax.data.pipeline import Plan, Plans, eval_batches, train_batches
from dml_jax.data.scan import BackgroundScan, Findings, paths_of, scan, sizes
from dml_jax.data.sources import available, load
from dml_jax.data.training_split import hold_out, reduced, with_label_noise

__all__ = [
    "ArrayReader",
    "Augmentation",
    "BackgroundScan",
    "ClassImages",
    "DecodeError",
    "FileReader",
    "Findings",
    "Images",
    "Plan",
    "Plans",
    "Source",
    "Subset",
    "archive",
    "augment",
    "available",
    "cars196",
    "cub200",
    "decode",
    "differences",
    "eval_batches",
    "files",
    "files_below",
    "fingerprint",
    "folder",
    "glyphs",
    "grocery_store",
    "hierarchy",
    "hold_out",
    "hugging_face",
    "inaturalist2018",
    "inshop",
    "integer_labels",
    "label_sets",
    "load",
    "omniglot",
    "parquet",
    "paths_of",
    "reduced",
    "relative_name",
    "scan",
    "sizes",
    "sop",
    "subset",
    "tfds",
    "train_batches",
    "webdataset",
    "with_label_noise",
]
