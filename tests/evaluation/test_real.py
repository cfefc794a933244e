"""Metrics of a trained network's embeddings against PyTorch Metric Learning (tests/golden/make_real.py)."""

import pathlib

import jax
import numpy as np
import pytest

from dml_jax.evaluation import evaluate_embeddings

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "real.npz")
# In the order of the golden file.
RANKS = (
    "precision_at_1",
    "r_precision",
    "map_at_r",
    "mean_average_precision",
    "mean_reciprocal_rank",
)
QUERIES, REFERENCES = (GOLDEN[n].astype(np.float32) for n in ("queries", "references"))
QUERY_LABELS, LABELS = GOLDEN["query_labels"], GOLDEN["labels"]
BOTH = np.concatenate([QUERIES, REFERENCES]), np.concatenate([QUERY_LABELS, LABELS])
CASES = {
    "alone": {},
    "separate": {"gallery": REFERENCES, "gallery_labels": LABELS},
    "including": {
        "gallery": BOTH[0],
        "gallery_labels": BOTH[1],
        "ids": np.arange(len(QUERIES)),
        "gallery_ids": np.arange(len(BOTH[0])),
    },
}


def test_what_the_embeddings_are():
    """Unit vectors up to float16, unbalanced; some queries have nothing to find."""
    np.testing.assert_allclose(np.linalg.norm(QUERIES, axis=1), 1, atol=1e-3)
    _, sizes = np.unique(QUERY_LABELS, return_counts=True)
    assert sizes.min() == 1 and sizes.max() >= 10
    assert not np.isin(QUERY_LABELS, LABELS).all() and not np.isin(LABELS, QUERY_LABELS).all()
    found = GOLDEN["alone/None/query"]
    # A network that has learnt: chance would be below a twentieth.
    assert 0.4 < found[0] < 0.95 and 0.2 < found[2] < 0.9


@pytest.mark.parametrize(("backend", "devices"), [("jax", 1), ("jax", 8), ("faiss", 1)])
@pytest.mark.parametrize("case", CASES)
def test_equals_pml(case, backend, devices):
    options = {"metrics": RANKS, "backend": backend, **CASES[case]}
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        for k in (None, "max_bin_count", 5):
            for average in ("query", "class", "each_class"):
                found = evaluate_embeddings(QUERIES, QUERY_LABELS, k=k, average=average, **options)
                values = [found[name] for name in RANKS]
                if average == "each_class":
                    values = [list(value.values()) for value in values]
                expected = GOLDEN[f"{case}/{k}/{average}"]
                np.testing.assert_allclose(values, expected, atol=1e-9, rtol=0)
    # Control: the cases, the averages and most k have values of their own.
    other = GOLDEN[f"{'separate' if case != 'separate' else 'alone'}/None/query"]
    assert np.abs(GOLDEN[f"{case}/None/query"] - other).max() > 1e-3
    assert np.abs(GOLDEN[f"{case}/None/query"] - GOLDEN[f"{case}/None/class"]).max() > 1e-3
    assert np.abs(GOLDEN[f"{case}/None/query"] - GOLDEN[f"{case}/5/query"]).max() > 1e-3


@pytest.mark.parametrize("backend", ["faiss", "jax"])
@pytest.mark.parametrize("case", CASES)
def test_clusters_equal_pml(case, backend):
    found = evaluate_embeddings(
        QUERIES, QUERY_LABELS, metrics=("nmi", "ami"), kmeans=backend, **CASES[case]
    )
    np.testing.assert_allclose(list(found.values()), GOLDEN[f"{case}/clusters"], atol=1e-9, rtol=0)
