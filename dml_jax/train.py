"""Trains a model: `python -m dml_jax.train --config=configs/NAME.py --workdir=DIR [--config.field=value ...]`.

The same command goes on with a run that was killed. With several processes every one of them gets `--coordinator`,
`--num_processes` and `--process_id` (or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID); see launch/.
"""

from absl import flags

from dml_jax import command_line, processes
from dml_jax.console import log
from dml_jax.errors import UserError


def define_flags() -> None:
    """Defines the options of this command."""
    command_line.define_flags()
    processes.define_flags()


def main() -> None:
    """Runs the command."""
    if flags.FLAGS.config is None:
        raise UserError("--config is missing: a file such as configs/quickstart.py")
    processes.connect()
    # Imported after the connection, because what it imports looks for devices.
    from dml_jax.training.loop import train

    train(flags.FLAGS.config, flags.FLAGS.workdir)
    if processes.is_primary():
        log(
            f"done. In {flags.FLAGS.workdir}: config.json, metrics.csv, curves.png, tensorboard/, checkpoints/. "
            f"Next: python -m dml_jax.evaluate --workdir={flags.FLAGS.workdir}"
        )


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
