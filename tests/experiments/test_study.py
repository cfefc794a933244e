"""What a study is, and how results are read."""

import json

import pytest

from dml_jax import UserError, experiments
from dml_jax import config as configs
from dml_jax.experiments import Cell, Figure, Study, Table
from dml_jax.experiments.study import available, load_study


def cell(seed=0, epochs=3, **factors):
    config = configs.new()
    config.seed, config.train.epochs = seed, epochs
    return Cell(factors or {"loss": "x"}, seed, config)


def test_a_grid_has_every_combination_with_every_seed_and_configurations_of_its_own():
    def make(loss, rate):
        config = configs.new()
        config.loss.name, config.optim.loss.lr = loss, rate
        return config

    cells = experiments.grid(make, seeds=iter((3, 4)), loss=iter(("a", "b")), rate=(0.1, 1e-6, 2.0))
    assert len(cells) == 12 and len({c.name for c in cells}) == 12
    assert cells[3].name == "loss=a,rate=1e-06/seed=4"
    assert (cells[3].config.seed, cells[3].config.loss.name, cells[3].config.optim.loss.lr) == (
        4,
        "a",
        1e-6,
    )
    assert cell(a="x/../y z").group == "a=x_.._y_z"


def test_the_hash_is_of_what_is_computed():
    first = cell()
    assert cell().hash == first.hash != cell(epochs=4).hash != cell(seed=1).hash
    moved = cell()
    moved.config.data.threads = 7
    assert moved.hash == first.hash


@pytest.mark.parametrize(
    "how, says",
    [
        ({"cells": ()}, "has no cell"),
        ({"cells": (cell(), cell())}, "several cells 'loss=x/seed=0'"),
        ({"tables": (Table("t", "los", ("a",)),)}, "factor of 't' .*'los'; did you mean 'loss'"),
        ({"figures": (Figure("f", "lines", y="a", x="loss", panels="data"),)}, "'data'; accepted: loss"),
        ({"figures": (Figure("f", "bars", y="a", x="batch"),)}, "'batch'; accepted: loss"),
        ({"tables": (Table("t", "loss", ("a",)),) * 2}, "two tables or two figures 't'"),
    ],
)  # fmt: skip
def test_what_is_refused(how, says):
    with pytest.raises(UserError, match=says):
        Study(**{"title": "S", "cells": (cell(),)} | how)
    Study("S", (cell(),), figures=(Figure("f", "scatter", y="a", x="a value"),))


def test_a_file_that_makes_no_study(tmp_path):
    file = tmp_path / "s.py"
    file.write_text("def get_study(arg=None):\n    return 3\n")
    with pytest.raises(UserError, match=r"study .*s\.py: get_study returned 3"):
        load_study(str(file))
    file.write_text("x = 1\n")
    with pytest.raises(UserError, match="get_study"):
        load_study(str(file))
    with pytest.raises(UserError, match="unknown study 'nowhere'"):
        load_study("nowhere")
    for name in available():
        assert load_study(name).cells


def test_values_of_a_result(tmp_path):
    """Each best is its metric's own: the highest of a recall, the lowest of an error rate, the first of equals."""
    folder = tmp_path / "cells" / "loss=x" / "seed=0"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text(
        "step,epoch,loss,test/recall_at_1,test/eer,train/rho\n"
        "1,1,0.5,,,\n"
        "2,1,,0.5,0.3,9\n"
        "4,2,,0.8,0.2,8\n"
        "6,3,,0.8,0.1,7\n"
        "8,4,,0.6,0.4,6\n"
    )
    about = {"hash": "h"}
    content = {
        "factors": {"loss": "x"},
        "seed": 0,
        "final": {"test/recall_at_1": 0.6},
        "about": about,
    }
    (folder / "result.json").write_text(json.dumps(content))
    (found,) = experiments.load_results(tmp_path)
    value = lambda name: experiments.value(found, name)
    assert value("test/recall_at_1") == 0.6
    assert value("best test/recall_at_1") == 0.8
    assert value("best test/eer") == 0.1
    assert value("epoch of best test/recall_at_1") == 2
    assert value("train/rho at best test/recall_at_1") == 8
    assert value("train/rho at best test/eer") == 7
    for name in ("test/recall", "best test/recall", "train/r at best test/recall_at_1"):
        with pytest.raises(UserError, match="unknown"):
            value(name)
    with pytest.raises(UserError, match="accepted: a folder that"):
        experiments.load_results(tmp_path / "nowhere")
