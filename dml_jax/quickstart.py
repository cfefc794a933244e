"""From images to a retrieval table in a few minutes: `dml quickstart --workdir=runs/quickstart`.

Trains `configs/quickstart.py` on the built-in letters, then evaluates letters that training never saw: as raw pixels,
with the network untrained, and with the network trained. `--config.FIELD=VALUE` changes it as in `dml train`.
"""

import argparse
import pathlib
import sys
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from dml_jax import command_line, data, evaluation, report, run_folder
from dml_jax.command_line import shell
from dml_jax.console import log
from dml_jax.evaluate import evaluate, settings_of, write
from dml_jax.evaluation.embed import Embedded
from dml_jax.mesh import make_mesh
from dml_jax.models import Model
from dml_jax.training import build, score, tasks
from dml_jax.training.loop import train


def quickstart(config: ConfigDict, workdir: pathlib.Path) -> dict[str, dict[str, float]]:
    """Trains, evaluates, writes the results and prints them.

    Args:
      config: what is trained.
      workdir: the folder of the run.

    Returns:
      The table: the metrics of the raw pixels, of the untrained network and of the trained one.
    """
    start = time.monotonic()
    run_folder.create(workdir)
    model = build.model(config.model)
    # What cannot be evaluated is refused before the training.
    spec = tasks.eval_spec(config, "test", model)
    train(config, str(workdir))
    with jax.set_mesh(make_mesh(config.train.devices)):
        rows = _without_training(config, model, spec)
        folder = workdir / "evaluation" / "quickstart"
        trained, *_ = evaluate(config, model, str(workdir), "best", "test", folder)
    rows["trained network"] = next(iter(trained.values()))
    write(rows, folder, settings=settings_of(config, "test", "best"))
    log(_summary(config, rows, spec.sources["queries"], workdir, time.monotonic() - start))
    return rows


def _without_training(
    config: ConfigDict, model: Model, spec: tasks.EvalSpec
) -> dict[str, dict[str, Any]]:
    """Returns the metrics of the raw pixels and of the untrained network."""
    outputs = score.outputs(model, spec.embeddings)
    variables = model.init(jax.random.key(config.seed))

    def pixels(source: data.Source) -> Embedded:
        vectors, labels, ids = evaluation.pixels(score.batches_of(config, source))
        return dict.fromkeys(model.outputs, vectors), labels, ids

    def untrained(source: data.Source) -> Embedded:
        return score.embed_source(
            outputs, variables, config, source, "evaluating the untrained network"
        )

    rows = {}
    for title, embed in (("raw pixels", pixels), ("untrained network", untrained)):
        found = score.metrics(spec, score.embedded(spec, embed))
        rows[title] = next(iter(score.tabulated(spec, found, title)[0].values()))
    return rows


def _summary(
    config: ConfigDict,
    rows: dict[str, dict[str, float]],
    source: data.Source,
    workdir: pathlib.Path,
    seconds: float,
) -> str:
    return (
        f"\n{len(source)} images of {len(source.class_names)} letters that were not trained on:\n\n"
        f"{report.format_table(rows, evaluation.metric_names(config.evaluation.metrics))}\n\n"
        f"{seconds:.0f} s. Written to {workdir}:\n"
        "  config.json                  the whole configuration\n"
        "  metrics.csv, tensorboard/    loss, norms and validation by step\n"
        "  curves.png                   the same as a picture\n"
        "  evaluation/quickstart/       report.html to look at; this table (csv, json); queries with their neighbours\n"
        "  checkpoints/                 the last state, and the best model by validation\n"
        "Next:\n"
        f"  {shell('evaluate', f'--workdir={workdir}', '--split=val')}\n"
        f"  {shell('train', '--config=quickstart', '--workdir=runs/second', '--config.loss=triplet_margin')}\n"
        f"  {shell('train', '--config=own_images:scratch', '--workdir=runs/own', '--config.data.path=PHOTOS')}"
    )


def add_options(parser: command_line.Parser) -> None:
    """Adds the options of this command.

    Args:
      parser: of the command.
    """
    parser.add_workdir()
    parser.add_config("quickstart")


def main(options: argparse.Namespace) -> None:
    """Runs the command.

    Args:
      options: those of the command line.
    """
    quickstart(options.config, pathlib.Path(options.workdir))


if __name__ == "__main__":
    command_line.run(sys.modules[__name__])
