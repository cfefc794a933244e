"""Evaluates a checkpoint: `python -m dml_jax.evaluate --workdir=DIR [--step=best] [--split=test] [--config=...]`.

`--step` is best, last or a number. The model is that of the run. Its own data are evaluated, or those of another
configuration (the sections `data` and `evaluation` of `--config`); `--config=configs/run.py:DIR
--config.evaluation.map=tsne` changes fields of the run's own. Prints a table and writes to a folder in
`DIR/evaluation/`: metrics.json and metrics.csv, classes.csv, galleries (best.png, random.png, worst.png), and
report.html, which shows everything on one page that needs no network.
"""

import csv
import json
import pathlib
from typing import Any

import jax
import numpy as np
from absl import flags

from dml_jax import checkpoints, evaluation
from dml_jax import config as configs
from dml_jax.evaluation import clustering
from dml_jax.evaluation.mesh import data_mesh
from dml_jax.logging import say
from dml_jax.training import build, score
from dml_jax.training import state as states

Rows = dict[str, dict[str, Any]]


def define_flags() -> None:
    """The options of this command."""
    configs.define_flags()
    flags.DEFINE_string("step", "best", "best, last, or the number of a checkpoint.")
    flags.DEFINE_string("split", "test", "What is evaluated.")


def restored(workdir: str, step: str, model: Any) -> tuple[str, Any]:
    """(what to call it, the model's variables) of a checkpoint, on the devices of the mesh in context."""
    kind, number = checkpoints.find(workdir, step)
    template = jax.eval_shape(model.init, jax.random.key(0))
    variables = checkpoints.restore_model(workdir, kind, number, template)
    mesh = data_mesh()
    return f"{kind}, step {number}", variables if mesh is None else states.replicate(
        variables, mesh
    )


def write(rows: Rows, folder: pathlib.Path, name: str = "metrics") -> list[pathlib.Path]:
    """The rows as `name.json` and `name.csv`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    as_json, as_csv = folder / f"{name}.json", folder / f"{name}.csv"
    as_json.write_text(json.dumps(rows, indent=2) + "\n")
    with as_csv.open("w", newline="") as file:
        columns = list(dict.fromkeys(k for row in rows.values() for k in row))
        table = csv.DictWriter(file, ["row", *columns], lineterminator="\n")
        table.writeheader()
        table.writerows({"row": name, **row} for name, row in rows.items())
    return [as_json, as_csv]


def evaluate(
    config: Any, model: Any, workdir: str, step: str, split: str, name: str
) -> tuple[Rows, Rows, list[pathlib.Path]]:
    """({what was evaluated: metrics}, those of steps after it, the files written) of a checkpoint on a split.

    Args:
      config: `data` and `evaluation` are used.
      model: that of the run.
      workdir, step: where the checkpoint is; see `checkpoints.find`. The training split of the run there is what
        steps after training are fitted to.
      split: what is evaluated.
      name: of the folder of the files, in `workdir/evaluation`.
    """
    # What cannot be done is said before the work.
    evaluation.check_map(config.evaluation.map)
    evaluation.check_steps(config.evaluation.after)
    run = configs.stored(workdir)
    fitted = any(name in evaluation.FITTED for name in config.evaluation.after)
    trained_on = build.source(run, "train") if fitted else None
    called, variables = restored(workdir, step, model)
    source = build.source(config, split)
    embedder = score.embedder(model)
    embeddings, labels, ids = embedded = evaluation.embed(
        embedder, variables, score.batches(config, source)
    )
    rows = {called: score.metrics(config, embedded)}
    folder = pathlib.Path(workdir) / "evaluation" / name
    files = write(rows, folder)
    steps: Rows = {}
    if config.evaluation.after:
        training = None
        if trained_on is not None:
            training = evaluation.embed(embedder, variables, score.batches(run, trained_on))[0]
        steps = evaluation.after_training(
            embeddings,
            labels,
            config.evaluation.after,
            training=training,
            backend=config.evaluation.backend,
        )
        files += write(steps, folder, "after_training")
    compared = clustering.normalized(embeddings) if config.evaluation.normalize else embeddings
    about = evaluation.Set(
        compared.astype(np.float32),
        labels,
        image=lambda i: source[int(ids[i])]["image"],
        name=lambda i: source.name(int(ids[i])),
        class_names=source.class_names,
        distance=config.evaluation.distance,
        backend=config.evaluation.backend,
    )
    return (
        rows,
        steps,
        files
        + evaluation.write_report(
            about,
            rows,
            folder,
            heading=f"{config.data.name}, {split}: {called}",
            map=config.evaluation.map,
            seed=config.seed,
            steps=steps,
        ),
    )


def main() -> None:
    options = flags.FLAGS
    run = configs.stored(options.workdir)
    config = run if options.config is None else options.config
    model = build.model(run.model)
    name = f"{config.data.name}_{options.split}_{options.step}"
    with jax.set_mesh(states.make_mesh(config.train.devices)):
        rows, steps, files = evaluate(
            config, model, options.workdir, options.step, options.split, name
        )
    say(f"{config.data.name}, {options.split}")
    say(evaluation.format_table(rows, tuple(config.evaluation.metrics)))
    if steps:
        recalls = [metric for metric in next(iter(steps.values())) if "recall" in metric]
        say(f"\nafter training, with bytes per image:\n{evaluation.format_table(steps, recalls)}")
    say(f"written: {', '.join(map(str, files))}")


if __name__ == "__main__":
    define_flags()
    configs.run(main)
