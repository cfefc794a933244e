"""Does one threshold serve all classes alike? The operating-point-inconsistency score and its epsilon form."""

import math
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float

from dml_jax.evaluation.verification.histograms import histograms_by_class
from dml_jax.evaluation.verification.pairs import Pairs

# The false accept rates whose thresholds end the calibration range, and how many thresholds divide it.
CALIBRATION = (0.01, 0.1)
THRESHOLDS = 101


class Utilities(NamedTuple):
    """The utility of each class at thresholds in the calibration range.

    Attributes:
      thresholds: [t], ascending.
      values: [c, t].
    """

    thresholds: Float[np.ndarray, " t"]
    values: Float[np.ndarray, "c t"]


class HasUtilities(Protocol):
    """What OPIS is computed from; `roc.Verification` is one."""

    @property
    def utilities(self) -> Utilities | None: ...


def utilities(pairs: Pairs, low: float, high: float) -> Utilities | None:
    """Computes the utilities of the classes that have both kinds of pairs; None where no class has.

    2 phi psi / (phi + psi) of the specificity phi (the share of the impostor pairs of the class's queries that is
    rejected) and the sensitivity psi (of their genuine pairs, accepted); 0 where both are 0.

    Args:
      pairs: with classes.
      low: the first threshold.
      high: the last threshold.
    """
    if pairs.classes is None:
        return None
    at = np.linspace(low, high, THRESHOLDS)
    classes = np.asarray(pairs.classes)
    accepted = histograms_by_class(pairs, at)
    number = accepted.shape[1]
    relevant = pairs.relevance.relevant
    others = len(pairs.items) - (pairs.self_index >= 0) - relevant
    totals = np.stack(
        [np.bincount(classes, weights=part, minlength=number) for part in (others, relevant)]
    )
    both = (totals > 0).all(axis=0)
    if not both.any():
        return None
    share = np.cumsum(accepted[:, both], axis=2) / totals[:, both, None]
    specificity, sensitivity = 1 - share[0], share[1]
    total = specificity + sensitivity
    return Utilities(at, 2 * specificity * sensitivity / np.where(total > 0, total, 1))


def opis(found: HasUtilities) -> float:
    """Operating-point-inconsistency score (Zhang et al., ICLR 2024, "Threshold-consistent margin loss").

    mean_i 1 / (d_max - d_min) integral_{d_min}^{d_max} (U_i(d) - mean_j U_j(d))^2 dd, over classes i, with the
    utility U_i = 2 phi psi / (phi + psi) of the specificity phi (impostor pairs of the class rejected at d) and the
    sensitivity psi (genuine pairs of the class accepted). 0 where one threshold serves all classes alike.
    The range ends where the false accept rate over all pairs reaches 0.01 and 0.1 (the calibration range is
    the user's to choose; this one is common); the integral is a trapezoid sum over 101 thresholds.
    Classes without genuine or without impostor pairs are left out; nan where none is left or the range is empty.

    Args:
      found: what `verify` found, with the false accept rates of `CALIBRATION`.
    """
    if found.utilities is None:
        return float("nan")
    at, utility = found.utilities
    apart = np.mean((utility - utility.mean(axis=0)) ** 2, axis=0)
    return float(np.trapezoid(apart, at) / (at[-1] - at[0]))


def epsilon_opis(found: HasUtilities, epsilon: float) -> float:
    """epsilon-OPIS (Zhang et al., ICLR 2024): how far the best and the worst classes are apart.

    1 / (d_max - d_min) integral_{d_min}^{d_max} (U_best(d) - U_worst(d))^2 dd, with the mean utilities of the share
    epsilon of classes, rounded up, that have the highest and the lowest utility on average over the range. Utility,
    range, integral and classes as in `opis`; classes of equal average in the order of their labels.
    That the groups are the same at all thresholds is our reading of "best and worst performing classes", not
    checked against figures of the paper.

    Args:
      found: as in `opis`.
      epsilon: the share of the classes, above 0, up to 1.
    """
    if found.utilities is None:
        return float("nan")
    at, utility = found.utilities
    order = np.argsort(np.trapezoid(utility, at, axis=1), kind="stable")
    some = math.ceil(epsilon * len(order) * (1 - 1e-12))
    worst, best = (utility[part].mean(axis=0) for part in (order[:some], order[-some:]))
    return float(np.trapezoid((best - worst) ** 2, at) / (at[-1] - at[0]))
