"""Losses on an anchor's ranking of all references, beside those of average precision: recall@k and ranked list."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

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
from dml_jax.losses.kernels import Mask, Rows, Sims
from dml_jax.pairwise import Block
from dml_jax.parameters import (
    Fraction,
    PositiveFloat,
    PositiveInt,
    checked,
)
from dml_jax.selection import pick, sum_over_positives


def recall_at_k_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    k: tuple[int, ...],
    temperature: float,
    k_temperature: float | tuple[float, ...],
) -> Rows:
    """Returns the recall@k surrogate loss of each anchor; see `recall_at_k`."""
    pos, neg = pos > 0, neg > 0
    sizes = jnp.asarray(k, sims.dtype)
    softness = jnp.broadcast_to(jnp.asarray(k_temperature, sims.dtype), sizes.shape)

    def term(one: Array, sims: Array, rest: Any) -> tuple[Array, Array]:
        others, sizes, softness = rest
        ahead = jax.nn.sigmoid((sims - pick(one, sims)[:, None]) / temperature)
        rank = 1 + jnp.sum(jnp.where(others & ~one, ahead, 0), -1, keepdims=True)
        hits = jax.nn.sigmoid((sizes[None, :] - rank) / softness[None, :])
        return hits, jnp.ones_like(rank[:, 0])

    total, count = sum_over_positives(term, sims, (pos | neg, sizes, softness), pos)
    most = jnp.clip(count[:, None], 1, sizes[None, :])
    value = jnp.mean(1 - jnp.minimum(total, sizes[None, :]) / most, -1)
    return jnp.where(count > 0, value, 0), count > 0


@checked("loss")
def recall_at_k(
    k: tuple[PositiveInt, ...] = (1, 2, 4, 8, 16),
    temperature: PositiveFloat = 0.01,
    k_temperature: PositiveFloat | tuple[PositiveFloat, ...] = 1.0,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the recall@k surrogate loss of each anchor (Patel, Tolias, Matas, CVPR 2022).

    l = mean_k 1 - min(C_k, k) / min(|P|, k),    C_k = sum_{i in P} sigmoid((k - r_i) / k_temperature)
                                                 r_i = 1 + sum_{j != i} sigmoid((s_j - s_i) / temperature)

    The anchor is neither ranked nor a positive of itself. The two minima are those of the authors' code: recall@k
    cannot exceed 1. That code differs in two things: it
    ranks the anchor, too, ahead of all others, so that the nearest positive has rank 2; and its
    k_temperature is k itself, `k_temperature=(1, 2, 4, 8, 16)` here. An anchor without positives is left out.

    Args:
      k: the recalls that are averaged; the default of the authors' code.
      temperature: of the ranks, above 0; the paper's default.
      k_temperature: of the hits, above 0: one for all k, or one for each; the paper's default.
      miner: weighs the anchors by how often it chose them and narrows no pairs (`dml_jax.miners`); None: alike.
      distance: "cosine" alone (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: no k at all, or another number of temperatures than of k.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(recall_at_k(k=(1, 2))(x, [0, 1, 0, 1])), 3)
      0.711
    """
    several = k_temperature if isinstance(k_temperature, tuple) else (1.0,) * len(k)
    if not k or len(several) != len(k):
        raise UserError(
            f"loss 'recall_at_k' has k={k} and k_temperature={k_temperature}; accepted: one k or more, and one "
            "temperature for all or one for each"
        )
    parts = build_parts(
        "recall_at_k",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        only_distances=("cosine",),
    )
    kernel = from_rows(recall_at_k_rows, k=k, temperature=temperature, k_temperature=k_temperature)
    return on_pairs("recall_at_k", parts, kernel, weighs_samples=True)


def ranked_list_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    margin: float,
    Tn: float,
    imbalance: float,
    alpha: float | None,
    Tp: float,
    own: Float[Array, " a"] | None = None,
) -> Rows:
    """Returns the ranked list loss of each anchor, of distances; see `ranked_list`."""
    alpha = 1 + margin / 2 if alpha is None else alpha
    pos, neg = pos > 0, neg > 0
    size = jnp.sum(pos | neg, -1) + (own is not None)

    def side(excess: Array, keep: Array, temperature: float) -> Array:
        """sum w x / (sum w + e) with w = exp(temperature x), both divided by the largest w."""
        scaled = jnp.where(keep, temperature * excess, 0)
        top = jax.lax.stop_gradient(jnp.max(scaled, -1, initial=0))
        weight = jnp.where(keep, jnp.exp(scaled - top[:, None]), 0)
        total = jnp.sum(weight, -1) + 1e-5 * jnp.maximum(size, 1) * jnp.exp(-top)
        return jnp.sum(weight * jnp.where(keep, excess, 0), -1) / total

    far, near = sims - (alpha - margin), alpha - sims
    # Asked this way round, NaN stays in play.
    value = (1 - imbalance) * side(far, pos & ~((far <= 0) | (sims <= 0)), Tp)
    value += imbalance * side(near, neg & ~(near <= 0), Tn)
    return value, jnp.ones_like(value)


def _ranked_list(
    block: Block,
    *,
    margin: float,
    Tn: float,
    imbalance: float,
    alpha: float | None,
    Tp: float,
) -> Any:
    pos, neg = block.selection.pairs()
    return ranked_list_rows(
        block.sims,
        pos,
        neg,
        margin=margin,
        Tn=Tn,
        imbalance=imbalance,
        alpha=alpha,
        Tp=Tp,
        own=block.self_sims,
    )


@checked("loss")
def ranked_list(
    margin: float,
    Tn: float,
    imbalance: Fraction = 0.5,
    alpha: float | None = None,
    Tp: float = 0.0,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the ranked list loss of each anchor (Wang et al., CVPR 2019), of distances.

    l = (1 - imbalance) sum_p w_p (d_ap - b) / (sum_p w_p + e)      over d_ap > b = alpha - margin,
        + imbalance     sum_n w_n (alpha - d_an) / (sum_n w_n + e)  over d_an < alpha

    w_p = exp(Tp (d_ap - b)), w_n = exp(Tn (alpha - d_an)), both differentiated as in PML;
    e = 1e-5 B is PML's, with B all references and the anchor. A side without
    such pairs is 0; every anchor weighs 1. Differs from PML: negatives at distance 0 count (PML leaves
    them out), no temperature overflows, miners (a repeated pair counts once) and references are taken.

    Args:
      margin: between the two boundaries; required, as in PML (the paper: 0.4).
      Tn: the temperature of the negatives' weights; required, as in PML (the paper: 10).
      imbalance: the share of the negatives, 0 to 1; PML's default.
      alpha: the boundary of the negatives; None, PML's default: 1 + margin / 2.
      Tp: the temperature of the positives' weights; PML's default.
      miner: narrows the pairs in play (`dml_jax.miners`): a name, a dict with a name, or the object; None: all pairs.
      distance: by default "lp", Euclidean between normalised vectors, as in PML; or "snr" (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: a similarity as its distance, an imbalance that is no fraction.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(ranked_list(margin=0.4, Tn=10)(x, [0, 1, 0, 1])), 3)
      0.586
    """
    parts = build_parts(
        "ranked_list",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        default_distance="lp",
        only_distances=("lp", "snr"),
    )
    kernel = Bound(_ranked_list, margin=margin, Tn=Tn, imbalance=imbalance, alpha=alpha, Tp=Tp)
    return on_pairs("ranked_list", parts, kernel)
