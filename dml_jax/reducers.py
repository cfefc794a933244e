"""How the values of a loss become one number: sums that add up over blocks, then one division."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

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
    """

    name: str
    low: float = -math.inf
    high: float = math.inf
    by: str = "weight"

    def sums(self, values: Array, weights: Array, divisor: Array | None) -> Sums:
        """The sums of one term over one block."""
        weights = weights.astype(values.dtype)
        keep = (weights != 0) & (values > self.low) & (values < self.high)
        weights = jnp.where(keep, weights, 0)
        total = jnp.sum(jnp.where(keep, values, 0) * weights)
        zero = jnp.zeros((), values.dtype)
        return Sums(
            total,
            jnp.sum(weights),
            zero if divisor is None else jnp.sum(divisor).astype(zero.dtype),
        )

    def denominator(self, sums: Sums) -> Array:
        """What the total is divided by at the end."""
        return {"weight": sums.weight, "divisor": sums.divisor, "one": jnp.ones_like(sums.total)}[
            self.by
        ]


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
    """The sum over a divisor that the loss supplies (proxy_anchor); 0 where that is 0."""
    return Reducer("divisor", by="divisor")


REDUCERS = {
    "mean": mean,
    "sum": sum_,
    "avg_non_zero": avg_non_zero,
    "threshold": threshold,
    "divisor": divisor,
}


def available() -> list[str]:
    """The names that `get` takes."""
    return sorted(REDUCERS)


def get(name: str, **hyper: Any) -> Reducer:
    """The reducer called `name`; ValueError for an unknown name or hyper-parameter."""
    make = names.resolve("reducer", REDUCERS, name)
    names.check_hyper(f"reducer {name!r}", names.keywords(make), hyper)
    return make(**hyper)
