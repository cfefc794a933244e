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
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from dml_jax import names, trees
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

    def meta(self) -> Meta | None:
        """Returns what `save` was given with the last checkpoint; None where there is none."""
        step = self.last.latest_step()
        return None if step is None else _restore(self.last, step, {})[1]

    def restore(self, template: Tree) -> Tree:
        """Returns the last state as arrays of the host.

        Args:
          template: a state of the same structure, of arrays or their shapes.

        Raises:
          UserError: its architecture is not the template's.
        """
        step = self.last.latest_step()
        model, rest = _split(template)
        items, _ = _restore(self.last, step, {"model": model, "rest": rest})
        return _joined(items["model"], items["rest"])

    def wait(self) -> None:
        """Returns when everything is written."""
        self.last.wait_until_finished()
        self.best.wait_until_finished()

    def close(self) -> None:
        """Writes what is not written yet, and ends the threads that write."""
        self.last.close()
        self.best.close()


def find(workdir: str, step: str = "best") -> tuple[str, int]:
    """Returns the kind ("last" or "best") and the number of a checkpoint to evaluate.

    Args:
      workdir: the folder of the run.
      step: `best` (the last one where a run chose no best), `last` or a number.

    Raises:
      UserError: there is no such checkpoint; the error lists what there is.
    """
    have = {kind: _steps(workdir, kind) for kind in ("best", "last")}
    if not any(have.values()):
        raise UserError(
            f"no checkpoint in {workdir}/checkpoints; a folder that training wrote is accepted"
        )
    if step == "best":
        kind = "best" if have["best"] else "last"
        return kind, have[kind][-1]
    if step == "last" and have["last"]:
        return "last", have["last"][-1]
    for kind, steps in have.items():
        if step.isdecimal() and int(step) in steps:
            return kind, int(step)
    accepted = [
        *(k for k, s in have.items() if s),
        *map(str, sorted({*have["best"], *have["last"]})),
    ]
    raise names.unknown(f"step of {workdir}/checkpoints:", step, accepted)


def restore_model(workdir: str, kind: str, step: int, template: Tree) -> Tree:
    """Returns `{"params", "state"}` of the model alone, as arrays of the host.

    Args:
      workdir: the folder of the run.
      kind: "last" or "best".
      step: the number of the checkpoint.
      template: the model's variables, or their shapes.

    Raises:
      UserError: the architecture is not the template's.
    """
    with _manager(workdir, kind, keep=None) as manager:
        return _restore(manager, step, {"model": template})[0]["model"]


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
    manager: ocp.CheckpointManager, step: int | None, templates: dict[str, Tree]
) -> tuple[dict[str, Tree], Meta]:
    where = manager.directory / str(step)
    wanted = {k: _storable(v) for k, v in templates.items()}
    checkpointer = ocp.StandardCheckpointer()
    for item, leaves in wanted.items():
        stored = checkpointer.metadata(where / item).item_metadata.tree
        _check(str(where), {k: v.shape for k, v in stored.items()}, leaves)
    args = {
        k: ocp.args.StandardRestore({n: np.empty(v.shape, v.dtype) for n, v in leaves.items()})
        for k, leaves in wanted.items()
    }
    found = manager.restore(step, args=ocp.args.Composite(**args, meta=ocp.args.JsonRestore()))
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
