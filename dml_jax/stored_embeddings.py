"""Embeddings and labels in files, by whoever made them: .npy, .npz, .parquet, and .csv for labels."""

import os
import pathlib
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from dml_jax.data.base import integer_labels
from dml_jax.data.csv_lists import read_list
from dml_jax.errors import UserError


class Stored(NamedTuple):
    """Embeddings with a label each.

    Attributes:
      embeddings: float32 [n, d].
      labels: [n], numbers of the classes.
      class_names: the names of the classes.
      paths: where the image of each is; None where that is not known.
    """

    embeddings: Float[np.ndarray, "n d"]
    labels: Int[np.ndarray, " n"]
    class_names: tuple[str, ...]
    paths: tuple[str, ...] | None


def read(embeddings: str, labels: str) -> Stored:
    """Reads embeddings and their labels.

    Args:
      embeddings: an .npy file `[n, d]`, an .npz file with one such array or one called `embeddings`, or a .parquet file
        with a column `embedding` of lists.
      labels: a .csv or .parquet file with a column `label` and perhaps one `path`, or an .npy or .npz file of n labels.

    Raises:
      UserError: a file that is missing or of another kind, rows that do not match, values that are not finite.
    """
    vectors = _vectors(embeddings)
    keys, paths = _labels(labels)
    if len(keys) != len(vectors):
        raise UserError(
            f"{embeddings} has {len(vectors)} rows and {labels} {len(keys)}; a label for each row is accepted"
        )
    numbers, names = integer_labels(keys)
    return Stored(vectors, numbers, tuple(names), paths)


def _vectors(path: str) -> Float[np.ndarray, "n d"]:
    suffix = _suffix(path, (".npy", ".npz", ".parquet"))
    if suffix == ".parquet":
        found = _parquet(path)
        if "embedding" not in found:
            raise UserError(
                f"{path} has the columns {', '.join(found)}; a column embedding of lists is accepted"
            )
        array = np.array([np.asarray(row) for row in found["embedding"]])
    else:
        array = _numpy(path, "embeddings")
    if array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "fiu":
        raise UserError(
            f"{path} holds an array {array.dtype}{list(array.shape)}; numbers [n, d] are accepted"
        )
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        raise UserError(
            f"{path}: row {bad[0]}{f' and {len(bad) - 1} more' * (len(bad) > 1)} with values that are not finite; "
            "numbers are accepted"
        )
    return array.astype(np.float32)


def _labels(path: str) -> tuple[list[str], tuple[str, ...] | None]:
    suffix = _suffix(path, (".csv", ".npy", ".npz", ".parquet"))
    if suffix == ".csv":
        rows, columns = read_list(path, ("label",), ("path",))
        where = os.path.dirname(path)
        paths = (
            tuple(os.path.join(where, row["path"]) for row in rows) if "path" in columns else None
        )
        return [row["label"] for row in rows], paths
    if suffix == ".parquet":
        found = _parquet(path)
        if "label" not in found:
            raise UserError(
                f"{path} has the columns {', '.join(found)}; a column label is accepted"
            )
        paths = tuple(map(str, found["path"])) if "path" in found else None
        return list(map(str, found["label"])), paths
    array = _numpy(path, "labels")
    if array.ndim != 1 or array.dtype.kind not in "iuUS":
        raise UserError(
            f"{path} holds an array {array.dtype}{list(array.shape)}; whole numbers or texts [n] are accepted"
        )
    # Numbers are sorted as numbers, which names of equal length are, too.
    width = len(str(array.max())) if array.dtype.kind in "iu" and array.size else 0
    return [str(value).zfill(width) for value in array.tolist()], None


def _suffix(path: str, accepted: tuple[str, ...]) -> str:
    suffix = pathlib.Path(path).suffix.lower()
    if suffix not in accepted:
        raise UserError(
            f"{path} {f'ends in {suffix!r}' if suffix else 'has no ending'}; {', '.join(accepted)} are accepted"
        )
    if not os.path.isfile(path):
        raise UserError(f"there is no file {path}")
    return suffix


def _numpy(path: str, name: str) -> np.ndarray:
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        with found:
            if name not in found.files and len(found.files) != 1:
                have = ", ".join(found.files) or "(none)"
                raise UserError(
                    f"{path} has the arrays {have}; one called {name}, or a single one, is accepted"
                )
            return np.asarray(found[name if name in found.files else found.files[0]])
    except UserError:
        raise
    except Exception as error:  # NumPy raises errors of many kinds for files that are cut off
        raise UserError(f"{path} is no file of NumPy arrays ({error})") from None


def _parquet(path: str) -> dict[str, Any]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path} needs the package pyarrow: pip install pyarrow") from None
    try:
        found: dict[str, Any] = pyarrow.parquet.read_table(path).to_pydict()
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is no Parquet file ({error})") from None
    return found
