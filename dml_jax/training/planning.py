"""The plans of a run's epochs, and the stored embeddings that some samplers plan from."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float, Int32

from dml_jax import data, samplers
from dml_jax.errors import UserError
from dml_jax.evaluation.embed import Embedded
from dml_jax.training import state as states
from dml_jax.training.experiment import Experiment
from dml_jax.training.schedules import RunLength


class Plans:
    """Plans a run, epoch by epoch.

    A sampler that plans from embeddings of the training images gets what `state["storage"]` holds as the epoch begins.
    Each step is planned on its own, in threads, and the first ones are trained while later ones are still being
    planned. The storage moves on meanwhile, so that a checkpoint needs the plan, too: `to_save` and `restore`. With
    several processes the primary one plans the whole epoch before it begins, and sends it to the others.

    Args:
      sampler: plans the batches of an epoch.
      source: the training images.
      batch_size: images of a step, on all devices together.
      seed: of the run.
      threads: how many plan.

    Attributes:
      steps: the steps of an epoch.
      storage_rows: the rows of the storage; 0 where the sampler needs none.
      updates_storage: True where the embeddings of a step go into the storage.

    Raises:
      UserError: the sampler cannot make batches of this source.
    """

    def __init__(
        self,
        sampler: samplers.Sampler,
        source: data.Source,
        batch_size: int,
        seed: int,
        threads: int,
    ) -> None:
        self._sampler, self._source = sampler, source
        self._batch_size, self._seed, self._threads = batch_size, seed, threads
        self._storage_sampler = sampler if isinstance(sampler, samplers.StorageSampler) else None
        try:
            self.steps = sampler.steps(source.labels, batch_size)
        except UserError as error:
            count, classes = len(source), len(source.class_names)
            raise UserError(
                f"the training split ({count} images of {classes} classes): {error}"
            ) from None
        self.storage_rows = len(source) if self._storage_sampler else 0
        self.updates_storage = self._storage_sampler is not None and self._storage_sampler.updates
        self._of_epoch = EpochPlans(sampler, source.labels, source.parent_labels, batch_size, seed)
        self._plan: np.ndarray | AsyncPlan = np.zeros((self.steps, batch_size), np.int32)

    @classmethod
    def of(cls, experiment: Experiment) -> "Plans":
        """Makes the plans of an experiment."""
        return cls(
            experiment.sampler,
            experiment.source,
            experiment.options.batch_size,
            experiment.seed,
            experiment.loader.options.threads,
        )

    def length(self, epochs: int) -> RunLength:
        """Returns the length of a run of so many epochs."""
        return RunLength(epochs * self.steps, self.steps)

    def notes(self) -> list[str]:
        """Returns the sampler's remarks on the set."""
        parents = self._source.parent_labels
        return self._sampler.notes(self._source.labels, self._batch_size, parents=parents)

    def needs_embeddings(self, epoch: int) -> bool:
        """Returns True where all training images are to be embedded before this epoch."""
        if self._storage_sampler is None:
            return False
        refresh = self._storage_sampler.refresh
        return epoch == 0 or (refresh > 0 and epoch % refresh == 0)

    def storage_of(self, embedded: Embedded) -> Float[np.ndarray, "n d"]:
        """Returns the storage of these embeddings; an image that cannot be decoded gets the mean of the others."""
        embeddings, _, ids = embedded
        storage = np.tile(embeddings.mean(0), (len(self._source), 1))
        storage[ids] = embeddings
        return storage

    def plan(
        self, epoch: int, step: int, state: states.State
    ) -> "np.ndarray | AsyncPlan | EpochPlans":
        """Returns the plan of an epoch; of a sampler that needs no embeddings, the plans of all of them.

        Args:
          epoch: its number.
          step: the step of it that is trained next; above 0 in a run that goes on, with the plan that was restored.
          state: the training state, for its storage.
        """
        labels, sampler = self._source.labels, self._storage_sampler
        if sampler is None:
            return self._of_epoch
        if step:
            return self._plan
        embeddings = states.to_host(state["storage"])
        size, seed = self._batch_size, self._seed

        def rows() -> samplers.Rows:
            inputs = sampler.inputs(labels, size, embeddings=embeddings, seed=seed, epoch=epoch)
            return sampler.rows(inputs)

        self.close()
        if jax.process_count() == 1:
            self._plan = AsyncPlan(rows, (self.steps, size), self._threads)
        else:
            plan = np.zeros((self.steps, size), np.int32)
            if jax.process_index() == 0:
                plan = AsyncPlan(rows, (self.steps, size), self._threads).whole()
            self._plan = np.asarray(multihost_utils.broadcast_one_to_all(plan))
        return self._plan

    def to_save(self) -> dict[str, np.ndarray]:
        """Returns what a checkpoint holds beside the state; waits until the epoch is planned."""
        if self._storage_sampler is None:
            return {}
        plan = self._plan
        return {"plan": plan.whole() if isinstance(plan, AsyncPlan) else plan}

    def restore(self, stored: states.State) -> states.State:
        """Takes what `to_save` gave from what a checkpoint held, and returns the rest, which is the state."""
        if self._storage_sampler is not None:
            self._plan = stored["plan"]
        return {k: v for k, v in stored.items() if k != "plan"}

    def close(self) -> None:
        """Ends planning."""
        if isinstance(self._plan, AsyncPlan):
            self._plan.close()


class EpochPlans:
    """The plans of a sampler that needs no embeddings, by the number of the epoch; in threads and processes, too.

    Args:
      sampler: plans the batches of an epoch.
      labels: of the training images.
      parents: their coarser classes, where they have any.
      batch_size: images of a step.
      seed: of the run.
    """

    def __init__(
        self,
        sampler: samplers.Sampler,
        labels: np.ndarray,
        parents: np.ndarray | None,
        batch_size: int,
        seed: int,
    ) -> None:
        self._given = sampler, labels, parents, batch_size, seed
        self._lock = threading.Lock()
        # While the last images of an epoch are loaded, the first of the next one are.
        self._plans: dict[int, np.ndarray] = {}

    def __call__(self, epoch: int) -> Int32[np.ndarray, "steps batch"]:
        """Returns the plan of an epoch.

        Args:
          epoch: its number.
        """
        sampler, labels, parents, batch_size, seed = self._given
        with self._lock:
            if epoch not in self._plans:
                plan = sampler.plan(labels, batch_size, parents=parents, seed=seed, epoch=epoch)
                self._plans = {k: v for k, v in self._plans.items() if k == epoch - 1}
                self._plans[epoch] = plan
            return self._plans[epoch]

    def __reduce__(self) -> tuple[Any, ...]:
        return EpochPlans, self._given


class AsyncPlan:
    """A plan that threads are still working on, step after step: `plan[step]` waits for that step.

    Pickled, for processes that load, it is the whole array.

    Args:
      rows: returns the function that plans a step; it is called in a thread, too.
      shape: (steps, batch).
      threads: how many plan.

    Attributes:
      shape: (steps, batch).
    """

    def __init__(
        self, rows: Callable[[], samplers.Rows], shape: tuple[int, int], threads: int
    ) -> None:
        self.shape = shape
        self._pool = ThreadPoolExecutor(threads)
        # In threads of their own nothing sees the mesh of the training, over which mining would be divided.
        ready = self._pool.submit(rows)
        self._rows = [self._pool.submit(lambda k: ready.result()(k), k) for k in range(shape[0])]
        self._pool.shutdown(wait=False)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, step: int) -> Int32[np.ndarray, " batch"]:
        return np.asarray(self._rows[step].result(), np.int32)

    def whole(self) -> Int32[np.ndarray, "steps batch"]:
        """Returns the plan as one array, when it is finished."""
        return np.stack([self[step] for step in range(len(self))])

    def close(self) -> None:
        """Gives up what is not planned yet."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def __reduce__(self) -> tuple[Any, ...]:
        return np.asarray, (self.whole(),)
