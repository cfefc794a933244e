"""One config, one training curve: on one device, on eight, in two processes, and when a run moves between them."""

import json
import sys

import numpy as np
import pytest

from dml_jax import config as configs
from dml_jax import evaluate, run_folder
from dml_jax.training import build, loop
from tests.training.commands import CONFIG, ROOT, logged, losses, pictures, rows, run, train_command

LOSSES = ("multi_similarity", "cos_face")
ARGUMENTS = "loss={},steps=6,epochs=2"
LAUNCH = (sys.executable, str(ROOT / "launch" / "local.py"), "--processes=2", "--cpu_devices=2")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="module")
def one(data, tmp_path_factory):
    """By loss, the work folder of a run on one device."""
    found = {}
    for loss in LOSSES:
        found[loss] = tmp_path_factory.mktemp(loss)
        train(data, found[loss], loss, devices=1)
    return found


def train(data, workdir, loss, **fields):
    config = configs.load(f"{CONFIG}:{ARGUMENTS.format(loss)}")
    config.data.path = str(data)
    config.train.update(fields)
    loop.train(config, str(workdir))


def same_curve(a, b):
    for curve in (losses, validation):
        assert curve(a).keys() == curve(b).keys()
        np.testing.assert_allclose(list(curve(a).values()), list(curve(b).values()), rtol=2e-4)


def validation(workdir):
    return {int(r["epoch"]): float(r["val/map_at_r"]) for r in rows(workdir) if r["val/map_at_r"]}


@pytest.mark.parametrize("loss", LOSSES)
def test_eight_devices(data, one, loss, tmp_path):
    train(data, tmp_path, loss, devices=8)
    same_curve(tmp_path, one[loss])


def test_a_run_moves_to_other_devices(data, one, tmp_path):
    loss = "cos_face"
    train(data, tmp_path, loss, devices=1, epochs=1)
    assert logged(tmp_path) == 6
    train(data, tmp_path, loss, devices=4)
    same_curve(tmp_path, one[loss])


def test_two_processes(data, one, tmp_path):
    loss = "multi_similarity"
    command = train_command(data, tmp_path, arguments=ARGUMENTS.format(loss))
    status, out, err = run([*LAUNCH, "--", sys.executable, "-m", *command])
    assert status == 0, err
    assert out.count("4 devices") == 1, "process 1 is to keep quiet"
    same_curve(tmp_path, one[loss])


# Evaluates and embeds in one process of two; writing anything below the run's folder is an error in the second one.
COMMANDS = """
import os, sys
workdir, options = sys.argv[1], sys.argv[2:]
def refuse(event, arguments):
    if event == "open" and str(arguments[0]).startswith(workdir):
        assert not set(arguments[1] or "") & set("wax+"), arguments
if os.environ["JAX_PROCESS_ID"] == "1":
    sys.addaudithook(refuse)
from dml_jax import command_line, embed, evaluate, processes
embed.define_flags()
sys.argv = ["evaluate", f"--workdir={workdir}", "--step=last", *options]
def both():
    evaluate.main()
    processes.connect = lambda: None
    embed.main()
    print("ended", os.environ["JAX_PROCESS_ID"])
command_line.run(both)
"""


def test_two_processes_evaluate(one, tmp_path):
    """The values of one process, written and said once."""
    workdir = one["cos_face"]
    options = [f"--config={ROOT / 'configs' / 'run.py'}:{workdir}"]
    options += ["--config.evaluation.after=('int8',)", "--config.evaluation.average=each_class"]
    options += ["--config.evaluation.embeddings=('embedding','features')"]
    config = run_folder.read_config(str(workdir))
    config.evaluation.update(
        after=("int8",), average="each_class", embeddings=("embedding", "features")
    )
    model = build.model(config.model)
    expected = evaluate.evaluate(config, model, str(workdir), "last", "test", "alone")
    there = workdir / "evaluation" / "folder_test_last"
    program = [sys.executable, "-c", COMMANDS, str(workdir), *options]
    status, out, err = run([*LAUNCH, "--", *program])
    assert status == 0, err
    assert out.count("ended") == 2 and out.count("after training") == 1
    assert out.count("written: ") == 2 and out.count("each class:") == 1, out
    for name, table in zip(("metrics", "each_class", "after_training"), expected, strict=False):
        found = json.loads((there / f"{name}.json").read_text())
        assert found.keys() == table.keys()
        for row in table:
            assert found[row] == pytest.approx(table[row], abs=1e-5)
    names = {path.name for path in (workdir / "evaluation" / "alone").iterdir()}
    assert {path.name for path in there.iterdir()} == names
    embeddings = np.load(workdir / "embeddings" / "folder_test" / "embeddings.npy")
    assert len(embeddings) == len(build.source(config, "test"))


def test_an_error_of_one_process_ends_both(one, tmp_path):
    """An image that only the second process reads cannot be decoded: one line, and no process waits for the other."""
    folder = pictures(tmp_path / "broken", classes=3)
    (folder / "class02" / "0.png").write_bytes(b"no image")
    program = [
        sys.executable,
        "-m",
        "dml_jax.evaluate",
        f"--workdir={one['cos_face']}",
        "--split=all",
    ]
    program += [f"--config={CONFIG}", f"--config.data.path={folder}", "--step=last"]
    status, out, err = run([*LAUNCH, "--", *program])
    assert status == 1 and "written" not in out
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "cannot decode" in lines[0] and "class02/0.png" in lines[0]


def test_a_storage_in_two_processes(data, tmp_path):
    arguments = f"{ARGUMENTS.format('multi_similarity')},sampler=greedy_coreset"
    config = configs.load(f"{CONFIG}:{arguments}")
    config.data.path = str(data)
    config.train.devices = 1
    loop.train(config, str(tmp_path / "one"))
    command = train_command(data, tmp_path / "two", arguments=arguments)
    status, _, err = run([*LAUNCH, "--", sys.executable, "-m", *command])
    assert status == 0, err
    same_curve(tmp_path / "one", tmp_path / "two")


def test_a_process_that_fails_stops_the_others():
    program = "import os, sys, time; sys.exit(3) if os.environ['JAX_PROCESS_ID'] == '1' else time.sleep(600)"
    launch = [sys.executable, str(ROOT / "launch" / "local.py"), "--processes=3"]
    status, _, _ = run([*launch, "--", sys.executable, "-c", program])
    assert status == 3
