"""The results of a study's cells, as they lie in its folder.

WORKDIR/study.json                         what the study is: title, text, cells, tables, figures
WORKDIR/cells/GROUP/seed=N/                the folder of a run (`dml_jax.run_folder`), and
WORKDIR/cells/GROUP/seed=N/result.json     written when the run is over: its factors, final numbers, and what it needs
                                           to be run again
WORKDIR/cells/GROUP/seed=N/failed.json     in its place where the run ended in an error
WORKDIR/cells/GROUP/seed=N/log.txt         what the run printed
"""

import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dml_jax import csv_files, names
from dml_jax.errors import UserError
from dml_jax.training.experiment import monitor_better

CELLS, RESULT, FAILED, LOG = "cells", "result.json", "failed.json", "log.txt"


@dataclass(frozen=True)
class Result:
    """What came out of a cell.

    Attributes:
      folder: of the run.
      group: its factors as text.
      factors: what is compared, with the values of this cell.
      seed: of the run.
      final: the numbers of its last evaluations, and of those at the end, as `split/metric`.
      about: hash of the configuration, seconds, revision of the code, versions of packages, device.
    """

    folder: pathlib.Path
    group: str
    factors: Mapping[str, Any]
    seed: int
    final: Mapping[str, float]
    about: Mapping[str, Any]

    @cached_property
    def epochs(self) -> Sequence[Mapping[str, float]]:
        """The evaluations of the run in order: `epoch` and `split/metric`, of which a row holds what it has."""
        found = []
        for row in csv_files.read_rows(self.folder / "metrics.csv"):
            numbers = {k: float(v) for k, v in row.items() if v and (k == "epoch" or "/" in k)}
            if any(name.partition("/")[0] in ("train", "val", "test") for name in numbers):
                found.append(numbers)
        return found


def load_results(workdir: str | pathlib.Path) -> list[Result]:
    """Returns the results of the cells that are finished, in the order of their names.

    Args:
      workdir: the folder of the study.

    Raises:
      UserError: no study has run there.
    """
    folder = pathlib.Path(workdir).expanduser() / CELLS
    if not folder.is_dir():
        raise UserError(
            f"there is no {folder}; accepted: a folder that dml_jax.experiments.run wrote"
        )
    found = []
    for file in sorted(folder.glob(f"*/*/{RESULT}")):
        stored = json.loads(file.read_text(encoding="utf-8"))
        found.append(
            Result(
                folder=file.parent,
                group=file.parent.parent.name,
                factors=stored["factors"],
                seed=stored["seed"],
                final=stored["final"],
                about=stored["about"],
            )
        )
    return found


def value(result: Result, name: str) -> float:
    """Returns a number of a result.

    Args:
      result: of a cell.
      name: one of
        - "test/map_at_r": the final one: of the last evaluation, or of the one at the end (`evaluation.at_end`) with
          the model that validation chose;
        - "best test/recall_at_1": the best over the epochs, each metric by itself, as in the ICML 2020 tables;
        - "epoch of best test/recall_at_1": the epoch of that (the first one);
        - "train/rho_spectrum_2 at best test/recall_at_1": of that epoch.

    Raises:
      UserError: the run has no such number.
    """
    at = re.fullmatch(r"(?:(?P<name>\S+) at |(?P<epoch>epoch of ))?best (?P<best>\S+)", name)
    if at is None:
        if name not in result.final:
            raise names.unknown(f"value of {result.folder}:", name, result.final)
        return float(result.final[name])
    best = _best_row(result, at["best"])
    wanted = "epoch" if at["epoch"] else at["name"] or at["best"]
    if wanted not in best:
        raise names.unknown(f"value of the best epoch of {result.folder}:", wanted, best)
    return best[wanted]


def _best_row(result: Result, metric: str) -> Mapping[str, float]:
    """Returns the first of the evaluations in which a metric is best."""
    rows = [row for row in result.epochs if metric in row]
    if not rows:
        known = dict.fromkeys(name for row in result.epochs for name in row)
        raise names.unknown(f"metric in {result.folder / 'metrics.csv'}:", metric, known)
    pick = max if monitor_better(metric) == "high" else min
    return pick(rows, key=lambda row: row[metric])
