"""Several processes that run one command together: how they find each other, and which of them writes."""

import argparse
import os
import sys
from typing import NoReturn

import jax
from jax.experimental import multihost_utils

from dml_jax.errors import UserError

# Seconds without a sign of life after which a process is lost, and the others end.
HEARTBEAT = 30
# What has XLA's programs for GPUs add in a fixed order; read once, before the first device is looked for.
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a command that several processes can run together.

    Where they are not given, JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID stand for them.

    Args:
      parser: of the command.
    """
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 is")
    parser.add_argument("--num_processes", type=int, metavar="N", help="the number of processes")
    parser.add_argument("--process_id", type=int, metavar="I", help="which of them this is, from 0")
    parser.add_argument(
        "--cluster",
        action="store_true",
        help="lets SLURM, Open MPI or a TPU pod tell each process its place",
    )


def connect(options: argparse.Namespace) -> None:
    """Joins the other processes of the command, where there are any; to be called before anything looks for devices.

    Args:
      options: those of `add_options`.

    Raises:
      UserError: a process id that is none of the number of processes.
    """
    coordinator = options.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if coordinator:
        count = _number(options.num_processes, "JAX_NUM_PROCESSES")
        process = _number(options.process_id, "JAX_PROCESS_ID")
        if not 0 <= process < count:
            raise UserError(
                f"--process_id={process} of --num_processes={count}; 0 to num_processes - 1 is accepted"
            )
        jax.distributed.initialize(coordinator, count, process, heartbeat_timeout_seconds=HEARTBEAT)
    elif options.cluster:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT)


def add_in_fixed_order() -> None:
    """Has GPUs add in a fixed order in all programs of this process; to be called before anything looks for devices."""
    flags = os.environ.get("XLA_FLAGS", "").split()
    os.environ["XLA_FLAGS"] = " ".join([*flags, DETERMINISTIC])


def check_fixed_order() -> None:
    """Raises UserError where GPUs add in any order: bits of a run would not be those of another."""
    if jax.default_backend() == "gpu" and DETERMINISTIC not in os.environ.get("XLA_FLAGS", ""):
        raise UserError(
            f"train.deterministic=True needs XLA_FLAGS={DETERMINISTIC} in the environment before JAX starts; "
            "the command dml train sets it"
        )


def _number(option: int | None, variable: str) -> int:
    """Returns the option, or the environment's variable where it is not given; 0 where neither is."""
    if option is not None:
        return option
    text = os.environ.get(variable, "0")
    if not text.isdecimal():
        raise UserError(f"the environment has {variable}={text!r}; a whole number is accepted")
    return int(text)


def is_primary() -> bool:
    """Returns True in the process that writes files and logs (process 0)."""
    return jax.process_index() == 0


def lost(error: BaseException) -> bool:
    """Returns True for what JAX raises where another process of the command is gone.

    Args:
      error: what was raised.
    """
    signs = (
        "heartbeat timeout",
        "Connection closed by peer",
        "Connection reset by peer",
        "task is set to ERROR",
    )
    return jax.distributed.is_initialized() and any(sign in str(error) for sign in signs)


def exit_process(status: int) -> NoReturn:
    """Ends this process; at once where there are others, for whom an orderly end would wait for minutes."""
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def barrier(name: str) -> None:
    """Returns when every process has called it, so that none ends while the primary one still writes.

    Args:
      name: the same in all processes, and different for every barrier.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
