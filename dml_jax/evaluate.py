"""Evaluates a checkpoint: `dml evaluate --workdir=DIR [--step=best] [--split=test] [--config.FIELD=VALUE ...]`.

The model is that of the run. Its own data are evaluated as its configuration says, in which
`--config.evaluation.map=tsne` changes a field, or those of the sections `data` and `evaluation` of another `--config`.
`--embeddings=FILE --labels=FILE` evaluates embeddings of any origin in place of a run.

Prints a table and writes to a folder in `DIR/evaluation/`: metrics.json (with the settings) and metrics.csv,
classes.csv, galleries (best.png, random.png, worst.png), and report.html, which shows everything on one page that needs
no network; with `evaluation.average=each_class` also each_class.json and each_class.csv. Several processes evaluate
together as they train together (see launch/); the first one writes.
"""

import argparse
import itertools
import json
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from dml_jax import checkpoints, command_line, data, evaluation, processes, report, run_folder
from dml_jax import config as configs
from dml_jax.config_options import DataOptions
from dml_jax.console import log
from dml_jax.csv_files import write_rows
from dml_jax.errors import UserError
from dml_jax.evaluation.embed import Embedded
from dml_jax.evaluation.vectors import normalize_rows
from dml_jax.mesh import data_mesh, make_mesh
from dml_jax.models import Model
from dml_jax.training import build, same_data, score, tasks
from dml_jax.training import state as states

Rows = dict[str, dict[str, Any]]
Settings = dict[str, Any]
# In a table of each class on the terminal.
CLASSES = 30


def add_options(parser: command_line.Parser) -> None:
    """Adds the options of this command.

    Args:
      parser: of the command.
    """
    parser.add_workdir("the folder of the run; or --embeddings", required=False)
    parser.add_config(of_run=True)
    add_checkpoint_options(parser)
    parser.add_argument("--split", default="test", help="what is evaluated (test)")
    parser.add_argument(
        "--out",
        type=command_line.path,
        metavar="FOLDER",
        help="where the files go; by default evaluation/DATA_SPLIT_STEP in the run",
    )
    stored = parser.add_argument_group("embeddings of any origin, in place of a run")
    for name, meaning in (
        ("embeddings", "an .npy, .npz or .parquet file of embeddings, a row each"),
        ("labels", "a .csv (columns label and, for pictures, path), .npy, .npz or .parquet file"),
        ("gallery", "embeddings that are searched in place of the others themselves"),
        ("gallery_labels", "their labels"),
    ):
        stored.add_argument(f"--{name}", type=command_line.path, metavar="FILE", help=meaning)


def add_checkpoint_options(parser: command_line.Parser) -> None:
    """Adds the options of a command that runs a trained model, on one process or several.

    Args:
      parser: of the command.
    """
    parser.add_argument(
        "--step", default="best", help="best (the default), last, or the number of a checkpoint"
    )
    processes.add_options(parser)


def restored(workdir: str, step: str, model: Model) -> tuple[str, int, Any]:
    """Restores a checkpoint on the devices of the mesh in context; returns (its kind, its step, the model's variables).

    Args:
      workdir: of the run.
      step: `best`, `last` or a number.
      model: that of the run.
    """
    template = jax.eval_shape(model.without_weights().init, jax.random.key(0))
    kind, number, variables = checkpoints.restore_model(workdir, step, template)
    mesh = data_mesh()
    return kind, number, variables if mesh is None else states.replicate(variables, mesh)


def write(
    rows: Rows, folder: pathlib.Path, name: str = "metrics", settings: Settings | None = None
) -> list[pathlib.Path]:
    """Writes the rows as `name.json`, with the settings that gave them, and as `name.csv`; returns their paths.

    Args:
      rows: values by column, by the name of the row.
      folder: where the files go; it is made where it is missing.
      name: of the files.
      settings: what was evaluated, and how.
    """
    folder.mkdir(parents=True, exist_ok=True)
    as_json, as_csv = folder / f"{name}.json", folder / f"{name}.csv"
    stored = {"settings": settings or {}, "metrics": rows}
    text = json.dumps(stored, indent=2) + "\n"
    as_json.write_text(text, encoding="utf-8", errors="surrogateescape")
    columns = dict.fromkeys(k for row in rows.values() for k in row)
    write_rows(as_csv, ["row", *columns], ({"row": name, **row} for name, row in rows.items()))
    return [as_json, as_csv]


def written(files: Sequence[pathlib.Path]) -> str:
    """Returns a line about files of one folder that were written."""
    return f"written to {files[0].parent}: {', '.join(file.name for file in files)}"


def settings_of(config: Any, split: str, step: str) -> Settings:
    """Returns what decides the numbers of an evaluation.

    Args:
      config: `data` and `evaluation` are used.
      split: what is evaluated.
      step: of the checkpoint, as it was asked for.
    """
    stored = configs.to_dict(config)
    section = {k: v for k, v in stored["evaluation"].items() if k not in _FOR_SPEED}
    loading = {field for field in vars(DataOptions()) if field not in ("prepare", "validation")}
    images = {k: v for k, v in stored["data"].items() if k not in loading}
    return {"split": split, "step": step, "data": images, "evaluation": section}


# They decide how fast an evaluation is, or when it is made, and no number.
_FOR_SPEED = ("backend", "batch_size", "before_training", "block", "kmeans", "map", "splits")


def free_folder(folder: pathlib.Path, settings: Settings) -> pathlib.Path:
    """Returns the folder, or one beside it where the folder holds an evaluation with other settings.

    Args:
      folder: where the files of an evaluation are to go.
      settings: of the evaluation.
    """
    for number in itertools.count(1):
        place = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        before = _settings_in(place / "metrics.json")
        if before in (None, settings):
            if place != folder:
                log(
                    f"note: {folder} holds an evaluation with other settings; this one goes to {place}"
                )
            return place
    raise AssertionError("unreachable")


def _settings_in(path: pathlib.Path) -> Settings | None:
    """Returns the settings in a file of metrics; None where there is none, or one of an older version."""
    if not path.is_file():
        return None
    try:
        found: Settings | None = json.loads(path.read_text(encoding="utf-8")).get("settings")
    except ValueError:  # a file that is cut off
        return None
    # Which checkpoint was the best is no setting.
    return found and {key: value for key, value in found.items() if key != "checkpoint"}


def evaluate(
    config: Any, model: Any, workdir: str, step: str, split: str, folder: pathlib.Path
) -> tuple[Rows, Rows, Rows, list[pathlib.Path]]:
    """Evaluates a checkpoint; returns (metrics, by class, of steps after training, files written).

    Every process gets the tables; the first one writes the files.

    Args:
      config: `data` and `evaluation` are used.
      model: that of the run.
      workdir, step: where the checkpoint is; see `checkpoints.find`. The training split of the run there is what
        steps after training are fitted to.
      split: what is evaluated.
      folder: where the files go.
    """
    # What cannot be done is said before the work.
    report.check_map(config.evaluation.map)
    evaluation.check_steps(config.evaluation.after)
    spec = tasks.eval_spec(config, split, model)
    if processes.is_primary():
        run_folder.create(folder, "--out")
    run = run_folder.read_config(workdir)
    note = same_data.trained_on(workdir, configs.to_dict(config), split, spec.sources["queries"])
    if note and processes.is_primary():
        log(f"note: {note}")
    fitted = any(name in evaluation.FITTED for name in config.evaluation.after)
    trained_on = build.source(run, "train") if fitted else None
    kind, number, variables = restored(workdir, step, model)
    called = f"{kind}, step {number}"
    apply = score.outputs(model, spec.embeddings)

    def embed(of: Any, source: Any) -> Embedded:
        return score.embed_source(apply, variables, of, source, f"evaluating {split}")

    found = score.embedded(spec, lambda source: embed(config, source))
    rows, by_class = score.tabulated(spec, score.metrics(spec, found), called)
    steps: Rows = {}
    if config.evaluation.after:
        first, training = spec.embeddings[0], None
        embeddings, labels, _ = found["queries"]
        if trained_on is not None:
            training = evaluation.combined(embed(run, trained_on)[0], first)
        steps = evaluation.after_training(
            evaluation.combined(embeddings, first),
            labels,
            config.evaluation.after,
            training=training,
            backend=config.evaluation.backend,
        )
    files = []
    if processes.is_primary():
        settings = {**settings_of(config, split, step), "checkpoint": called}
        for table, of in ((rows, "metrics"), (by_class, "each_class"), (steps, "after_training")):
            files += write(table, folder, of, settings) if table else []
        # What the pictures show is searched for on this process's devices alone.
        with jax.set_mesh(make_mesh(config.train.devices, alone=True)):
            files += report.write_report(
                shown(config, spec, found),
                rows,
                folder,
                heading=f"{pathlib.Path(workdir).resolve().name}: {config.data.name}, {split}, {called}",
                facts=facts(run, config, workdir, split, called),
                about=spec.about,
                map=config.evaluation.map,
                seed=config.seed,
                steps=steps,
            )
    processes.barrier("evaluated")
    return rows, by_class, steps, files


def facts(run: Any, config: Any, workdir: str, split: str, called: str) -> dict[str, str]:
    """Returns what a report is about, by what it is.

    Args:
      run: the configuration of the run.
      config: what was evaluated.
      workdir: the folder of the run.
      split: what was evaluated.
      called: the checkpoint.
    """
    path = configs.plain(config.data).get("path")
    return {
        "run": str(workdir),
        "checkpoint": called,
        "loss": run.loss.name,
        "miner": "none" if run.miner is None else run.miner.name,
        "model": run.model.name,
        "data": f"{config.data.name}{f' ({path})' if path else ''}, {split}",
        "evaluated": time.strftime("%Y-%m-%d %H:%M"),
    }


def shown(config: Any, spec: tasks.EvalSpec, found: dict[str, Any]) -> report.ReportData:
    """Makes what a report is about: all images of a spec, the queries first, in the first of its embeddings."""
    first = spec.embeddings[0]
    vectors = [evaluation.combined(embeddings, first) for embeddings, _, _ in found.values()]
    joined = np.concatenate(vectors)
    if config.evaluation.normalize:
        joined = normalize_rows(joined)
    # Of each image, where it comes from.
    places = [(part, int(i)) for part, (_, _, ids) in found.items() for i in ids]
    labels = np.concatenate([spec.classes[part][ids] for part, (_, _, ids) in found.items()])
    root = same_data.root_of(configs.plain(config))

    def name(i: int) -> str:
        part, row = places[i]
        return data.relative_name(spec.sources[part].name(row), root)

    searched = [p for p in found if p != "queries" or "gallery" not in found]
    return report.ReportData(
        joined.astype(np.float32),
        labels,
        image=lambda i: spec.sources[places[i][0]][places[i][1]]["image"],
        name=name,
        class_names=spec.class_names,
        distance=config.evaluation.distance,
        backend=config.evaluation.backend,
        queries=np.flatnonzero([part == "queries" for part, _ in places]),
        gallery=np.flatnonzero([part in searched for part, _ in places]),
    )


def of_files(options: argparse.Namespace) -> None:
    """Evaluates embeddings that are stored in files.

    Args:
      options: those of the command line.

    Raises:
      UserError: a file that is missing, or of another kind.
    """
    from dml_jax import evaluate_stored, stored_embeddings

    if options.labels is None:
        raise UserError("--labels is missing: a file with a label for each row of --embeddings")
    if (options.gallery is None) != (options.gallery_labels is None):
        raise UserError(
            "one of --gallery and --gallery_labels is missing; both or none are accepted"
        )
    queries = stored_embeddings.read(options.embeddings, options.labels)
    gallery = None
    if options.gallery is not None:
        gallery = stored_embeddings.read(options.gallery, options.gallery_labels)
    name = pathlib.Path(options.embeddings).stem
    names = ("embeddings", "labels", "gallery", "gallery_labels")
    settings = {
        **{key: getattr(options, key) for key in names},
        "evaluation": configs.to_dict(options.config)["evaluation"],
    }
    place = options.out or free_folder(pathlib.Path(f"{name}_evaluation"), settings)
    folder = run_folder.create(place, "--out")
    section = options.config.evaluation
    rows, files = evaluate_stored.evaluate_stored(queries, gallery, section, folder, name)
    files = [*write(rows, folder, settings=settings), *files]
    log(report.format_table(rows, evaluation.metric_names(section.metrics)))
    log(written(files))


def main(options: argparse.Namespace) -> None:
    """Runs the command.

    Args:
      options: those of the command line.

    Raises:
      UserError: options that do not go together.
    """
    if options.embeddings is not None:
        if options.workdir is not None:
            raise UserError(
                "--embeddings and --workdir are two origins of embeddings; accepted: one of them"
            )
        of_files(options)
        return
    for name in ("labels", "gallery", "gallery_labels"):
        if getattr(options, name) is not None:
            raise UserError(f"--{name} goes with --embeddings; a run has labels of its own")
    processes.connect(options)
    config = configs.located(options.config)
    model = build.model(run_folder.read_config(options.workdir).model)
    # A data set of the user's own has a colon in its name, which not every file system takes.
    data_name = config.data.name.replace(":", ".")
    folder = pathlib.Path(options.out or "")
    if options.out is None and processes.is_primary():
        place = f"{data_name}_{options.split}_{options.step}"
        settings = settings_of(config, options.split, options.step)
        folder = free_folder(pathlib.Path(options.workdir) / "evaluation" / place, settings)
    with jax.set_mesh(make_mesh(config.train.devices)):
        rows, by_class, steps, files = evaluate(
            config, model, options.workdir, options.step, options.split, folder
        )
    if not processes.is_primary():
        return
    metrics = evaluation.metric_names(config.evaluation.metrics)
    log(f"{config.data.name}, {options.split}")
    log(report.format_table(rows, metrics))
    if by_class:
        some = dict(list(by_class.items())[:CLASSES])
        ranked = [metric for metric in metrics if metric in next(iter(some.values()))]
        log(f"\neach class:\n{report.format_table(some, ranked)}")
        if len(by_class) > len(some):
            log(f"and {len(by_class) - len(some)} more in each_class.csv")
    if steps:
        recalls = [metric for metric in next(iter(steps.values())) if "recall" in metric]
        log(f"\nafter training, with bytes per image:\n{report.format_table(steps, recalls)}")
    log(written(files))


if __name__ == "__main__":
    command_line.run(sys.modules[__name__])
