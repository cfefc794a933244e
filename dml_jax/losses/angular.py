"""The angular loss."""

import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from dml_jax import distances
from dml_jax.bound import Bound
from dml_jax.distances import Distance
from dml_jax.losses.base import (
    DistanceSpec,
    Loss,
    MinerSpec,
    ReducerSpec,
    RegularizerSpec,
    RelationSpec,
    build_parts,
)
from dml_jax.losses.forms import on_pairs
from dml_jax.losses.kernels import Mask, Rows, Sims, log_one_plus_sum_exp
from dml_jax.pairwise import Block
from dml_jax.parameters import (
    checked,
)
from dml_jax.selection import rows_at, sum_over_positives


def angular_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    alpha: float,
    units: tuple[Float[Array, "a d"], Float[Array, "n d"]],
    low: float,
    high: float,
) -> Rows:
    """Returns (mean over its positives, how many) of each anchor; see `angular`.

    `units` are the anchors and the references as the similarity multiplies them; means are over the values above `low`
    and below `high`.
    """
    del sims
    slope = math.tan(math.radians(alpha)) ** 2

    def term(one: Array, operands: Any, neg: Array) -> Rows:
        anchors, refs = operands
        near = rows_at(one, refs)
        # One product of the sums, in place of two that are added up.
        both = distances.inner_products(4 * slope * (anchors + near), refs)
        apart = 2 * (1 + slope) * jnp.sum(anchors * near, -1)
        loss = log_one_plus_sum_exp(both - apart[:, None], neg)
        counted = ~((loss <= low) | (loss >= high))  # NaN is counted, so that it shows
        return jnp.where(counted, loss, 0), counted.astype(loss.dtype)

    total, count = sum_over_positives(term, units, neg > 0, pos)
    some = count > 0
    return jnp.where(some, total / jnp.where(some, count, 1), 0), count


def _angular(block: Block, *, alpha: float, distance: Distance, low: float, high: float) -> Rows:
    units = distance.normalized_vectors(block.anchors), distance.normalized_vectors(block.refs)
    pos, _ = block.selection.pairs()
    # All negatives stay in play, whatever a miner chose.
    how: dict[str, Any] = dict(alpha=alpha, units=units, low=low, high=high)
    return angular_rows(block.sims, pos, block.related.neg, **how)


@checked("loss")
def angular(
    alpha: float = 40.0,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the angular loss of each positive pair (Wang et al., ICCV 2017).

    l_ap = log(1 + sum_n exp(4 t^2 (x_a + x_p).x_n - 2 (1 + t^2) x_a.x_p)),    t = tan(alpha)

    of normalised vectors. A pair whose
    anchor has no negatives has value 0 and counts; a pair that a miner returned k times counts k times, and
    all negatives stay in play, as in PML. Differs from PML: negatives are normalised, too (PML
    leaves them as they are, so that the loss grows with the size of the embeddings); equal for normalised input.

    Args:
      alpha: in degrees; PML's default (the paper: 36 to 55).
      miner: narrows the pairs in play (`dml_jax.miners`): a name, a dict with a name, or the object; None: all pairs.
      distance: "cosine" alone (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: another distance than "cosine".

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(angular()(x, [0, 1, 0, 1])), 3)
      3.995
    """
    parts = build_parts(
        "angular",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        only_distances=("cosine",),
    )
    kernel = Bound(
        _angular,
        alpha=alpha,
        distance=parts.distance,
        low=parts.reducer.low,
        high=parts.reducer.high,
    )
    return on_pairs("angular", parts, kernel)
