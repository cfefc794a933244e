"""Trains a model: `python -m dml_jax.train --config=configs/NAME.py --workdir=DIR [--config.field=value ...]`.

The same command goes on with a run that was killed. With several processes every one of them gets `--coordinator`,
`--num_processes` and `--process_id` (or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID); see launch/.
"""

import os

import jax
from absl import flags

from dml_jax import config as configs
from dml_jax.logging import say


def define_flags() -> None:
    """The options of this command."""
    configs.define_flags()
    env = os.environ.get
    flags.DEFINE_string("coordinator", env("JAX_COORDINATOR_ADDRESS"), "host:port of process 0.")
    flags.DEFINE_integer("num_processes", int(env("JAX_NUM_PROCESSES", 0)), "Of the whole run.")
    flags.DEFINE_integer("process_id", int(env("JAX_PROCESS_ID", 0)), "From 0 on.")
    flags.DEFINE_bool(
        "cluster", False, "Several processes that SLURM, Open MPI or a TPU pod tells all."
    )


def connect() -> None:
    """Joins the other processes of the run, where there are any."""
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


def main() -> None:
    if flags.FLAGS.config is None:
        raise ValueError("--config is missing: a file such as configs/quickstart.py")
    connect()
    # After the connection: what it imports looks for devices.
    from dml_jax.training.loop import train

    train(flags.FLAGS.config, flags.FLAGS.workdir)
    if jax.process_index() == 0:
        say(
            f"done. In {flags.FLAGS.workdir}: config.json, metrics.csv, curves.png, tensorboard/, checkpoints/. "
            f"Next: python -m dml_jax.evaluate --workdir={flags.FLAGS.workdir}"
        )


if __name__ == "__main__":
    define_flags()
    configs.run(main)
