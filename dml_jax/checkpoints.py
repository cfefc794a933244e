"""Checkpoints of a run: the last state, and the model that validated best.

    WORKDIR/checkpoints/last/STEP   everything that training needs to go on
    WORKDIR/checkpoints/best/STEP   the model's parameters and state alone, by the first monitored metric;
                                    best_SPLIT_METRIC/STEP by a further one

A checkpoint is written beside its final place and renamed when it is whole, and the one before is removed after that:
whenever a run is killed, there is one that can be restored. Every process writes its own shards of the arrays, which
are stored by name: another mesh, or another number of devices or processes, can read them. `train.checkpoints` names
another folder, which may be on gs:// or s3:// (with the packages that `etils.epath` needs there).
"""

import itertools
import json
import logging
import math
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
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
      best: the managers of the best models by kind: "best", and a kind for each further metric.
    """

    last: ocp.CheckpointManager
    best: dict[str, ocp.CheckpointManager]

    @classmethod
    def open(cls, folder: str, kinds: Sequence[str] = ("best",)) -> "Checkpoints":
        """Opens a folder of checkpoints, and makes it where it is missing.

        Args:
          folder: what `place` or `folder_of` returned.
          kinds: of the best models.
        """
        best = {kind: _manager(folder, kind, keep=1) for kind in kinds}
        return cls(_manager(folder, "last", keep=2), best)

    def save(self, step: int, state: Tree, meta: Meta) -> None:
        """Saves a whole training state, in place of the one before the last.

        Args:
          step: its number; a checkpoint of this number that is there already stays as it is.
          state: its arrays, as they lie on the devices; on a CPU they must not be donated before `wait`.
          meta: what else the run needs to go on, as JSON has it.
        """
        if step not in self.last.all_steps():
            model, rest = _split(state)
            items = {"model": _storable(model), "rest": _storable(rest)}
            _save(self.last, step, items, meta)

    def save_best(self, step: int, model: Tree, meta: Meta, kind: str = "best") -> None:
        """Saves the model alone, in place of the best one so far.

        A run that was killed after this and goes on from before it saves the same model again.

        Args:
          step: its number.
          model: `{"params", "state"}` of the model, arrays as in `save`.
          meta: what else is worth keeping, as JSON has it.
          kind: one of those that it was opened with.
        """
        if step not in self.best[kind].all_steps():
            if jax.process_count() > 1:
                # Orbax names the barriers of its processes by the step alone: two checkpoints of one step must not be
                # written at the same time.
                self.wait()
            _save(self.best[kind], step, {"model": _storable(model)}, meta)

    def restore_best(self, template: Tree) -> tuple[int, Tree] | None:
        """Returns the step and `{"params", "state"}` of the model of kind "best"; None where there is none.

        Args:
          template: its variables, or their shapes with shardings.

        Raises:
          UserError: it cannot be read.
        """
        self.wait()
        step = self.best["best"].latest_step()
        if step is None:
            return None
        try:
            return step, _restore(self.best["best"], step, {"model": template})[0]["model"]
        except _Damaged as error:
            raise UserError(str(error)) from None

    def latest(self) -> str | None:
        """Returns the path of the last whole checkpoint; None where there is none."""
        step = self.last.latest_step()
        return None if step is None else str(self.last.directory / str(step))

    def restore(
        self, template: Tree, check: Callable[[Meta], None] = lambda meta: None
    ) -> tuple[Tree, Meta] | None:
        """Returns the last state, and what `save` was given with it; None where there is none.

        Every process reads its own shards. What the template has no sharding of comes as an array of the host.

        A checkpoint that cannot be read, because a disk was full or a copy broke off, is moved to
        `checkpoints/damaged/`, and the one before it is taken.

        Args:
          template: a state of the same structure, of arrays or of their shapes, with their shardings.
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
            folder = self.last.directory.parent / "damaged"
            folder.mkdir(exist_ok=True)
            names = (f"{step}{'-' if n else ''}{n or ''}" for n in itertools.count())
            free = next(folder / name for name in names if not (folder / name).exists())
            (self.last.directory / str(step)).rename(free)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"damaged {step}")
        self.last.reload()

    def wait(self) -> None:
        """Returns when everything is written."""
        for manager in (self.last, *self.best.values()):
            manager.wait_until_finished()

    def close(self) -> None:
        """Writes what is not written yet, and ends the threads that write."""
        for manager in (self.last, *self.best.values()):
            manager.close()


def check_place(workdir: str, folder: str) -> None:
    """Checks that a run does not begin anew in one folder while its checkpoints are in another.

    Args:
      workdir: the folder of the run.
      folder: where its checkpoints are to be.

    Raises:
      UserError: they are elsewhere.
    """
    before = folder_of(workdir)
    if before != folder and _steps(before, "last"):
        raise UserError(
            f"train.checkpoints: the checkpoints of {workdir} are in {before}, not in {folder}; accepted: that "
            "folder, or this one once they were moved there, or another --workdir"
        )


def find(workdir: str, step: str = "best") -> list[tuple[str, int]]:
    """Returns the kind ("last" or "best") and the number of a checkpoint to evaluate, then those in its place.

    Args:
      workdir: the folder of the run.
      step: `best` (the last one where a run chose no best), `best_SPLIT_METRIC` (of a further monitored metric),
        `last` or a number.

    Raises:
      UserError: there is no such checkpoint; the error lists what there is.
    """
    folder = folder_of(workdir)
    have = {kind: _steps(folder, kind)[::-1] for kind in ("best", "last")}
    if step.startswith("best_"):
        have |= {step: _steps(folder, step)[::-1]}
    if not any(have.values()):
        raise UserError(f"no checkpoint in {folder}; a folder that training wrote is accepted")
    found = [(kind, number) for kind, steps in have.items() for number in steps]
    if step == "best":
        return found
    if step != "best" and have.get(step):
        return [one for one in found if one[0] == step]
    exact = [one for one in found if step.isdecimal() and one[1] == int(step)]
    if not exact:
        others = (p.name for p in epath.Path(folder).glob("best_*"))
        accepted = [
            *(k for k, s in have.items() if s),
            *others,
            *map(str, sorted({n for _, n in found})),
        ]
        raise names.unknown(f"step of {folder}:", step, accepted)
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
        with _manager(folder_of(workdir), kind, keep=None) as manager:
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
    trained = {k: state[k]["model"] for k in ("params", "state")}
    rest = {
        "loss": {k: state[k]["loss"] for k in ("params", "state")},
        **{k: v for k, v in state.items() if k not in ("params", "state", "ema")},
    }
    if "ema" not in state:
        return trained, rest
    return {k: state["ema"][k]["model"] for k in trained}, {**rest, "trained": trained}


def _joined(model: Tree, rest: Tree) -> Tree:
    trained = rest.get("trained", model)
    parts = {k: {"model": trained[k], "loss": rest["loss"][k]} for k in ("params", "state")}
    if "trained" in rest:
        parts["ema"] = {k: {"model": model[k]} for k in trained}
    return {**parts, **{k: v for k, v in rest.items() if k not in ("loss", "trained")}}


def _storable(tree: Tree) -> dict[str, Any]:
    """Returns the leaves by path, without arrays of no elements, which cannot be stored and need not be."""
    return {k: v for k, v in trees.leaves_by_path(tree).items() if math.prod(v.shape)}


def _filled(template: Tree, leaves: dict[str, Any]) -> Tree:
    """Returns a tree of the template's structure with the leaves of `_storable`, and those it left out."""
    filled = [
        leaves[name] if math.prod(v.shape) else _empty(v)
        for name, v in trees.leaves_by_path(template).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(template), filled)


def _empty(v: Any) -> Any:
    zeros = np.zeros(v.shape, v.dtype)
    sharding = getattr(v, "sharding", None)
    return zeros if sharding is None else jax.device_put(zeros, sharding)


def _asked(v: Any) -> Any:
    """Returns what Orbax takes for an array that is wanted: with a sharding on the devices, else on the host."""
    sharding = getattr(v, "sharding", None)
    if sharding is None:
        return np.empty(v.shape, v.dtype)
    return jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=sharding)


def place(workdir: str, given: str) -> str:
    """Returns the folder of a run's checkpoints.

    Args:
      workdir: the folder of the run.
      given: `train.checkpoints`: a URL, a path (of the work folder, where it is relative), or "" for `checkpoints`.

    >>> place("/runs/a", ""), place("/runs/a", "/scratch/a"), place("/runs/a", "gs://bucket/a")
    ('/runs/a/checkpoints', '/scratch/a', 'gs://bucket/a')
    """
    if "://" in given:
        return given
    inside = pathlib.Path(given or "checkpoints").expanduser()
    return str(pathlib.Path(workdir).expanduser().resolve() / inside)


def folder_of(workdir: str) -> str:
    """Returns the folder of a run's checkpoints, as its stored configuration says.

    Args:
      workdir: the folder of the run; without a configuration it is WORKDIR/checkpoints.
    """
    stored = pathlib.Path(workdir).expanduser() / "config.json"
    try:
        given = json.loads(stored.read_text(encoding="utf-8"))["train"].get("checkpoints", "")
    # Whoever reads the configuration itself says what is wrong with it.
    except (OSError, ValueError, KeyError):
        given = ""
    return place(workdir, given)


def _steps(folder: str, kind: str) -> list[int]:
    there = epath.Path(folder) / kind
    return sorted(int(p.name) for p in there.glob("*") if p.name.isdecimal())


def _quiet(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname or record.levelno >= logging.ERROR


def _manager(folder: str, kind: str, *, keep: int | None) -> ocp.CheckpointManager:
    """Opens a folder of checkpoints, of which so many are kept; None: for reading only."""
    # Orbax reports every phase of every save, and warns of layouts that are not used here.
    logging.getLogger("absl").addFilter(_quiet)
    return ocp.CheckpointManager(
        epath.Path(folder) / kind,
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
        k: ocp.args.StandardRestore({n: _asked(v) for n, v in leaves.items()})
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
