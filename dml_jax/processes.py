"""Several processes that run one command together: how they find each other, and which of them writes."""

import os
import sys

import jax
from absl import flags
from jax.experimental import multihost_utils


def define_flags() -> None:
    """The options of a command that several processes can run together."""
    env = os.environ.get
    flags.DEFINE_string("coordinator", env("JAX_COORDINATOR_ADDRESS"), "host:port of process 0.")
    flags.DEFINE_integer("num_processes", int(env("JAX_NUM_PROCESSES", 0)), "Of the whole run.")
    flags.DEFINE_integer("process_id", int(env("JAX_PROCESS_ID", 0)), "From 0 on.")
    flags.DEFINE_bool(
        "cluster", False, "Several processes that SLURM, Open MPI or a TPU pod tells all."
    )


def connect() -> None:
    """Joins the other processes of the command, where there are any; before anything looks for devices."""
    options = flags.FLAGS
    if options.coordinator:
        if not 0 <= options.process_id < options.num_processes:
            raise ValueError(
                f"--process_id={options.process_id} of --num_processes={options.num_processes}; "
                "0 to num_processes - 1 is accepted"
            )
        jax.distributed.initialize(options.coordinator, options.num_processes, options.process_id)
    elif options.cluster:
        jax.distributed.initialize()


def first() -> bool:
    """Whether this process writes and speaks for all."""
    return jax.process_index() == 0


def leave(status: int) -> None:
    """Ends this process; at once where there are others, for whom an orderly end would wait for minutes."""
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def wait(name: str) -> None:
    """Returns when every process has come here: none leaves while the first one still writes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
