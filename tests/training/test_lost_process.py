"""A process of two is killed in mid-step: the other says so and ends; started again, both go on with the same bits."""

import signal
import socket
import subprocess
import sys
import time

import pytest

from dml_jax import processes
from tests import draws
from tests.training.commands import LIMIT, environment, logged, losses, pictures, train_command

ARGUMENTS = "steps=60,epochs=2"
SHARES = ("--config.train.fsdp=2", "--config.train.shard_above=16")
# Seconds after which the one that is left must have ended.
SOON = 60


def start(data, workdir, folder, port):
    """The two processes of a run, each of which prints to a file of its own."""
    command = [
        sys.executable,
        "-m",
        *train_command(data, workdir, *SHARES, arguments=ARGUMENTS),
    ]
    found = []
    for i in range(2):
        env = {
            **environment(2),
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(i),
        }
        with (folder / f"{i}.txt").open("w") as out:
            found.append(subprocess.Popen(command, env=env, stdout=out, stderr=out))
    return found


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.skipif(draws.CASES == "some", reason="four processes take a minute")
def test_a_lost_process(tmp_path):
    assert processes.HEARTBEAT < SOON
    data, workdir = pictures(tmp_path / "pictures"), tmp_path / "run"
    first, second = start(data, workdir, tmp_path, free_port())
    until = time.monotonic() + LIMIT
    while logged(workdir) < 20 and time.monotonic() < until and first.poll() is None:
        time.sleep(0.005)
    second.send_signal(signal.SIGKILL)
    assert first.wait(SOON) == 1
    said = (tmp_path / "0.txt").read_text()
    assert "error: another process of this command is gone" in said
    assert "Traceback" not in said
    before = losses(workdir)
    assert 20 <= max(before) < 120, "killed too late"
    both = start(data, workdir, tmp_path, free_port())
    assert [one.wait(LIMIT) for one in both] == [0, 0]
    assert "going on from" in (tmp_path / "0.txt").read_text()
    after = losses(workdir)
    assert sorted(after) == list(range(1, 121))
    # The steps since the last checkpoint were done twice.
    assert {step: after[step] for step in before} == before
