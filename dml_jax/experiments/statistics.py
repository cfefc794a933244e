"""Means over seeds, differences in pairs of seeds, and correlations over groups, each with its uncertainty."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from dml_jax.errors import UserError
from dml_jax.experiments.results import Result, value


@dataclass(frozen=True)
class Summary:
    """A value of a group.

    Attributes:
      by_seed: the value of each seed that has one.
      lacking: how many of the group's cells have none.
    """

    by_seed: Mapping[int, float]
    lacking: int = 0

    @property
    def mean(self) -> float:
        """Over the seeds; nan where there is none."""
        return float(np.mean(list(self.by_seed.values()))) if self.by_seed else np.nan

    @property
    def deviation(self) -> float:
        """The standard deviation, with n - 1; nan where there are fewer than two seeds."""
        if len(self.by_seed) < 2:
            return np.nan
        return float(np.std(list(self.by_seed.values()), ddof=1))


def summarise(results: Sequence[Result], name: str, asked: int) -> Summary:
    """Returns a value of a group over its seeds.

    Args:
      results: of the group's cells that are finished.
      name: of the value, as `results.value` reads it.
      asked: how many cells the group has.
    """
    found = {}
    for result in results:
        try:
            found[result.seed] = value(result, name)
        except UserError:  # that run has no such number
            continue
    return Summary(found, asked - len(found))


@dataclass(frozen=True)
class Difference:
    """How much a group is above the reference.

    Attributes:
      mean: of the differences of equal seeds; nan where there is no such pair.
      half: of the 95 % confidence interval, by Student's t; nan where there are fewer than two pairs.
      pairs: how many there are.
    """

    mean: float
    half: float
    pairs: int


def paired(group: Summary, reference: Summary) -> Difference:
    """Compares two groups in pairs of equal seeds.

    Args:
      group: which is compared.
      reference: with which.

    >>> paired(Summary({0: 2.0, 1: 3.0}), Summary({0: 1.0, 1: 1.0, 2: 9.0})).mean
    1.5
    """
    seeds = sorted(group.by_seed.keys() & reference.by_seed.keys())
    apart = np.array([group.by_seed[seed] - reference.by_seed[seed] for seed in seeds])
    n = len(apart)
    if not n:
        return Difference(np.nan, np.nan, 0)
    if n == 1:
        return Difference(float(apart[0]), np.nan, 1)
    half = stats.t.ppf(0.975, n - 1) * apart.std(ddof=1) / n**0.5
    return Difference(float(apart.mean()), float(half), n)


@dataclass(frozen=True)
class Correlation:
    """Pearson's r.

    Attributes:
      r: nan for fewer than three points, or values that are all the same.
      low: of the 95 % interval, by Fisher's z; nan for fewer than four points.
      high: likewise.
      points: how many there are.
    """

    r: float
    low: float
    high: float
    points: int


def correlation(x: Sequence[float], y: Sequence[float]) -> Correlation:
    """Returns Pearson's r of values of which both are numbers.

    Args:
      x: values.
      y: values, as many.

    >>> round(correlation([1, 2, 3, 4], [1, 3, 2, 4]).r, 2)
    0.8
    """
    pairs = np.array([(a, b) for a, b in zip(x, y, strict=True) if np.isfinite([a, b]).all()])
    n = len(pairs)
    if n < 3 or np.ptp(pairs[:, 0]) == 0 or np.ptp(pairs[:, 1]) == 0:
        return Correlation(np.nan, np.nan, np.nan, n)
    r = float(np.clip(np.corrcoef(pairs.T)[0, 1], -1, 1))
    if n < 4 or abs(r) == 1:
        return Correlation(r, np.nan, np.nan, n)
    z, half = np.arctanh(r), stats.norm.ppf(0.975) / (n - 3) ** 0.5
    return Correlation(r, float(np.tanh(z - half)), float(np.tanh(z + half)), n)
