"""Evaluates a checkpoint: `python -m dml_jax.evaluate --workdir=DIR [--step=best] [--split=test] [--config=...]`.

`--step` is best, last or a number. The model is that of the run. Its own data are evaluated, or those of another
configuration (the sections `data` and `evaluation` of `--config`). Prints a table and writes metrics and a gallery to
`DIR/evaluation/`.
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
from dml_jax.evaluation.embed import Embedded
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


def stored_config(workdir: str) -> Any:
    """The configuration of a run.

    Raises ValueError where the folder holds none.
    """
    path = pathlib.Path(workdir) / "config.json"
    if not path.is_file():
        raise ValueError(f"there is no {path}; a folder that training wrote is accepted")
    return configs.from_dict(json.loads(path.read_text()))


def restored(workdir: str, step: str, model: Any) -> tuple[str, Any]:
    """(what to call it, the model's variables) of a checkpoint, on the devices of the mesh in context."""
    kind, number = checkpoints.find(workdir, step)
    template = jax.eval_shape(model.init, jax.random.key(0))
    variables = checkpoints.restore_model(workdir, kind, number, template)
    mesh = data_mesh()
    return f"{kind}, step {number}", variables if mesh is None else states.replicate(
        variables, mesh
    )


def gallery(config: Any, source: Any, embedded: Embedded, path: pathlib.Path) -> pathlib.Path:
    """Draws eight queries and their nearest neighbours among all of the split."""
    embeddings, labels, ids = embedded
    rng = np.random.Generator(np.random.Philox(key=config.seed))
    queries = np.sort(rng.permutation(len(labels))[:8])
    _, found = evaluation.neighbours(
        embeddings[queries],
        embeddings,
        min(8, len(labels) - 1),
        query_ids=queries,
        gallery_ids=np.arange(len(labels)),
        distance=config.evaluation.distance,
        backend=config.evaluation.backend,
    )
    return evaluation.retrieval_gallery(
        lambda i: source[int(ids[i])]["image"],
        labels,
        found,
        path,
        query_ids=queries,
        class_names=source.class_names,
    )


def write(rows: Rows, stem: pathlib.Path) -> list[pathlib.Path]:
    """The rows as `stem.json` and `stem.csv`; returns their paths."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    as_json, as_csv = stem.with_suffix(".json"), stem.with_suffix(".csv")
    as_json.write_text(json.dumps(rows, indent=2) + "\n")
    with as_csv.open("w", newline="") as file:
        columns = list(dict.fromkeys(k for row in rows.values() for k in row))
        table = csv.DictWriter(file, ["row", *columns], lineterminator="\n")
        table.writeheader()
        table.writerows({"row": name, **row} for name, row in rows.items())
    return [as_json, as_csv]


def evaluate(
    config: Any, model: Any, workdir: str, step: str, split: str, name: str
) -> tuple[Rows, list[pathlib.Path]]:
    """({what was evaluated: metrics}, the files written) of a checkpoint on a split.

    Args:
      config: `data` and `evaluation` are used.
      model: that of the run.
      workdir, step: where the checkpoint is; see `checkpoints.find`.
      split: what is evaluated.
      name: of the files, in `workdir/evaluation`.
    """
    called, variables = restored(workdir, step, model)
    source = build.source(config, split)
    embedded = evaluation.embed(score.embedder(model), variables, score.batches(config, source))
    rows = {called: score.metrics(config, embedded)}
    stem = pathlib.Path(workdir) / "evaluation" / name
    files = write(rows, stem)
    return rows, [*files, gallery(config, source, embedded, stem.with_suffix(".png"))]


def main() -> None:
    options = flags.FLAGS
    run = stored_config(options.workdir)
    config = run if options.config is None else options.config
    model = build.model(run.model)
    name = f"{config.data.name}_{options.split}_{options.step}"
    with jax.set_mesh(states.make_mesh(config.train.devices)):
        rows, files = evaluate(config, model, options.workdir, options.step, options.split, name)
    say(f"{config.data.name}, {options.split}")
    say(evaluation.format_table(rows, tuple(config.evaluation.metrics)))
    say(f"written: {', '.join(map(str, files))}")


if __name__ == "__main__":
    define_flags()
    configs.run(main)
