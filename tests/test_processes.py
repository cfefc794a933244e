"""What processes of a command do before they look for devices, and what they need."""

import os
import subprocess
import sys

import jax
import pytest

from dml_jax import processes
from dml_jax.errors import UserError


def test_the_flag_is_added_to_those_there_are(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    processes.add_in_fixed_order()
    flags = os.environ["XLA_FLAGS"]
    # XLA ends a process that has a flag it does not know.
    found = subprocess.check_output(
        [sys.executable, "-c", "import jax; print(jax.device_count())"],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert flags.endswith(processes.DETERMINISTIC) and int(found) == 2


def test_gpus_need_the_flag(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setenv("XLA_FLAGS", processes.DETERMINISTIC)
    processes.check_fixed_order()
    monkeypatch.setenv("XLA_FLAGS", "")
    with pytest.raises(UserError, match=r"train\.deterministic=True needs XLA_FLAGS=--xla_gpu"):
        processes.check_fixed_order()
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    processes.check_fixed_order()
