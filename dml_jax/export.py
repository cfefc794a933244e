"""Writes a trained model as one file that needs none of its code: `dml export --workdir=DIR --out=FILE.dml`.

The file holds the compiled function for CPUs, CUDA GPUs and TPUs, the parameters, and how images are prepared;
`dml_jax.load(FILE)` reads it.
"""

import argparse
import sys

from dml_jax import command_line, inference, run_folder
from dml_jax.console import log


def add_options(parser: command_line.Parser) -> None:
    """Adds the options of this command.

    Args:
      parser: of the command.
    """
    parser.add_workdir()
    parser.add_argument(
        "--step", default="best", help="best (the default), last, or the number of a checkpoint"
    )
    parser.add_argument(
        "--embedding", help="which of the model's outputs; the first of evaluation.embeddings"
    )
    parser.add_argument(
        "--out", type=command_line.path, required=True, metavar="FILE", help="the file"
    )


def main(options: argparse.Namespace) -> None:
    """Runs the command.

    Args:
      options: those of the command line.
    """
    out = run_folder.writable(options.out, "--out")
    encoder = inference.load(options.workdir, options.step, embedding=options.embedding)
    inference.export(encoder, out)
    kind, step = encoder.about["checkpoint"], encoder.about["step"]
    log(f"{kind}, step {step}: {encoder.dim} dimensions, {out.stat().st_size / 1e6:.1f} MB, {out}")


if __name__ == "__main__":
    command_line.run(sys.modules[__name__])
