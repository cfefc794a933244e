"""Writes a trained model for other programs: `dml export --workdir=DIR --out=FILE [--format=dml]`.

Formats: dml (one file with the compiled function for CPUs, CUDA GPUs and TPUs, the parameters and how images are
prepared, which `dml_jax.load(FILE)` reads without the code that made the model), stablehlo (the function alone, which
holds its parameters, for `jax.export.deserialize`), safetensors (parameters by the names under which the backbone is
published), orbax (a folder of arrays) and onnx (needs jax2onnx and onnxruntime). What was written is read again and
compared before the command says that it is done; a model card lies beside it.
"""

import argparse
import pathlib
import sys

from dml_jax import command_line, inference, run_folder
from dml_jax import config as configs
from dml_jax.console import log
from dml_jax.inference import formats
from dml_jax.training import build


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
        "--format", default="dml", choices=list(formats.FORMATS), help="dml is the default"
    )
    parser.add_argument(
        "--out", type=command_line.path, required=True, metavar="FILE", help="the file"
    )


def main(options: argparse.Namespace) -> None:
    """Runs the command.

    Args:
      options: those of the command line.
    """
    out = pathlib.Path(options.out)
    if options.format == "orbax":
        run_folder.create(out.parent, "--out")
    else:
        out = run_folder.writable(options.out, "--out")
    encoder = inference.load(options.workdir, options.step, embedding=options.embedding)
    config = run_folder.read_config(options.workdir)
    formats.FORMATS[options.format](encoder, build.model(config.model), out)
    card = formats.write_card(
        encoder, configs.to_dict(config), out, run_folder.evaluations(options.workdir)
    )
    kind, step = encoder.about["checkpoint"], encoder.about["step"]
    files = [out] if out.is_file() else [path for path in out.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 1e6
    log(f"{kind}, step {step}: {encoder.dim} dimensions, {size:.1f} MB, {out}; {card.name}")


if __name__ == "__main__":
    command_line.run(sys.modules[__name__])
