"""The metrics of a run as a CSV file that grows."""

import csv
import io
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from dml_jax import csv_files

Row = Mapping[str, Any]


class MetricsTable:
    """Rows of named values in a CSV file, new columns included.

    Rows that the file holds stay, but for those that will come again when a run goes on from a step: rows of later
    steps, and those of this very step without a `loss`, because the evaluation follows the checkpoint.

    Args:
      path: the file.
      step: the step that the run goes on from.
    """

    def __init__(self, path: str | os.PathLike[str], step: int = 0) -> None:
        self.path = pathlib.Path(path)
        kept = [
            r
            for r in self._read()
            if int(r["step"]) < step or (int(r["step"]) == step and "loss" in r)
        ]
        self.columns = list(dict.fromkeys(k for r in kept for k in r))
        self._replace(kept)

    def write(self, row: Row) -> None:
        """Adds a row, which is in the file when this returns."""
        new = [k for k in row if k not in self.columns]
        if new:
            rows = self._read()
            self.columns += new
            self._replace([*rows, row])
            return
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, restval="", lineterminator="\n").writerow(row)

    def _read(self) -> list[dict[str, str]]:
        if not self.path.is_file():
            return []
        text = self.path.read_text(encoding="utf-8")
        # A run that was killed may have left half a line.
        rows = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
        return [{k: v for k, v in row.items() if v} for row in rows]

    def _replace(self, rows: Sequence[Row]) -> None:
        if self.columns:
            csv_files.write_rows(self.path, self.columns, rows)
        else:
            self.path.write_text("", encoding="utf-8")
