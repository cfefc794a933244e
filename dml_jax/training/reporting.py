"""What a run reports: metrics of steps and evaluations, progress, lines on the terminal."""

from collections import Counter, deque
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dml_jax import console, processes, report
from dml_jax.errors import UserError
from dml_jax.training.experiment import Experiment
from dml_jax.training.position import Position
from dml_jax.training.schedules import RunLength
from dml_jax.training.trackers import Trackers


def log(message: str) -> None:
    """Prints a line in the process that writes and logs."""
    if processes.is_primary():
        console.log(message)


# Steps that may be waiting for a device: enough for it never to wait, few enough for their batches to fit.
IN_FLIGHT = 3


class _Started(NamedTuple):
    """A step that was started, and may still be being computed."""

    position: Position
    is_reported: bool
    metrics: dict[str, Any]


class Reporter:
    """Reports the steps and evaluations of a run.

    Every process makes one, so that each of them stops at a loss that is not finite; the primary one writes and logs.

    Args:
      experiment: what is trained.
      workdir: the folder of the run.
      position: where this start begins.
      length: of the whole run.
      skipped: the images that could not be decoded, by name, as the loaders count them.
      unreadable: the names of those that the scan of the files found, once it has.
      latest_checkpoint: gives the path of the last whole checkpoint, or None.
    """

    def __init__(
        self,
        experiment: Experiment,
        workdir: Path,
        position: Position,
        length: RunLength,
        skipped: Counter[str],
        unreadable: Set[str],
        latest_checkpoint: Callable[[], str | None],
    ) -> None:
        self._options = experiment.options
        self._workdir = workdir
        self._skipped, self._unreadable = skipped, unreadable
        self._counts_skipped = experiment.loader.options.on_error == "skip"
        self._latest_checkpoint = latest_checkpoint
        self._started: deque[_Started] = deque()
        # Of every step that can still turn out not to be finite.
        self._ids: deque[tuple[int, np.ndarray]] = deque(
            maxlen=self._options.log_steps + IN_FLIGHT + 1
        )
        self._loss = float("nan")
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
        self, position: Position, metrics: dict[str, Any], ids: np.ndarray, *, is_last: bool
    ) -> None:
        """Takes note of a step that was started.

        Metrics stay on the devices. Those of every `log_steps` steps are brought to the host, when a few more steps
        were started: neither the device nor the host waits for the other.

        Args:
          position: after the step.
          metrics: what the step returned, with `first_bad`.
          ids: the images of its batch.
          is_last: True for the last step of an epoch, which is always reported.

        Raises:
          UserError: a step was not finite.
        """
        # The first step is where a curve begins.
        due = is_last or position.total == 1 or position.total % self._options.log_steps == 0
        self._started.append(_Started(position, due, metrics))
        self._ids.append((position.total, ids))
        while len(self._started) > IN_FLIGHT:
            self._take()

    def flush_metrics(self) -> None:
        """Waits for the steps that were started, and reports them.

        Raises:
          UserError: one was not finite.
        """
        while self._started:
            self._take(is_newest=len(self._started) == 1)

    def _take(self, is_newest: bool = False) -> None:
        """Waits for the oldest of the steps that were started, and reports it where it is due."""
        position, is_reported, arrays = self._started.popleft()
        epoch = position.epoch + 1
        if not (is_reported or is_newest):
            jax.block_until_ready(arrays["loss"])
            self._progress.update(self._options.batch_size, epoch, position.total, self._loss)
            return
        found = jax.device_get(arrays)
        bad = {k: v.item() for k, v in found.pop("first_bad").items()}
        if bad["step"] >= 0:
            raise UserError(self._not_finite(bad))
        metrics = {k: v.item() for k, v in found.items() if k != "finite"}
        self._loss = metrics["loss"]
        self._progress.update(self._options.batch_size, epoch, position.total, self._loss)
        if not is_reported:
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

    def _not_finite(self, bad: dict[str, Any]) -> str:
        ids = next((ids for step, ids in self._ids if step == bad["step"]), np.zeros(0, int))
        shown = ", ".join(map(str, ids[:64].tolist()))
        more = f" and {len(ids) - 64} more" if len(ids) > 64 else ""
        return (
            f"step {bad['step']} is not finite: loss {bad['loss']}, gradient norm {bad['grad_norm']}, update norm "
            f"{bad['update_norm']}; images of its batch by id: {shown}{more}; last good checkpoint: "
            f"{self._latest_checkpoint() or 'none'}"
        )

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
        """Draws the curves of the run that is over, if it had steps, and says which images could not be read."""
        if self._skipped or self._unreadable:
            log(left_out(self._skipped, self._unreadable))
        if self._trackers is not None and self._length.total_steps:
            report.training_curves(self._trackers.table.path, self._workdir / "curves.png")

    def close(self) -> None:
        """Closes files and connections."""
        self._progress.close()
        if self._trackers is not None:
            self._trackers.close()

    def _write(self, row: dict[str, Any]) -> None:
        if self._trackers is not None:
            self._trackers.write(row)


# In a line at the end of a run.
_SHOWN = 20


def left_out(skipped: Counter[str], unreadable: Set[str]) -> str:
    """Returns a line about the images that could not be read.

    Args:
      skipped: those that the run came to, with how often each was left out.
      unreadable: those that the scan of the files found, whether the run came to them or not.

    >>> left_out(Counter({"a.png": 2, "b.png": 1}), {"a.png", "c.png"})
    'at least 3 images of the run cannot be read; left out, 3 times in all: a.png, b.png; not come to: c.png'
    """
    others = sorted(unreadable - skipped.keys())
    times = skipped.total()
    parts = [
        f"left out, {times} time{'s' * (times != 1)} in all: {_some(list(skipped))}"
        if skipped
        else "",
        f"not come to: {_some(others)}" if others else "",
    ]
    known = f"at least {images(len(skipped) + len(others))} of the run cannot be read"
    return "; ".join([known, *(part for part in parts if part)])


def images(count: int) -> str:
    """Returns "1 image" or "2 images"."""
    return f"{count} image{'s' * (count != 1)}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
