"""One cell of a study in a process of its own: it trains, and leaves its result in its folder."""

import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dml_jax import config as configs
from dml_jax import processes, run_folder
from dml_jax.errors import UserError
from dml_jax.experiments.results import FAILED, LOG, RESULT
from dml_jax.experiments.study import Cell

ASKED = "cell.json"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")


def ask(folder: pathlib.Path, cell: Cell) -> None:
    """Writes what a cell is to its folder, where `CellJob` reads it.

    Args:
      folder: of the cell.
      cell: the cell.

    Raises:
      UserError: the folder holds the run of another configuration.
    """
    before = _read(folder / ASKED)
    if before and before["hash"] != cell.hash and (folder / "config.json").exists():
        raise UserError(
            f"{folder} holds a run of another configuration than cell {cell.name!r} has now; accepted: another "
            "--workdir, or this one without that folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    config = configs.to_dict(configs.located(cell.config))
    train = config["train"]
    if train["wandb"] and not train["wandb_group"]:
        train |= {"wandb_group": cell.group, "wandb_name": cell.name}
    asked = {"factors": dict(cell.factors), "seed": cell.seed, "hash": cell.hash, "config": config}
    _write(folder / ASKED, asked)


def state(folder: pathlib.Path) -> str:
    """Returns what there is of a cell: "finished", "failed", "begun" or "new".

    Args:
      folder: of the cell.
    """
    if (folder / RESULT).exists():
        return "finished"
    if (folder / FAILED).exists():
        return "failed"
    return "begun" if (folder / "config.json").exists() else "new"


def failure(folder: pathlib.Path, lines: int = 8) -> str:
    """Returns the end of what a failed cell printed.

    Args:
      folder: of the cell.
      lines: how many.
    """
    text = (folder / LOG).read_text(encoding="utf-8", errors="replace")
    return "\n".join(text.rstrip().splitlines()[-lines:])


@dataclass(frozen=True)
class CellJob:
    """Trains a cell; an engine calls it in a process of its own.

    Attributes:
      folder: of the cell, in which `ask` wrote what it is.
      environment: variables of the process, set before JAX looks for devices.
    """

    folder: pathlib.Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def __call__(self) -> None:
        os.environ.update(self.environment)
        with (
            (self.folder / LOG).open("a", encoding="utf-8") as log,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
        ):
            self._run()

    def checkpoint(self) -> Any:
        """Returns what SLURM begins again where it takes the machine away; the run goes on from its checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _run(self) -> None:
        asked = _read(self.folder / ASKED)
        config = configs.from_dict(asked["config"])
        if config.train.deterministic:
            processes.add_in_fixed_order()
        # A process that outlived the one which began it may still be at it.
        while is_busy(self.folder):
            time.sleep(1)
        if (self.folder / RESULT).exists():
            return
        begun = time.time()
        try:
            # Imported here, because what it imports looks for devices.
            from dml_jax.training.loop import train

            final = train(config, str(self.folder))
        except Exception as error:
            traceback.print_exc()
            _write(self.folder / FAILED, {"hash": asked["hash"], "error": str(error)})
            return
        about = {"hash": asked["hash"], "seconds": round(time.time() - begun, 1), **_about()}
        result = {
            "factors": asked["factors"],
            "seed": asked["seed"],
            "final": final,
            "about": about,
        }
        _write(self.folder / RESULT, result)


def is_busy(folder: pathlib.Path) -> bool:
    """Returns True where a process trains in the folder of a run.

    Args:
      folder: of the run.
    """
    try:
        with run_folder.locked(folder):
            return False
    except UserError:
        return True


def _about() -> dict[str, Any]:
    """Returns what a cell needs to be run again beside its configuration."""
    import jax

    devices = jax.devices()
    return {
        "code": _revision(),
        "python": platform.python_version(),
        "packages": dict(_versions()),
        "device": f"{len(devices)} {devices[0].device_kind}",
        "system": platform.platform(),
    }


def _versions() -> Iterator[tuple[str, str]]:
    for name in ("dml_jax", *PACKAGES):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield name, importlib.metadata.version(name)


def _revision() -> str:
    """Returns the revision of the code where it lies in a git repository, and whether it was changed since; else ""."""
    git = ["git", "-C", str(pathlib.Path(__file__).parent)]
    try:
        revision = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        changed = subprocess.run(
            [*git, "status", "--porcelain", "."], capture_output=True, text=True
        )
    except OSError:  # there is no git
        return ""
    return revision.stdout.strip() + (", changed" if changed.stdout.strip() else "")


def _read(file: pathlib.Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _write(file: pathlib.Path, content: Mapping[str, Any]) -> None:
    beside = file.with_suffix(".new")
    beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(beside, file)
