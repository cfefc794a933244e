"""Batches of P classes with m images of each."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Int32

from dml_jax.samplers._common import check_length, generator, steps_of


@dataclass(frozen=True, kw_only=True)
class MPerClass:
    """Every batch draws batch_size / m classes without replacement and m images of each.

    The m images are drawn without replacement, and with replacement where the class has fewer than m. Classes
    are drawn afresh for every batch, so that a class with few images is seen as often as one with many. This
    is `MPerClassSampler` of PyTorch Metric Learning with its `batch_size` given; there an epoch has 100,000
    images by default, here as many as the set.

    Attributes:
      m: images per class in a batch.
      length: images an epoch, rounded down to whole batches; the size of the set if None.
    """

    m: int = 4
    length: int | None = None

    def __post_init__(self) -> None:
        if self.m < 1:
            raise ValueError(f"m={self.m} images per class; at least 1 is accepted")
        check_length(self.length)

    def plan(
        self, labels: Int[np.ndarray, " n"], batch_size: int, *, seed: int, epoch: int
    ) -> Int32[np.ndarray, "steps batch"]:
        """The batches of an epoch as positions in `labels`, pure in (seed, epoch).

        The images of a class stand side by side in a row.

        Raises:
          ValueError: m does not divide batch_size; the set has fewer classes than a batch needs; m > 1 and no
            class has two images; an epoch holds no whole batch.
        """
        if batch_size % self.m:
            near = max(batch_size // self.m, 1) * self.m
            raise ValueError(
                f"batch_size={batch_size} is not a multiple of m={self.m} images per class; "
                f"{near} or {near + self.m} would be accepted"
            )
        steps = steps_of(labels, batch_size, self.length)
        _, of_image, sizes = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
        groups = batch_size // self.m
        if groups > len(sizes):
            raise ValueError(
                f"a batch of {batch_size} with m={self.m} needs {groups} classes and the set has "
                f"{len(sizes)}; batch_size up to {len(sizes) * self.m} is accepted"
            )
        if self.m > 1 and sizes.max() == 1:
            raise ValueError(
                f"m={self.m} images per class, but each of the {len(sizes)} classes has a single image, so "
                "that no two images match; sampler 'random' or m=1 is accepted"
            )
        rng = generator(seed, epoch)
        classes = np.stack([rng.choice(len(sizes), groups, replace=False) for _ in range(steps)])
        first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        by_class = np.argsort(of_image, kind="stable")
        picks = _choose(rng, sizes[classes.ravel()], self.m)
        plan = by_class[first[classes.ravel()][:, None] + picks]
        return plan.reshape(steps, batch_size).astype(np.int32)

    def notes(self, labels: Int[np.ndarray, " n"]) -> list[str]:
        """Says how many classes have fewer than m images, if any do."""
        _, sizes = np.unique(np.asarray(labels), return_counts=True)
        few = int((sizes < self.m).sum())
        if not few:
            return []
        return [
            f"{few} of {len(sizes)} classes have fewer than m={self.m} images; "
            "theirs are drawn with replacement"
        ]


def _choose(
    rng: np.random.Generator, sizes: Int[np.ndarray, " r"], m: int
) -> Int[np.ndarray, "r m"]:
    """m numbers below sizes[i] in row i: distinct where sizes[i] >= m, else independent."""
    distinct = sizes >= m
    picks = np.empty((len(sizes), m), np.int64)
    for j in range(m):
        # The draw is a rank among the numbers not taken yet; stepping over the taken ones in ascending
        # order turns it into the number itself.
        draw = rng.integers(0, np.where(distinct, sizes - j, sizes))
        for taken in np.sort(picks[:, :j], axis=1).T:
            draw += distinct & (draw >= taken)
        picks[:, j] = draw
    return picks
