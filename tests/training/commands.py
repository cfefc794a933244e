"""Runs the real commands as subprocesses, with hard time limits, on tiny data."""

import csv
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
from PIL import Image

from tests.optimised import QUICK

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = pathlib.Path(__file__).with_name("tiny_config.py")
# Seconds; a busy machine may need more.
LIMIT = float(os.environ.get("DML_JAX_TESTS_LIMIT", "240"))


def pictures(folder, classes=20, images=4, size=16):
    """A folder per class of grey PNG files: noise around a pattern of the class."""
    rng = np.random.default_rng(0)
    for c in range(classes):
        (folder / f"class{c:02}").mkdir(parents=True)
        pattern = rng.integers(0, 256, (size, size))
        for i in range(images if c else 1):
            noisy = np.clip(pattern + rng.normal(0, 30, pattern.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / f"class{c:02}" / f"{i}.png")
    return folder


def environment(devices=1, as_users=False):
    """The environment of a command with so many virtual CPU devices; compiled code is shared among tests.

    Programs are compiled in a hurry, as those of the tests are, or as users' are.
    """
    flags = {"xla_force_host_platform_device_count": devices, **({} if as_users else QUICK)}
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": " ".join(f"--{name}={value}" for name, value in flags.items()),
        "PYTHONPATH": str(ROOT),
    }


def train_command(data, workdir, *options, arguments=""):
    """[module, arguments ...] of a training."""
    return [
        "dml_jax.train",
        f"--config={CONFIG}{':' + arguments if arguments else ''}",
        f"--config.data.path={data}",
        f"--workdir={workdir}",
        *options,
    ]


def run(command, devices=1):
    """(exit status, stdout, stderr) of a command that is over within the limit."""
    done = subprocess.run(
        command, env=environment(devices), cwd=ROOT, capture_output=True, text=True, timeout=LIMIT
    )
    return done.returncode, done.stdout, done.stderr


SERVER = """
import importlib, json, os, sys, traceback
import dml_jax.train, dml_jax.evaluate, dml_jax.embed, dml_jax.search, dml_jax.training.loop
from dml_jax import command_line

def child(module, arguments, folder, out, err):
    for path, number in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.chdir(folder)
    sys.path.insert(0, folder)
    command = importlib.import_module(module)
    try:
        command_line.run(command, arguments)
    except SystemExit as stop:
        return stop.code or 0
    except BaseException:
        traceback.print_exc()
        return 99
    return 0

for line in sys.stdin:
    request = json.loads(line)
    if isinstance(request, int):
        print(os.waitstatus_to_exitcode(os.waitpid(request, 0)[1]), flush=True)
        continue
    pid = os.fork()
    if pid == 0:
        status = child(*request)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(pid, flush=True)
"""


class CommandServer:
    """A process that has imported all commands and forks for each of them: importing takes seconds, and no device."""

    def __init__(self, devices=1, as_users=False):
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SERVER],
            env=environment(devices, as_users),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def run(self, command, folder=ROOT, until=None):
        """(exit status, stdout, stderr) of [module, arguments ...] in a folder.

        Args:
          until: (workdir, step, signal): the command gets the signal once it has logged that step.
        """
        module, *arguments = command
        with tempfile.TemporaryDirectory() as place:
            out, err = (pathlib.Path(place) / name for name in ("out", "err"))
            pid = self._ask([module, arguments, str(folder), str(out), str(err)])
            watch = threading.Timer(LIMIT, os.kill, (pid, signal.SIGKILL))
            watch.start()
            if until is not None:
                workdir, step, number = until
                # Read without waiting for the process: its parent is the server.
                while watch.is_alive() and alive(pid) and logged(workdir) < step:
                    time.sleep(0.005)
                os.kill(pid, number)
            status = self._ask(pid)
            assert watch.is_alive(), "not over in time"
            watch.cancel()
            return status, out.read_text(), err.read_text()

    def _ask(self, request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


def alive(pid):
    """False for a process that has ended and that its parent has not asked for yet."""
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def logged(workdir):
    """The last step in a run's metrics, 0 before there are any."""
    try:
        return max((int(r["step"]) for r in rows(workdir)), default=0)
    except (OSError, ValueError, TypeError, KeyError):
        return 0  # a line that is being written


def rows(workdir):
    with (pathlib.Path(workdir) / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def losses(workdir):
    return {int(r["step"]): float(r["loss"]) for r in rows(workdir) if r["loss"]}
