"""Verification: is a pair of one kind? Error rates at a threshold of the distance, over all pairs.

A pair is accepted where its distance is at most the threshold. Of the distances as `pairs` rounds them (32 significant
bits), every count, every threshold and with them every rate is exact, ties included. The area under the curve is
exact to `AREA_BOUND`, whatever the scale and the offset of the distances.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from dml_jax.errors import UserError
from dml_jax.evaluation.verification.consistency import CALIBRATION, Utilities, utilities
from dml_jax.evaluation.verification.histograms import histograms
from dml_jax.evaluation.verification.pairs import Pairs, Window, distances_of, pairs_of

# The most by which the area under the curve may be off: half of the last digit that tables print.
AREA_BOUND = 5e-5
# The most buckets that one pass divides for the area, and the buckets of all that it divides together.
WINDOWS, FINE_BUCKETS = 1024, 1 << 20

Condition = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Roc(NamedTuple):
    """Points of the receiver operating characteristic, from (0, 0) to (1, 1), both rates ascending.

    Attributes:
      false_accept_rates: [p], the share of impostors at distances up to the threshold.
      true_accept_rates: [p], the share of genuine pairs at distances up to the threshold.
      thresholds: [p], -inf for the first; ends of buckets, so that each lies at or over the last distance accepted.
    """

    false_accept_rates: Float[np.ndarray, " p"]
    true_accept_rates: Float[np.ndarray, " p"]
    thresholds: Float[np.ndarray, " p"]


class Crossing(NamedTuple):
    """The smallest distance at which a condition holds of the pairs accepted up to it.

    Attributes:
      threshold: the distance; inf where the condition holds at none.
      below: (impostors, genuine pairs) at smaller distances.
      upto: likewise with those at this one.
    """

    threshold: float
    below: tuple[int, int]
    upto: tuple[int, int]


class Histogram(NamedTuple):
    """The pairs counted by the key of their distance (`pairs.keys_of`), in buckets that differ in width.

    Attributes:
      low: [m], the first key of each bucket, ascending. Buckets without pairs are left out.
      high: [m], the key after its last one.
      counts: [2, m], impostors and genuine pairs.
    """

    low: Int[np.ndarray, " m"]
    high: Int[np.ndarray, " m"]
    counts: Int[np.ndarray, "2 m"]

    @classmethod
    def of(cls, windows: Iterable[Window], counts: Iterable[np.ndarray]) -> "Histogram":
        """Joins the buckets of windows."""
        edges = [window.edges() for window in windows]
        low, high = (
            np.concatenate([e[part] for e in edges]) for part in (slice(-1), slice(1, None))
        )
        joined = np.concatenate(list(counts), axis=1)
        kept = np.flatnonzero(joined.any(axis=0))
        return cls(low[kept], high[kept], joined[:, kept])

    def divided(self, pairs: Pairs, buckets: Int[np.ndarray, " w"]) -> "Histogram":
        """Divides some of the buckets, by another pass over the pairs."""
        each = FINE_BUCKETS // len(buckets)
        windows = [Window.over(int(self.low[i]), int(self.high[i]), each) for i in buckets]
        finer = Histogram.of(windows, histograms(pairs, windows))
        kept = np.delete(np.arange(len(self.low)), buckets)
        low = np.concatenate([self.low[kept], finer.low])
        order = np.argsort(low)
        return Histogram(
            low[order],
            np.concatenate([self.high[kept], finer.high])[order],
            np.concatenate([self.counts[:, kept], finer.counts], axis=1)[:, order],
        )

    @property
    def wide(self) -> np.ndarray:
        """Which of the buckets hold more than one number: their pairs need not be ties."""
        return self.high - self.low > 1

    def accepted(self) -> Int[np.ndarray, "2 m"]:
        """How many pairs lie in each bucket or below it."""
        return np.cumsum(self.counts, axis=1)

    def in_one_bucket(self) -> Float[np.ndarray, " m"]:
        """The share of (impostor, genuine pair) comparisons whose two distances are in each of the buckets."""
        totals = self.counts.sum(axis=1).astype(np.float64)
        return np.prod(self.counts / totals[:, None], axis=0)


@dataclass(frozen=True)
class Verification:
    """What the passes over the pairs found.

    Attributes:
      pairs: all of them.
      histogram: the pairs by distance.
      reached: by false accept rate: where more impostors are accepted than it allows.
      equal: where the false accept rate reaches the false reject rate; None where it was not asked for.
    """

    pairs: Pairs
    histogram: Histogram
    reached: dict[float, Crossing]
    equal: Crossing | None

    @property
    def empty(self) -> bool:
        """True where there is no genuine pair or no impostor; all metrics are nan then."""
        return not (self.pairs.genuine and self.pairs.impostors)

    def true_accept_rate(self, false_accept_rate: float) -> float:
        """TAR: the share of genuine pairs accepted by the largest threshold whose FAR is at most that given.

        The ROC's true positive rate where its false positive rate is at most that. nan without genuine pairs or
        without impostors. FNMR at FMR is 1 - TAR at FAR.

        Args:
          false_accept_rate: one of those that `verify` was given.
        """
        if self.empty:
            return float("nan")
        return self.reached[false_accept_rate].below[1] / self.pairs.genuine

    def equal_error_rate(self) -> float:
        """EER: where FAR = 1 - TAR on the ROC with straight lines between the points of all distances.

        nan without genuine pairs or without impostors.
        """
        if self.empty or self.equal is None:
            return float("nan")
        impostors, genuine = self.pairs.impostors, self.pairs.genuine
        (accept, reject), (more, fewer) = (
            (i / impostors, 1 - g / genuine) for i, g in (self.equal.below, self.equal.upto)
        )
        share = (reject - accept) / ((reject - accept) + (more - fewer))
        return accept + share * (more - accept)

    def area(self) -> tuple[float, float]:
        """(AUC, by how much it may be off): the chance that a genuine pair is nearer than an impostor, ties half.

        Pairs in one bucket count as ties; half of the share of those in buckets of more than one number is the bound,
        which is at most `AREA_BOUND` where `verify` was asked for the area. (nan, nan) without genuine pairs or
        without impostors.
        """
        if self.empty:
            return float("nan"), float("nan")
        impostor, genuine = self.histogram.counts / np.array(
            [[self.pairs.impostors], [self.pairs.genuine]]
        )
        together = self.histogram.in_one_bucket()
        bound = float(together[self.histogram.wide].sum()) / 2
        return float(genuine @ (1 - np.cumsum(impostor)) + together.sum() / 2), bound

    def curve(self, points: int | None = None) -> Roc:
        """The ROC's points at the ends of the buckets where a rate changes.

        Each lies on the ROC. Distances in one bucket have one point together; the area under the straight lines
        between the points is that of `area`.

        Args:
          points: None for all of them; a number keeps the first and the last and, for so many false accept rates in
            equal steps of their logarithm from one impostor to all, the point of the largest rate at most that.

        Returns: the points; rates are nan without genuine pairs or without impostors.
        """
        accepted = self.histogram.accepted()
        thresholds = distances_of(self.histogram.high - 1)
        totals = np.array([[self.pairs.impostors], [self.pairs.genuine]])
        with np.errstate(invalid="ignore"):
            far, tar = np.concatenate([np.zeros((2, 1)), accepted], axis=1) / totals
        found = Roc(far, tar, np.concatenate([[-np.inf], thresholds]))
        if points is None or self.empty:
            return found
        rates = np.geomspace(1 / self.pairs.impostors, 1, points)
        kept = np.searchsorted(far, rates * (1 + 1e-12), side="right") - 1
        kept = np.unique([0, *kept, len(far) - 1])
        return Roc(*(part[kept] for part in found))

    @cached_property
    def utilities(self) -> Utilities | None:
        """`consistency.utilities` in the calibration range, None where that is empty."""
        low, high = (self.reached[rate].threshold for rate in CALIBRATION)
        if self.empty or not np.isfinite(high) or not low < high:
            return None
        return utilities(self.pairs, low, high)


def verify(
    pairs: Pairs,
    false_accept_rates: Sequence[float] = (),
    *,
    equal: bool = False,
    area: bool = False,
) -> Verification:
    """Counts the pairs by their distance.

    The first pass over the pairs is a histogram; each further one divides the buckets in which a threshold lies, down
    to single numbers, and those that make the area uncertain.

    Args:
      pairs: all of them.
      false_accept_rates: what `true_accept_rate` will be asked for, from 0 to 1.
      equal: True where `equal_error_rate` will be asked for.
      area: True where `area` or `curve` will be: their bound is met.

    Raises:
      UserError: a rate that is not between 0 and 1.

    >>> found = verify(pairs_of(np.eye(4), np.array([0, 0, 1, 1])), area=True)
    >>> found.area()  # All distances are equal: only ties.
    (0.5, 0.0)
    """
    for rate in false_accept_rates:
        if not 0 <= rate <= 1:
            raise UserError(f"false accept rate {rate}; accepted: 0 to 1")
    impostors, genuine = pairs.impostors, pairs.genuine
    window = pairs.first_window()
    histogram = Histogram.of([window], histograms(pairs, [window], complete=True))
    wanted = [_more_than(np.floor(r * impostors * (1 + 1e-15))) for r in false_accept_rates]
    both = impostors > 0 and genuine > 0
    if equal and both:
        wanted.append(lambda accepted, right: accepted / impostors >= 1 - right / genuine)
    while True:
        crossed = [_crossed(histogram, condition) for condition in wanted]
        buckets = {i for i in crossed if i is not None and histogram.wide[i]}
        if area and both:
            buckets |= _uncertain(histogram)
        if not buckets:
            break
        histogram = histogram.divided(pairs, np.array(sorted(buckets)))
    found = [_crossing(histogram, condition) for condition in wanted]
    reached = dict(zip(false_accept_rates, found, strict=False))
    return Verification(pairs, histogram, reached, found[-1] if equal and both else None)


def _more_than(rank: float) -> Condition:
    """Accepting `rank` impostors is allowed: the distance of the next one is out of reach."""
    return lambda accepted, right: accepted > rank


def _crossed(histogram: Histogram, condition: Condition) -> int | None:
    """The first bucket with which a condition of (impostors, genuine pairs accepted) holds."""
    holds = condition(*histogram.accepted())
    return int(np.argmax(holds)) if holds.any() else None


def _crossing(histogram: Histogram, condition: Condition) -> Crossing:
    """Where a condition first holds, in a histogram in which that bucket is a single number."""
    i = _crossed(histogram, condition)
    if i is None:
        impostors, genuine = (int(total) for total in histogram.counts.sum(axis=1))
        return Crossing(float("inf"), (impostors, genuine), (impostors, genuine))
    upto = histogram.accepted()[:, i]
    below = upto - histogram.counts[:, i]
    threshold = float(distances_of(histogram.low[i : i + 1])[0])
    return Crossing(threshold, (int(below[0]), int(below[1])), (int(upto[0]), int(upto[1])))


def _uncertain(histogram: Histogram) -> set[int]:
    """The fewest buckets without which the area is certain to half of its bound; none where it meets the bound."""
    together = np.where(histogram.wide, histogram.in_one_bucket(), 0.0) / 2
    if together.sum() <= AREA_BOUND:
        return set()
    order = np.argsort(-together)
    left = together.sum() - np.cumsum(together[order])
    count = int(np.argmax(left <= AREA_BOUND / 2)) + 1
    return set(order[: min(count, WINDOWS)].tolist())


def roc_curve(
    embeddings: Float[np.ndarray, "q d"],
    labels: Int[np.ndarray, " q"],
    *,
    gallery: Float[np.ndarray, "n d"] | None = None,
    gallery_labels: Int[np.ndarray, " n"] | None = None,
    self_index: Int[np.ndarray, " q"] | None = None,
    distance: str = "euclidean",
    points: int | None = None,
) -> Roc:
    """The receiver operating characteristic of "these two have one label" over all pairs of a query and an item.

    Points of it, from (0, 0) to (1, 1); see `Verification.curve`. Without a gallery all pairs of different items,
    each twice.

    Args:
      embeddings: of the queries.
      labels: integers.
      gallery: embeddings of the items; the queries themselves by default.
      gallery_labels: integers, wherever there is a gallery.
      self_index: each query's row in the gallery, -1 for none: that pair is left out.
      distance: `euclidean` or `cosine`; a zero vector is at cosine distance 1 from everything.
      points: None for all, or for how many false accept rates in equal steps of their logarithm.

    Raises:
      UserError: embeddings and labels that do not fit each other, an unknown distance, points below 1.

    Differs from scikit-learn's `roc_curve`, which takes scores: it has a point for every distance, this one may have
    one for several that are close together, such that the area under the curve is off by 5e-5 at most; thresholds are
    distances, accepted from below.

    >>> curve = roc_curve(np.array([[0.0], [1.0], [3.0], [5.0]]), np.array([0, 0, 1, 1]))
    >>> curve.true_accept_rates.round(2)
    array([0. , 0.5, 1. , 1. , 1. , 1. ])
    >>> curve.false_accept_rates.round(2)
    array([0.  , 0.  , 0.25, 0.5 , 0.75, 1.  ])
    """
    if points is not None and points < 1:
        raise UserError(f"points={points}; accepted: 1 or more, or None for all")
    given = {"gallery": gallery, "gallery_labels": gallery_labels, "self_index": self_index}
    pairs = pairs_of(embeddings, labels, distance=distance, **given)
    return verify(pairs, area=True).curve(points)
