"""Batches that cover the embedding space: their classes are those of a coreset of a random big batch."""

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from dml_jax.samplers.base import Classes, Rows, Task, groups_of, of_step
from dml_jax.samplers.storage import BigBatchSampler, squared_distances


@dataclass(frozen=True, kw_only=True)
class _Coreset(BigBatchSampler):
    """batch_size / m images are the coreset of `big_batch` random ones; m - 1 of the same class join each of them.

    The big batch is drawn without replacement, and is the whole set where that is smaller. Each head of a group is
    followed by other images of its class, without replacement where there are enough. Two heads may be of one class.
    """

    def check(self, classes: Classes, batch_size: int) -> None:
        super().check(classes, batch_size)
        most = min(self.big_batch, len(classes.of_image))
        if groups_of(batch_size, self.m) > most:
            raise ValueError(
                f"a batch of {batch_size} with m={self.m} begins with {batch_size // self.m} different images, and "
                f"there are {most} to choose from (big_batch={self.big_batch}); batch_size up to "
                f"{most * self.m} is accepted"
            )

    def rows(self, task: Task) -> Rows:
        groups, count = groups_of(task.size, self.m), len(task.classes.of_image)

        def row(step: int) -> Int[np.ndarray, " batch"]:
            rng = of_step(task.seed, task.epoch, step)
            big = rng.choice(count, min(self.big_batch, count), replace=False)
            heads = big[self.choose(rng, self.projected(rng, task.given[big]), groups)]
            if self.m == 1:
                return heads
            others = task.classes.others(rng, heads, self.m - 1)
            return np.concatenate([heads[:, None], others], axis=1).ravel()

        return row

    @abstractmethod
    def choose(
        self, rng: np.random.Generator, x: Float[np.ndarray, "b d"], count: int
    ) -> list[int]:
        """The rows of the coreset."""


@dataclass(frozen=True, kw_only=True)
class GreedyCoreset(_Coreset):
    """k-centre greedy: each pick is the image farthest from those picked before; the first is random.

        next = argmax_j min_{i picked} |x_j - x_i|^2

    The ICML 2020 system's `greedy_coreset` as it was meant: there positions in one random big batch are looked up in
    another, so that the picks are random ones.

    Attributes:
      softened: the pick is uniform among the farthest 3 % (at or above the 97th percentile).
    """

    softened: bool = False

    def choose(
        self, rng: np.random.Generator, x: Float[np.ndarray, "b d"], count: int
    ) -> list[int]:
        distances = squared_distances(x)
        picks = [int(rng.integers(len(x)))]
        nearest = distances[picks[0]].copy()
        while len(picks) < count:
            # Coincident images are all at 0, and none is to be picked twice.
            nearest[picks] = -1
            pick = int(nearest.argmax())
            if self.softened:
                left = nearest >= max(np.percentile(nearest, 97), 0)
                pick = int(rng.choice(np.flatnonzero(left)))
            picks.append(pick)
            nearest = np.minimum(nearest, distances[pick])
        return picks


@dataclass(frozen=True, kw_only=True)
class D2Coreset(_Coreset):
    """Images drawn with weights that grow with density and with the distance from those drawn before.

        p_j ~ N(x_j; mu, S) (sum_{i picked} |x_j - x_i|^2)^power    among those not picked

    mu and S are the big batch's mean and covariance (ddof 1); the first pick is the image nearest to a draw from
    N(mu, S). Where S is singular the density is that on the span of the images. Where all weights are 0 (coincident
    images) they are those of the density. The ICML 2020 system's `d2_coreset` as it was meant (see `GreedyCoreset`);
    it adds distances up, where k-means++ takes the least. Densities are in logarithms here: in high dimensions they
    leave the range of floating point numbers.

    Attributes:
      power: of the distances (`data_d2_coreset_lambda`).
    """

    power: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(0, "power", "of the distances;")

    def choose(
        self, rng: np.random.Generator, x: Float[np.ndarray, "b d"], count: int
    ) -> list[int]:
        white, draw = _whitened(rng, x)
        log_density = -0.5 * (white * white).sum(1)
        distances = squared_distances(x)
        picks = [int(((x - draw) ** 2).sum(1).argmin())]
        total = distances[picks[0]].copy()
        while len(picks) < count:
            with np.errstate(divide="ignore"):
                logits = log_density + (self.power * np.log(total) if self.power else 0)
            logits[picks] = -np.inf
            if not np.isfinite(logits).any():
                logits = log_density.copy()
                logits[picks] = -np.inf
            pick = int((logits + rng.gumbel(size=len(x))).argmax())
            picks.append(pick)
            total += distances[pick]
        return picks


def _whitened(
    rng: np.random.Generator, x: Float[np.ndarray, "b d"]
) -> tuple[Float[np.ndarray, "b r"], Float[np.ndarray, " d"]]:
    """(the rows in units of standard deviation along the principal axes, a draw from their normal distribution)."""
    mean = x.mean(0)
    values, axes = np.linalg.eigh((x - mean).T @ (x - mean) / max(len(x) - 1, 1))
    real = values > max(values[-1], 0) * len(values) * np.finfo(np.float64).eps
    values, axes = values[real], axes[:, real]
    draw = mean + axes @ (np.sqrt(values) * rng.normal(size=len(values)))
    return (x - mean) @ axes / np.sqrt(values), draw
