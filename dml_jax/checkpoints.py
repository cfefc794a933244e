"""Checkpoints of a run: the last state, and the model that validated best.

    WORKDIR/checkpoints/last/STEP   everything that training needs to go on
    WORKDIR/checkpoints/best/STEP   the model's parameters and state alone

A checkpoint is written beside its final place and renamed when it is whole, and the one before is removed after that:
whenever a run is killed, there is one that can be restored. Arrays are stored by name from the host, so that another
number of devices or processes can read them.
"""

import logging
import math
import pathlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from dml_jax import names, trees
from dml_jax.console import log
from dml_jax.errors import UserError

Tree = Any
Meta = dict[str, Any]


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a run's folder, open for writing. Every process makes one and calls its methods.

    `save` and `save_best` return when the arrays are copied; the files are written while training goes on, and `close`
    waits for them.

    Attributes:
      last: the manager of the last states.
      best: the manager of the best model.
    """

    last: ocp.CheckpointManager
    best: ocp.CheckpointManager

    @classmethod
    def open(cls, workdir: str) -> "Checkpoints":
        """Opens the folders, and makes them where they are missing."""
        return cls(_manager(workdir, "last", keep=2), _manager(workdir, "best", keep=1))

    def save(self, step: int, state: Tree, meta: Meta) -> None:
        """Saves a whole training state, in place of the one before the last.

        Args:
          step: its number; a checkpoint of this number that is there already stays as it is.
          state: arrays of the host.
          meta: what else the run needs to go on, as JSON has it.
        """
        if step not in self.last.all_steps():
            model, rest = _split(state)
            items = {"model": _storable(model), "rest": _storable(rest)}
            _save(self.last, step, items, meta)

    def save_best(self, step: int, state: Tree, meta: Meta) -> None:
        """Saves the model alone, in place of the best one so far.

        A run that was killed after this and goes on from before it saves the same model again.

        Args:
          step: its number.
          state: the training state, with arrays of the host.
          meta: what else is worth keeping, as JSON has it.
        """
        if step not in self.best.all_steps():
            if jax.process_count() > 1:
                # Orbax names the barriers of its processes by the step alone: two checkpoints of one step must not be
                # written at the same time.
                self.last.wait_until_finished()
            _save(self.best, step, {"model": _storable(_split(state)[0])}, meta)

    def latest(self) -> str | None:
        """Returns the path of the last whole checkpoint; None where there is none."""
        step = self.last.latest_step()
        return None if step is None else str(self.last.directory / str(step))

    def restore(
        self, template: Tree, check: Callable[[Meta], None] = lambda meta: None
    ) -> tuple[Tree, Meta] | None:
        """Returns the last state as arrays of the host, and what `save` was given with it; None where there is none.

        A checkpoint that cannot be read, because a disk was full or a copy broke off, is moved to
        `checkpoints/damaged/`, and the one before it is taken.

        Args:
          template: a state of the same structure, of arrays or their shapes.
          check: raises where the run may not go on from a checkpoint with this meta.

        Raises:
          UserError: its architecture is not the template's, or none of several can be read.
        """
        model, rest = _split(template)
        templates = {"model": model, "rest": rest}
        steps = sorted(self.last.all_steps(), reverse=True)
        for step in steps:
            try:
                check(_restore(self.last, step, {})[1])
                items, meta = _restore(self.last, step, templates)
            except _Damaged as error:
                log(f"note: {error}; the one before is used")
                self._set_aside(step)
                continue
            return _joined(items["model"], items["rest"]), meta
        if steps:
            raise UserError(
                f"none of the checkpoints {', '.join(map(str, steps))} of {self.last.directory} can be read; they "
                f"are in {self.last.directory.parent / 'damaged'} now, and the same command begins anew"
            )
        return None

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            folder = pathlib.Path(self.last.directory).parent / "damaged"
            folder.mkdir(exist_ok=True)
            shutil.move(str(self.last.directory / str(step)), folder / str(step))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"damaged {step}")
        self.last.reload()

    def wait(self) -> None:
        """Returns when everything is written."""
        self.last.wait_until_finished()
        self.best.wait_until_finished()

    def close(self) -> None:
        """Writes what is not written yet, and ends the threads that write."""
        self.last.close()
        self.best.close()


def find(workdir: str, step: str = "best") -> list[tuple[str, int]]:
    """Returns the kind ("last" or "best") and the number of a checkpoint to evaluate, then those in its place.

    Args:
      workdir: the folder of the run.
      step: `best` (the last one where a run chose no best), `last` or a number.

    Raises:
      UserError: there is no such checkpoint; the error lists what there is.
    """
    have = {kind: _steps(workdir, kind)[::-1] for kind in ("best", "last")}
    if not any(have.values()):
        raise UserError(
            f"no checkpoint in {workdir}/checkpoints; a folder that training wrote is accepted"
        )
    found = [(kind, number) for kind, steps in have.items() for number in steps]
    if step == "best":
        return found
    if step == "last" and have["last"]:
        return [one for one in found if one[0] == "last"]
    exact = [one for one in found if step.isdecimal() and one[1] == int(step)]
    if not exact:
        accepted = [*(k for k, s in have.items() if s), *map(str, sorted({n for _, n in found}))]
        raise names.unknown(f"step of {workdir}/checkpoints:", step, accepted)
    return exact


def restore_model(workdir: str, step: str, template: Tree) -> tuple[str, int, Tree]:
    """Returns the kind and the number of a checkpoint, and `{"params", "state"}` of its model as arrays of the host.

    In place of a best or last checkpoint that cannot be read the one before it is taken, with a note.

    Args:
      workdir: the folder of the run.
      step: `best`, `last` or a number, as `find` takes it.
      template: the model's variables, or their shapes.

    Raises:
      UserError: there is no such checkpoint, it cannot be read, or its architecture is not the template's.
    """
    damaged: _Damaged | None = None
    for kind, number in find(workdir, step):
        with _manager(workdir, kind, keep=None) as manager:
            try:
                found = _restore(manager, number, {"model": template})[0]["model"]
            except _Damaged as error:
                damaged = damaged or error
                continue
        if damaged is not None:
            log(f"note: {damaged}; {kind}, step {number} is used")
        return kind, number, found
    raise UserError(f"{damaged}; another --step is accepted")


class _Damaged(Exception):
    """A checkpoint that cannot be read; the message names it."""


def _split(state: Tree) -> tuple[Tree, Tree]:
    """Returns what evaluation needs of a training state, and the rest."""
    model = {"params": state["params"]["model"], "state": state["state"]["model"]}
    rest = {
        "loss": {"params": state["params"]["loss"], "state": state["state"]["loss"]},
        **{k: v for k, v in state.items() if k not in ("params", "state")},
    }
    return model, rest


def _joined(model: Tree, rest: Tree) -> Tree:
    parts = {k: {"model": model[k], "loss": rest["loss"][k]} for k in ("params", "state")}
    return {**parts, **{k: v for k, v in rest.items() if k != "loss"}}


def _storable(tree: Tree) -> dict[str, Any]:
    """Returns the leaves by path, without arrays of no elements, which cannot be stored and need not be."""
    return {k: v for k, v in trees.leaves_by_path(tree).items() if math.prod(v.shape)}


def _filled(template: Tree, leaves: dict[str, Any]) -> Tree:
    """Returns a tree of the template's structure with the leaves of `_storable`, and those it left out."""
    filled = [
        leaves.get(name, np.zeros(v.shape, v.dtype) if not math.prod(v.shape) else None)
        for name, v in trees.leaves_by_path(template).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(template), filled)


def _folder(workdir: str, kind: str) -> pathlib.Path:
    return pathlib.Path(workdir).expanduser().resolve() / "checkpoints" / kind


def _steps(workdir: str, kind: str) -> list[int]:
    folder = _folder(workdir, kind)
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdecimal())


def _quiet(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname or record.levelno >= logging.ERROR


def _manager(workdir: str, kind: str, *, keep: int | None) -> ocp.CheckpointManager:
    """Opens a folder of checkpoints, of which so many are kept; None: for reading only."""
    # Orbax reports every phase of every save, and warns of layouts that are not used here.
    logging.getLogger("absl").addFilter(_quiet)
    return ocp.CheckpointManager(
        _folder(workdir, kind),
        options=ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=keep is not None,
            read_only=keep is None,
            cleanup_tmp_directories=keep is not None,
        ),
    )


def _save(manager: ocp.CheckpointManager, step: int, items: dict[str, Any], meta: Meta) -> None:
    args = {k: ocp.args.StandardSave(v) for k, v in items.items()}
    manager.save(step, args=ocp.args.Composite(**args, meta=ocp.args.JsonSave(meta)), force=True)


def _restore(
    manager: ocp.CheckpointManager, step: int, templates: dict[str, Tree]
) -> tuple[dict[str, Tree], Meta]:
    where = manager.directory / str(step)
    wanted = {k: _storable(v) for k, v in templates.items()}
    args = {
        k: ocp.args.StandardRestore({n: np.empty(v.shape, v.dtype) for n, v in leaves.items()})
        for k, leaves in wanted.items()
    }
    checkpointer = ocp.StandardCheckpointer()
    try:
        for item, leaves in wanted.items():
            stored = checkpointer.metadata(where / item).item_metadata.tree
            _check(str(where), {k: v.shape for k, v in stored.items()}, leaves)
        found = manager.restore(step, args=ocp.args.Composite(**args, meta=ocp.args.JsonRestore()))
    except UserError:
        raise
    # Orbax and TensorStore raise errors of many kinds where files are cut off or missing.
    except Exception as error:
        raise _Damaged(f"checkpoint {where} cannot be read ({type(error).__name__})") from error
    return {k: _filled(templates[k], found[k]) for k in templates}, found["meta"]


def _check(where: str, stored: dict[str, tuple[int, ...]], wanted: dict[str, Any]) -> None:
    """Raises UserError that names the first leaf whose shape is another, or that only one side has."""
    for name in [*wanted, *stored]:
        here = tuple(wanted[name].shape) if name in wanted else "absent"
        there = tuple(stored[name]) if name in stored else "absent"
        if here != there:
            raise UserError(
                f"checkpoint {where} is of another architecture: {name} is {there} there and {here} in the "
                "config; the config that it was trained with is accepted"
            )
