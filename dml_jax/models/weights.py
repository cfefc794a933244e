"""Published weights: a flat file of named arrays to the nested dict of a backbone."""

import os
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from dml_jax import trees
from dml_jax.errors import UserError


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the arrays of an .npz file by name.

    Args:
      path: of the file.

    Raises:
      UserError: no such file, or one that is no .npz file of arrays.
    """
    if not os.path.isfile(path):
        raise UserError(f"weights file {str(path)!r} does not exist; an .npz file is needed")
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (ValueError, OSError, AttributeError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"weights file {str(path)!r} is not a readable .npz file of arrays: {error}"
        ) from error


def unflatten_like(
    flat: Mapping[str, Any], tree: Mapping[str, Any], *, source: str
) -> dict[str, Any]:
    """Returns arrays by path as a nested float32 dict of exactly the keys and shapes of another tree.

    Args:
      flat: arrays by path, such as "a/b/c".
      tree: a nested dict of anything with a `shape`.
      source: where `flat` came from, as errors name it.

    Raises:
      UserError: keys are missing or left over, or a shape differs.

    Example:
      >>> unflatten_like({"a/b": [1, 2]}, {"a": {"b": np.zeros(2)}}, source="a file")
      {'a': {'b': array([1., 2.], dtype=float32)}}
    """
    expected = trees.flatten(tree)
    missing = [k for k in expected if k not in flat]
    extra = [k for k in flat if k not in expected]
    if missing or extra:
        problems = [("missing", missing), ("not expected", extra)]
        listed = "; ".join(f"{word}: {shorten(keys)}" for word, keys in problems if keys)
        raise UserError(f"{source}: {listed}")
    for name, leaf in expected.items():
        shape = np.shape(flat[name])
        if shape != leaf.shape:
            raise UserError(f"{source}: {name!r} has shape {shape}, not {leaf.shape}")
    return trees.unflatten({name: np.asarray(flat[name], np.float32) for name in expected})


def shorten(names: Iterable[str]) -> str:
    """Returns the first three names in order, and how many more there are, as a text for errors.

    Args:
      names: the names.

    Example:
      >>> shorten("dcba")
      "'a', 'b', 'c' and 1 more"
    """
    names = sorted(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more
