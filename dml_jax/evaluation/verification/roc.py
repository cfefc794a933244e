"""Verification: is a pair of one kind? Error rates at a threshold of the distance, over all pairs.

A pair of a query and an item of the gallery is genuine where the item is relevant, an impostor elsewhere; a query's
pair with itself is neither. A pair is accepted where its distance is at most the threshold. Pairs come in tiles,
as often as they are asked for, and are never all in memory.

What is exact: a distance is a float64 matrix product (0 where that is within its rounding), rounded to float32, and
of these numbers every count, every threshold and with them every rate is exact, ties included. Only the area under
the curve is not: it comes with a bound.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from dml_jax.evaluation.verification.pairs import BUCKETS, SPAN, Pairs, Window, histograms, pairs_of

# OPIS: the false accept rates whose thresholds end the range, and how many thresholds divide it.
CALIBRATION = (0.01, 0.1)
THRESHOLDS = 101


class Roc(NamedTuple):
    """Points of the receiver operating characteristic, from (0, 0) to (1, 1), both rates ascending.

    Attributes:
      false_accept_rates, true_accept_rates: [p], of impostors and of genuine pairs at distances up to the threshold.
      thresholds: [p], -inf for the first; ends of buckets, so that each lies at or over the last distance accepted.
    """

    false_accept_rates: Float[np.ndarray, " p"]
    true_accept_rates: Float[np.ndarray, " p"]
    thresholds: Float[np.ndarray, " p"]


class Crossing(NamedTuple):
    """The smallest distance at which something holds of the pairs accepted up to it.

    Attributes:
      threshold: float32; inf where it holds at none.
      below: (impostors, genuine pairs) at smaller distances.
      upto: likewise with those at this one.
    """

    threshold: float
    below: tuple[int, int]
    upto: tuple[int, int]


@dataclass(frozen=True)
class Verification:
    """What the passes over the pairs found.

    Attributes:
      pairs: all of them.
      window, counts: the first histogram, int64 [2, buckets] of impostors and genuine pairs.
      reached: by false accept rate: where more impostors are accepted than it allows.
      equal: where the false accept rate reaches the false reject rate; None where it was not asked for.
    """

    pairs: Pairs
    window: Window
    counts: Int[np.ndarray, "2 buckets"]
    reached: dict[float, Crossing]
    equal: Crossing | None

    @property
    def empty(self) -> bool:
        """Whether there is no genuine pair or no impostor; all metrics are nan then."""
        return not (self.pairs.genuine and self.pairs.impostors)

    def true_accept_rate(self, false_accept_rate: float) -> float:
        """TAR: the share of genuine pairs accepted by the largest threshold whose FAR is at most that given.

        The ROC's true positive rate where its false positive rate is at most that. nan without genuine pairs or
        without impostors. FNMR at FMR is 1 - TAR at FAR.
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

        Pairs in one bucket, of a relative width of 2^-14, count as ties; the bound is half of their share.
        (nan, nan) without genuine pairs or without impostors.
        """
        if self.empty:
            return float("nan"), float("nan")
        impostor, genuine = self.counts / np.array([[self.pairs.impostors], [self.pairs.genuine]])
        tied = float(impostor @ genuine) / 2
        return float(genuine @ (1 - np.cumsum(impostor))) + tied, tied

    def curve(self, points: int | None = None) -> Roc:
        """The ROC's points at the ends of the buckets where a rate changes.

        Each lies on the ROC; distances closer than 2^-14 of their size, or under a 65536th of the largest possible one,
        may have one point together. With a number, the first and last of these and, for so many false accept rates in
        equal steps of their logarithm from one impostor to all, the one of the largest rate at most that. nan rates
        without genuine pairs or without impostors.
        """
        at = np.flatnonzero(self.counts.any(axis=0))
        accepted = np.cumsum(self.counts[:, at], axis=1)
        ends = np.array([self.window.bounds(int(i))[1] - 1 for i in at], np.int64)
        thresholds = ends.astype(np.int32).view(np.float32).astype(np.float64)
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
    def utilities(self) -> tuple[np.ndarray, np.ndarray] | None:
        """`_utilities` in the calibration range, None where that is empty."""
        low, high = (self.reached[rate].threshold for rate in CALIBRATION)
        if self.empty or not np.isfinite(high) or not low < high:
            return None
        return _utilities(self.pairs, np.linspace(low, high, THRESHOLDS))


def verify(
    pairs: Pairs, false_accept_rates: Sequence[float] = (), *, equal: bool = False
) -> Verification:
    """Counts the pairs by their distance; a second pass where a rate is asked for finds its threshold exactly.

    The passes are histograms of the bits of the float32 distances, each of what one bucket of that before holds: a
    third is needed where a rate is reached under a 65536th of the largest distance.

    Args:
      false_accept_rates: what `true_accept_rate` will be asked for.
      equal: whether `equal_error_rate` will be.
    Raises: ValueError for a rate that is not between 0 and 1.
    """
    for rate in false_accept_rates:
        if not 0 <= rate <= 1:
            raise ValueError(f"false accept rate {rate}; accepted: 0 to 1")
    top = int(np.float32(pairs.largest * (1 + 1e-6)).view(np.int32)) + 1
    start = max(0, top - SPAN)
    shift = int(math.log2(SPAN // BUCKETS))
    window = Window(0, top, start, shift, BUCKETS)
    counts = histograms(pairs, [window])[0]
    impostors, genuine = pairs.impostors, pairs.genuine

    # Accepting `rank` impostors is allowed: the distance of the next one is out of reach.
    def reaches(rate: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        rank = int(np.floor(rate * impostors * (1 + 1e-15)))
        return lambda accepted, right: accepted > rank

    wanted: dict[Any, Callable] = {rate: reaches(rate) for rate in false_accept_rates}
    if equal and impostors and genuine:
        wanted["equal"] = lambda accepted, right: accepted / impostors >= 1 - right / genuine
    found = _crossings(pairs, window, counts, wanted)
    return Verification(pairs, window, counts, found, found.pop("equal", None))


def _both(sums: np.ndarray) -> tuple[int, int]:
    return int(sums[0]), int(sums[1])


def _crossings(
    pairs: Pairs, window: Window, counts: np.ndarray, wanted: dict[Any, Callable]
) -> dict[Any, Crossing]:
    """Where each condition of (impostors, genuine pairs accepted) first holds, by as many passes as that takes."""
    found: dict[Any, Crossing] = {}
    # By window: its counts, and what lies below it.
    known = {window: (counts, np.zeros(2, np.int64))}
    where = dict.fromkeys(wanted, window)
    while where:
        finer, below = {}, {}
        for key, current in where.items():
            inside, before = known[current]
            sums = before[:, None] + np.cumsum(inside, axis=1)
            holds = wanted[key](sums[0], sums[1])
            if not holds.any():
                found[key] = Crossing(float("inf"), _both(sums[:, -1]), _both(sums[:, -1]))
                continue
            i = int(np.argmax(holds))
            low, high = current.bounds(i)
            before = sums[:, i] - inside[:, i]
            if high - low == 1:
                threshold = float(np.int32(low).view(np.float32))
                found[key] = Crossing(threshold, _both(before), _both(sums[:, i]))
            else:
                finer[key] = Window.over(low, high)
                below[finer[key]] = before
        where = finer
        windows = list(below)
        parts = histograms(pairs, windows) if windows else []
        known = {w: (part, below[w]) for w, part in zip(windows, parts, strict=True)}
    return found


def _utilities(
    pairs: Pairs, at: Float[np.ndarray, " t"]
) -> tuple[Float[np.ndarray, " t"], Float[np.ndarray, "c t"]] | None:
    """(thresholds, utility of each class at them) of the classes that have both kinds of pairs; None for no such class.

    2 phi psi / (phi + psi) of the specificity phi (the share of the impostor pairs of the class's queries that is
    rejected) and the sensitivity psi (of their genuine pairs, accepted); 0 where both are 0.
    """
    classes = np.asarray(pairs.classes)
    number, many = int(classes.max()) + 1, len(at)
    accepted = np.zeros((2, number, many), np.int64)
    last = np.float32(at[-1])

    def add(queries: slice, who: np.ndarray, genuine: np.ndarray, place: np.ndarray) -> None:
        """Counts pairs to the classes of their queries."""
        some, local = np.unique(classes[queries], return_inverse=True)
        keys = (genuine * len(some) + local[who]) * many + place
        counts = np.bincount(keys, minlength=2 * len(some) * many)
        accepted[:, some] += counts.reshape(2, len(some), many)

    for tile in pairs.tiles():
        within = tile.found <= last
        within[tile.own] = False
        rows, columns = np.nonzero(within)
        place = np.searchsorted(at, tile.found[rows, columns])
        genuine = tile.genuine[rows, columns]
        add(tile.rows, rows, genuine, place)
        if tile.weight == 2:
            add(tile.columns, columns, genuine, place)
    relevant = pairs.relevance.relevant
    others = len(pairs.items) - (pairs.own >= 0) - relevant
    totals = np.stack(
        [np.bincount(classes, weights=part, minlength=number) for part in (others, relevant)]
    )
    kept = (totals > 0).all(axis=0)
    if not kept.any():
        return None
    share = np.cumsum(accepted[:, kept], axis=2) / totals[:, kept, None]
    specificity, sensitivity = 1 - share[0], share[1]
    total = specificity + sensitivity
    utility = 2 * specificity * sensitivity / np.where(total > 0, total, 1)
    return at, utility


def opis(found: Verification) -> float:
    """Operating-point-inconsistency score (Zhang et al., ICLR 2024, "Threshold-consistent margin loss").

    mean_i 1 / (d_max - d_min) integral_{d_min}^{d_max} (U_i(d) - mean_j U_j(d))^2 dd, over classes i, with the
    utility U_i = 2 phi psi / (phi + psi) of the specificity phi (impostor pairs of the class rejected at d) and the
    sensitivity psi (genuine pairs of the class accepted). 0 where one threshold serves all classes alike.
    The range ends where the false accept rate over all pairs reaches 0.01 and 0.1 (the calibration range is
    the user's to choose; this one is common); the integral is a trapezoid sum over 101 thresholds.
    Classes without genuine or without impostor pairs are left out; nan where none is left or the range is empty.
    """
    if found.utilities is None:
        return float("nan")
    at, utility = found.utilities
    apart = np.mean((utility - utility.mean(axis=0)) ** 2, axis=0)
    return float(np.trapezoid(apart, at) / (at[-1] - at[0]))


def epsilon_opis(found: Verification, epsilon: float) -> float:
    """epsilon-OPIS (Zhang et al., ICLR 2024): how far the best and the worst classes are apart.

    1 / (d_max - d_min) integral_{d_min}^{d_max} (U_best(d) - U_worst(d))^2 dd, with the mean utilities of the share
    epsilon of classes, rounded up, that have the highest and the lowest utility on average over the range. Utility,
    range, integral and classes as in `opis`; classes of equal average in the order of their labels.
    That the groups are the same at all thresholds is our reading of "best and worst performing classes", not
    checked against figures of the paper.
    """
    if found.utilities is None:
        return float("nan")
    at, utility = found.utilities
    order = np.argsort(np.trapezoid(utility, at, axis=1), kind="stable")
    some = math.ceil(epsilon * len(order) * (1 - 1e-12))
    worst, best = (utility[part].mean(axis=0) for part in (order[:some], order[-some:]))
    return float(np.trapezoid((best - worst) ** 2, at) / (at[-1] - at[0]))


def roc_curve(
    embeddings: Float[np.ndarray, "q d"],
    labels: Int[np.ndarray, " q"],
    *,
    gallery: Float[np.ndarray, "n d"] | None = None,
    gallery_labels: Int[np.ndarray, " n"] | None = None,
    own: Int[np.ndarray, " q"] | None = None,
    distance: str = "euclidean",
    points: int | None = None,
) -> Roc:
    """The receiver operating characteristic of "these two have one label" over all pairs of a query and an item.

    Exact points of it, from (0, 0) to (1, 1), in one pass over the pairs; see `Verification.curve`. Without a gallery
    all pairs of different items, each twice.

    Args:
      labels, gallery_labels: integers.
      own: each query's row in the gallery, -1 for none: that pair is left out.
      distance: `euclidean` or `cosine`.
      points: None for all, or for how many false accept rates in equal steps of their logarithm.
    Raises: ValueError for embeddings and labels that do not fit each other, an unknown distance, points below 1.
    Differs from scikit-learn's `roc_curve`, which takes scores: it has a point for every distance, this one may have
    one for several that agree to 2^-14 of their size; thresholds are distances, accepted from below.
    """
    if points is not None and points < 1:
        raise ValueError(f"points={points}; accepted: 1 or more, or None for all")
    given = {"gallery": gallery, "gallery_labels": gallery_labels, "own": own}
    return verify(pairs_of(embeddings, labels, distance=distance, **given)).curve(points)
