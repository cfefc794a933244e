"""A trace of some steps of a run, for TensorBoard and XProf."""

from pathlib import Path

import jax

from dml_jax.errors import UserError
from dml_jax.processes import is_primary
from dml_jax.training.reporting import log


class Profiler:
    """Traces the steps of a run from one to another, in the process that writes and logs.

    Args:
      folder: where the trace goes.
      steps: the first and the last one; None: none is traced.

    Raises:
      UserError: the last one comes before the first.
    """

    def __init__(self, folder: Path, steps: tuple[int, int] | None) -> None:
        if steps is not None and steps[1] < steps[0]:
            raise UserError(f"train.profile={steps}; accepted: the first step and one after it")
        self._folder = folder
        self._first, self._last = steps if steps is not None and is_primary() else (0, 0)
        self._runs = False

    def before(self, step: int) -> None:
        """Begins the trace where this step is the first.

        Args:
          step: the step that comes, counted from 1.
        """
        if step == self._first:
            jax.profiler.start_trace(str(self._folder))
            self._runs = True

    def after(self, step: int) -> None:
        """Ends the trace where this step was the last.

        Args:
          step: the step that was started, counted from 1.
        """
        if self._runs and step == self._last:
            self.close()

    def close(self) -> None:
        """Writes the trace where there is one."""
        if self._runs:
            self._runs = False
            jax.profiler.stop_trace()
            log(
                f"steps {self._first} to {self._last} are traced in {self._folder}: tensorboard --logdir {self._folder}"
            )
