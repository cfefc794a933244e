"""Margin loss: hinges on both sides of a boundary between near and far."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dml_jax import reducers
from dml_jax.bound import Bound
from dml_jax.losses.base import (
    DistanceSpec,
    Loss,
    MinerSpec,
    ReducerSpec,
    RegularizerSpec,
    RelationSpec,
    Variables,
    build_parts,
)
from dml_jax.losses.forms import on_pairs
from dml_jax.losses.kernels import Mask, Sims
from dml_jax.losses.triplet import TripletsPerAnchor, drawn, sum_triplets
from dml_jax.pairwise import Block
from dml_jax.parameters import checked
from dml_jax.reducers import Reducer
from dml_jax.selection import Triplets, pairs_of_triplets

Terms = dict[str, tuple[Float[Array, " a"], Float[Array, " a"], Float[Array, " a"]]]


def margin_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    margin: float,
    nu: float,
    beta: float | Float[Array, " a"],
    learn_beta: bool,
    similarity: bool,
    triplets: Triplets | None = None,
    low: float,
    high: float,
) -> Terms:
    """Returns (mean over its triplets, their number, its active pairs) of each anchor; see `margin`.

    The hinges part, so that row sums give the mean without listing a triplet: N sum_p [.]+ + P sum_n [.]+. Reducers
    that look at the values (low, high) see l_apn: rows are then streamed over their positives.
    """
    sign = -1.0 if similarity else 1.0
    beta = jnp.broadcast_to(jnp.asarray(beta, sims.dtype), sims.shape[:1])
    beyond = sign * (sims - beta[:, None])
    near, far = jax.nn.relu(beyond + margin), jax.nn.relu(margin - beyond)
    positive, negative = pairs_of_triplets(pos, neg, triplets, sims.dtype)
    count = jnp.sum(positive, -1)
    active = jnp.sum(jnp.where(near > 0, positive, 0) + jnp.where(far > 0, negative, 0), -1)
    if low == -math.inf and high == math.inf:
        total, counted = jnp.sum(near * positive + far * negative, -1), count
    else:
        total, counted = sum_triplets(jnp.add, near, far, pos, neg, triplets, low=low, high=high)
    terms = {"margin": (total / jnp.where(counted > 0, counted, 1), counted, active)}
    if learn_beta and nu:
        terms["beta"] = (nu * beta, count, active)
    return terms


def margin_beta(
    key: Array, num_classes: int, dim: int, *, beta: float, per_class: bool
) -> Variables:
    """Makes {"params": {"beta": [] or [num_classes]}}, float32."""
    del key, dim
    shape = (num_classes,) if per_class else ()
    return {"params": {"beta": jnp.full(shape, beta, jnp.float32)}}


def margin_args(params: Variables, labels: Array, *, per_class: bool) -> dict[str, Array]:
    """Returns the beta of each anchor; NaN for a label that is no class."""
    beta = params["beta"]
    if not per_class:
        return {"beta": jnp.broadcast_to(beta, labels.shape[:1])}
    known = (labels >= 0) & (labels < beta.shape[0])
    return {"beta": jnp.where(known, beta[labels], jnp.nan)}


def reduce_beta(reducer: Reducer, of_beta: Reducer) -> Reducer:
    """Returns the reducer with another one for the term of nu beta."""
    return replace(reducer, terms=(*reducer.terms, ("beta", of_beta)))


def _margin(
    block: Block,
    *,
    margin: float,
    nu: float,
    beta: float,
    learn_beta: bool,
    similarity: bool,
    low: float,
    high: float,
) -> Terms:
    chosen = block.selection
    return margin_rows(
        block.sims,
        chosen.pos,
        chosen.neg,
        margin=margin,
        nu=nu,
        beta=block.anchor_args.get("beta", beta),
        learn_beta=learn_beta,
        similarity=similarity,
        triplets=chosen.triplets,
        low=low,
        high=high,
    )


@checked("loss")
def margin(
    margin: float = 0.2,
    nu: float = 0.0,
    beta: float = 1.2,
    learn_beta: bool = False,
    per_class: bool = False,
    triplets_per_anchor: TripletsPerAnchor = "all",
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the margin loss of each anchor (Wu et al., ICCV 2017).

    l_apn = [d_ap - beta_a + margin]+ + [beta_a - d_an + margin]+

    summed over the triplets and divided (reducer divisor) by how many of their two hinges are above 0,
    pairs counted once for each triplet that holds them. With similarities the signs of both differences change.
    Where beta is learned (`params["beta"]`), nu beta_a is a second term: a plain mean for one beta, for one of each
    class divided as the first term, as in PML. PML has a beta for each class where it is given `num_classes`; here
    `init` is told their number. A label outside of them has no beta: its value is NaN.

    Args:
      margin: half the width of the band around beta; PML's default.
      nu: the weight of the learned beta in the loss; PML's default.
      beta: the boundary between near and far, and what a learned one starts from; PML's default.
      learn_beta: True learns beta; PML's default.
      per_class: True learns a beta for each class.
      triplets_per_anchor: "all", PML's default, or how many to draw for each anchor where there is no miner.
      miner: narrows the triplets (`dml_jax.miners`): a name, a dict with a name, or the object; None: all triplets.
      distance: by default "lp", Euclidean between normalised vectors, as in PML (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "divisor", as in PML.
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: a relation without classes for a beta of each.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(margin()(x, [0, 1, 0, 1])), 3)
      0.528
    """
    each = learn_beta and per_class
    parts = build_parts(
        "margin",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        default_distance="lp",
        default_reducer="divisor",
        with_classes=each,
    )
    if learn_beta and nu and not each:
        # nu times the one beta is added as it is, whatever the reducer.
        parts = parts._replace(reducer=reduce_beta(parts.reducer, reducers.mean()))
    kernel = Bound(
        _margin,
        margin=margin,
        nu=nu,
        beta=beta,
        learn_beta=learn_beta,
        similarity=parts.distance.similarity,
        low=parts.reducer.low,
        high=parts.reducer.high,
    )
    more = drawn("margin", triplets_per_anchor)
    if learn_beta:
        more |= dict(
            init_variables=Bound(margin_beta, beta=beta, per_class=per_class),
            anchor_args=Bound(margin_args, per_class=per_class),
            reads_classes=each,
        )
    if each:
        more["label_values"] = "numbers of classes"
    return on_pairs("margin", parts, kernel, **more)
