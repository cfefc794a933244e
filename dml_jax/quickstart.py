"""From images to a retrieval table in a few minutes: `python -m dml_jax.quickstart --workdir=runs/quickstart`.

Trains `configs/quickstart.py` on the built-in letters, then evaluates letters that training never saw: as raw pixels,
with the network untrained, and with the network trained. `--config.field=value` changes it as in `dml_jax.train`.
"""

import pathlib
import time
from typing import Any

import jax
from absl import flags

from dml_jax import config as configs
from dml_jax import evaluation
from dml_jax.evaluate import evaluate, write
from dml_jax.logging import say
from dml_jax.training import build, score
from dml_jax.training import state as states
from dml_jax.training.loop import train

CONFIG = pathlib.Path(__file__).resolve().parents[1] / "configs" / "quickstart.py"


def quickstart(config: Any, workdir: pathlib.Path) -> dict[str, dict[str, float]]:
    """Trains, evaluates, writes and tells; returns the table, a row by what was evaluated."""
    start = time.monotonic()
    train(config, str(workdir))
    model = build.model(config.model)
    source = build.source(config, "test")
    with jax.set_mesh(states.make_mesh(config.train.devices)):
        raw = evaluation.pixels(score.batches(config, source))
        untrained = evaluation.embed(
            score.embedder(model),
            model.init(jax.random.key(config.seed)),
            score.batches(config, source),
        )
        trained, *_ = evaluate(config, model, str(workdir), "best", "test", "quickstart")
    rows = {
        "raw pixels": score.metrics(config, raw),
        "untrained network": score.metrics(config, untrained),
        "trained network": next(iter(trained.values())),
    }
    write(rows, workdir / "evaluation" / "quickstart")
    say(
        f"\n{len(source)} images of {len(source.class_names)} letters that were not trained on:\n\n"
        f"{evaluation.format_table(rows, tuple(config.evaluation.metrics))}\n\n"
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
    configs.define_flags(config=str(CONFIG))
    configs.run(main)
