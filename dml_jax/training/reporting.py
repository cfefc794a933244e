"""What a run reports: metrics of steps and evaluations, progress, lines on the terminal."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dml_jax import console, processes, report
from dml_jax.errors import UserError
from dml_jax.training.experiment import Experiment
from dml_jax.training.optim import RunLength
from dml_jax.training.position import Position
from dml_jax.training.trackers import Trackers


def log(message: str) -> None:
    """Prints a line in the process that writes and logs."""
    if processes.is_primary():
        console.log(message)


class _Pending(NamedTuple):
    """A step whose metrics are still being computed."""

    position: Position
    is_last: bool
    ids: np.ndarray
    metrics: dict[str, jax.Array]


class Reporter:
    """Reports the steps and evaluations of a run.

    Every process makes one, so that each of them stops at a loss that is not finite; the primary one writes and logs.

    Args:
      experiment: what is trained.
      workdir: the folder of the run.
      position: where this start begins.
      length: of the whole run.
      skipped: the images that could not be decoded, by name, as the loaders count them.
      latest_checkpoint: gives the path of the last whole checkpoint, or None.
    """

    def __init__(
        self,
        experiment: Experiment,
        workdir: Path,
        position: Position,
        length: RunLength,
        skipped: Counter[str],
        latest_checkpoint: Callable[[], str | None],
    ) -> None:
        self._options = experiment.options
        self._workdir = workdir
        self._skipped = skipped
        self._counts_skipped = experiment.loader.options.on_error == "skip"
        self._latest_checkpoint = latest_checkpoint
        self._pending: _Pending | None = None
        self._groups, self._length = experiment.groups, length
        size, primary = self._options.batch_size, processes.is_primary()
        self._trackers = (
            Trackers(workdir, position.total, experiment.config, self._options.wandb)
            if primary
            else None
        )
        self._progress = console.Progress(
            length.total_steps * size,
            position.total * size,
            show=primary,
            seconds=self._options.log_seconds,
        )

    def step(
        self, position: Position, metrics: dict[str, jax.Array], ids: np.ndarray, *, is_last: bool
    ) -> None:
        """Takes note of a step, and reports the one before: its metrics have come by now, and waiting for those of
        the newest would stall the device.

        Args:
          position: after the step.
          metrics: what the step returned.
          ids: the images of its batch.
          is_last: True for the last step of an epoch, which is always reported.

        Raises:
          UserError: the step before was not finite.
        """
        self.flush_metrics()
        self._pending = _Pending(position, is_last, ids, metrics)

    def flush_metrics(self) -> None:
        """Waits for the metrics of the last step, and reports them.

        Raises:
          UserError: the step was not finite.
        """
        if self._pending is None:
            return
        position, is_last, ids, arrays = self._pending
        self._pending = None
        metrics = {k: v.item() for k, v in jax.device_get(arrays).items()}
        if not metrics.pop("finite"):
            raise UserError(_not_finite(position.total, metrics, ids, self._latest_checkpoint()))
        epoch = position.epoch + 1
        self._progress.update(self._options.batch_size, epoch, position.total, metrics["loss"])
        # The first step is where a curve begins.
        if not is_last and position.total > 1 and position.total % self._options.log_steps:
            return
        row = {"step": position.total, "epoch": epoch, "loss": metrics["loss"], **metrics}
        row |= {
            f"lr/{name}": np.asarray(group.rate(position.total - 1, self._length)).item()
            for name, group in self._groups.items()
        }
        if rate := self._progress.rate():
            row["images_per_second"] = rate
        if self._counts_skipped:
            row["skipped"] = self._skipped.total()
        self._write(row)

    def evaluation(self, position: Position, epoch: int, results: Mapping[str, float]) -> None:
        """Reports an evaluation.

        Args:
          position: of the run.
          epoch: how many epochs the evaluated model was trained for.
          results: its numbers by name.
        """
        self._progress.pause()
        if results:
            self._write({"step": position.total, "epoch": epoch, **results})
            shown = report.without_repeats(list(results), {"": results})
            log(f"epoch {epoch}  " + "  ".join(f"{k} {results[k]:.4f}" for k in shown))

    def finish(self) -> None:
        """Draws the curves of the run that is over, and says how many images could not be decoded."""
        if self._skipped:
            times = self._skipped.total()
            log(
                f"{times} time{'s' if times > 1 else ''} an image could not be decoded: {', '.join(self._skipped)}"
            )
        if self._trackers is not None:
            report.training_curves(self._trackers.table.path, self._workdir / "curves.png")

    def close(self) -> None:
        """Closes files and connections."""
        self._progress.close()
        if self._trackers is not None:
            self._trackers.close()

    def _write(self, row: dict[str, Any]) -> None:
        if self._trackers is not None:
            self._trackers.write(row)


def _not_finite(step: int, metrics: dict[str, float], ids: np.ndarray, good: str | None) -> str:
    shown = ", ".join(map(str, ids[:64].tolist()))
    more = f" and {len(ids) - 64} more" if len(ids) > 64 else ""
    return (
        f"step {step} is not finite: loss {metrics['loss']}, gradient norm {metrics['grad_norm']}, update norm "
        f"{metrics['update_norm']}; images of its batch by id: {shown}{more}; last good checkpoint: {good or 'none'}"
    )
