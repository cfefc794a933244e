"""Miners of triplets that draw nothing and look at one row of similarities at a time."""

import math
from typing import Annotated, Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dml_jax import distances
from dml_jax.bound import Bound
from dml_jax.mining import Mask, Miner, Sims, from_rows, needs_euclidean
from dml_jax.pairwise import Block, WholeBatch
from dml_jax.parameters import Interval, checked
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

Kind = Literal["all", "hard", "semihard", "easy"]


@checked("miner")
def batch_hard(*, distance: Any = None) -> Miner:
    """Chooses one triplet an anchor: its farthest positive and its nearest negative (Hermans et al., 2017).

        p = argmax_p d_ap,    n = argmin_n d_an

    An anchor that lacks either is left out. Of several that are equally far the first is taken, as in PML. Where a
    distance is not a number the first positive, or negative, is taken.

    Args:
      distance: a name, a dict with a name, or a `Distance`; Euclidean ("lp") by default, as in PML.

    Example:
      >>> from dml_jax import miners
      >>> x = [[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [-1.0, 0.0]]
      >>> [i.tolist() for i in miners.batch_hard()(x, [0, 0, 1, 1]).indices()]
      [[0, 1, 2, 3], [1, 0, 3, 2], [2, 2, 1, 1]]

    Same as PML.
    """
    built = distances.build(distance, "lp")
    select = from_rows(select_batch_hard, similarity=built.similarity)
    return Miner("batch_hard", select, built, triplets=True)


def select_batch_hard(sims: Sims, pos: Mask, neg: Mask, *, similarity: bool) -> Selection:
    """Chooses the triplets of `batch_hard`."""
    d = -sims if similarity else sims
    positive, negative = place_of_least(-d, pos > 0), place_of_least(d, neg > 0)
    return Selection(pos, neg, list_triplets(pos, neg, positive, negative))


@checked("miner")
def triplet_margin(
    margin: float = 0.2, type_of_triplets: Kind = "all", *, distance: Any = None
) -> Miner:
    """Chooses all triplets whose gap x = d_an - d_ap lies in an interval (Schroff et al., CVPR 2015).

        all: x <= margin    hard: x <= 0    semihard: 0 < x <= margin    easy: x > margin

    With a similarity x = s_ap - s_an.

    Args:
      margin: the end of the interval; 0.2 is PML's default. Infinity makes "all" every triplet.
      type_of_triplets: "all" (PML's default), "hard", "semihard" or "easy".
      distance: a name, a dict with a name, or a `Distance`; Euclidean ("lp") by default, as in PML.

    Example:
      >>> from dml_jax import miners
      >>> x = [[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [-1.0, 0.0]]
      >>> [i.tolist() for i in miners.triplet_margin()(x, [0, 0, 1, 2]).indices()]
      [[1], [0], [2]]

    Same as PML, which lists the triplets; here they stay an interval of the row.
    """
    built = distances.build(distance, "lp")
    select = from_rows(
        select_triplet_margin,
        margin=margin,
        type_of_triplets=type_of_triplets,
        similarity=built.similarity,
    )
    return Miner("triplet_margin", select, built, triplets=True)


def select_triplet_margin(
    sims: Sims, pos: Mask, neg: Mask, *, margin: float, type_of_triplets: Kind, similarity: bool
) -> Selection:
    """Chooses the triplets of `triplet_margin`."""
    intervals = {
        "all": (-math.inf, margin),
        "hard": (-math.inf, min(0.0, margin)),
        "semihard": (0.0, margin),
        "easy": (margin, math.inf),
    }
    low, high = intervals[type_of_triplets]
    order = -sims if similarity else sims
    return Selection(pos, neg, Within(order, float(low), float(high)))


@checked("miner")
def angular(angle: Annotated[float, Interval(0, 90)] = 20.0, *, distance: Any = None) -> Miner:
    """Chooses all triplets whose angle at the negative is above `angle` degrees (Wang et al., ICCV 2017, eq. 5).

        atan( d_ap / 2 d_nc ) > angle,    c = (x_a + x_p) / 2

    of normalised embeddings; by Apollonius' theorem that is d_an^2 + d_pn^2 < d_ap^2 / (2 sin^2 angle), so that no
    centre is needed, and no triplet is listed: they are tested one positive at a time, in float32 or wider. A triplet
    of coincident anchor and positive is never chosen.

    Args:
      angle: in degrees, between 0 and 90; 20 is PML's default.
      distance: "lp" as it is, Euclidean between normalised embeddings, and nothing else.

    Raises:
      UserError: another distance.

    Example:
      >>> from dml_jax import miners
      >>> x = [[0.8, 0.6], [0.8, -0.6], [1.0, 0.0], [-1.0, 0.0]]
      >>> # 3 sees the centre of 0 and 1, and 0 from it, under an angle of 18 degrees
      >>> [i.tolist() for i in miners.angular()(x, [0, 0, 1, 2]).indices()]
      [[0, 1], [1, 0], [2, 2]]

    Differs from PML: PML measures the angles of the embeddings as they are, although it asks for a normalising
    distance, so that their lengths decide; on normalised embeddings it chooses the same, but for three coincident
    vectors (26 degrees in PML, whose distances have an offset of 1e-6).
    """
    built = distances.build(distance, "lp")
    needs_euclidean("angular", built)
    bound = 0.5 / math.sin(math.radians(angle)) ** 2
    return Miner("angular", Bound(select_angular, bound=bound), built, triplets=True)


def select_angular(block: Block, *, bound: float) -> Selection:
    """Chooses the triplets of `angular`; `bound` is 1 / (2 sin^2 angle)."""
    # The distances of positives to negatives are as exact as those of the anchors.
    refs = block.refs.astype(block.sims.dtype)
    test = Streamed(block.sims, refs, _is_wide, bound)
    return Selection(block.related.pos, block.related.neg, test)


def _is_wide(
    one: Bool[Array, "a n"], order: Sims, refs: Float[Array, "n d"], bound: float
) -> Bool[Array, "a n"]:
    """Returns where d_an^2 + d_pn^2 < bound d_ap^2, for the positive that `one` marks."""
    refs = refs.astype(order.dtype)
    beyond = order**2 + distances.lp_matrix(rows_at(one, refs), refs) ** 2
    return beyond < bound * pick(one, order)[:, None] ** 2


@checked("miner")
def embeddings_already_packaged_as_triplets(*, distance: Any = None) -> Miner:
    """Chooses the triplets (3i, 3i + 1, 3i + 2) of a batch that a sampler has put together so.

    Labels are not read, though a triplet of which a sample is padding is left out. With references the positive and the
    negative are the references of these places, as in PML. An incomplete last triplet is left out (PML: an error).

    Args:
      distance: is not used; every miner takes one.

    Example:
      >>> from dml_jax import miners
      >>> miner = miners.embeddings_already_packaged_as_triplets()
      >>> [i.tolist() for i in miner([[1.0], [2.0], [3.0], [4.0]], [0, 0, 1, 1]).indices()]
      [[0], [1], [2]]
    """
    return Miner(
        "embeddings_already_packaged_as_triplets",
        select_packaged,
        distances.build(distance, "lp"),
        triplets=True,
        prepare=prepare_packaged,
    )


def prepare_packaged(whole_batch: WholeBatch) -> Bool[Array, " n"]:
    """Returns which references are there."""
    return whole_batch.refs.valid > 0


def select_packaged(block: Block, ref_valid: Bool[Array, " n"]) -> Selection:
    """Chooses the triplets of `embeddings_already_packaged_as_triplets`."""
    last = block.sims.shape[1] - 1
    first = block.anchor_ids[:, None]
    positive, negative = (jnp.minimum(first + k, last) for k in (1, 2))
    complete = (first % 3 == 0) & (first + 2 <= last) & block.anchor_valid[:, None]
    complete &= ref_valid[positive] & ref_valid[negative]
    listed = Listed(positive, negative, complete.astype(block.sims.dtype))
    return Selection(block.related.pos, block.related.neg, listed)
