"""Miners of the ICML 2020 study (Roth et al., "Revisiting Training Strategies", ICML 2020, and its code).

They are in the table of `dml_jax.miners`, under the same names. Those that draw give one triplet for each anchor that
has one, from the anchor's own key. They weigh by distances, by default Euclidean ones of normalised embeddings; the
reference code takes them of the embeddings as they come (give `distance={"name": "lp", "normalize_embeddings":
False}`), which is the same for a network that normalises.

In all of them an anchor without a positive or without a negative is left out unless said otherwise, where the reference
code fails, or takes the anchor for its own positive (distance).
"""

import math
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dml_jax import distances
from dml_jax.bound import Bound
from dml_jax.errors import UserError
from dml_jax.mining import Keys, Mask, Miner, Sims, from_rows, log_rarity, needs_distance
from dml_jax.pairwise import Block
from dml_jax.parameters import (
    Fraction,
    Interval,
    NonNegativeFloat,
    PositiveFloat,
    checked,
)
from dml_jax.selection import Listed, Selection, draw, draw_positive, list_triplets

Mode = Literal["uniform", "hards", "semihards", "veryhards"]


@checked("miner")
def semihard(margin: NonNegativeFloat = 0.2, *, distance: Any = None) -> Miner:
    """Draws a positive p and a negative a little farther, both uniformly (Schroff et al., CVPR 2015).

        n from {n: d_ap < d_an < d_ap + margin}; from all negatives where that is empty

    Args:
      margin: how much farther the negative may be, at least 0; 0.2, the reference code's default margin of its loss.
      distance: a name, a dict with a name, or a `Distance`; Euclidean ("lp") by default. (A similarity s is taken for
        the distance -s.)

    Example:
      >>> import jax
      >>> from dml_jax import miners
      >>> x = [[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [-1.0, 0.0]]
      >>> mined = miners.semihard(0.5)(x, [0, 0, 1, 2], key=jax.random.key(0))
      >>> [i.tolist() for i in mined.indices()]
      [[0, 1], [1, 0], [2, 2]]

    Differs from the reference code, which takes the margin of the loss.
    """
    built = distances.build(distance, "lp")
    select = Bound(select_semihard, margin=margin, similarity=built.similarity)
    return Miner("semihard", select, built, triplets=True, draws=True)


def select_semihard(block: Block, *, margin: float, similarity: bool) -> Selection:
    """Draws the triplets of `semihard`."""
    pos, neg = block.related.pos, block.related.neg
    d = -block.sims if similarity else block.sims
    first, second = split_keys(block.keys, 2)
    positive = draw(first, pos)
    gap = d - jnp.take_along_axis(d, positive, -1)
    negative = draw(second, _prefer((gap > 0) & (gap < margin), neg))
    return Selection(pos, neg, list_triplets(pos, neg, positive, negative))


@checked("miner")
def softhard(*, distance: Any = None) -> Miner:
    """Draws a hard positive and a hard negative, uniformly from all hard ones (Roth et al., ICML 2020).

        p from {p: d_ap > min_n d_an},    n from {n: d_an < max_p d_ap}

    Where such a set is empty, from all positives, or all negatives.

    Args:
      distance: a name, a dict with a name, or a `Distance`; Euclidean ("lp") by default. (A similarity s is taken for
        the distance -s.)

    Example:
      >>> import jax
      >>> from dml_jax import miners
      >>> x = [[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [-1.0, 0.0]]
      >>> mined = miners.softhard()(x, [0, 0, 1, 1], key=jax.random.key(0))
      >>> [i.tolist() for i in mined.indices()]
      [[0, 1, 2, 3], [1, 0, 3, 2], [2, 2, 0, 0]]
    """
    built = distances.build(distance, "lp")
    select = Bound(select_softhard, similarity=built.similarity)
    return Miner("softhard", select, built, triplets=True, draws=True)


def select_softhard(block: Block, *, similarity: bool) -> Selection:
    """Draws the triplets of `softhard`."""
    pos, neg = block.related.pos, block.related.neg
    d = -block.sims if similarity else block.sims
    farthest = jnp.max(jnp.where(pos > 0, d, -jnp.inf), -1, keepdims=True)
    nearest = jnp.min(jnp.where(neg > 0, d, jnp.inf), -1, keepdims=True)
    first, second = split_keys(block.keys, 2)
    positive = draw(first, _prefer(d > nearest, pos))
    negative = draw(second, _prefer(d < farthest, neg))
    return Selection(pos, neg, list_triplets(pos, neg, positive, negative))


@checked("miner")
def distance(lower_cutoff: PositiveFloat = 0.5, *, distance: Any = None) -> Miner:
    """Draws a uniform positive and a distance-weighted negative (Wu et al., ICCV 2017, eq. 3).

        P(n) ~ 1 / q(max(d_an, lower_cutoff)),    q(d) = d^(D - 2) (1 - d^2 / 4)^((D - 3) / 2),

    q being the density of distances on the unit sphere of the embeddings' D dimensions. There is no upper cutoff, as in
    the reference code: beyond sqrt(2) the weight grows again. 1 - d^2 / 4 is at least 1e-7, so that an opposite
    negative takes all the weight, as in the limit, and nothing is NaN.

    Args:
      lower_cutoff: the distance under which all negatives weigh alike, above 0; 0.5 is the reference code's default.
      distance: a name, a dict with a name, or a `Distance`, no similarity; Euclidean ("lp") by default.

    Raises:
      UserError: a similarity as its distance.

    Example:
      >>> import jax
      >>> from dml_jax import miners
      >>> x = [[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.6, 0.8, 0.0], [-0.6, 0.8, 0.0]]
      >>> mined = miners.distance()(x, [0, 0, 1, 2], key=jax.random.key(0))
      >>> [i.tolist() for i in mined.indices()]
      [[0, 1], [1, 0], [3, 2]]

    Differs from the reference code, which ends in an error for d >= 2.
    """
    built = distances.build(distance, "lp")
    needs_distance("distance", built)
    select = Bound(select_distance, lower_cutoff=lower_cutoff)
    return Miner("distance", select, built, triplets=True, draws=True)


def select_distance(block: Block, *, lower_cutoff: float) -> Selection:
    """Draws the triplets of `distance`."""
    pos, neg = block.related.pos, block.related.neg
    dim = block.anchors.shape[-1]
    drawn = draw_by_distance(block.keys, block.sims, pos, neg, dim, lower_cutoff)
    return Selection(pos, neg, drawn)


@checked("miner")
def rho_distance(
    p_switch: Fraction = 0.2, lower_cutoff: PositiveFloat = 0.5, *, distance: Any = None
) -> Miner:
    """Draws distance-weighted triplets, some of them switched (rho-regularisation, Roth et al., ICML 2020, sec. 5).

    With probability p_switch the triplet is (a, a, p): a uniform sample p of the anchor's class takes the place of the
    negative and the anchor itself that of the positive, so that the class is spread and the spectrum of the embeddings
    flattened. Otherwise as `distance`.

    An anchor without a negative has switched triplets only. Distances of an anchor to itself are 0 with a zero
    gradient. It takes no references without the batch: an anchor has no name among them.

    Args:
      p_switch: the probability of a switched triplet, 0 to 1 (the reference code calls it `cp`); 0.2 by default.
      lower_cutoff: as in `distance`; 0.5 by default.
      distance: a name, a dict with a name, or a `Distance`, no similarity; Euclidean ("lp") by default.

    Raises:
      UserError: a similarity as its distance; references that are not the batch.

    Example:
      >>> import jax
      >>> from dml_jax import miners
      >>> x = [[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.6, 0.8, 0.0], [-0.6, 0.8, 0.0]]
      >>> mined = miners.rho_distance(p_switch=1)(x, [0, 0, 1, 2], key=jax.random.key(0))
      >>> [i.tolist() for i in mined.indices()]
      [[0, 1], [0, 1], [1, 0]]
    """
    built = distances.build(distance, "lp")
    needs_distance("rho_distance", built)
    select = Bound(select_rho_distance, p_switch=p_switch, lower_cutoff=lower_cutoff)
    return Miner("rho_distance", select, built, triplets=True, draws=True)


def select_rho_distance(block: Block, *, p_switch: float, lower_cutoff: float) -> Selection:
    """Draws the triplets of `rho_distance`."""
    if not block.refs_include_batch:
        raise needs_batch("rho_distance")
    pos, neg = block.related.pos, block.related.neg
    coin, other, rest = split_keys(block.keys, 3)
    dim = block.anchors.shape[-1]
    usual = draw_by_distance(rest, block.sims, pos, neg, dim, lower_cutoff)
    coins = jax.vmap(lambda key: jax.random.bernoulli(key, jnp.float32(p_switch)))(coin)
    switch = coins[:, None]
    some = jnp.any(pos > 0, -1, keepdims=True).astype(usual.weight.dtype)
    triplets = Listed(
        jnp.where(switch, block.anchor_ids[:, None], usual.positive),
        jnp.where(switch, draw(other, pos), usual.negative),
        jnp.where(switch, some, usual.weight),
        intra_class_negatives=True,
    )
    return Selection(pos, neg, triplets)


@checked("miner")
def parametric(
    mode: Mode = "uniform",
    n_support: Annotated[int, Interval(2, closed_low=True)] = 30,
    support_lim: tuple[float, float] = (0.1, 1.4),
    *,
    distance: Any = None,
) -> Miner:
    """Draws a uniform positive and a negative weighted by the bin of its distance (Roth et al., ICML 2020).

    The n_support points of support_lim, evenly spaced, bound n_support - 1 bins; a bin [low, high) weighs, by its lower
    end,

        uniform: 1    hards: [low <= 0.5]    veryhards: [low <= 0.3]    semihards: [0.3 <= low <= 0.7]

    but at least 1e-15, so that negatives of a bin without weight are drawn, uniformly, where there are no others.
    Negatives outside of support_lim are never drawn; an anchor with no other is left out.

    Args:
      mode: "uniform" (the default), "hards", "semihards" or "veryhards".
      n_support: points that bound the bins, at least 2; 30 by default (ours: the reference code has no default).
      support_lim: (low, high), the lower limit first; (0.1, 1.4) by default (ours).
      distance: a name, a dict with a name, or a `Distance`, no similarity; Euclidean ("lp") by default.

    Raises:
      UserError: limits in the wrong order; a similarity as its distance.

    Example:
      >>> import jax
      >>> from dml_jax import miners
      >>> x = [[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [-1.0, 0.0]]
      >>> mined = miners.parametric("hards")(x, [0, 0, 1, 2], key=jax.random.key(0))
      >>> [i.tolist() for i in mined.indices()]
      [[0, 1], [1, 0], [2, 2]]

    Differs from the reference code, which has no such settings in its parser, opens a shell in mode semihards and
    weighs bins outside of its range by their position, and whose test for negatives out of the support is never true.
    """
    if not support_lim[0] < support_lim[1]:
        raise UserError(
            f"support_lim of miner 'parametric' is {support_lim}; accepted: two limits, the lower limit first"
        )
    built = distances.build(distance, "lp")
    needs_distance("parametric", built)
    select = Bound(select_parametric, mode=mode, n_support=n_support, support_lim=support_lim)
    return Miner("parametric", select, built, triplets=True, draws=True)


def select_parametric(
    block: Block, *, mode: Mode, n_support: int, support_lim: tuple[float, float]
) -> Selection:
    """Draws the triplets of `parametric`."""
    sims, pos, neg = block.sims, block.related.pos, block.related.neg
    low, high = support_lim
    points = np.linspace(low, high, n_support)
    ends = np.round(points[:-1], 9)  # 0.3 must be 0.3, whatever the spacing's rounding
    weights = {
        "uniform": np.ones_like(ends),
        "hards": ends <= 0.5,
        "veryhards": ends <= 0.3,
        "semihards": (ends >= 0.3) & (ends <= 0.7),
    }[mode]
    logits = jnp.asarray(np.log(np.maximum(weights, 1e-15)), sims.dtype)
    bins = jnp.searchsorted(jnp.asarray(points[1:-1], sims.dtype), sims, side="left")
    inside = jnp.where((sims >= low) & (sims <= high), neg, jnp.zeros_like(neg))
    first, second = split_keys(block.keys, 2)
    negative = _draw_weighted(second, logits[bins], inside)
    return Selection(pos, neg, list_triplets(pos, inside, draw(first, pos), negative))


@checked("miner")
def n_pair(*, distance: Any = None) -> Miner:
    """Keeps one positive of each anchor, drawn uniformly, and all its negatives (Sohn, NeurIPS 2016).

    Pairs, not triplets. An anchor without a positive keeps nothing.

    Args:
      distance: is not used; every miner takes one.

    Example:
      >>> import jax
      >>> from dml_jax import miners
      >>> mined = miners.n_pair()([[1.0], [2.0], [3.0]], [0, 0, 1], key=jax.random.key(0))
      >>> [i.tolist() for i in mined.indices()]
      [[0, 1], [1, 0], [0, 1], [2, 2]]
    """
    built = distances.build(distance, "lp")
    return Miner("n_pair", select_n_pair, built, triplets=False, draws=True)


def select_n_pair(block: Block) -> Selection:
    """Draws the pairs of `n_pair`."""
    assert block.keys is not None
    pos, neg = block.related.pos, block.related.neg
    return select_lifted(block.sims, draw_positive(pos, neg, block.keys).pos, neg)


@checked("miner")
def lifted(*, distance: Any = None) -> Miner:
    """Keeps all pairs of the anchors that have a positive (Oh Song et al., CVPR 2016). It draws nothing.

    Args:
      distance: is not used; every miner takes one.

    Example:
      >>> from dml_jax import miners
      >>> [i.tolist() for i in miners.lifted()([[1.0], [2.0], [3.0]], [0, 0, 1]).indices()]
      [[0, 1], [1, 0], [0, 1], [2, 2]]
    """
    return Miner(
        "lifted", from_rows(select_lifted), distances.build(distance, "lp"), triplets=False
    )


def select_lifted(sims: Sims, pos: Mask, neg: Mask) -> Selection:
    """Chooses the pairs of `lifted`."""
    del sims
    some = jnp.any(pos > 0, -1, keepdims=True)
    return Selection(pos, jnp.where(some, neg, jnp.zeros_like(neg)))


def draw_by_distance(
    keys: Keys | None, d: Sims, pos: Mask, neg: Mask, dim: int, lower_cutoff: float
) -> Listed:
    """Draws the triplets of `distance`."""
    logits = log_rarity(jnp.maximum(d, lower_cutoff), dim)
    first, second = split_keys(keys, 2)
    return list_triplets(pos, neg, draw(first, pos), _draw_weighted(second, logits, neg))


def needs_batch(name: str) -> UserError:
    """Makes the error of a miner that names samples as partners of themselves."""
    return UserError(
        f"miner {name!r} draws from the batch itself and has references that are not the batch; accepted: "
        "no ref_embeddings"
    )


def split_keys(keys: Keys | None, count: int) -> Keys:
    """Returns `count` arrays of keys from one."""
    return jax.vmap(lambda key: jax.random.split(key, count), out_axes=1)(keys)


def _prefer(some: Bool[Array, "a n"], mask: Mask) -> Mask:
    """Returns those of the mask that are in `some`; the whole mask in rows where none is."""
    both = jnp.where(some, mask, jnp.zeros_like(mask))
    return jnp.where(jnp.any(both > 0, -1, keepdims=True), both, mask)


def _draw_weighted(keys: Keys, logits: Float[Array, "a n"], mask: Mask) -> Int[Array, "a 1"]:
    """Draws one column of each row's mask, column j with a probability ~ exp(logits_j)."""
    logits = jnp.where(mask > 0, logits, -math.inf)
    return jax.vmap(jax.random.categorical)(keys, logits)[:, None]
