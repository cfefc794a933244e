"""A trained model in use: embeddings of images, an index to search in, and a file that holds all of it."""

from dml_jax.inference.encoder import Encoder, Match, encoder_of, load
from dml_jax.inference.export import export, load_exported
from dml_jax.inference.index import ABOUT, EMBEDDINGS, ITEMS, MODEL, Found, Index

__all__ = [
    "ABOUT",
    "EMBEDDINGS",
    "ITEMS",
    "MODEL",
    "Encoder",
    "Found",
    "Index",
    "Match",
    "encoder_of",
    "export",
    "load",
    "load_exported",
]
