"""Published weights: a flat file of named arrays to the nested dict of a backbone."""

import pathlib
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np


def read(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name; ValueError where there is no such file."""
    if not pathlib.Path(path).is_file():
        raise ValueError(f"weights file {str(path)!r} does not exist; an .npz file is needed")
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (ValueError, OSError, AttributeError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"weights file {str(path)!r} is not a readable .npz file of arrays: {error}"
        ) from error


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dict to `{"a/b/c": leaf}`."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}/"))
        else:
            flat[prefix + name] = value
    return flat


def nest(flat: Mapping[str, Any], like: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """`{"a/b/c": array}` to a nested float32 dict of exactly the keys and shapes of `like`.

    Args:
      flat: arrays by path.
      like: nested dict of anything with a `shape`.
      source: where `flat` came from, for errors.

    Raises:
      ValueError: keys are missing or left over, or a shape differs.
    """
    expected = flatten(like)
    missing = [k for k in expected if k not in flat]
    extra = [k for k in flat if k not in expected]
    if missing or extra:
        parts = [("missing", missing), ("not expected", extra)]
        what = "; ".join(f"{word}: {shorten(keys)}" for word, keys in parts if keys)
        raise ValueError(f"{source}: {what}")
    tree: dict[str, Any] = {}
    for name, leaf in expected.items():
        shape = np.shape(flat[name])
        if shape != leaf.shape:
            raise ValueError(f"{source}: {name!r} has shape {shape}, not {leaf.shape}")
        *parents, last = name.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = np.asarray(flat[name], np.float32)
    return tree


def shorten(names: Iterable[str]) -> str:
    """The first three of `names` in order, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more
