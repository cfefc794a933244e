"""Several processes that run one command together: how they find each other, and which of them writes."""

import os
import sys
from typing import NoReturn

import jax
from absl import flags
from jax.experimental import multihost_utils

from dml_jax.errors import UserError


def define_flags() -> None:
    """Defines the options of a command that several processes can run together."""
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    flags.DEFINE_string("coordinator", address, "host:port of process 0.")
    flags.DEFINE_integer(
        "num_processes", _number("JAX_NUM_PROCESSES"), "How many processes the run has."
    )
    flags.DEFINE_integer("process_id", _number("JAX_PROCESS_ID"), "Which of them this is, from 0.")
    flags.DEFINE_bool(
        "cluster", False, "Lets SLURM, Open MPI or a TPU pod tell each process its place."
    )


def _number(variable: str) -> int:
    text = os.environ.get(variable, "0")
    if not text.isdecimal():
        raise UserError(f"the environment has {variable}={text!r}; a whole number is accepted")
    return int(text)


def connect() -> None:
    """Joins the other processes of the command, where there are any; to be called before anything looks for devices.

    Raises:
      UserError: a process id that is none of the number of processes.
    """
    options = flags.FLAGS
    if options.coordinator:
        if not 0 <= options.process_id < options.num_processes:
            raise UserError(
                f"--process_id={options.process_id} of --num_processes={options.num_processes}; "
                "0 to num_processes - 1 is accepted"
            )
        jax.distributed.initialize(options.coordinator, options.num_processes, options.process_id)
    elif options.cluster:
        jax.distributed.initialize()


def is_primary() -> bool:
    """Returns True in the process that writes files and logs (process 0)."""
    return jax.process_index() == 0


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
