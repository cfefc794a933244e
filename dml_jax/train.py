"""Trains a model: `dml train --config=NAME --workdir=DIR [--config.FIELD=VALUE ...]`.

The same command goes on with a run that was killed, and so does `dml train --workdir=DIR`. With several processes
every one of them gets --coordinator, --num_processes and --process_id (or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES
and JAX_PROCESS_ID); see launch/.
"""

import argparse
import sys

from dml_jax import checkpoints, command_line, processes
from dml_jax.console import log


def add_options(parser: command_line.Parser) -> None:
    """Adds the options of this command.

    Args:
      parser: of the command.
    """
    parser.add_workdir()
    parser.add_config()
    processes.add_options(parser)


def main(options: argparse.Namespace) -> None:
    """Runs the command.

    Args:
      options: those of the command line.
    """
    if options.config.train.deterministic:
        processes.add_in_fixed_order()
    processes.connect(options)
    # Imported after the connection, because what it imports looks for devices.
    from dml_jax.training.loop import train

    train(options.config, options.workdir)
    if processes.is_primary():
        own, place = checkpoints.place(options.workdir, ""), checkpoints.folder_of(options.workdir)
        where = ", checkpoints/." if place == own else f"; in {place} its checkpoints."
        log(
            f"done. In {options.workdir}: config.json, metrics.csv, curves.png, tensorboard/{where} Next: "
            f"{command_line.shell('evaluate', f'--workdir={options.workdir}')}"
        )


if __name__ == "__main__":
    command_line.run(sys.modules[__name__])
