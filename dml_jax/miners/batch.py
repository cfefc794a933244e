"""Deterministic miners of a batch: `(sims [a, n], pos, neg, *, ...) -> Selection`.

`sims` is the miner's own distance of the anchors to all references (similarities or, where
`similarity=False`, distances), `pos` and `neg` what the relation allows, self excluded. Everything is by
row, so that blocks and devices choose alike.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from dml_jax.selection import Listed, Selection, Within

Sims = Float[Array, "a n"]
Mask = Shaped[Array, "a n"]


def multi_similarity(
    sims: Sims, pos: Mask, neg: Mask, *, epsilon: float = 0.1, similarity: bool = True
) -> Selection:
    """Pairs harder than the other kind's hardest, up to a margin (Wang et al., CVPR 2019, eq. 7, 8).

    positives with s_ap - epsilon < max_n s_an;   negatives with s_an + epsilon > min_p s_ap

    An anchor without a positive or without a negative keeps nothing. Same as PML.
    """
    s = sims if similarity else -sims
    hardest_neg = jnp.max(jnp.where(neg > 0, s, -jnp.inf), -1, keepdims=True)
    hardest_pos = jnp.min(jnp.where(pos > 0, s, jnp.inf), -1, keepdims=True)
    return Selection(
        jnp.where(s - epsilon < hardest_neg, pos, jnp.zeros_like(pos)),
        jnp.where(s + epsilon > hardest_pos, neg, jnp.zeros_like(neg)),
    )


def batch_hard(sims: Sims, pos: Mask, neg: Mask, *, similarity: bool = False) -> Selection:
    """One triplet an anchor: its farthest positive and its nearest negative (Hermans et al., 2017).

    An anchor that lacks either is left out. Of several that are equally far the first is taken, as in
    PML.
    """
    d = -sims if similarity else sims
    some = jnp.any(pos > 0, -1, keepdims=True) & jnp.any(neg > 0, -1, keepdims=True)
    positive = jnp.argmax(jnp.where(pos > 0, d, -jnp.inf), -1, keepdims=True)
    negative = jnp.argmin(jnp.where(neg > 0, d, jnp.inf), -1, keepdims=True)
    return Selection(pos, neg, Listed(positive, negative, some.astype(sims.dtype)))


KINDS = ("all", "hard", "semihard", "easy")


def triplet_margin(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    margin: float = 0.2,
    type_of_triplets: str = "all",
    similarity: bool = False,
    own_order: bool = False,
) -> Selection:
    """All triplets whose gap x = d_an - d_ap lies in an interval (Schroff et al., CVPR 2015).

    all: x <= margin    hard: x <= 0    semihard: 0 < x <= margin    easy: x > margin

    With a similarity x = s_ap - s_an. Same as PML, which lists the triplets; here they stay an interval
    of the row.
    """
    intervals = {
        "all": (-math.inf, margin),
        "hard": (-math.inf, min(0.0, margin)),
        "semihard": (0.0, margin),
        "easy": (margin, math.inf),
    }
    low, high = intervals[type_of_triplets]
    order = -sims if similarity else sims
    return Selection(pos, neg, Within(order, float(low), float(high), own_order))
