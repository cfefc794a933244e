"""How the values of a loss become one number: sums that add up over blocks, then one division."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dml_jax import names


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
      per_anchor: whether the values of an anchor are averaged first, so that anchors count alike.
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
        """The reducer of one term of a loss."""
        return dict(self.terms).get(term, self)

    def sums(
        self,
        values: Array,
        weights: Array,
        divisor: Array | None = None,
        labels: Int[Array, " a"] | None = None,
        real: Bool[Array, " a"] | None = None,
    ) -> Sums:
        """The sums of one term over one block of anchors.

        `labels` of the anchors are for class weights. `real` is False for anchors that are padding: their
        weights are 0, but an anchor without pairs counts for per_anchor, and padding does not.
        """
        weights = weights.astype(values.dtype)
        if self.per_anchor and values.ndim == 2:
            values = _row_means(values, weights)
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
        """The weight of each label; NaN, which shows in the loss, for a label without one."""
        assert labels is not None  # losses.get refuses class weights where labels are no integers
        table = jnp.asarray(self.class_weights)
        known = (labels >= 0) & (labels < len(table))
        return jnp.where(known, table[jnp.where(known, labels, 0)], jnp.nan)

    def denominator(self, sums: Sums) -> Array:
        """What the total is divided by at the end."""
        return {"weight": sums.weight, "divisor": sums.divisor, "one": jnp.ones_like(sums.total)}[
            self.by
        ]


def _row_means(values: Array, weights: Array) -> Array:
    """The weighted mean of each row, 0 in a row of no weight."""
    count = jnp.sum(weights, -1)
    total = jnp.sum(jnp.where(weights != 0, values, 0) * weights, -1)
    return jnp.where(count > 0, total / jnp.where(count > 0, count, 1), 0)


def mean() -> Reducer:
    """The mean of all values."""
    return Reducer("mean")


def sum_() -> Reducer:
    """The sum of all values."""
    return Reducer("sum", by="one")


def avg_non_zero() -> Reducer:
    """The mean of the values above 0; 0 if there are none."""
    return Reducer("avg_non_zero", low=0.0)


def threshold(*, low: float | None = None, high: float | None = None) -> Reducer:
    """The mean of the values with low < value < high; 0 if there are none."""
    if low is None and high is None:
        raise ValueError("reducer 'threshold' needs a value for 'low' or 'high' (or both)")
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    if not low < high:
        raise ValueError(f"reducer 'threshold' has low={low} and high={high}; low must be smaller")
    return Reducer("threshold", low=low, high=high)


def divisor() -> Reducer:
    """The sum over a divisor that the loss supplies (proxy_anchor, margin); 0 where that is 0."""
    return Reducer("divisor", by="divisor")


def class_weighted(*, weights: Sequence[float]) -> Reducer:
    """mean( weights[label of the anchor] * value ): divided by the number of values, as in PML.

    Differs from PML for losses whose values PML keeps as a column [B, 1] (multi_similarity): there PML
    multiplies every value with every weight.
    """
    return Reducer("class_weighted", class_weights=tuple(float(w) for w in weights))


def per_anchor(*, reducer: Any = "mean") -> Reducer:
    """The mean of each anchor's pairs, then `reducer` over all anchors; one without pairs counts as 0.

    Values that are by anchor already go to `reducer` as they are. PML: PerAnchorReducer, which cannot
    take references of another number than the batch; this can.
    """
    return replace(build(reducer), name="per_anchor", per_anchor=True)


def multiple(*, default: Any = "mean", **terms: Any) -> Reducer:
    """A reducer for each term of a loss, by the term's name ("positive", ...), and `default` for the rest."""
    chosen = tuple((term, build(spec)) for term, spec in sorted(terms.items()))
    return replace(build(default), name="multiple", terms=chosen)


def build(spec: Any) -> Reducer:
    """A reducer from its name, a dict with a name, or itself."""
    return names.build("reducer", get, Reducer, spec)


REDUCERS = {
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
    """The names that `get` takes."""
    return sorted(REDUCERS)


def get(name: str, **hyper: Any) -> Reducer:
    """The reducer called `name`; ValueError for an unknown name or hyper-parameter."""
    make = names.resolve("reducer", REDUCERS, name)
    accepted = names.keywords(make)
    if make is multiple:  # the terms of a loss are its keywords; the loss checks them
        accepted |= hyper
    names.check_hyper(f"reducer {name!r}", accepted, hyper)
    return make(**hyper)
