"""One config, one training curve: on one device, on eight, in two processes, and when a run moves between them."""

import sys

import numpy as np
import pytest

from dml_jax import config as configs
from dml_jax.training import loop
from tests.training.commands import CONFIG, ROOT, logged, losses, pictures, rows, run, train_command

LOSSES = ("multi_similarity", "cos_face")
ARGUMENTS = "loss={},steps=6,epochs=2"


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
    launch = [sys.executable, str(ROOT / "launch" / "local.py"), "--processes=2", "--cpu_devices=2"]
    status, out, err = run([*launch, "--", *command])
    assert status == 0, err
    assert out.count("4 devices") == 1, "process 1 is to keep quiet"
    same_curve(tmp_path, one[loss])


def test_a_storage_in_two_processes(data, tmp_path):
    arguments = f"{ARGUMENTS.format('multi_similarity')},sampler=greedy_coreset"
    config = configs.load(f"{CONFIG}:{arguments}")
    config.data.path = str(data)
    config.train.devices = 1
    loop.train(config, str(tmp_path / "one"))
    command = train_command(data, tmp_path / "two", arguments=arguments)
    launch = [sys.executable, str(ROOT / "launch" / "local.py"), "--processes=2", "--cpu_devices=2"]
    status, _, err = run([*launch, "--", *command])
    assert status == 0, err
    same_curve(tmp_path / "one", tmp_path / "two")


def test_a_process_that_fails_stops_the_others():
    program = "import os, sys, time; sys.exit(3) if os.environ['JAX_PROCESS_ID'] == '1' else time.sleep(600)"
    launch = [sys.executable, str(ROOT / "launch" / "local.py"), "--processes=3"]
    status, _, _ = run([*launch, "--", sys.executable, "-c", program])
    assert status == 3
