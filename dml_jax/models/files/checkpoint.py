"""The backbone in a checkpoint of ours."""

import json
import os
import pathlib
from contextlib import ExitStack
from functools import partial

import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from dml_jax import checkpoints
from dml_jax.models.files.arrays import Readers, unreadable

KIND = "checkpoint"
# The paths of a model's arrays begin with them, those of its head do not.
_PARTS = ("params/backbone/", "state/backbone/")


def find(folder: str) -> epath.Path | None:
    """Returns the folder `STEP` of a checkpoint; None where there is none.

    Args:
      folder: of a run, of its checkpoints, of one kind of them, or of one; of several the best goes before the last.
    """
    for place in (epath.Path(folder), epath.Path(checkpoints.folder_of(folder))):
        for kind in (place, place / "best", place / "last"):
            steps = [p for p in kind.glob("*") if p.name.isdecimal() and _is_checkpoint(p)]
            if _is_checkpoint(kind):
                return kind
            if steps:
                return max(steps, key=lambda step: int(step.name))
    return None


def model_of(weights: str | os.PathLike[str]) -> str | None:
    """Returns the name of the model of the run in which weights lie; None where they lie in none.

    Args:
      weights: the folder of a run, or a folder below it.
    """
    folder = pathlib.Path(weights)
    for place in (folder, *folder.parents[:3]):
        if folder.is_dir() and (place / "config.json").is_file():
            config = json.loads((place / "config.json").read_text(encoding="utf-8"))
            name: str = config["model"]["name"]
            return name
    return None


def _is_checkpoint(folder: epath.Path) -> bool:
    return (folder / "model" / "_METADATA").exists()


def readers(folder: epath.Path, stack: ExitStack) -> Readers:
    """Returns a reader for every array of the backbone, parameters and state, by its path.

    Args:
      folder: of one checkpoint.
      stack: closes what reads it.

    Raises:
      UserError: it is damaged, or is of no model with a backbone; readers raise it for their array.
    """
    reader = ocp.PyTreeCheckpointer()
    stack.callback(reader.close)
    try:
        names = list(reader.metadata(folder / "model").item_metadata.tree)
    # Orbax and TensorStore raise errors of many kinds where files are cut off or missing.
    except Exception as error:
        raise unreadable(folder, KIND, error) from error
    paths = {n.removeprefix(p): n for n in names for p in _PARTS if n.startswith(p)}
    if not paths:
        raise unreadable(folder, KIND, "it has no backbone")
    return {path: partial(_read, reader, folder, name) for path, name in paths.items()}


def _read(reader: ocp.Checkpointer, folder: epath.Path, name: str) -> np.ndarray:
    args = ocp.args.PyTreeRestore(
        item={name: 0},
        restore_args={name: ocp.RestoreArgs(restore_type=np.ndarray)},
        partial_restore=True,
    )
    try:
        return reader.restore(folder / "model", args=args)[name]
    except Exception as error:
        raise unreadable(folder, KIND, f"{name!r} ({type(error).__name__})") from error
