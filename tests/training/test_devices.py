"""One config, one training curve: on one device, on eight, in two processes, and when a run moves between them."""

import json
import shutil
import sys

import numpy as np
import pytest

from dml_jax import config_files, evaluate, run_folder
from dml_jax.training import build, loop
from tests.training.commands import CONFIG, ROOT, logged, losses, pictures, rows, run, train_command

LOSSES = ("multi_similarity", "cos_face")
ARGUMENTS = "loss={},steps=6,epochs=2"
STORAGE = f"{ARGUMENTS.format('multi_similarity')},sampler=greedy_coreset"
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
    config = config_files.load(f"{CONFIG}:{ARGUMENTS.format(loss)}")
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


# The commands, one after the other, in each of two processes that find each other once: training, training with a
# sampler that plans from embeddings, evaluation, embedding, and an evaluation that fails in the second process.
PROGRAM = """
import json, os, sys
from dml_jax import command_line, config_files, embed, evaluate, processes, run_folder, train
given, process = json.loads(sys.argv.pop()), os.environ["JAX_PROCESS_ID"]

def refuse_to_write(event, arguments):
    if event == "open" and str(arguments[0]).startswith(given["one"]):
        assert not set(arguments[1] or "") & set("wax+"), arguments

def step(name, command, workdir, options, config):
    if process == "0":
        print(f"== {name}", flush=True)
    options.workdir, options.config = workdir, config
    command.main(options)

def add_options(parser):
    embed.add_options(parser)
    parser.set_defaults(embeddings=None, labels=None, gallery=None, gallery_labels=None)

def main(options):
    step("train", train, given["train"], options, options.config)
    processes.connect = lambda options: None  # once is enough
    storage = config_files.load(given["storage_config"])
    storage.data.path = given["data"]
    storage.train.update(fsdp=4, shard_above=16)  # one share of the storage in each device of both processes
    step("storage", train, given["storage"], options, storage)
    if process == "1":
        sys.addaudithook(refuse_to_write)
    run = run_folder.read_config(given["one"])
    run.evaluation.update(
        after=("int8",), average="each_class", embeddings=("embedding", "features")
    )
    options.step = "last"
    step("evaluate", evaluate, given["one"], options, run)
    step("embed", embed, given["one"], options, run)
    broken = config_files.load(given["config"])
    broken.data.path = given["broken"]
    options.split = "all"
    step("broken", evaluate, given["one"], options, broken)

command_line.run(sys.modules["__main__"])
"""


@pytest.fixture(scope="module")
def two(data, one, tmp_path_factory):
    """(folder, exit status, what each step printed, what was printed as errors) of the commands in two processes."""
    folder = tmp_path_factory.mktemp("two")
    broken = pictures(folder / "broken", classes=3)
    (broken / "class02" / "0.png").write_bytes(b"no image")
    given = {
        "one": str(one["cos_face"]),
        "train": str(folder / "train"),
        "storage": str(folder / "storage"),
        "storage_config": f"{CONFIG}:{STORAGE}",
        "data": str(data),
        "config": str(CONFIG),
        "broken": str(broken),
    }
    _, *options = train_command(
        data,
        folder,
        "--config.train.fsdp=2",
        "--config.train.shard_above=16",
        arguments=ARGUMENTS.format("multi_similarity"),
    )
    program = [sys.executable, "-c", PROGRAM, *options, json.dumps(given)]
    status, out, err = run([*LAUNCH, "--", *program])
    printed = dict(part.split("\n", 1) for part in out.split("== ")[1:])
    assert list(printed) == ["train", "storage", "evaluate", "embed", "broken"], out + err
    return folder, status, printed, err


def test_two_processes_train(one, two):
    folder, _, printed, _ = two
    assert printed["train"].count("4 devices") == 1, "process 1 is to keep quiet"
    assert printed["train"].count("done. In") == 1
    same_curve(folder / "train", one["multi_similarity"])


@pytest.mark.parametrize(("devices", "fsdp"), [(1, 1), (8, 4)])
def test_shares_of_two_processes_go_on_elsewhere(data, two, tmp_path, devices, fsdp):
    """The state of two processes, each of which wrote its own shards, is that of one process with other devices."""
    there = tmp_path / "run"
    shutil.copytree(two[0] / "train", there)
    config = config_files.load(f"{CONFIG}:loss=multi_similarity,steps=6,epochs=3")
    config.data.path = str(data)
    config.train.update(devices=devices, fsdp=fsdp, shard_above=16)
    loop.train(config, str(there))
    assert sorted(losses(there)) == list(range(1, 19))
    whole = tmp_path / "whole"
    shutil.copytree(two[0] / "train", whole)
    config.train.update(devices=2, fsdp=1)
    loop.train(config, str(whole))
    same_curve(there, whole)


def test_a_storage_in_two_processes(data, two, tmp_path):
    config = config_files.load(f"{CONFIG}:{STORAGE}")
    config.data.path = str(data)
    config.train.devices = 1
    loop.train(config, str(tmp_path))
    same_curve(tmp_path, two[0] / "storage")


def test_two_processes_evaluate(one, two):
    """The values of one process, written and printed once; writing is an error in the second process."""
    _, _, printed, _ = two
    workdir = one["cos_face"]
    config = run_folder.read_config(str(workdir))
    config.evaluation.update(
        after=("int8",), average="each_class", embeddings=("embedding", "features")
    )
    model = build.model(config.model)
    expected = evaluate.evaluate(
        config, model, str(workdir), "last", "test", workdir / "evaluation" / "alone"
    )
    there = workdir / "evaluation" / "folder_test_last"
    text = printed["evaluate"]
    for words in ("after training", "written to ", "each class:"):
        assert text.count(words) == 1, text
    assert printed["embed"].count("written to ") == 1
    for name, table in zip(("metrics", "each_class", "after_training"), expected, strict=False):
        found = json.loads((there / f"{name}.json").read_text())["metrics"]
        assert found.keys() == table.keys()
        for row in table:
            assert found[row] == pytest.approx(table[row], abs=1e-5)
    names = {path.name for path in (workdir / "evaluation" / "alone").iterdir()}
    assert {path.name for path in there.iterdir()} == names
    embeddings = np.load(workdir / "embeddings" / "folder_test" / "embeddings.npy")
    assert len(embeddings) == len(build.source(config, "test"))


def test_an_error_of_one_process_ends_both(two):
    """An image that only the second process reads cannot be decoded: one line, and no process waits for the other."""
    _, status, printed, err = two
    assert status == 1 and "written" not in printed["broken"]
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    lines = [line for line in lines if "another process of this command is gone" not in line]
    assert len(lines) == 1 and "cannot decode" in lines[0] and "class02/0.png" in lines[0]


def test_a_process_that_fails_stops_the_others():
    program = "import os, sys, time; sys.exit(3) if os.environ['JAX_PROCESS_ID'] == '1' else time.sleep(600)"
    launch = [sys.executable, str(ROOT / "launch" / "local.py"), "--processes=3"]
    status, _, _ = run([*launch, "--", sys.executable, "-c", program])
    assert status == 3
