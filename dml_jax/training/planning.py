"""The plans of a run's epochs, and the stored embeddings that some samplers plan from."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float, Int32

from dml_jax import data, samplers
from dml_jax.evaluation.embed import Embedded
from dml_jax.training import state as states


class Plans:
    """The plans of a run, epoch by epoch.

    A sampler that plans from embeddings of the training images gets what `state["storage"]` holds when the epoch
    begins. Each step is planned on its own, in threads, and the first are trained while later ones are still
    being planned. The storage moves on meanwhile, so that a checkpoint needs the plan, too: `kept` and
    `restore`. With several processes the first one plans the whole epoch before it begins, and tells the others.

    Attributes:
      steps: in an epoch.
      stored: rows of the storage; 0 where the sampler needs none.
      updates: whether the embeddings of a step go into the storage.

    Raises ValueError where the sampler cannot make batches of this source.
    """

    def __init__(
        self, sampler: samplers.Sampler, source: data.Source, size: int, seed: int, threads: int
    ) -> None:
        self.sampler, self.source, self.size, self.seed = sampler, source, size, seed
        self.threads = threads
        self.steps = sampler.steps(source.labels, size)
        self.from_storage = sampler if isinstance(sampler, samplers.StorageSampler) else None
        self.stored = len(source) if self.from_storage else 0
        self.updates = self.from_storage is not None and self.from_storage.updates
        self._plan: Any = np.zeros((self.steps, size), np.int32)

    def notes(self) -> list[str]:
        """The sampler's remarks on the set."""
        parents = self.source.parent_labels
        return self.sampler.notes(self.source.labels, self.size, parents=parents)

    def embeds_before(self, epoch: int) -> bool:
        """Whether all training images are to be embedded before this epoch."""
        if self.from_storage is None:
            return False
        refresh = self.from_storage.refresh
        return epoch == 0 or (refresh > 0 and epoch % refresh == 0)

    def filled(self, embedded: Embedded) -> Float[np.ndarray, "n d"]:
        """The storage after that pass; an image that cannot be decoded gets the mean of the others."""
        embeddings, _, ids = embedded
        storage = np.tile(embeddings.mean(0), (len(self.source), 1))
        storage[ids] = embeddings
        return storage

    def of(self, epoch: int, step: int, state: states.State) -> "np.ndarray | Ahead":
        """The plan of an epoch that stands before this step: a new one, or the one that was restored."""
        how: dict[str, Any] = dict(seed=self.seed, epoch=epoch)
        labels, sampler = self.source.labels, self.from_storage
        if sampler is None:
            parents = self.source.parent_labels
            return self.sampler.plan(labels, self.size, parents=parents, **how)
        if step:
            return self._plan
        embeddings = states.to_host(state["storage"])
        rows = lambda: sampler.rows(sampler.inputs(labels, self.size, embeddings=embeddings, **how))
        self.close()
        if jax.process_count() == 1:
            self._plan = Ahead(rows, (self.steps, self.size), self.threads)
        else:
            plan = np.zeros((self.steps, self.size), np.int32)
            if jax.process_index() == 0:
                plan = Ahead(rows, plan.shape, self.threads).whole()
            self._plan = np.asarray(multihost_utils.broadcast_one_to_all(plan))
        return self._plan

    def kept(self) -> dict[str, np.ndarray]:
        """What a checkpoint holds beside the state; waits until the epoch is planned."""
        if self.from_storage is None:
            return {}
        return {"plan": self._plan.whole() if isinstance(self._plan, Ahead) else self._plan}

    def restore(self, host: states.State) -> states.State:
        """Takes from what was restored what `kept` gave, and returns the rest."""
        self._plan = host.get("plan")
        return {k: v for k, v in host.items() if k != "plan"}

    def close(self) -> None:
        """Ends planning."""
        if isinstance(self._plan, Ahead):
            self._plan.close()


class Ahead:
    """A plan that threads are still working on, step after step: `plan[step]` waits for that step.

    Pickled, for processes that load, it is the whole array.

    Args:
      rows: gives the function of the step that plans it; called in a thread, too.
      shape: (steps, batch).
      threads: how many.
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
        """The plan, when it is finished."""
        return np.stack([self[step] for step in range(len(self))])

    def close(self) -> None:
        """Gives up what is not planned yet."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def __reduce__(self) -> tuple[Any, ...]:
        return np.asarray, (self.whole(),)
