"""Runs the real commands as subprocesses, with hard time limits, on tiny data."""

import csv
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = pathlib.Path(__file__).with_name("tiny_config.py")
LIMIT = 120


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


def environment(devices=1):
    """The environment of a command with so many virtual CPU devices; compiled code is shared among tests."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(ROOT),
    }


def train_command(data, workdir, *options, arguments=""):
    return [
        sys.executable,
        "-m",
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


def interrupt(command, workdir, step, number=signal.SIGKILL):
    """Starts a command and sends it a signal once it has logged that step; (exit status, stdout, stderr)."""
    process = subprocess.Popen(
        command,
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + LIMIT
        while process.poll() is None and logged(workdir) < step:
            assert time.monotonic() < deadline, "no such step in time"
            time.sleep(0.005)
        process.send_signal(number)
        out, err = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    return process.returncode, out, err


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
