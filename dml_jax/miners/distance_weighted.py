"""Triplets whose negatives are spread over all distances."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dml_jax import distances
from dml_jax.bound import Bound
from dml_jax.mining import Miner, log_rarity, needs_euclidean
from dml_jax.pairwise import Block
from dml_jax.parameters import PositiveFloat, checked
from dml_jax.selection import Listed, Selection


@checked("miner")
def distance_weighted(
    cutoff: PositiveFloat = 0.5, nonzero_loss_cutoff: PositiveFloat = 1.4, *, distance: Any = None
) -> Miner:
    """Draws triplets with a uniform positive and a distance-weighted negative (Wu et al., ICCV 2017, eq. 3).

        P(n) ~ 1 / q(max(d_an, cutoff)) where d_an < nonzero_loss_cutoff, else 0
        q(d) = d^(D - 2) (1 - d^2 / 4)^((D - 3) / 2)

    q being the density of distances on the unit sphere of the embeddings' D dimensions; Euclidean distances of
    normalised embeddings. An anchor has as many triplets as its class has references (itself among them), drawn with
    replacement, and none where no negative is nearer than nonzero_loss_cutoff.

    Args:
      cutoff: the distance under which all negatives weigh alike, above 0; 0.5 is PML's default.
      nonzero_loss_cutoff: the distance from which on negatives are not drawn, above 0; 1.4 is PML's default.
      distance: "lp" as it is, Euclidean between normalised embeddings, and nothing else.

    Raises:
      UserError: another distance.

    Example:
      >>> import jax
      >>> from dml_jax import miners
      >>> x = [[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.6, 0.8, 0.0], [-1.0, 0.0, 0.0]]
      >>> mined = miners.distance_weighted()(x, [0, 0, 1, 2], key=jax.random.key(0))
      >>> [i.tolist() for i in mined.indices()]
      [[0, 0, 1, 1], [1, 1, 0, 0], [2, 2, 2, 2]]

    Distribution as PML's, but weights are relative to the largest of their row: relative to that of the batch, as in
    PML, all of a row may underflow, and its anchor is lost.
    """
    built = distances.build(distance, "lp")
    needs_euclidean("distance_weighted", built)
    select = Bound(select_distance_weighted, cutoff=cutoff, nonzero_loss_cutoff=nonzero_loss_cutoff)
    return Miner("distance_weighted", select, built, triplets=True, draws=True)


def select_distance_weighted(
    block: Block, *, cutoff: float, nonzero_loss_cutoff: float
) -> Selection:
    """Draws the triplets of `distance_weighted`."""
    sims, (pos, neg) = block.sims, (block.related.pos, block.related.neg)
    d = jnp.maximum(sims, cutoff)
    near = (neg > 0) & (d < min(nonzero_loss_cutoff, 2.0))
    logits = log_rarity(d, block.anchors.shape[-1])
    top = jnp.max(jnp.where(near, logits, -jnp.inf), -1, keepdims=True)
    weights = jnp.where(near, jnp.exp(jnp.where(near, logits - top, 0)), 0)

    positives = jnp.sum(pos > 0, -1)
    some = (positives > 0) & jnp.any(near, -1)
    counts = jnp.where(some, positives + block.refs_include_batch, 0)
    tables = [jnp.cumsum(x.astype(sims.dtype), -1) for x in (pos > 0, weights)]

    # A slot for each reference is enough; only as many turns as the largest class has references.
    def turn(slot: Array, drawn: list[Array]) -> list[Array]:
        draw = lambda key: jax.random.uniform(jax.random.fold_in(key, slot), (2,), sims.dtype)
        chance = jax.vmap(draw)(block.keys)
        columns = [_invert(table, chance[:, i]) for i, table in enumerate(tables)]
        return [x.at[:, slot].set(c) for x, c in zip(drawn, columns, strict=True)]

    none = jnp.zeros(sims.shape, jnp.int32)
    positive, negative = jax.lax.fori_loop(0, jnp.max(counts), turn, [none, none])
    filled = jnp.arange(sims.shape[1])[None, :] < counts[:, None]
    return Selection(pos, neg, Listed(positive, negative, filled.astype(sims.dtype)))


def _invert(table: Float[Array, "a n"], chance: Float[Array, " a"]) -> Int[Array, " a"]:
    """Returns the column of each row's cumulative weights that a number from [0, 1) falls on; its weight is not 0."""
    last = jnp.sum(table < table[:, -1:], -1)  # the last column that adds to the table
    place = jax.vmap(lambda row, x: jnp.searchsorted(row, x, side="right"))
    return jnp.minimum(place(table, chance * table[:, -1]), last).astype(jnp.int32)
