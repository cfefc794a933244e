"""Batches whose embeddings are distributed like those of a bigger batch: the best of several candidates."""

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from dml_jax.samplers.base import Classes, Rows, Task, choose, groups_of, of_step
from dml_jax.samplers.class_random import with_replacement
from dml_jax.samplers.storage import BigBatchSampler, squared_distances


@dataclass(frozen=True, kw_only=True)
class _BatchMatch(BigBatchSampler):
    """Of `candidates` batches drawn from a big batch, the one of least cost.

    The big batch is drawn as by `class_random`. A candidate is batch_size / m times a class of the big batch, uniformly
    with replacement, and m places of the big batch that hold it, without replacement.

    Refused: m does not divide big_batch.

    Attributes:
      candidates: batches that are compared.
    """

    candidates: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(1, "candidates", "batches to compare;")
        if self.big_batch % self.m:
            near = max(self.big_batch // self.m, 1) * self.m
            raise ValueError(
                f"big_batch={self.big_batch} is not a multiple of m={self.m} images per class; "
                f"{near} or {near + self.m} would be accepted"
            )

    def rows(self, task: Task) -> Rows:
        groups = groups_of(task.size, self.m)

        def row(step: int) -> Int[np.ndarray, " batch"]:
            rng = of_step(task.seed, task.epoch, step)
            big = with_replacement(rng, task.classes, self.big_batch // self.m, self.m).ravel()
            x = self.projected(rng, task.given[big])
            held = Classes.of(task.classes.of_image[big])
            drawn = rng.integers(0, len(held.sizes), self.candidates * groups)
            places = held.images(drawn, choose(rng, held.sizes[drawn], self.m))
            places = places.reshape(self.candidates, task.size)
            return big[places[self.costs(x, places).argmin()]]

        return row

    @abstractmethod
    def costs(
        self, x: Float[np.ndarray, "b d"], places: Int[np.ndarray, "candidates s"]
    ) -> Float[np.ndarray, " candidates"]:
        """How unlike each candidate is to the big batch x, of which it has these rows."""


@dataclass(frozen=True, kw_only=True)
class FidBatchmatch(_BatchMatch):
    """The candidate of least Frechet distance, of normal distributions, to the big batch.

        |mu_B - mu_S|^2 + tr S_B + tr S_S - 2 tr (S_B S_S)^(1/2)        covariances with ddof 1

    The trace of the root is the sum of the roots of the eigenvalues of C_S S_B C_S^T, where C_S are the centred rows of
    the candidate over (s - 1)^(1/2): it needs no root of a matrix, and singular covariances are no exception. The
    ICML 2020 system's `fid_batchmatch`, which there stops with a NameError.
    """

    def costs(
        self, x: Float[np.ndarray, "b d"], places: Int[np.ndarray, "candidates s"]
    ) -> Float[np.ndarray, " candidates"]:
        mean = x.mean(0)
        covariance = (x - mean).T @ (x - mean) / max(len(x) - 1, 1)
        own = x[places]
        means = own.mean(1)
        centred = (own - means[:, None]) / np.sqrt(max(places.shape[1] - 1, 1))
        roots = np.linalg.eigvalsh(centred @ covariance @ centred.swapaxes(1, 2))
        # What rounding leaves of an eigenvalue 0 has a root that would count.
        least = roots.max(1, keepdims=True) * len(roots[0]) * np.finfo(np.float64).eps
        overlap = np.sqrt(np.where(roots > least, roots, 0)).sum(1)
        return (
            ((mean - means) ** 2).sum(1)
            + np.trace(covariance)
            + (centred**2).sum((1, 2))
            - 2 * overlap
        )


@dataclass(frozen=True, kw_only=True)
class DisthistBatchmatch(_BatchMatch):
    """The candidate nearest to the big batch in mean, standard deviation and histogram of distances.

        |mu_B - mu_S| + |sd_B - sd_S| + weight W_1(h_B, h_S)

    sd is by coordinate (ddof 0); h are histograms of the Euclidean distances of all pairs over the range of the big
    batch's; W_1 is their Wasserstein distance, in units of distance. The ICML 2020 system's `disthist_batchmatch` as it
    was meant: there the heights of the bins are taken for samples, so that their order does not matter. Its cost has
    75 (W(h_B, h_S) + W(h_S, h_B)).

    Attributes:
      bins: of the histograms.
      weight: of the distance between histograms.
    """

    bins: int = 50
    weight: float = 150.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(1, "bins", "of a histogram;")

    def costs(
        self, x: Float[np.ndarray, "b d"], places: Int[np.ndarray, "candidates s"]
    ) -> Float[np.ndarray, " candidates"]:
        distances = np.sqrt(squared_distances(x))
        everywhere = distances[np.triu_indices(len(x), 1)]
        low, high = everywhere.min(initial=np.inf), everywhere.max(initial=0)
        width = (high - low) / self.bins

        def cumulative(values: np.ndarray) -> np.ndarray:
            if not width > 0:
                return np.zeros(self.bins)
            bins = np.minimum((values - low) / width, self.bins - 1).astype(int)
            counts = np.bincount(np.maximum(bins, 0), minlength=self.bins)
            return np.cumsum(counts) / max(len(values), 1)

        upper = np.triu_indices(places.shape[1], 1)
        target = cumulative(everywhere)
        histograms = np.array(
            [np.abs(cumulative(distances[np.ix_(p, p)][upper]) - target).sum() for p in places]
        )
        own = x[places]
        return (
            np.linalg.norm(own.mean(1) - x.mean(0), axis=1)
            + np.linalg.norm(own.std(1) - x.std(0), axis=1)
            + self.weight * width * histograms
        )
