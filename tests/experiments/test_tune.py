"""A search by the reality check's protocol: it goes on where it was stopped; ensembles are what they are called."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from dml_jax import UserError, evaluation, run_folder
from dml_jax.experiments import cell as cells
from dml_jax.experiments import tune
from dml_jax.training import build
from tests.training.commands import environment, pictures

SEARCH = pathlib.Path(__file__).parent / "small_search.py"
pytest.importorskip("optuna")
pytest.importorskip("submitit")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="module")
def searched(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("search")
    module = [sys.executable, "-m", "dml_jax.experiments.tune"]
    command = [*module, f"--search={SEARCH}:path={data}", f"--workdir={workdir}", "--jobs=2"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return workdir, done.stdout


def test_a_search_ends_in_one_table(searched):
    workdir, printed = searched
    found = json.loads((workdir / tune.FOUND).read_text())
    assert (
        set(found["test"]) == {"separated", "concatenated"}
        and 1e-4 <= found["params"]["lr"] <= 1e-2
    )
    assert "| separated |" in printed and "trial 1 of 2" in printed
    results = tune.load_results(workdir)
    assert len(results) == 2 * 2 + 1 * 2
    # Each fold is held out once, of the training classes alone.
    folders = [workdir / "cells" / f"tuned=best,fold={i}" / "seed=0" for i in (0, 1)]
    configs = [run_folder.read_config(folder) for folder in folders]
    held = [set(build.source(config, "val").class_names) for config in configs]
    test = set(build.source(configs[0], "test").class_names)
    assert held[0].isdisjoint(held[1]) and test.isdisjoint(held[0] | held[1])
    assert held[0] | held[1] == held[0] | set(build.source(configs[0], "train").class_names)


def test_the_trial_value_is_the_mean_of_the_best_validations_on_the_folds(searched):
    workdir, _ = searched
    found = json.loads((workdir / tune.FOUND).read_text())
    results = tune.load_results(workdir)
    means = []
    for trial in (0, 1):
        of = [r for r in results if r.factors.get("trial") == trial]
        means.append(np.mean([tune.value(r, "best val/map_at_r") for r in of]))
    assert found["validation"] == pytest.approx(max(means)) and means[0] != means[1]


def test_concatenated_is_the_metric_of_the_embeddings_beside_each_other(searched):
    """Computed again from the models' own embeddings; the mean of the models' metrics would be another number."""
    import dml_jax

    workdir, _ = searched
    folders = [workdir / "cells" / f"tuned=best,fold={i}" / "seed=0" for i in (0, 1)]
    config = run_folder.read_config(folders[0])
    source = build.source(config, "test")
    files = [source.name(i) for i in range(len(source))]
    vectors = [np.asarray(dml_jax.load(folder).encode(files)) for folder in folders]
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in vectors]
    metrics = ("recall_at_1", "map_at_r")
    joined = evaluation.evaluate_embeddings(np.concatenate(unit, 1), source.labels, metrics=metrics)
    alone = [evaluation.evaluate_embeddings(v, source.labels, metrics=metrics) for v in vectors]
    found = tune.evaluate_folds(
        [r for r in tune.load_results(workdir) if r.folder in folders], "test"
    )
    assert found["concatenated"][0]["map_at_r"] == pytest.approx(joined["map_at_r"], abs=1e-6)
    mean = np.mean([row["map_at_r"] for row in alone])
    assert found["separated"][0]["map_at_r"] == pytest.approx(mean, abs=1e-6)
    assert abs(mean - joined["map_at_r"]) > 1e-4


def test_a_stopped_search_ends_its_trial_and_proposes_what_it_would_have(searched, data, tmp_path):
    """A trial that was begun, and whose runs failed to come to an end, is the first one of the next start."""
    workdir, _ = searched
    search = tune.load_search(f"{SEARCH}:path={data}")
    proposed = []

    def stop(asked):
        proposed.append([cell.config.optim.head.lr for cell in asked])
        if len(proposed) == 1:
            raise KeyboardInterrupt

    def finish(asked):
        """Takes the results of the search that was not stopped, which had the same proposals."""
        proposed.append([cell.config.optim.head.lr for cell in asked])
        for cell in asked:
            there = workdir / "cells" / cell.group / f"seed={cell.seed}"
            here = tmp_path / "cells" / cell.group / f"seed={cell.seed}"
            here.mkdir(parents=True)
            for name in ("result.json", "metrics.csv", cells.ASKED):
                (here / name).write_text((there / name).read_text())

    with pytest.raises(KeyboardInterrupt):
        tune.tune(search, tmp_path, stop)
    best = tune.tune(search, tmp_path, finish)
    assert proposed[0] == proposed[1] and len(proposed) == 3
    assert best.params == json.loads((workdir / tune.FOUND).read_text())["params"]


@pytest.mark.parametrize(
    "how, says",
    [({"folds": 1}, "folds=1"), ({"trials": 0}, "trials=0"), ({"metric": "test/map_at_r"}, "split val is accepted")],
)  # fmt: skip
def test_what_is_refused(how, says):
    with pytest.raises(UserError, match=says):
        tune.Search("S", lambda trial: None, **how)
    with pytest.raises(UserError, match=r"unknown search .*nowhere\.py"):
        tune.load_search("nowhere.py")
