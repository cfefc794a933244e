"""From images to a retrieval table in a few minutes: `python -m dml_jax.quickstart --workdir=runs/quickstart`.

Trains `configs/quickstart.py` on the built-in letters, then evaluates letters that training never saw: as raw pixels,
with the network untrained, and with the network trained. `--config.field=value` changes it as in `dml_jax.train`.
"""

import pathlib
import time
from typing import Any

import jax
from absl import flags

from dml_jax import command_line, data, evaluation, report
from dml_jax.console import log
from dml_jax.evaluate import evaluate, write
from dml_jax.evaluation.embed import Embedded
from dml_jax.training import build, score, tasks
from dml_jax.training import state as states
from dml_jax.training.loop import train

CONFIG = pathlib.Path(__file__).resolve().parents[1] / "configs" / "quickstart.py"


def quickstart(config: Any, workdir: pathlib.Path) -> dict[str, dict[str, float]]:
    """Trains, evaluates, writes and tells; returns the table, a row by what was evaluated."""
    start = time.monotonic()
    model = build.model(config.model)
    task = tasks.task(config, "test", model)
    train(config, str(workdir))
    apply = score.outputs(model, task.embeddings)
    drawn = model.init(jax.random.key(config.seed))

    def pixels(source: data.Source) -> Embedded:
        found, labels, ids = evaluation.pixels(score.batches(config, source))
        return dict.fromkeys(model.outputs, found), labels, ids

    def untrained(source: data.Source) -> Embedded:
        return evaluation.embed(apply, drawn, score.batches(config, source))

    with jax.set_mesh(states.make_mesh(config.train.devices)):
        rows = {}
        for called, embed in (("raw pixels", pixels), ("untrained network", untrained)):
            found = score.metrics(task, score.embedded(task, embed))
            rows[called] = next(iter(score.tabulated(task, found, called)[0].values()))
        trained, *_ = evaluate(config, model, str(workdir), "best", "test", "quickstart")
    rows["trained network"] = next(iter(trained.values()))
    source = task.sources["queries"]
    write(rows, workdir / "evaluation" / "quickstart")
    log(
        f"\n{len(source)} images of {len(source.class_names)} letters that were not trained on:\n\n"
        f"{report.format_table(rows, tuple(config.evaluation.metrics))}\n\n"
        f"{time.monotonic() - start:.0f} s. Written to {workdir}:\n"
        "  config.json                  the whole configuration\n"
        "  metrics.csv, tensorboard/    loss, norms and validation by step\n"
        "  curves.png                   the same as a picture\n"
        "  evaluation/quickstart/       report.html to look at; this table (csv, json); queries with their neighbours\n"
        "  checkpoints/                 the last state, and the best model by validation\n"
        "Next:\n"
        f"  python -m dml_jax.evaluate --workdir={workdir} --split=val\n"
        f"  python -m dml_jax.train --config={_short(CONFIG)} --workdir=runs/second --config.loss.alpha=4.0\n"
        "  another loss or your own folder of images: see configs/ and README.md"
    )
    return rows


def _short(path: pathlib.Path) -> pathlib.Path:
    here = pathlib.Path.cwd()
    return path.relative_to(here) if here in path.parents else path


def main() -> None:
    quickstart(flags.FLAGS.config, pathlib.Path(flags.FLAGS.workdir))


if __name__ == "__main__":
    command_line.define_flags(config=str(CONFIG))
    command_line.run(main)
