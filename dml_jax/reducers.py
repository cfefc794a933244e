"""How the values of a loss become one number: sums that add up over blocks, then one division."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dml_jax import names, parameters
from dml_jax.errors import UserError
from dml_jax.parameters import checked


class Sums(NamedTuple):
    """What one term of a loss adds up over blocks, devices and processes."""

    total: Float[Array, ""]
    weight: Float[Array, ""]
    divisor: Float[Array, ""]


@dataclass(frozen=True)
class Reducer:
    """Counts the values in the open interval (low, high) and divides as `by` says.

    Attributes:
      by: "weight" divides by the number of values that were counted (their weights), "divisor" by
        what the loss supplies, "one" does not divide.
      class_weights: what a value is multiplied by, by the label of its anchor; () for nothing.
      per_anchor: True averages the values of an anchor first, so that anchors count alike.
      terms: other reducers for terms of the loss, by the term's name.
    """

    name: str
    low: float = -math.inf
    high: float = math.inf
    by: str = "weight"
    class_weights: tuple[float, ...] = ()
    per_anchor: bool = False
    terms: tuple[tuple[str, "Reducer"], ...] = ()

    def of(self, term: str) -> "Reducer":
        """Returns the reducer of one term of a loss."""
        return dict(self.terms).get(term, self)

    def sums(
        self,
        values: Array,
        weights: Array,
        divisor: Array | None = None,
        labels: Int[Array, " a"] | None = None,
        real: Bool[Array, " a"] | None = None,
    ) -> Sums:
        """Adds up one term over one block of anchors.

        `labels` of the anchors are for class weights. `real` is False for anchors that are padding: their
        weights are 0, but an anchor without pairs counts for per_anchor, and padding does not.
        """
        weights = weights.astype(values.dtype)
        if self.per_anchor and values.ndim == 2:
            values = _row_means(values, (weights > 0).astype(values.dtype))
            weights = jnp.ones_like(values) if real is None else real.astype(values.dtype)
        keep = weights != 0
        # Asked this way round, and only where there is a bound: NaN and infinity must show in the loss.
        if self.low > -math.inf:
            keep &= ~(values <= self.low)
        if self.high < math.inf:
            keep &= ~(values >= self.high)
        weights = jnp.where(keep, weights, 0)
        values = jnp.where(keep, values, 0)
        if self.class_weights:
            factor = self._class_weight(labels).astype(values.dtype)
            factor = factor if values.ndim == 1 else factor[:, None]
            values = values * jnp.where(keep, factor, 0)
        zero = jnp.zeros((), values.dtype)
        return Sums(
            jnp.sum(values * weights),
            jnp.sum(weights),
            zero if divisor is None else jnp.sum(divisor).astype(zero.dtype),
        )

    def _class_weight(self, labels: Int[Array, " a"] | None) -> Float[Array, " a"]:
        """Returns the weight of each label; NaN, which shows in the loss, for a label without one."""
        assert labels is not None  # losses.get refuses class weights where labels are no integers
        table = jnp.asarray(self.class_weights)
        known = (labels >= 0) & (labels < len(table))
        return jnp.where(known, table[jnp.where(known, labels, 0)], jnp.nan)

    def denominator(self, sums: Sums) -> Array:
        """Returns what the total is divided by at the end."""
        return {"weight": sums.weight, "divisor": sums.divisor, "one": jnp.ones_like(sums.total)}[
            self.by
        ]


def _row_means(values: Array, weights: Array) -> Array:
    """Returns the weighted mean of each row; 0 in a row of no weight."""
    count = jnp.sum(weights, -1)
    total = jnp.sum(jnp.where(weights != 0, values, 0) * weights, -1)
    return jnp.where(count > 0, total / jnp.where(count > 0, count, 1), 0)


@checked("reducer")
def mean() -> Reducer:
    """Makes the mean of all values. PML: MeanReducer.

    Example:
      >>> sums = mean().sums(jnp.asarray([1.0, 3.0, 0.0]), jnp.ones(3))
      >>> round(float(sums.total / mean().denominator(sums)), 3)
      1.333
    """
    return Reducer("mean")


@checked("reducer")
def sum_() -> Reducer:
    """Makes the sum of all values. PML: SumReducer.

    Example:
      >>> sum_() == get("sum")
      True
    """
    return Reducer("sum", by="one")


@checked("reducer")
def avg_non_zero() -> Reducer:
    """Makes the mean of the values above 0; 0 if there are none. PML: AvgNonZeroReducer.

    Example:
      >>> avg_non_zero().low
      0.0
    """
    return Reducer("avg_non_zero", low=0.0)


@checked("reducer")
def threshold(*, low: float | None = None, high: float | None = None) -> Reducer:
    """Makes the mean of the values with low < value < high; 0 if there are none. PML: ThresholdReducer.

    Args:
      low: the values must be above it; None: no bound.
      high: the values must be below it; None: no bound.

    Raises:
      UserError: neither bound is given, or they leave nothing between them.

    Example:
      >>> threshold(high=5).high
      5
    """
    if low is None and high is None:
        raise UserError("reducer 'threshold' needs a value for 'low' or 'high' (or both)")
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    if not low < high:
        raise UserError(f"reducer 'threshold' has low={low} and high={high}; low must be smaller")
    return Reducer("threshold", low=low, high=high)


@checked("reducer")
def divisor() -> Reducer:
    """Makes the sum over a divisor that the loss supplies (proxy_anchor, margin); 0 where that is 0.

    PML: DivisorReducer.

    Example:
      >>> divisor().by
      'divisor'
    """
    return Reducer("divisor", by="divisor")


@checked("reducer")
def class_weighted(*, weights: Any) -> Reducer:
    """Makes mean( weights[label of the anchor] * value ): divided by the number of values, as in PML.

    A label without a weight makes the loss NaN. Differs from PML (ClassWeightedReducer) for losses whose values PML
    keeps as a column [B, 1] (multi_similarity): there PML multiplies every value with every weight.

    Args:
      weights: one number for each class, as a sequence or an array.

    Raises:
      UserError: anything else than a sequence of numbers.

    Example:
      >>> class_weighted(weights=[1, 0.5]).class_weights
      (1.0, 0.5)
    """
    try:
        numbers = np.asarray(weights, float)
    except (TypeError, ValueError):
        numbers = np.zeros(0)
    if numbers.ndim != 1 or not numbers.size or np.isnan(numbers).any():
        raise UserError(
            f"weights of reducer 'class_weighted' are {weights!r}; accepted: a sequence of numbers, one for each class"
        )
    return Reducer("class_weighted", class_weights=tuple(numbers.tolist()))


@checked("reducer")
def per_anchor(*, reducer: Any = "mean") -> Reducer:
    """Makes the mean of each anchor's pairs, then `reducer` over all anchors; one without pairs counts as 0.

    The mean is over an anchor's different pairs: a pair that a miner chose several times (a triplet miner has a
    positive in as many triplets as it has negatives) counts once, as in PML (PerAnchorReducer), whose matrix of
    values has one entry a pair. Values that are by anchor already go to `reducer` as they are. PML's cannot take
    references of another number than the batch; this can.

    Args:
      reducer: of the anchors' means, as `build` takes it.

    Example:
      >>> sums = per_anchor().sums(jnp.asarray([[1.0, 3.0], [4.0, 0.0]]), jnp.asarray([[2, 1], [1, 0]]))
      >>> float(sums.total / sums.weight)
      3.0
    """
    return replace(build(reducer), name="per_anchor", per_anchor=True)


@checked("reducer")
def multiple(*, default: Any = "mean", **terms: Any) -> Reducer:
    """Makes a reducer for each term of a loss, by the term's name ("positive", ...). PML: MultipleReducers.

    The loss refuses names that are none of its terms.

    Args:
      default: for the other terms.
      **terms: for the term of that name.

    Example:
      >>> multiple(positive="sum").of("positive").name
      'sum'
    """
    chosen = tuple((term, build(spec)) for term, spec in sorted(terms.items()))
    return replace(build(default), name="multiple", terms=chosen)


def build(spec: Any, default: Any = None) -> Reducer:
    """Makes a reducer from its name, a dict with a name, or itself.

    Args:
      spec: what the user wrote.
      default: what None stands for.

    Example:
      >>> build("mean") == mean()
      True
    """
    return names.build("reducer", get, Reducer, default if spec is None else spec)


REDUCERS: dict[str, Callable[..., Reducer]] = {
    "mean": mean,
    "sum": sum_,
    "avg_non_zero": avg_non_zero,
    "threshold": threshold,
    "divisor": divisor,
    "class_weighted": class_weighted,
    "per_anchor": per_anchor,
    "multiple": multiple,
}


def available() -> list[str]:
    """Lists the names that `get` takes.

    Example:
      >>> "avg_non_zero" in available()
      True
    """
    return sorted(REDUCERS)


def get(name: str, **hyper: Any) -> Reducer:
    """Returns the reducer called `name`.

    Args:
      name: one of `available()`, or "package.module:name" for a function of the user's own that returns a `Reducer`.
      **hyper: its hyper-parameters.

    Raises:
      UserError: an unknown name or hyper-parameter.

    Example:
      >>> get("threshold", high=2.0) == threshold(high=2.0)
      True
    """
    return parameters.make("reducer", REDUCERS, Reducer, name, hyper)
