"""Every image once an epoch, in random order."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Int32

from dml_jax.samplers._common import check_length, generator, steps_of


@dataclass(frozen=True, kw_only=True)
class Random:
    """Permutations of the set, cut into whole batches; the images that do not fill a batch wait an epoch.

    Attributes:
      length: images an epoch, the size of the set if None. A longer epoch is one permutation after another.
    """

    length: int | None = None

    def __post_init__(self) -> None:
        check_length(self.length)

    def plan(
        self, labels: Int[np.ndarray, " n"], batch_size: int, *, seed: int, epoch: int
    ) -> Int32[np.ndarray, "steps batch"]:
        """The batches of an epoch as positions in `labels`, pure in (seed, epoch).

        Raises ValueError where an epoch holds no whole batch.
        """
        steps = steps_of(labels, batch_size, self.length)
        rng = generator(seed, epoch)
        rounds = -(-steps * batch_size // len(labels))
        order = np.concatenate([rng.permutation(len(labels)) for _ in range(rounds)])
        return order[: steps * batch_size].reshape(steps, batch_size).astype(np.int32)

    def notes(self, labels: Int[np.ndarray, " n"]) -> list[str]:
        """Nothing to remark."""
        return []
