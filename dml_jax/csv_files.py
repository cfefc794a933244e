"""CSV files: written whole or not at all."""

import csv
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def write_rows(
    path: str | os.PathLike[str], columns: Sequence[str], rows: Iterable[Mapping[str, Any]]
) -> None:
    """Writes a table; the file is replaced in one go, so that no reader sees half of it.

    A text that begins as a formula does (=, +, -, @, a tab) gets an apostrophe before it, because spreadsheets would
    compute it: names of files and classes come from anywhere. Numbers stay as they are.

    Args:
      path: of the file.
      columns: the names in the first line, in order.
      rows: mappings from column to value; a column that a row lacks stays empty.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     write_rows(f"{folder}/t.csv", ["a", "b"], [{"a": 1}])
      ...     read_rows(f"{folder}/t.csv")
      [{'a': '1', 'b': ''}]
    """
    path = pathlib.Path(path)
    beside = path.with_name(path.name + ".new")
    # A file name that is not UTF-8 is written as the bytes that it is.
    with beside.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: _quoted(v) for k, v in row.items()} for row in rows)
    os.replace(beside, path)


def _quoted(value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, str]]:
    """Returns the rows of a table as mappings from column to text.

    Args:
      path: of the file.
    """
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))
