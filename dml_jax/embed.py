"""Writes embeddings: `dml embed --workdir=DIR [--split=test | --images=FOLDER] [--out=DIR]`.

Of a split of the run's data (or of those of `--config`), or of all images below a folder, whose sub-folders are classes
with `--classes`. `--out` gets embeddings.npy (float32, a row per image), items.jsonl (a line per row: `name`; `path`
where it is a file; `label` and `class` where they are known), about.json (what made them, and which images were
skipped) and model.dml (the model, as `dml export` writes it). `dml search` searches among them. The embedding is the
first of `evaluation.embeddings`. Several processes embed together as they train together (see launch/); the first one
writes.
"""

import argparse
import pathlib
import sys
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from dml_jax import command_line, data, evaluation, inference, processes, run_folder
from dml_jax.console import log
from dml_jax.errors import UserError
from dml_jax.evaluate import add_checkpoint_options, restored
from dml_jax.mesh import make_mesh
from dml_jax.models import Model
from dml_jax.training import build, score


def add_options(parser: command_line.Parser) -> None:
    """Adds the options of this command.

    Args:
      parser: of the command.
    """
    parser.add_workdir()
    parser.add_config(of_run=True)
    add_checkpoint_options(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--split", default="test", help="the split that is embedded (test)")
    what.add_argument(
        "--images",
        type=command_line.path,
        metavar="FOLDER",
        help="a folder of images to embed in place of a split",
    )
    parser.add_argument(
        "--classes",
        action="store_true",
        help="the sub-folders of --images are classes, which items.jsonl then names",
    )
    parser.add_argument(
        "--out",
        type=command_line.path,
        metavar="FOLDER",
        help="where the files go; by default embeddings/NAME in the run",
    )


def for_files(config: Any, model: Model, count: int) -> ConfigDict:
    """Returns the configuration for embedding `count` images that are not of its data set.

    One that cannot be decoded is left out: a folder of one's own may hold anything.
    """
    found = ConfigDict(config.to_dict())
    found.data.prepare = score.preparation(config, model)
    found.data.on_error = "skip"
    # As small as the images allow, and a share for each process.
    share = jax.process_count()
    found.evaluation.batch_size = min(config.evaluation.batch_size, -(-count // share) * share)
    return found


def items(source: data.Source, ids: np.ndarray) -> list[dict[str, Any]]:
    """Returns what items.jsonl says of the images of those ids."""
    found: list[dict[str, Any]] = []
    for i in map(int, ids):
        name, label = source.name(i), int(source.labels[i])
        item: dict[str, Any] = {"name": name}
        if pathlib.Path(name).is_file():
            item["path"] = str(pathlib.Path(name).resolve())
        if label >= 0:
            item |= {"label": label, "class": source.class_names[label]}
        found.append(item)
    return found


def main(options: argparse.Namespace) -> None:
    """Runs the command.

    Args:
      options: those of the command line.

    Raises:
      UserError: `--classes` without `--images`.
    """
    if options.classes and options.images is None:
        raise UserError("--classes goes with --images=FOLDER; a split has classes of its own")
    processes.connect(options)
    workdir = pathlib.Path(options.workdir).resolve()
    config = options.config
    model = build.model(run_folder.read_config(str(workdir)).model)
    if options.images is None:
        source, name = build.source(config, options.split), f"{config.data.name}_{options.split}"
    else:
        if options.classes:
            source = data.load("folder", "all", path=options.images, channels=model.channels)
        else:
            source = data.files_below(options.images, channels=model.channels)
        config = for_files(config, model, len(source))
        name = pathlib.Path(options.images).resolve().name
    out = pathlib.Path(options.out) if options.out else workdir / "embeddings" / name
    if processes.is_primary():
        out = run_folder.create(out, "--out")
    of = config.evaluation.embeddings[0]
    with jax.set_mesh(make_mesh(config.train.devices)):
        kind, number, variables = restored(str(workdir), options.step, model)
        found, _, ids = score.embed_source(
            score.outputs(model, (of,)), variables, config, source, "embedding"
        )
    if processes.is_primary():
        embeddings = evaluation.combined(found, of)
        encoder = inference.encoder_of(config, model, variables, of, workdir, kind, number)
        left_out = np.setdiff1d(np.arange(len(source)), ids)
        about = {**encoder.about, "of": name, "skipped": [source.name(int(i)) for i in left_out]}
        index = inference.Index(embeddings, items(source, ids), about)
        index.save(out)
        # The run may train on, move or go: what is searched for has to be embedded by this very model.
        model_file = inference.export(encoder, out / inference.MODEL)
        log(
            f"{kind}, step {number}: {len(ids)} embeddings of {embeddings.shape[1]} dimensions, {name}"
        )
        names = (inference.EMBEDDINGS, inference.ITEMS, inference.ABOUT, model_file.name)
        log(f"written to {out}: {', '.join(names)}")
        log(f"Next: {command_line.shell('search', f'--index={out}')} IMAGE ...")
    processes.barrier("embedded")


if __name__ == "__main__":
    command_line.run(sys.modules[__name__])
