"""The quickstart on a few letters: its table, and every file that it says it wrote."""

import csv
import json

from dml_jax import config_files
from dml_jax.quickstart import quickstart


def test_quickstart(tmp_path, capsys):
    config = config_files.load("quickstart:runlocal")
    with config.unlocked():
        config.data.classes = 12
    config.train.devices = 1
    rows = quickstart(config, tmp_path)
    assert list(rows) == ["raw pixels", "untrained network", "trained network"]
    assert all(set(row) == set(config.evaluation.metrics) for row in rows.values())
    # Pixels of letters that training never saw do say something; that chance would give is 1 / 12.
    assert 0.2 < rows["raw pixels"]["precision_at_1"] < 1
    out = capsys.readouterr().out
    for word in ("P@1", "R@8", "MAP@R", "raw pixels", "trained network", "Next:", str(tmp_path)):
        assert word in out
    for name in (
        "config.json",
        "metrics.csv",
        "curves.png",
        "evaluation/quickstart/best.png",
        "evaluation/quickstart/classes.csv",
        "evaluation/quickstart/metrics.csv",
        "evaluation/quickstart/metrics.json",
        "evaluation/quickstart/random.png",
        "evaluation/quickstart/report.html",
        "evaluation/quickstart/worst.png",
    ):
        assert (tmp_path / name).stat().st_size > 0
    assert (
        json.loads((tmp_path / "evaluation/quickstart/metrics.json").read_text())["metrics"] == rows
    )
    with (tmp_path / "evaluation/quickstart/metrics.csv").open(newline="") as file:
        assert [r["row"] for r in csv.DictReader(file)] == list(rows)
    assert list((tmp_path / "tensorboard").iterdir())
    assert list((tmp_path / "checkpoints" / "best").iterdir())
