"""The batches of a run, brought onto the devices ahead of the step."""

import os
import time
from collections import Counter, deque
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from dml_jax.config_options import DataOptions
from dml_jax.training import state as states
from dml_jax.training.experiment import Experiment
from dml_jax.training.loading import Batch
from dml_jax.training.planning import Plans
from dml_jax.training.position import Position
from dml_jax.training.reporting import log
from dml_jax.training.state import State
from dml_jax.training.step import Metrics

# Batches on the devices whose step was not started yet: the next one is copied while one is computed.
AHEAD = 2
# Of the first steps so many are loaded before, and then computed, to see what either takes alone.
MEASURED = 4
# A run of fewer steps is over before that is of use.
ENOUGH = 16


class Fed(NamedTuple):
    """A batch on the devices.

    Attributes:
      arrays: what the step takes.
      ids: the images of this process's part.
    """

    arrays: dict[str, jax.Array]
    ids: np.ndarray


class Feed:
    """Gives the batches of a run, step after step, from one pipeline over all epochs.

    A sampler that plans from embeddings knows an epoch's plan when it begins: there it is a pipeline for each epoch.

    Args:
      experiment: what is trained.
      plans: of its epochs.
      mesh: of the devices.
      skipped: counts the images that could not be decoded, by name.
    """

    def __init__(
        self, experiment: Experiment, plans: Plans, mesh: Mesh, skipped: Counter[str]
    ) -> None:
        self._experiment, self._plans, self._mesh = experiment, plans, mesh
        self._skipped = skipped
        self._batches: Iterator[Batch] = iter(())
        self._ahead: deque[Fed] = deque()
        # The epoch and the step that the pipeline is at.
        self._at: tuple[int, int] | None = None
        self._taken = 0
        self._input_rate: float | None = None
        self._began = 0.0

    def take(self, position: Position, state: State) -> Fed:
        """Returns the batch of the step that comes.

        Args:
          position: before the step.
          state: the training state, for samplers that plan from embeddings.
        """
        epoch, step = position.epoch, position.step
        if self._at != (epoch, step):
            self._open(position, state)
        if not self._ahead:
            self._load()
        self._taken += 1
        last = step + 1 == self._plans.steps
        ends = last and self._plans.storage_rows > 0
        self._at = None if ends else (epoch + last, 0 if last else step + 1)
        return self._ahead.popleft()

    def started(self, metrics: Metrics) -> None:
        """Loads one more batch while the step computes; after the first steps it says what the limit is.

        Args:
          metrics: of the step that was started.
        """
        if self._input_rate is not None and self._taken <= MEASURED:
            self._measure(metrics, self._input_rate)
        elif len(self._ahead) < AHEAD:
            self._load()

    def close(self) -> None:
        """Ends the threads and processes that load."""
        self._ahead.clear()
        if hasattr(self._batches, "close"):
            self._batches.close()

    def _open(self, position: Position, state: State) -> None:
        self.close()
        epoch, step, plans = position.epoch, position.step, self._plans
        by_epoch = plans.storage_rows > 0
        epochs = 1 if by_epoch else self._experiment.options.epochs - epoch
        self._batches = self._experiment.loader.train_batches(
            self._experiment.source,
            plans.plan(epoch, step, state),
            self._experiment.labels,
            epoch=epoch,
            epochs=epochs,
            start_step=step,
            skipped=self._skipped,
        )
        left = epochs * plans.steps - step
        if self._taken == 0 and left >= ENOUGH:
            self._load()
            start = time.perf_counter()
            for _ in range(MEASURED - 1):
                self._load()
            images = (MEASURED - 1) * self._experiment.options.batch_size
            self._input_rate = images / (time.perf_counter() - start)
        else:
            for _ in range(AHEAD):
                self._load()

    def _load(self) -> None:
        batch = next(self._batches, None)
        if batch is not None:
            ids = batch["id"] if self._plans.updates_storage else batch.pop("id")
            self._ahead.append(Fed(states.shard(batch, self._mesh), ids))

    def _measure(self, metrics: Metrics, input_rate: float) -> None:
        """Takes the time of steps whose batches lie on the devices; the first one is compiled."""
        if self._taken not in (1, MEASURED):
            return
        jax.block_until_ready(metrics["loss"])
        now = time.perf_counter()
        if self._taken == 1:
            self._began = now
            return
        images = (MEASURED - 1) * self._experiment.options.batch_size
        step_rate = images / (now - self._began)
        for line in limit(input_rate, step_rate, self._experiment.loader.options):
            log(line)
        for _ in range(AHEAD):
            self._load()


def limit(input_rate: float, step_rate: float, options: DataOptions) -> list[str]:
    """Returns what is said of the speed of input and step, and what helps against the slower one.

    Args:
      input_rate: images per second that are loaded while nothing is trained.
      step_rate: images per second that are trained while none has to be loaded.
      options: the section `data`.

    >>> limit(900.0, 300.0, DataOptions())
    ['input alone 900 images/s, step alone 300 images/s: the step is the limit']
    """
    line = f"input alone {input_rate:.0f} images/s, step alone {step_rate:.0f} images/s"
    if input_rate >= step_rate:
        return [f"{line}: the step is the limit"]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [
        f"{line}: the input is the limit",
        f"note: {cores} cores, data.threads={options.threads}, data.workers={options.workers}: more of them help "
        "as long as cores are idle; so do images that are stored no larger than they are needed",
    ]
