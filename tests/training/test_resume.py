"""A run that is killed and started again ends with the bits of a run that was not."""

import random
import signal

import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.training.commands import CommandServer, losses, pictures, rows, train_command

# Of the steps after which a run is killed.
SEED = 0
STEPS, EPOCHS = 50, 2
LAST = STEPS * EPOCHS
ARGUMENTS = f"steps={STEPS},epochs={EPOCHS}"


def command(data, workdir, *options):
    return train_command(data, workdir, *options, arguments=ARGUMENTS)


def arrays(workdir, step=LAST):
    """Every array of a checkpoint."""
    last = workdir / "checkpoints" / "last" / str(step)
    reader = ocp.StandardCheckpointer()
    return {
        f"{item}/{k}": v
        for item in ("model", "rest")
        for k, v in reader.restore(last / item).items()
    }


def same_bits(a, b):
    assert a.keys() == b.keys()
    different = [k for k in a if np.asarray(a[k]).tobytes() != np.asarray(b[k]).tobytes()]
    assert not different


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="module")
def server():
    # Bits are what is compared: of the programs that users run.
    with CommandServer(as_users=True) as server:
        yield server


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory, server):
    workdir = tmp_path_factory.mktemp("whole")
    status, _, err = server.run(command(data, workdir))
    assert status == 0, err
    return workdir


def test_sigkill(data, whole, server, tmp_path):
    # Twice: before the first epoch is over, and after.
    draw = random.Random(SEED)
    first = draw.randint(16, STEPS - 10)
    second = draw.randint(first + 10, LAST - 10)
    print(f"killed at {first} and {second}")
    for step in (first, second):
        status, _, err = server.run(command(data, tmp_path), until=(tmp_path, step, signal.SIGKILL))
        assert status == -signal.SIGKILL, err
    status, out, err = server.run(command(data, tmp_path))
    assert status == 0, err
    assert "going on from" in out
    same_bits(arrays(tmp_path), arrays(whole))
    # No row twice, none missing, and the same numbers.
    assert [int(r["step"]) for r in rows(tmp_path)] == [int(r["step"]) for r in rows(whole)]
    assert losses(tmp_path) == losses(whole)


def test_a_storage_goes_on(data, server, tmp_path):
    """A sampler that plans from embeddings: the storage and the plan of an epoch survive in its midst."""
    options = f"{ARGUMENTS},sampler=greedy_coreset"
    command = lambda name: train_command(data, tmp_path / name, arguments=options)
    step = random.Random(SEED).randint(STEPS + 12, LAST - 10)
    print(f"killed at {step}")
    status, _, err = server.run(
        command("killed"), until=(tmp_path / "killed", step, signal.SIGKILL)
    )
    assert status == -signal.SIGKILL, err
    for name in ("killed", "whole"):
        status, _, err = server.run(command(name))
        assert status == 0, err
    found = arrays(tmp_path / "whole")
    assert found["rest/plan"].shape == (STEPS, 8) and len(found["rest/storage"]) == 53
    same_bits(arrays(tmp_path / "killed"), found)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_that_can_be_heard(data, whole, server, tmp_path, number, expected):
    status, out, err = server.run(command(data, tmp_path), until=(tmp_path, 18, number))
    assert status == expected and "Traceback" not in err, err
    assert "stopped: " in out
    step = int(out.split("checkpoints/last/")[1].split()[0])
    assert 18 <= step < LAST
    assert max(losses(tmp_path)) == step
    if number == signal.SIGINT:
        return
    status, _, err = server.run(command(data, tmp_path))
    assert status == 0, err
    same_bits(arrays(tmp_path), arrays(whole))


def test_the_comparison_can_fail(whole):
    """The negative control: the checkpoint before the last has other bits."""
    before = max(
        int(p.name) for p in (whole / "checkpoints" / "last").iterdir() if int(p.name) < LAST
    )
    with pytest.raises(AssertionError):
        same_bits(arrays(whole, before), arrays(whole))


def test_a_finished_run_stays_as_it_is(data, whole, server):
    before = arrays(whole)
    status, _, err = server.run(command(data, whole))
    assert status == 0, err
    same_bits(arrays(whole), before)
    assert losses(whole).keys() == set(range(1, LAST + 1))
