"""Studies as a user runs them: in processes, killed, failed, begun again."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from dml_jax import UserError, experiments
from dml_jax.experiments import cell as cells
from dml_jax.experiments import engines
from tests.training.commands import environment, pictures

STUDY = pathlib.Path(__file__).parent / "small_study.py"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("data") / "pictures")


def command(data, workdir, *options, arguments=""):
    spec = f"--study={STUDY}:path={data}{arguments}"
    module = [sys.executable, "-m", "dml_jax.experiments.run"]
    return [*module, spec, f"--workdir={workdir}", "--jobs=2", *options]


def run(*arguments, **keywords):
    return subprocess.run(
        command(*arguments, **keywords),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )


def finals(workdir):
    return {(r.group, r.seed): dict(r.final) for r in experiments.load_results(workdir)}


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    done = run(data, workdir)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 of 4" in done.stdout and "4 cells: 4 finished" in done.stdout
    return workdir


def test_a_cell_holds_what_it_needs_to_be_run_again(undisturbed):
    folder = undisturbed / "cells" / "loss=cos_face" / "seed=1"
    about = json.loads((folder / "result.json").read_text())["about"]
    assert {"hash", "seconds", "code", "python", "packages", "device"} <= set(about)
    assert about["packages"]["jax"] and "cpu" in about["device"].lower()
    assert json.loads((folder / "config.json").read_text())["seed"] == 1
    assert (folder / "log.txt").read_text()
    assert cells.state(folder) == "finished" and not cells.is_busy(folder)
    assert len(finals(undisturbed)) == 4
    assert len({str(v) for v in finals(undisturbed).values()}) > 1


def test_a_finished_study_does_nothing(undisturbed, data):
    files = sorted((undisturbed / "cells").rglob("*"))
    before = {f: f.stat().st_mtime_ns for f in files if f.name != "cell.json" and f.is_file()}
    done = run(data, undisturbed)
    assert done.returncode == 0 and "0 to run" in done.stdout
    assert {f: f.stat().st_mtime_ns for f in before} == before
    listed = run(data, undisturbed, "--dry_run", "--only=*nt_xent*")
    assert listed.stdout.count("finished  loss=nt_xent") == 2 and "cos_face" not in listed.stdout
    # Another configuration in the same folder is no cell of it.
    other = run(data, undisturbed, arguments=",epochs=2")
    assert other.returncode == 1 and "holds a run of another configuration" in other.stderr


def test_a_study_that_is_killed_ends_with_the_same_numbers(undisturbed, data, tmp_path):
    for seconds in (6, 9):
        process = subprocess.Popen(
            command(data, tmp_path),
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = run(data, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert finals(tmp_path) == finals(undisturbed)


def test_a_cell_that_fails_does_not_end_the_others(data, tmp_path):
    done = run(data, tmp_path, "--only=*/seed=0", arguments=",breaks")
    assert done.returncode == 1
    assert "3 cells: 1 failed, 2 finished" in done.stdout
    assert "failed: loss=broken/seed=0" in done.stdout and "not finite" in done.stdout
    assert "1 of 3 cells failed; --retry_failed" in done.stderr
    assert len(finals(tmp_path)) == 2
    again = run(data, tmp_path, "--only=*/seed=0", arguments=",breaks")
    assert "0 to run" in again.stdout
    retried = run(data, tmp_path, "--only=*broken/seed=0", "--retry_failed", arguments=",breaks")
    assert "1 to run" in retried.stdout and retried.returncode == 1


@pytest.mark.parametrize(
    "option, says",
    [
        ("--executor=slrum", "did you mean 'slurm'"),
        ("--jobs=0", "--jobs=0"),
        ("--only=*nothing*", "matches none of the 4 cells, such as 'loss=cos_face/seed=0'"),
        ("--gpus=a", "--gpus=a"),
        ("--memory_share=2", "--memory_share=2"),
        ("--slurm=partition", "NAME=VALUE"),
    ],
)  # fmt: skip
def test_what_is_refused_in_one_line(option, says, data, tmp_path, capsys):
    from dml_jax import command_line
    from dml_jax.experiments import run as command_module

    with pytest.raises(SystemExit):
        command_line.run(command_module, command(data, tmp_path, option)[3:])
    assert says in capsys.readouterr().err


def test_cells_that_share_a_gpu_share_its_memory(tmp_path):
    resources = engines.Resources(jobs=5, folder=tmp_path, gpus=(2, 3))
    slots = [resources.environment(slot) for slot in range(5)]
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["2", "3", "2", "3", "2"]
    # Three on the first one: a quarter of what JAX takes by default is for each.
    assert {slot["XLA_PYTHON_CLIENT_MEM_FRACTION"] for slot in slots} == {"0.250"}
    given = engines.Resources(jobs=2, folder=tmp_path, gpus=(0,), memory_share=0.4)
    assert given.environment(1)["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.400"
    assert engines.Resources(jobs=2, folder=tmp_path).environment(0) == {}


def test_slurm_is_missed_by_name(tmp_path):
    with pytest.raises(UserError, match=r"--executor=slurm: .*--executor=local"):
        list(engines.slurm([cells.CellJob(tmp_path)], engines.Resources(jobs=1, folder=tmp_path)))


def test_ray_runs_cells_in_processes_of_their_own(data, tmp_path):
    pytest.importorskip("ray")
    done = run(data, tmp_path, "--executor=ray", "--only=*/seed=0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(finals(tmp_path)) == 2
