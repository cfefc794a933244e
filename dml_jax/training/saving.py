"""When a run is saved, and how it goes on from what was saved."""

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from dml_jax import checkpoints, run_folder
from dml_jax.training import optim, sharding
from dml_jax.training import state as states
from dml_jax.training.experiment import Experiment
from dml_jax.training.planning import Plans
from dml_jax.training.position import Position
from dml_jax.training.schedules import RunLength


class Saver:
    """Saves the state of a run with its position, and restores it.

    Args:
      experiment: what is trained.
      workdir: the folder of the run.
      plans: of its epochs; what they need to go on is saved with the state.

    Raises:
      UserError: the checkpoints of the run are elsewhere.
    """

    def __init__(self, experiment: Experiment, workdir: Path, plans: Plans) -> None:
        self._experiment, self._workdir, self._plans = experiment, workdir, plans
        folder = checkpoints.place(str(workdir), experiment.options.checkpoints)
        checkpoints.check_place(str(workdir), folder)
        kinds = tuple(map(self._kind, experiment.monitors)) or ("best",)
        self._checkpoints = checkpoints.Checkpoints.open(folder, kinds)
        self._last_save = time.monotonic()
        self.config: Mapping[str, Any] = experiment.config

    def begin(self, tx: Any, mesh: Mesh) -> tuple[states.State, Position]:
        """Returns the state and the position of the last checkpoint, or those before the first step.

        Args:
          tx: the optimizer.
          mesh: of the devices on which the state lies.

        Raises:
          UserError: the folder holds a run that cannot go on as this experiment.
        """
        experiment, plans = self._experiment, self._plans

        # The checkpoint has the parameters: a file of weights is not read again, and may be gone.
        def init(backbone: Any) -> states.State:
            return states.init(
                experiment.model.without_weights(),
                experiment.loss,
                tx,
                experiment.seed,
                experiment.num_weight_classes,
                plans.storage_rows,
                backbone,
                ema=experiment.options.ema is not None,
            )

        options = experiment.options
        rule = sharding.Rule(options.shard_above, options.shard_axes)
        shapes = jax.eval_shape(partial(init, None))
        shardings = sharding.of_state(shapes, mesh, rule)
        template = jax.tree.map(
            lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), shapes, shardings
        )
        stored = self._checkpoints.restore({**template, **plans.to_save()}, self._check)
        if stored is None:
            return states.make(init, experiment.model, shardings), Position()
        self.config = run_folder.going_on(stored[1]["config"], experiment.config)
        state = plans.restore(stored[0])
        monitor = next(iter(experiment.monitors), "")
        position = Position.from_json(stored[1]["progress"], int(state["step"]), monitor)
        return state, position

    def _check(self, meta: dict[str, Any]) -> None:
        """Raises `UserError` where the run of a checkpoint cannot go on as this experiment."""
        experiment, plans = self._experiment, self._plans
        run_folder.check_same(meta["config"], experiment.config, str(self._workdir))
        epochs = meta["config"]["train"]["epochs"]
        before = RunLength(epochs * plans.steps, plans.steps)
        optim.check_length(experiment.groups, before, plans.length(experiment.options.epochs))

    def is_due(self, position: Position) -> bool:
        """Returns True where a checkpoint is due within an epoch, by the primary process's clock."""
        options = self._experiment.options
        if options.checkpoint_steps and position.total % options.checkpoint_steps == 0:
            return True
        if not options.checkpoint_minutes:
            return False
        due = time.monotonic() - self._last_save >= 60 * options.checkpoint_minutes
        if jax.process_count() == 1:
            return due
        # Asking the others takes time.
        asks = position.total % options.log_steps == 0
        return asks and bool(multihost_utils.broadcast_one_to_all(due))

    def save(self, state: states.State, position: Position) -> None:
        """Saves everything that training needs to go on from here."""
        kept = {k: v for k, v in state.items() if k != "first_bad"}
        whole = {**states.snapshot(kept), **self._plans.to_save()}
        self._checkpoints.save(position.total, whole, self._meta(progress=position.to_json()))
        self._last_save = time.monotonic()

    def save_best(self, state: states.State, position: Position) -> None:
        """Saves the model alone for every monitored metric of which its value is the best so far."""
        better = [name for name, best in position.best.items() if best.step == position.total]
        if not better:
            return
        model = states.snapshot(states.evaluated(state))
        for name in better:
            self._checkpoints.save_best(position.total, model, self._meta(), self._kind(name))

    def best(self, state: states.State) -> tuple[int, Any]:
        """Returns the step and the variables of the best model by the first monitored metric, or of the last one.

        Args:
          state: the training state, after the last step.
        """
        variables = states.evaluated(state)
        template = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), variables
        )
        found = self._checkpoints.restore_best(template) if self._experiment.monitors else None
        return found or (int(state["step"]), variables)

    def _kind(self, monitor: str) -> str:
        """Returns the folder of a metric's best model: `best` is that of the first one."""
        first = monitor == next(iter(self._experiment.monitors))
        return "best" if first else f"best_{monitor.replace('/', '_')}"

    def _meta(self, **more: Any) -> dict[str, Any]:
        return {**more, "config": self.config}

    def latest(self) -> str | None:
        """Returns the path of the last whole checkpoint; None where there is none."""
        return self._checkpoints.latest()

    def wait(self) -> None:
        """Returns when everything is written."""
        self._checkpoints.wait()

    def close(self) -> None:
        """Writes what is not written yet."""
        self._checkpoints.close()
