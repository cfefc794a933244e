"""Losses of the user's own: a row kernel, with miners, blocks and devices for nothing."""

import inspect
from collections.abc import Callable
from typing import Any, Literal

from dml_jax.bound import Bound
from dml_jax.errors import UserError
from dml_jax.losses.base import (
    DistanceSpec,
    Loss,
    MinerSpec,
    ReducerSpec,
    RegularizerSpec,
    RelationSpec,
    build_parts,
)
from dml_jax.losses.forms import from_rows, on_pairs
from dml_jax.parameters import check_keywords, keyword_parameters

Takes = Literal["pairs", "block"]


def generic_pair(
    rows: Callable[..., Any],
    *,
    takes: Takes = "pairs",
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
    **hyper: Any,
) -> Loss:
    """Makes a loss of a row kernel of the user's own.

    No keyword of the kernel is filled in because of its name: it gets the values given here, else its defaults.

    Args:
      rows: `rows(sims [a, n], pos, neg, *, ...) -> (values, weights)`, by row or by pair, or a dict of such terms.
        `pos` and `neg` mark the pairs in play, how often a miner chose them.
      takes: "pairs" for such a kernel; "block" for one that is called with the whole `pairwise.Block` instead, and
        finds triplets (`block.selection.triplets`), vectors, labels and keys there.
      miner: narrows the pairs in play (`dml_jax.miners`): a name, a dict with a name, or the object; None: all pairs.
      distance: by default "lp", Euclidean between normalised vectors (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.
      **hyper: the keyword parameters of `rows`, checked against its annotations. They must be hashable.

    Raises:
      UserError: rows that is no function, a hyper-parameter that it does not have.

    Example:
      >>> import jax.numpy as jnp
      >>> def pull(sims, pos, neg, *, low=0.1):
      ...     return jnp.maximum(sims - low, 0), pos
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(generic_pair(pull, low=0.2)(x, [0, 1, 0, 1])), 3)
      1.214
    """
    if not callable(rows):
        raise UserError(
            f"loss 'generic_pair' has rows={rows!r}; accepted: a function "
            "(sims, pos, neg, *, ...) -> (values, weights)"
        )
    parts: dict[str, Any] = dict(miner=miner, distance=distance, reducer=reducer)
    parts |= dict(regularizer=regularizer, relation=relation)
    return _make("generic_pair", rows, takes, hyper, parts, distance="lp", reducer="mean")


def _make(
    name: str,
    rows: Callable[..., Any],
    takes: str,
    hyper: dict[str, Any],
    parts: dict[str, Any],
    *,
    distance: Any,
    reducer: Any,
) -> Loss:
    if takes not in ("pairs", "block"):
        raise UserError(f"takes of loss {name!r} is {takes!r}; accepted: 'pairs' or 'block'")
    given = check_keywords(f"loss {name!r}", rows, hyper)
    for keyword, value in given.items():
        try:
            hash(value)
        except TypeError:
            raise UserError(
                f"{keyword} of loss {name!r} is a {type(value).__name__}; accepted: a value that can be hashed (a "
                "number, a text, a tuple of these), so that the loss compiles once"
            ) from None
    made = build_parts(name, default_distance=distance, default_reducer=reducer, **parts)
    kernel = from_rows(rows, **given) if takes == "pairs" else Bound(rows, **given)
    return on_pairs(name, made, kernel)


def pair_loss(
    *, distance: DistanceSpec = "lp", reducer: ReducerSpec = "mean", takes: Takes = "pairs"
) -> Callable[[Callable[..., Any]], Callable[..., Loss]]:
    """Makes a loss's factory of a row kernel, as a decorator.

    The factory takes the kernel's keyword parameters, and the parts of every loss (miner, distance, reducer,
    regularizer, relation). A config names it: `loss.name="my_package.my_module:my_loss"`.

    Args:
      distance: its default distance.
      reducer: its default reducer.
      takes: "pairs" for a kernel `(sims, pos, neg, *, ...)`, "block" for one of a `pairwise.Block`.

    Example:
      >>> import jax.numpy as jnp
      >>> @pair_loss(distance="cosine")
      ... def my_loss(sims, pos, neg, *, margin: float = 0.5):
      ...     values = jnp.where(pos > 0, 1 - sims, jnp.maximum(sims - margin, 0))
      ...     return values, pos + neg
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(my_loss(margin=0.2, miner="multi_similarity")(x, [0, 1, 0, 1])), 3)
      0.72
    """
    defaults = dict(distance=distance, reducer=reducer)

    def decorate(rows: Callable[..., Any]) -> Callable[..., Loss]:
        name = rows.__name__

        def factory(
            *,
            miner: MinerSpec = None,
            distance: DistanceSpec = None,
            reducer: ReducerSpec = None,
            regularizer: RegularizerSpec = None,
            relation: RelationSpec = None,
            **hyper: Any,
        ) -> Loss:
            parts: dict[str, Any] = dict(miner=miner, distance=distance, reducer=reducer)
            parts |= dict(regularizer=regularizer, relation=relation)
            return _make(name, rows, takes, hyper, parts, **defaults)

        shared = [p for p in keyword_parameters(factory) if p.kind is p.KEYWORD_ONLY]
        factory.__name__ = factory.__qualname__ = name
        factory.__module__, factory.__doc__ = rows.__module__, rows.__doc__
        signature = inspect.Signature([*keyword_parameters(rows), *shared], return_annotation=Loss)
        factory.__signature__ = signature  # type: ignore[attr-defined]
        return factory

    return decorate
