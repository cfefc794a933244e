"""Studies: many training runs that differ in what is compared, run, resumed and reported together."""

from dml_jax.experiments.results import Result, load_results, value
from dml_jax.experiments.search import Search, load_search
from dml_jax.experiments.study import Cell, Figure, Published, Study, Table, grid, load_study

__all__ = [
    "Cell",
    "Figure",
    "Published",
    "Result",
    "Search",
    "Study",
    "Table",
    "grid",
    "load_results",
    "load_search",
    "load_study",
    "value",
]
