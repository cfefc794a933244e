"""Metrics files and progress."""

import csv
import io
import sys
from types import SimpleNamespace

import pytest
from tensorboardX.proto.event_pb2 import Event

from dml_jax import UserError
from dml_jax.console import Progress, watched
from dml_jax.training.metrics_table import MetricsTable
from dml_jax.training.trackers import Trackers


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_rows_and_new_columns(tmp_path):
    table = MetricsTable(tmp_path / "m.csv")
    table.write({"step": 1, "loss": 0.5})
    table.write({"step": 1, "val/map": 0.25})
    table.write({"step": 2, "loss": 0.125})
    assert read(tmp_path / "m.csv") == [
        {"step": "1", "loss": "0.5", "val/map": ""},
        {"step": "1", "loss": "", "val/map": "0.25"},
        {"step": "2", "loss": "0.125", "val/map": ""},
    ]


def test_going_on_drops_what_will_come_again(tmp_path):
    path = tmp_path / "m.csv"
    table = MetricsTable(path)
    for step in (1, 2, 3):
        table.write({"step": step, "loss": step / 8})
        table.write({"step": step, "val/map": step / 4})
    with path.open("a") as file:
        file.write("4,0.")  # killed while it wrote
    MetricsTable(path, step=2).write({"step": 3, "loss": 1.0})
    assert [(r["step"], r["loss"], r["val/map"]) for r in read(path)] == [
        ("1", "0.125", ""),
        ("1", "", "0.25"),
        ("2", "0.25", ""),
        ("3", "1.0", ""),
    ]
    assert not list(tmp_path.glob("*.new"))


def scalars(path):
    """The scalars of a TensorBoard file: records of a length, its checksum, the event, its checksum."""
    data, found = path.read_bytes(), {}
    while data:
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        found |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
        data = data[16 + length :]
    return found


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_bar_on_a_terminal():
    stream = Terminal()
    bar = Progress(800, 80, stream=stream)
    bar.update(80, 1, 10, 0.25)
    bar.close()
    shown = stream.getvalue()
    assert "160/800" in shown and "loss 0.2500" in shown and "images/s" in shown


def test_a_loss_that_is_not_known_yet(capsys):
    """As at the first steps after a run went on: nobody is to take it for one that is not finite."""
    bar = Progress(800, 0, seconds=0.0, stream=io.StringIO())
    for step in (1, 2):
        bar.update(80, 1, step, float("nan"))
    bar.close()
    assert "step 2  " in (out := capsys.readouterr().out) and "loss" not in out and "nan" not in out


@pytest.mark.parametrize("show", [True, False])
def test_lines_elsewhere(capsys, show):
    stream = io.StringIO()
    bar = Progress(800, 0, show=show, seconds=0.0, stream=stream)
    assert bar.rate() == 0
    for step in (1, 2):
        bar.update(80, 1, step, 0.25)
    assert bar.rate() > 0
    bar.pause()
    assert bar.rate() == 0
    bar.close()
    out = capsys.readouterr().out
    assert stream.getvalue() == ""
    assert ("loss 0.2500" in out and "left" in out) == show
    if not show:
        assert out == ""


def test_a_pass_over_images(capsys):
    batches = [{"image": range(4)}] * 3
    stream = Terminal()
    assert list(watched(batches, 10, "evaluating val", stream=stream)) == batches
    assert "evaluating val" in stream.getvalue() and "0/10" in stream.getvalue()
    assert (
        list(watched(batches, 10, "evaluating val", seconds=0.0, stream=io.StringIO())) == batches
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "evaluating val: 4 of 10 images",
        "evaluating val: 8 of 10 images",
    ]
    assert all(line.endswith("left") for line in lines)
    # What is over within seconds is not worth a line.
    assert len(list(watched(batches, 10, "evaluating val", stream=io.StringIO()))) == 3
    assert len(list(watched(batches, 10, "x", show=False, seconds=0.0, stream=stream))) == 3
    assert capsys.readouterr().out == ""


def test_tensorboard_and_csv(tmp_path):
    reports = Trackers(tmp_path, 0, {})
    reports.write({"step": 3, "epoch": 1, "loss": 0.5})
    reports.close()
    assert read(tmp_path / "metrics.csv") == [{"step": "3", "epoch": "1", "loss": "0.5"}]
    files = list((tmp_path / "tensorboard").iterdir())
    assert scalars(files[0]) == {("loss", 3): 0.5, ("epoch", 3): 1.0}


def test_wandb_is_optional(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'dml_jax\[wandb\]'"):
        Trackers(tmp_path, 0, {}, "project")
    assert not list(tmp_path.iterdir())


def test_wandb_goes_on_with_its_run(tmp_path, monkeypatch):
    """What the package gets: one id for all starts of a run, kept in its folder."""
    rows, starts = [], []
    run = SimpleNamespace(log=lambda row, step: rows.append((step, row)), finish=lambda: None)
    fake = SimpleNamespace(init=lambda **given: starts.append(given) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = {"seed": 0, "train": {"wandb_group": "loss=nt_xent", "wandb_name": "seed=0"}}
    for step in (1, 2):
        trackers = Trackers(tmp_path, step - 1, config, "project")
        trackers.write({"step": step, "epoch": 1, "loss": 0.5})
        trackers.close()
    assert starts[0]["group"] == "loss=nt_xent" and starts[0]["name"] == "seed=0"
    assert rows == [(step, {"epoch": 1, "loss": 0.5}) for step in (1, 2)]
    first, second = starts
    assert first == second and first["resume"] == "allow" and first["project"] == "project"
    assert len(first["id"]) == 8 and (tmp_path / "wandb_id").read_text() == first["id"]


def test_wandb_offline(tmp_path, monkeypatch):
    """The real package, without a network."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for step in (1, 2):
        trackers = Trackers(tmp_path, step - 1, {"seed": 0}, "project")
        trackers.write({"step": step, "epoch": 1, "loss": 0.5})
        trackers.close()
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(runs) == 2
    name = (tmp_path / "wandb_id").read_text()
    assert all(run.name.endswith(name) and list(run.glob("*.wandb")) for run in runs)
