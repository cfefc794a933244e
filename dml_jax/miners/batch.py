"""Deterministic miners by row: `(sims [a, n], pos, neg, *, ...) -> Selection`.

`sims` is the miner's own distance of the anchors to all references (similarities or, where
`similarity=False`, distances), `pos` and `neg` what the relation allows, self excluded. Everything is by
row, so that blocks and devices choose alike.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from dml_jax import distances
from dml_jax.pairwise import Block, WholeBatch
from dml_jax.selection import (
    Listed,
    Selection,
    Streamed,
    Within,
    list_triplets,
    pick,
    place_of_least,
    rows_at,
)

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
    positive, negative = place_of_least(-d, pos > 0), place_of_least(d, neg > 0)
    return Selection(pos, neg, list_triplets(pos, neg, positive, negative))


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


def pair_margin(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    pos_margin: float = 0.2,
    neg_margin: float = 0.8,
    similarity: bool = False,
) -> Selection:
    """Positive pairs farther than `pos_margin` and negative pairs nearer than `neg_margin`.

    d_ap > pos_margin, d_an < neg_margin        (`similarity=True`: s_ap < pos_margin, s_an > neg_margin)

    Same as PML.
    """
    sign = -1.0 if similarity else 1.0
    return Selection(
        jnp.where(sign * sims > sign * pos_margin, pos, jnp.zeros_like(pos)),
        jnp.where(sign * sims < sign * neg_margin, neg, jnp.zeros_like(neg)),
    )


STRATEGIES = ("hard", "semihard", "easy", "all")


def check_strategies(
    *,
    pos_strategy: str = "easy",
    neg_strategy: str = "semihard",
    **ranges: tuple[float, float] | None,
) -> None:
    """ValueError for strategies that wait for each other's pick, and for ranges that are no range."""
    both = (pos_strategy, neg_strategy)
    if "semihard" in both and set(both) <= {"semihard", "all"}:
        raise ValueError(
            f"miner 'batch_easy_hard' has pos_strategy={pos_strategy!r} and neg_strategy={neg_strategy!r}; "
            "accepted: 'semihard' for one of them, with 'easy' or 'hard' for the other"
        )
    for name, bounds in ranges.items():
        if bounds is not None and (len(bounds) != 2 or not bounds[0] <= bounds[1]):
            raise ValueError(
                f"{name} of miner 'batch_easy_hard' is {bounds}; accepted: (low, high), or None"
            )


def batch_easy_hard(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    pos_strategy: str = "easy",
    neg_strategy: str = "semihard",
    allowed_pos_range: tuple[float, float] | None = None,
    allowed_neg_range: tuple[float, float] | None = None,
    similarity: bool = False,
) -> Selection:
    """A positive and a negative of each anchor, by strategy (Xuan, Stylianou, Pless, WACV 2020).

    positive: the nearest ("easy"), the farthest ("hard"), the farthest of those strictly nearer than the
              chosen negative ("semihard"), or all of them
    negative: the farthest ("easy"), the nearest ("hard"), the nearest of those strictly farther than the
              chosen positive ("semihard"), or all of them

    Only pairs whose distance (or similarity) is in the allowed range are picked, bounds included; "all"
    knows no range, as in PML. Unless one of the strategies is "all" an anchor that lacks either pick is left
    out. Of several that are equally far the first is taken. "semihard" twice, or with "all", is refused.
    Same as PML.
    """
    d = -sims if similarity else sims

    def choose(
        mask: Mask, strategy: str, far: bool, bounds: tuple[float, float] | None, than: Mask | None
    ) -> Bool[Array, "a n"]:
        """Marks the pick of each row; `than` marks what a semihard one must not reach."""
        if strategy == "all":
            return mask > 0
        keep = mask > 0
        if bounds is not None:
            keep &= (sims >= bounds[0]) & (sims <= bounds[1])
        if strategy == "semihard" and than is not None:
            limit = pick(than, d)[:, None]
            keep &= jnp.any(than, -1, keepdims=True) & ((d < limit) if far else (d > limit))
        place = place_of_least(-d if far else d, keep)
        return keep & (jnp.arange(d.shape[1])[None, :] == place)

    def positive(than: Mask | None) -> Bool[Array, "a n"]:
        return choose(pos, pos_strategy, pos_strategy != "easy", allowed_pos_range, than)

    def negative(than: Mask | None) -> Bool[Array, "a n"]:
        return choose(neg, neg_strategy, neg_strategy == "easy", allowed_neg_range, than)

    if pos_strategy == "semihard":
        chosen_neg = negative(None)
        chosen_pos = positive(chosen_neg)
    else:
        chosen_pos = positive(None)
        chosen_neg = negative(chosen_pos)
    if "all" not in (pos_strategy, neg_strategy):
        both = jnp.any(chosen_pos, -1, keepdims=True) & jnp.any(chosen_neg, -1, keepdims=True)
        chosen_pos, chosen_neg = chosen_pos & both, chosen_neg & both
    return Selection(chosen_pos, chosen_neg)


def check_angle(*, angle: float = 20.0) -> None:
    """ValueError for an angle that no triangle has."""
    if not 0 < angle < 90:
        raise ValueError(f"angle of miner 'angular' is {angle}; accepted: degrees between 0 and 90")


def angular(sims: Sims, pos: Mask, neg: Mask, *, angle: float = 20.0, block: Block) -> Selection:
    """All triplets whose angle at the negative is above `angle` degrees (Wang et al., ICCV 2017, eq. 5).

    atan( d_ap / 2 d_nc ) > angle,    c = (x_a + x_p) / 2

    of normalised embeddings; by Apollonius' theorem that is d_an^2 + d_pn^2 < d_ap^2 / (2 sin^2 angle), so
    that no centre is needed, and no triplet is listed: they are tested one positive at a time. A triplet
    of coincident anchor and positive is never chosen. Differs from PML: PML measures the angles of the
    embeddings as they are, although it asks for a normalising distance, so that their lengths decide;
    on normalised embeddings it chooses the same, but for three coincident vectors (26 degrees in PML,
    whose distances have an offset of 1e-6).
    """
    bound = 0.5 / math.sin(math.radians(angle)) ** 2
    return Selection(pos, neg, Streamed(sims, block.refs, _wide, bound))


def _wide(
    one: Bool[Array, "a n"], order: Sims, refs: Float[Array, "n d"], bound: float
) -> Bool[Array, "a n"]:
    """Where d_an^2 + d_pn^2 < bound d_ap^2, for the positive that `one` marks."""
    beyond = order**2 + distances.lp(rows_at(one, refs), refs) ** 2
    return beyond < bound * pick(one, order)[:, None] ** 2


def packaged_before(whole_batch: WholeBatch) -> Array:
    """Which references are there, `[n]`."""
    return whole_batch.refs[2] > 0


def embeddings_already_packaged_as_triplets(
    sims: Sims, pos: Mask, neg: Mask, *, block: Block, miner_state: Bool[Array, " n"]
) -> Selection:
    """The triplets (3i, 3i + 1, 3i + 2) of a batch that a sampler has put together so.

    Labels are not read, though a triplet of which a sample is padding is left out. With references the
    positive and the negative are the references of these places, as in PML. An incomplete last triplet
    is left out (PML: an error).
    """
    last = sims.shape[1] - 1
    first = block.anchor_ids[:, None]
    positive, negative = (jnp.minimum(first + k, last) for k in (1, 2))
    complete = (first % 3 == 0) & (first + 2 <= last) & block.anchor_valid[:, None]
    complete &= miner_state[positive] & miner_state[negative]
    return Selection(pos, neg, Listed(positive, negative, complete.astype(sims.dtype)))
