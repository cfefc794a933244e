"""Runs a study: `dml study --study=NAME|FILE.py[:ARGUMENTS] --workdir=DIR`, which is many training runs.

The same command goes on with a study that was stopped: finished cells stay as they are, others go on from their
checkpoints. Cells that failed are tried again with --retry_failed.
"""

import argparse
import fnmatch
import json
import pathlib
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from dml_jax import command_line, names, run_folder
from dml_jax.console import log
from dml_jax.errors import UserError
from dml_jax.experiments import cell as cells
from dml_jax.experiments import engines
from dml_jax.experiments.results import CELLS, FAILED
from dml_jax.experiments.study import Cell, Study, available, load_study

STUDY = "study.json"


def add_options(parser: command_line.Parser) -> None:
    """Adds the options of this command.

    Args:
      parser: of the command.
    """
    parser.add_workdir("the folder of the study; each cell has its own below it")
    parser.add_argument(
        "--study",
        required=True,
        metavar="NAME|FILE.py[:ARGUMENTS]",
        help=f"the study: a file, or one that comes with the library ({', '.join(available()) or 'none'})",
    )
    parser.add_argument(
        "--only",
        default="*",
        metavar="PATTERN",
        help="only the cells whose names match, as in --only='*loss=nt_xent*/seed=0'; --dry_run lists the names",
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="lists the cells with what there is of them, and ends",
    )
    parser.add_argument("--retry_failed", action="store_true", help="runs cells again that failed")
    add_engine_options(parser)


def add_engine_options(parser: command_line.Parser) -> None:
    """Adds the options that say what runs the cells.

    Args:
      parser: of the command.
    """
    parser.add_argument(
        "--executor",
        default="local",
        metavar="local|slurm|ray",
        help="what runs the cells: processes of this machine, SLURM, or Ray; by default local",
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="cells that run at a time; by default 1"
    )
    parser.add_argument(
        "--gpus",
        default="",
        metavar="0,1,...",
        help="the GPUs of this machine that the cells are dealt out to; several cells share one where --jobs is larger",
    )
    parser.add_argument(
        "--memory_share",
        type=float,
        metavar="SHARE",
        help="the share of a GPU's memory that a cell takes; by default 0.75 over the cells that share a GPU",
    )
    parser.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a parameter of SLURM, as in --slurm=partition=gpu --slurm=gpus_per_node=1 --slurm=time=600",
    )


def main(options: argparse.Namespace) -> None:
    """Runs the command.

    Args:
      options: those of the command line.
    """
    engine = names.resolve("executor", engines.ENGINES, options.executor)
    resources = resources_of(options, pathlib.Path(options.workdir))
    study = load_study(options.study)
    chosen = [cell for cell in study.cells if fnmatch.fnmatchcase(cell.name, options.only)]
    if not chosen:
        raise UserError(
            f"--only={options.only!r} matches none of the {len(study.cells)} cells, such as {study.cells[0].name!r}"
        )
    workdir = pathlib.Path(options.workdir)
    if options.dry_run:
        for cell in chosen:
            print(f"{cells.state(_folder(workdir, cell)):<9} {cell.name}")
        print(_count(workdir, chosen))
        return
    run_folder.create(workdir)
    _write_study(workdir, study, options.study)
    run_study(workdir, chosen, engine, resources, retry_failed=options.retry_failed)
    failed = [cell for cell in chosen if cells.state(_folder(workdir, cell)) == "failed"]
    for cell in failed:
        folder = _folder(workdir, cell)
        print(f"\nfailed: {cell.name}, the end of {folder / 'log.txt'}:\n{cells.failure(folder)}")
    log(f"{_count(workdir, chosen)}. Next: {_report(options.workdir)}")
    if failed:
        raise UserError(
            f"{len(failed)} of {len(chosen)} cells failed; --retry_failed runs them again"
        )


def resources_of(options: argparse.Namespace, workdir: pathlib.Path) -> engines.Resources:
    """Returns what cells may use, as the options of `add_engine_options` say.

    Args:
      options: those of the command line.
      workdir: the folder of the study.

    Raises:
      UserError: a value out of range.
    """
    if options.jobs < 1:
        raise UserError(f"--jobs={options.jobs}; a whole number from 1 on is accepted")
    return engines.Resources(
        jobs=options.jobs,
        folder=workdir / "engine",
        gpus=_numbers(options.gpus),
        memory_share=_share(options.memory_share),
        slurm=dict(map(_parameter, options.slurm)),
    )


def run_study(
    workdir: pathlib.Path,
    chosen: Sequence[Cell],
    engine: engines.Engine,
    resources: engines.Resources,
    *,
    retry_failed: bool = False,
) -> None:
    """Runs the cells that are not finished, and shows how far the study is.

    Args:
      workdir: the folder of the study.
      chosen: its cells, or some of them.
      engine: what runs them.
      resources: what they may use.
      retry_failed: True to run those again that failed.

    Raises:
      UserError: a folder of a cell holds a run of another configuration.
    """
    todo = []
    for cell in chosen:
        folder = _folder(workdir, cell)
        cells.ask(folder, cell)
        if cells.state(folder) == "failed" and retry_failed:
            (folder / FAILED).unlink()
        if cells.state(folder) not in ("finished", "failed"):
            todo.append(cell)
    log(f"{_count(workdir, chosen)}; {len(todo)} to run, {resources.jobs} at a time")
    begun = time.monotonic()
    jobs = [cells.CellJob(_folder(workdir, cell).absolute()) for cell in todo]
    for done, number in enumerate(engine(jobs, resources), start=1):
        cell = todo[number]
        took = time.monotonic() - begun
        left = took / done * (len(todo) - done)
        what = cells.state(_folder(workdir, cell))
        log(
            f"{done} of {len(todo)}  {what}: {cell.name}  {_clock(took)} so far, {_clock(left)} left"
        )


def _folder(workdir: pathlib.Path, cell: Cell) -> pathlib.Path:
    return workdir / CELLS / cell.group / f"seed={cell.seed}"


def _count(workdir: pathlib.Path, chosen: Sequence[Cell]) -> str:
    """Returns how many cells there are in each state."""
    counts = Counter(cells.state(_folder(workdir, cell)) for cell in chosen)
    states = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    return f"{len(chosen)} cells: {states}"


def _clock(seconds: float) -> str:
    hours, minutes = int(seconds // 3600), int(seconds // 60 % 60)
    return f"{hours}:{minutes:02d}:{int(seconds % 60):02d}"


def _write_study(workdir: pathlib.Path, study: Study, spec: str) -> None:
    name, colon, text = spec.partition(":")
    path = pathlib.Path(name).expanduser()
    # A path is stored so that the report finds the file from any folder.
    place = f"{path.absolute()}{colon}{text}" if path.is_file() else spec
    content: dict[str, Any] = {"spec": place, "title": study.title}
    (workdir / STUDY).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _report(workdir: str) -> str:
    return command_line.shell("report", f"--workdir={workdir}")


def _numbers(text: str) -> tuple[int, ...]:
    parts = [part for part in text.split(",") if part]
    if not all(part.isdecimal() for part in parts):
        raise UserError(
            f"--gpus={text}; numbers with commas between them are accepted, as in --gpus=0,1"
        )
    return tuple(map(int, parts))


def _share(share: float | None) -> float | None:
    if share is not None and not 0 < share <= 1:
        raise UserError(f"--memory_share={share}; a number above 0 and up to 1 is accepted")
    return share


def _parameter(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UserError(f"--slurm={text}; NAME=VALUE is accepted, as in --slurm=partition=gpu")
    return name, int(value) if value.isdecimal() else value


if __name__ == "__main__":
    command_line.run(sys.modules[__name__])
