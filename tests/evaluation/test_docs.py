"""docs/evaluation.md has every metric, and says of it what the code says."""

import pathlib
import re

import numpy as np

from dml_jax import evaluation
from dml_jax.evaluation.postprocess import STEPS
from dml_jax.evaluation.search import SEARCHES

TEXT = (pathlib.Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
COLUMNS = ("metric", "kind", "definition", "mean", "distance", "source")


def rows():
    found = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in TEXT.splitlines()
        if line.startswith("| `") and line.count("|") == len(COLUMNS) + 1
    ]
    return {row[0].strip("`"): dict(zip(COLUMNS, row, strict=True)) for row in found}


def metric_of(name):
    number = "2" if name.startswith("rho") else "0.01" if name.endswith("=x") else "4"
    return evaluation.get(
        re.sub("[kmx]$", number, name) if name[-2:] in ("_k", "@k", "@m", "=x") else name
    )


def test_every_metric():
    assert set(rows()) == set(evaluation.available())
    for name, row in rows().items():
        metric = metric_of(name)
        assert row["kind"] == metric.kind, name
        if metric.kind == "ranks":
            assert row["mean"] == ("all" if metric.counts_no_positives else "with positives"), name
        else:
            assert row["mean"] == "", name
        if metric.kind != "space":
            assert row["distance"] == (metric.distance or "any"), name
        assert row["definition"]


def test_backends_and_steps():
    for name in (*SEARCHES, *STEPS):
        assert f"`{name}`" in TEXT


def test_depth_of_first_hits():
    """What the page says depends on the first hit alone does so: what comes after it changes nothing."""
    rng = np.random.default_rng(0)
    hits = rng.random((50, 40)) < 0.1
    relevant = hits.sum(axis=1)
    cut = hits & (np.cumsum(hits, axis=1) == 1)
    some = 0
    for name in evaluation.available():
        metric = metric_of(name)
        if metric.kind == "ranks":
            same = np.array_equal(metric.function(hits, relevant), metric.function(cut, relevant))
            assert same == metric.first_hit_only, name
            some += metric.first_hit_only
    assert some == 7


def test_a_metric_of_ones_own(tmp_path, monkeypatch):
    """The example on the page, in a file of its own."""
    example = TEXT.split("```python\n", 1)[1].split("```")[0]
    (tmp_path / "my_metrics.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    labels = np.array([0, 0, 1, 1, 2])
    found = evaluation.evaluate_embeddings(
        np.eye(5),
        labels,
        metrics=("my_metrics:success_at_3", "my_metrics:mean_norm", "recall_at_3"),
    )
    assert found["my_metrics:success_at_3"] == found["recall_at_3"]
    assert found["my_metrics:mean_norm"] == 1
