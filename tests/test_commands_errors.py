"""Bad input to the commands: one line that says what would be accepted, no traceback."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from tests.training.commands import CONFIG, ROOT, environment, pictures

# Importing takes seconds and no device, so all commands are forked from one process.
DRIVER = """
import importlib, json, os, sys
import dml_jax.train, dml_jax.evaluate, dml_jax.training.loop
from dml_jax import config
for name, (module, *arguments) in json.load(open(sys.argv[1])).items():
    child = os.fork()
    if child == 0:
        out = os.open(name + ".out", os.O_WRONLY | os.O_CREAT)
        os.dup2(out, 1)
        os.dup2(out, 2)
        command = importlib.import_module(module)
        command.define_flags()
        status = 0
        try:
            sys.argv = [module, *arguments]
            config.run(command.main)
        except SystemExit as stop:
            status = stop.code
        except BaseException:
            import traceback
            traceback.print_exc()
            status = 99
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status or 0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    open(name + ".status", "w").write(str(status))
"""
TRAIN, EVALUATE = "dml_jax.train", "dml_jax.evaluate"


def train(*options, data="good", arguments="steps=2,epochs=1", workdir="new"):
    return [
        TRAIN,
        f"--config={CONFIG}:{arguments}",
        f"--config.data.path={data}",
        f"--workdir={workdir}",
        *options,
    ]


# In this order: some need the run that the first one makes.
COMMANDS = {
    "good run": train(workdir="run"),
    "same again": train(workdir="run"),
    "longer": train("--config.train.epochs=2", workdir="run"),
    "good evaluation": [EVALUATE, "--workdir=run"],
    "evaluation of other data": [
        EVALUATE,
        "--workdir=run",
        f"--config={CONFIG}",
        "--config.data.path=other_data",
        "--split=all",
        "--step=last",
    ],
    "unknown loss": train("--config.loss.name=cos_fase"),
    "unknown field": train("--config.train.epoch=3"),
    "unknown section": train("--config.trian.epochs=3"),
    "unknown hyper-parameter": train("--config.loss.margn=0.2"),
    "value of another type": train("--config.train.epochs=many"),
    "unknown argument": train(arguments="stepz=2"),
    "no such config": [TRAIN, "--config=tests/training/tiny_confg.py", "--workdir=new"],
    "no config": [TRAIN, "--workdir=new"],
    "no workdir": [TRAIN, f"--config={CONFIG}"],
    "stray argument": train("epochs=3"),
    "unknown option": train("--confg=3"),
    "batch not divisible": train("--config.train.batch_size=7"),
    "too few classes": train("--config.train.batch_size=32", arguments="steps=8"),
    "singles": train(data="singles", arguments="loss=multi_similarity,steps=2"),
    "singles, random": train(
        data="singles", arguments="loss=multi_similarity,sampler=random,steps=1"
    ),
    "empty folder": train(data="empty"),
    "no path": [TRAIN, f"--config={CONFIG}", "--workdir=new"],
    "truncated": train(data="truncated", workdir="broken"),
    "truncated, skipped": train("--config.data.on_error=skip", data="truncated", workdir="skipped"),
    "unknown monitor": train("--config.train.monitor=val/map_at_q"),
    "micro-batch": train("--config.train.micro_batch=3", workdir="micro"),
    "devices": train("--config.train.devices=3"),
    "not finite": train(workdir="nan", arguments="steps=2,epochs=2,explode"),
    "another config": train("--config.loss.scale=8.0", "--config.seed=3", workdir="run"),
    "another architecture": [EVALUATE, "--workdir=other"],
    "no run": [EVALUATE, "--workdir=empty"],
    "no such step": [EVALUATE, "--workdir=run", "--step=3"],
    "no such split": [EVALUATE, "--workdir=run", "--split=tset"],
}

# What the line must say, and no other line.
ERRORS = {
    "unknown loss": ["unknown loss 'cos_fase'", "'cos_face'"],
    "unknown field": ["--config.train.epoch", "did you mean 'epochs'"],
    "unknown section": ["--config.trian.epochs", "did you mean 'train'"],
    "unknown hyper-parameter": ["--config.loss.margn", "did you mean 'margin'"],
    "value of another type": ["--config.train.epochs=many", "int"],
    "unknown argument": ["'stepz'", "'steps'"],
    "no such config": ["tiny_confg.py", "tiny_config.py"],
    "no config": ["--config is missing"],
    "no workdir": ["--workdir is missing"],
    "stray argument": ["'epochs=3'"],
    "unknown option": ["'confg'", "config"],
    "batch not divisible": ["batch_size=7", "m=2", "6 or 8"],
    "too few classes": ["16 classes", "has 14", "up to 28"],
    "singles": ["single image", "accepted"],
    "singles, random": ["single image", "multi_similarity", "accepted"],
    "empty folder": ["no images under", ".jpg"],
    "no path": ["data.path", "--config.data.path=PATH"],
    "truncated": ["cannot decode", "broken.jpg"],
    "unknown monitor": ["train.monitor='val/map_at_q'", "map_at_r"],
    "micro-batch": ["micro_batch=3", "the batch of 8", "2, 4, 8"],
    "devices": ["train.devices=3", "1 to 2"],
    "not finite": ["step 3 is not finite", "by id: ", "checkpoints/last/2"],
    "another config": [
        "seed (0 there, 3 given)",
        "loss.scale",
        "run holds a run of another config",
    ],
    "another architecture": ["another architecture", "params/head/bias is (4,) there and (5,)"],
    "no run": ["config.json", "accepted"],
    "no such step": ["'3'", "best, last"],
    "no such split": ["'tset'", "'test'"],
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """(exit status, what was printed) of every command."""
    folder = tmp_path_factory.mktemp("commands")
    pictures(folder / "good")
    pictures(folder / "other_data", classes=5)
    pictures(folder / "singles", images=1)
    pictures(folder / "truncated")
    for whole in sorted((folder / "truncated").glob("*/0.png"))[1:]:
        broken = whole.with_name("broken.jpg")
        Image.open(whole).save(broken, quality=95)
        broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    (folder / "empty").mkdir()
    (folder / "tests" / "training").mkdir(parents=True)
    shutil.copy(CONFIG, folder / "tests" / "training")
    first = {k: v for k, v in COMMANDS.items() if v[0] != EVALUATE}
    rest = {k: v for k, v in COMMANDS.items() if k not in first}
    found = _run(folder, first)
    shutil.copytree(folder / "run", folder / "other")
    config = folder / "other" / "config.json"
    stored = json.loads(config.read_text())
    stored["model"]["embedding_dim"] = 5
    config.write_text(json.dumps(stored))
    return found | _run(folder, rest)


def _run(folder: pathlib.Path, commands):
    (folder / "commands.json").write_text(json.dumps(commands))
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DRIVER, "commands.json"],
        cwd=folder,
        env=environment(devices=2) | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])},
        check=True,
        timeout=240,
    )
    return {
        name: (
            int((folder / f"{name}.status").read_text()),
            (folder / f"{name}.out").read_text(),
        )
        for name in commands
    }


@pytest.mark.parametrize("name", ERRORS)
def test_one_line(outcomes, name):
    status, printed = outcomes[name]
    assert status in (1, 2), printed
    assert "Traceback" not in printed
    lines = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, printed
    assert printed.rstrip().endswith(lines[0])
    for part in ERRORS[name]:
        assert part in lines[0]


@pytest.mark.parametrize("name", [k for k in COMMANDS if k not in ERRORS])
def test_good(outcomes, name):
    status, printed = outcomes[name]
    assert status == 0, printed
    assert "error" not in printed


def test_what_a_good_run_says(outcomes):
    assert "1 of 14 classes have fewer than m=2 images" in outcomes["good run"][1]
    assert "going on from" in outcomes["same again"][1]
    assert "epoch 2" in outcomes["longer"][1]
    assert "could not be decoded" in outcomes["truncated, skipped"][1]
    assert "last, step 4" in outcomes["evaluation of other data"][1]
    table = outcomes["good evaluation"][1]
    assert "MAP@R" in table and "best, step" in table
