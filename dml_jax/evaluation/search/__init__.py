"""Exact nearest neighbours, whatever the backend, the blocks and the devices."""

from dml_jax.evaluation.search.candidates import APPROXIMATE, SEARCHES
from dml_jax.evaluation.search.index import DISTANCES, Index
from dml_jax.evaluation.search.neighbours import neighbours, search_recall

__all__ = ["APPROXIMATE", "DISTANCES", "SEARCHES", "Index", "neighbours", "search_recall"]
