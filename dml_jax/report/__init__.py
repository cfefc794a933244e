"""Reports of an evaluation: a page to walk through, galleries, maps, charts, training curves and tables."""

from dml_jax.report.curves import training_curves
from dml_jax.report.galleries import retrieval_gallery
from dml_jax.report.maps import check_map, embedding_map
from dml_jax.report.summary import distance_histograms
from dml_jax.report.tables import format_table, without_repeats
from dml_jax.report.write import ReportData, write_report

__all__ = [
    "ReportData",
    "check_map",
    "distance_histograms",
    "embedding_map",
    "format_table",
    "retrieval_gallery",
    "training_curves",
    "without_repeats",
    "write_report",
]
