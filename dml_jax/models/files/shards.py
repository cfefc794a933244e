"""An index of weights in shards, as the Hugging Face Hub has it: a JSON file that names the file of every array."""

import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import numpy as np

from dml_jax.errors import UserError
from dml_jax.models.files.arrays import Readers, unreadable

KIND = "index of weights in shards"
Opener = Callable[[str, ExitStack], Readers]


def files(path: str) -> dict[str, str]:
    """Returns the name of the file of every array, by the name of the array.

    Args:
      path: of the index.

    Raises:
      UserError: it is no such index, or names a file outside of its folder.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        found = content["weight_map"]
        whole = isinstance(found, dict) and all(isinstance(name, str) for name in found.values())
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        why = "it has no weight_map" if isinstance(error, (KeyError, TypeError)) else error
        raise unreadable(path, KIND, why) from error
    if not whole or not found:
        raise unreadable(path, KIND, "its weight_map is no dict of names of files")
    for name in found.values():
        if name in ("", ".", "..") or "/" in name or "\\" in name:
            raise unreadable(path, KIND, f"it names {name!r}, which is no file of its folder")
    return dict(found)


def readers(path: str, stack: ExitStack, open_file: Opener) -> Readers:
    """Returns a reader for every array of an index; its files are opened when the first of their arrays is read.

    Args:
      path: of the index.
      stack: closes the files.
      open_file: opens one of them.

    Raises:
      UserError: it is no such index, or not all of its files are there.
    """
    by_name = files(path)
    folder = os.path.dirname(os.path.abspath(path))
    missing = sorted({f for f in by_name.values() if not os.path.isfile(os.path.join(folder, f))})
    if missing:
        listed = ", ".join(missing[:3]) + f" and {len(missing) - 3} more" * (len(missing) > 3)
        raise UserError(
            f"weights {path!r} need {listed}, which {folder!r} has not; accepted: all shards in one folder"
        )
    opened: dict[str, Readers] = {}

    def read(name: str) -> np.ndarray:
        shard = by_name[name]
        if shard not in opened:
            opened[shard] = open_file(os.path.join(folder, shard), stack)
        if name not in opened[shard]:
            raise unreadable(path, KIND, f"{shard} has no {name!r}")
        return opened[shard][name]()

    return {name: partial(read, name) for name in by_name}
