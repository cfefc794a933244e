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

    Args:
      path: of the file.
      columns: the names in the first line, in order.
      rows: mappings from column to value; a column that a row lacks stays empty.
    """
    path = pathlib.Path(path)
    beside = path.with_name(path.name + ".new")
    with beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(beside, path)


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, str]]:
    """Returns the rows of a table as mappings from column to text.

    Args:
      path: of the file.
    """
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
