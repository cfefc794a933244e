"""Miners of pairs that look at one row of similarities at a time."""

from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool

from dml_jax import distances
from dml_jax.errors import UserError
from dml_jax.mining import Mask, Miner, Sims, from_rows
from dml_jax.parameters import checked
from dml_jax.selection import Selection, pick, place_of_least

Strategy = Literal["hard", "semihard", "easy", "all"]
Range = tuple[float, float] | None


@checked("miner")
def multi_similarity(epsilon: float = 0.1, *, distance: Any = None) -> Miner:
    """Keeps pairs harder than the other kind's hardest, up to a margin (Wang et al., CVPR 2019, eq. 7, 8).

        positives with s_ap - epsilon < max_n s_an;   negatives with s_an + epsilon > min_p s_ap

    An anchor without a positive or without a negative keeps nothing.

    Args:
      epsilon: how much easier a pair may be; 0.1 is PML's default.
      distance: a name, a dict with a name, or a `Distance`; cosine by default, as in PML. (A distance d is taken for
        the similarity -d.)

    Example:
      >>> from dml_jax import miners
      >>> x = [[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [-1.0, 0.0]]
      >>> [i.tolist() for i in miners.multi_similarity()(x, [0, 0, 1, 1]).indices()]
      [[1, 2], [0, 3], [1, 2, 2], [2, 0, 1]]

    Same as PML.
    """
    built = distances.build(distance, "cosine")
    select = from_rows(select_multi_similarity, epsilon=epsilon, similarity=built.similarity)
    return Miner("multi_similarity", select, built, triplets=False)


def select_multi_similarity(
    sims: Sims, pos: Mask, neg: Mask, *, epsilon: float, similarity: bool
) -> Selection:
    """Chooses the pairs of `multi_similarity`."""
    s = sims if similarity else -sims
    hardest_neg = jnp.max(jnp.where(neg > 0, s, -jnp.inf), -1, keepdims=True)
    hardest_pos = jnp.min(jnp.where(pos > 0, s, jnp.inf), -1, keepdims=True)
    return Selection(
        jnp.where(s - epsilon < hardest_neg, pos, jnp.zeros_like(pos)),
        jnp.where(s + epsilon > hardest_pos, neg, jnp.zeros_like(neg)),
    )


@checked("miner")
def pair_margin(pos_margin: float = 0.2, neg_margin: float = 0.8, *, distance: Any = None) -> Miner:
    """Keeps positive pairs farther than `pos_margin` and negative pairs nearer than `neg_margin`.

        d_ap > pos_margin, d_an < neg_margin        (a similarity: s_ap < pos_margin, s_an > neg_margin)

    Args:
      pos_margin: the distance (or similarity) beyond which positives are kept; 0.2 is PML's default.
      neg_margin: the distance (or similarity) within which negatives are kept; 0.8 is PML's default.
      distance: a name, a dict with a name, or a `Distance`; Euclidean ("lp") by default, as in PML.

    Example:
      >>> from dml_jax import miners
      >>> x = [[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [-1.0, 0.0]]
      >>> [i.tolist() for i in miners.pair_margin()(x, [0, 0, 1, 1]).indices()]
      [[0, 1, 2, 3], [1, 0, 3, 2], [1, 2], [2, 1]]

    Same as PML.
    """
    built = distances.build(distance, "lp")
    select = from_rows(
        select_pair_margin,
        pos_margin=pos_margin,
        neg_margin=neg_margin,
        similarity=built.similarity,
    )
    return Miner("pair_margin", select, built, triplets=False)


def select_pair_margin(
    sims: Sims, pos: Mask, neg: Mask, *, pos_margin: float, neg_margin: float, similarity: bool
) -> Selection:
    """Chooses the pairs of `pair_margin`."""
    sign = -1.0 if similarity else 1.0
    return Selection(
        jnp.where(sign * sims > sign * pos_margin, pos, jnp.zeros_like(pos)),
        jnp.where(sign * sims < sign * neg_margin, neg, jnp.zeros_like(neg)),
    )


@checked("miner")
def batch_easy_hard(
    pos_strategy: Strategy = "easy",
    neg_strategy: Strategy = "semihard",
    allowed_pos_range: Range = None,
    allowed_neg_range: Range = None,
    *,
    distance: Any = None,
) -> Miner:
    """Keeps a positive and a negative of each anchor, by strategy (Xuan, Stylianou, Pless, WACV 2020).

        positive: the nearest ("easy"), the farthest ("hard"), the farthest of those strictly nearer than the
                  chosen negative ("semihard"), or all of them
        negative: the farthest ("easy"), the nearest ("hard"), the nearest of those strictly farther than the
                  chosen positive ("semihard"), or all of them

    Unless one of the strategies is "all" an anchor that lacks either pick is left out. Of several that are equally far
    the first is taken.

    Args:
      pos_strategy: "easy" (PML's default), "hard", "semihard" or "all".
      neg_strategy: "semihard" (PML's default), "easy", "hard" or "all".
      allowed_pos_range: (low, high): only positives whose distance (or similarity) is in it are picked, bounds
        included; "all" knows no range, as in PML. None (PML's default) for any.
      allowed_neg_range: likewise for negatives.
      distance: a name, a dict with a name, or a `Distance`; Euclidean ("lp") by default, as in PML.

    Raises:
      UserError: "semihard" twice, or with "all": each would wait for the other's pick. A range whose end is below its
        beginning.

    Example:
      >>> from dml_jax import miners
      >>> x = [[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [-1.0, 0.0]]
      >>> [i.tolist() for i in miners.batch_easy_hard()(x, [0, 0, 1, 2]).indices()]
      [[0, 1], [1, 0], [0, 1], [2, 3]]

    Same as PML.
    """
    both = (pos_strategy, neg_strategy)
    if "semihard" in both and set(both) <= {"semihard", "all"}:
        raise UserError(
            f"miner 'batch_easy_hard' has pos_strategy={pos_strategy!r} and neg_strategy={neg_strategy!r}; "
            "accepted: 'semihard' for one of them, with 'easy' or 'hard' for the other"
        )
    for kind, bounds in (("pos", allowed_pos_range), ("neg", allowed_neg_range)):
        if bounds is not None and not bounds[0] <= bounds[1]:
            raise UserError(
                f"allowed_{kind}_range of miner 'batch_easy_hard' is {bounds}; accepted: (low, high), or None"
            )
    built = distances.build(distance, "lp")
    select = from_rows(
        select_batch_easy_hard,
        pos_strategy=pos_strategy,
        neg_strategy=neg_strategy,
        allowed_pos_range=allowed_pos_range,
        allowed_neg_range=allowed_neg_range,
        similarity=built.similarity,
    )
    return Miner("batch_easy_hard", select, built, triplets=False)


def select_batch_easy_hard(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    pos_strategy: Strategy,
    neg_strategy: Strategy,
    allowed_pos_range: Range,
    allowed_neg_range: Range,
    similarity: bool,
) -> Selection:
    """Chooses the pairs of `batch_easy_hard`."""
    d = -sims if similarity else sims

    def choose(
        mask: Mask, strategy: Strategy, far: bool, bounds: Range, than: Mask | None
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
