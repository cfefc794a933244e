"""Miners of the ICML 2020 study (Roth et al., "Revisiting Training Strategies", ICML 2020, and its code).

`(sims [a, n], pos, neg, *, ...) -> Selection`, as in `batch`. Those that draw give one triplet for each
anchor that has one, from the anchor's own key. `sims` are distances, by default Euclidean ones of
normalised embeddings; the reference code takes them of the embeddings as they come (give
`distance={"name": "lp", "normalize_embeddings": False}`), which is the same for a network that normalises.

In all of them an anchor without a positive or without a negative is left out unless said otherwise,
where the reference code fails, or takes the anchor for its own positive (distance).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from dml_jax.miners.batch import Mask, Sims
from dml_jax.miners.distance_weighted import log_rarity
from dml_jax.pairwise import Block
from dml_jax.selection import Listed, Selection, draw, draw_positive, list_triplets

Keys = Key[Array, " a"]


def semihard(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    margin: float = 0.2,
    similarity: bool = False,
    keys: Keys,
) -> Selection:
    """A positive p and a negative a little farther, both drawn uniformly (Schroff et al., CVPR 2015).

    n from {n: d_ap < d_an < d_ap + margin}; from all negatives where that is empty. The reference code
    takes the margin of the loss.
    """
    d = -sims if similarity else sims
    first, second = _split(keys, 2)
    positive = draw(first, pos)
    gap = d - jnp.take_along_axis(d, positive, -1)
    negative = draw(second, _prefer((gap > 0) & (gap < margin), neg))
    return Selection(pos, neg, list_triplets(pos, neg, positive, negative))


def softhard(
    sims: Sims, pos: Mask, neg: Mask, *, similarity: bool = False, keys: Keys
) -> Selection:
    """A hard positive and a hard negative, drawn uniformly from all hard ones (Roth et al., ICML 2020).

    p from {p: d_ap > min_n d_an},    n from {n: d_an < max_p d_ap}

    Where such a set is empty, from all positives, or all negatives.
    """
    d = -sims if similarity else sims
    farthest = jnp.max(jnp.where(pos > 0, d, -jnp.inf), -1, keepdims=True)
    nearest = jnp.min(jnp.where(neg > 0, d, jnp.inf), -1, keepdims=True)
    first, second = _split(keys, 2)
    positive = draw(first, _prefer(d > nearest, pos))
    negative = draw(second, _prefer(d < farthest, neg))
    return Selection(pos, neg, list_triplets(pos, neg, positive, negative))


def distance(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    lower_cutoff: float = 0.5,
    similarity: bool = False,
    block: Block,
    keys: Keys,
) -> Selection:
    """A uniform positive and a distance-weighted negative (Wu et al., ICCV 2017, eq. 3).

    P(n) ~ 1 / q(max(d_an, lower_cutoff)),    q(d) = d^(D - 2) (1 - d^2 / 4)^((D - 3) / 2),

    q being the density of distances on the unit sphere of the embeddings' D dimensions. There is no upper
    cutoff, as in the reference code: beyond sqrt(2) the weight grows again. 1 - d^2 / 4 is at least 1e-7,
    so that an opposite negative takes all the weight, as in the limit, and nothing is NaN (reference code:
    an error for d >= 2).
    """
    check_distance("distance", similarity)
    dim = block.anchors.shape[-1]
    return Selection(pos, neg, draw_by_distance(keys, sims, pos, neg, dim, lower_cutoff))


def rho_distance(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    p_switch: float = 0.2,
    lower_cutoff: float = 0.5,
    similarity: bool = False,
    block: Block,
    keys: Keys,
) -> Selection:
    """Distance-weighted triplets, some of them switched (rho-regularisation, Roth et al., ICML 2020, sec. 5).

    With probability p_switch the triplet is (a, a, p): a uniform sample p of the anchor's class takes the
    place of the negative and the anchor itself that of the positive, so that the class is spread and the
    spectrum of the embeddings flattened. Otherwise as `distance`. The reference code calls p_switch `cp`.

    An anchor without a negative has switched triplets only. Distances of an anchor to itself are 0
    with a zero gradient. Takes no references without the batch: an anchor has no name among them.
    """
    if not block.refs_include_batch:
        raise needs_batch("rho_distance")
    if not 0 <= p_switch <= 1:
        raise ValueError(f"p_switch of miner 'rho_distance' is {p_switch}; accepted: 0 to 1")
    check_distance("rho_distance", similarity)
    coin, other, rest = _split(keys, 3)
    usual = draw_by_distance(rest, sims, pos, neg, block.anchors.shape[-1], lower_cutoff)
    switch = jax.vmap(lambda key: jax.random.bernoulli(key, p_switch))(coin)[:, None]
    some = jnp.any(pos > 0, -1, keepdims=True).astype(usual.weight.dtype)
    triplets = Listed(
        jnp.where(switch, block.anchor_ids[:, None], usual.positive),
        jnp.where(switch, draw(other, pos), usual.negative),
        jnp.where(switch, some, usual.weight),
        intra_class_negatives=True,
    )
    return Selection(pos, neg, triplets)


MODES = ("uniform", "hards", "semihards", "veryhards")


def parametric(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    mode: str = "uniform",
    n_support: int = 30,
    support_lim: tuple[float, float] = (0.1, 1.4),
    similarity: bool = False,
    keys: Keys,
) -> Selection:
    """A uniform positive and a negative weighted by the bin of its distance.

    The n_support points of support_lim, evenly spaced, bound n_support - 1 bins; a bin [low, high) weighs,
    by its lower end,

    uniform: 1    hards: [low <= 0.5]    veryhards: [low <= 0.3]    semihards: [0.3 <= low <= 0.7]

    but at least 1e-15, so that negatives of a bin without weight are drawn, uniformly, where there are no
    others. Negatives outside of support_lim are never drawn; an anchor with no other is left out.

    Differs from the reference code, which has no such settings in its parser (the defaults here are ours),
    opens a shell in mode semihards and weighs bins outside of its range by their position, and whose test
    for negatives outside of the support is never true.
    """
    check_distance("parametric", similarity)
    low, high = support_lim
    if not low < high or n_support < 2:
        raise ValueError(
            f"miner 'parametric' has n_support={n_support} points of support_lim={support_lim}; accepted: two "
            "points or more, the lower limit first"
        )
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
    first, second = _split(keys, 2)
    negative = _draw_weighted(second, logits[bins], inside)
    return Selection(pos, neg, list_triplets(pos, inside, draw(first, pos), negative))


def n_pair(sims: Sims, pos: Mask, neg: Mask, *, keys: Keys) -> Selection:
    """One positive of each anchor, drawn uniformly, and all its negatives (Sohn, NeurIPS 2016).

    Pairs, not triplets. An anchor without a positive keeps nothing.
    """
    return lifted(sims, draw_positive(pos, neg, keys).pos, neg)


def lifted(sims: Sims, pos: Mask, neg: Mask) -> Selection:
    """All pairs of the anchors that have a positive (Oh Song et al., CVPR 2016). Draws nothing."""
    del sims
    some = jnp.any(pos > 0, -1, keepdims=True)
    return Selection(pos, jnp.where(some, neg, jnp.zeros_like(neg)))


def draw_by_distance(
    keys: Keys,
    d: Float[Array, "a n"],
    pos: Mask,
    neg: Mask,
    dim: int,
    lower_cutoff: float,
) -> Listed:
    """The triplets of `distance`."""
    logits = log_rarity(jnp.maximum(d, lower_cutoff), dim)
    first, second = _split(keys, 2)
    return list_triplets(pos, neg, draw(first, pos), _draw_weighted(second, logits, neg))


def needs_batch(name: str) -> ValueError:
    """The error of a miner that names samples as partners of themselves."""
    return ValueError(
        f"miner {name!r} draws from the batch itself and has references that are not the batch; accepted: "
        "no ref_embeddings"
    )


def check_distance(name: str, similarity: bool) -> None:
    """ValueError where a miner that weighs by distances is given a similarity."""
    if similarity:
        raise ValueError(f"miner {name!r} has a similarity as its distance; accepted: a distance")


def _split(keys: Keys, count: int) -> Keys:
    """`count` arrays of keys from one."""
    return jax.vmap(lambda key: jax.random.split(key, count), out_axes=1)(keys)


def _prefer(some: Bool[Array, "a n"], mask: Mask) -> Mask:
    """Those of the mask that are in `some`; the whole mask in rows where none is."""
    both = jnp.where(some, mask, jnp.zeros_like(mask))
    return jnp.where(jnp.any(both > 0, -1, keepdims=True), both, mask)


def _draw_weighted(keys: Keys, logits: Float[Array, "a n"], mask: Mask) -> Int[Array, "a 1"]:
    """One column of each row's mask, column j with a probability ~ exp(logits_j)."""
    logits = jnp.where(mask > 0, logits, -math.inf)
    return jax.vmap(jax.random.categorical)(keys, logits)[:, None]
