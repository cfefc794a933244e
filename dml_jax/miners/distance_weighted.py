"""Triplets whose negatives are spread over all distances."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dml_jax.miners.batch import Mask, Sims
from dml_jax.pairwise import Block
from dml_jax.selection import Listed, Selection


def distance_weighted(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    cutoff: float = 0.5,
    nonzero_loss_cutoff: float = 1.4,
    block: Block,
    keys: Key[Array, " a"],
) -> Selection:
    """Triplets with a uniform positive and a distance-weighted negative (Wu et al., ICCV 2017, eq. 3).

    P(n) ~ 1 / q(max(d_an, cutoff)) where d_an < nonzero_loss_cutoff, else 0
    q(d) = d^(D - 2) (1 - d^2 / 4)^((D - 3) / 2)

    q being the density of distances on the unit sphere of the embeddings' D dimensions; Euclidean distances
    of normalised embeddings. An anchor has as many triplets as its class has references (itself among
    them), drawn with replacement, and none where no negative is nearer than nonzero_loss_cutoff.
    Distribution as PML's, but weights are relative to the largest of their row: relative to that of the
    batch, as in PML, all of a row may underflow, and its anchor is lost.
    """
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
        chance = jax.vmap(draw)(keys)
        columns = [_invert(table, chance[:, i]) for i, table in enumerate(tables)]
        return [x.at[:, slot].set(c) for x, c in zip(drawn, columns, strict=True)]

    none = jnp.zeros(sims.shape, jnp.int32)
    positive, negative = jax.lax.fori_loop(0, jnp.max(counts), turn, [none, none])
    filled = jnp.arange(sims.shape[1])[None, :] < counts[:, None]
    return Selection(pos, neg, Listed(positive, negative, filled.astype(sims.dtype)))


def log_rarity(d: Float[Array, "a n"], dim: int) -> Float[Array, "a n"]:
    """-log of the density of distances d on the unit sphere of `dim` dimensions, up to a constant.

    1 - d^2 / 4 is at least 1e-7, so that an opposite vector has a finite value, the largest.
    """
    height = jnp.maximum(1 - d * d / 4, 1e-7)
    return (2 - dim) * jnp.log(d) - (dim - 3) / 2 * jnp.log(height)


def _invert(table: Float[Array, "a n"], chance: Float[Array, " a"]) -> Int[Array, " a"]:
    """The column of each row's cumulative weights that a number from [0, 1) falls on; its weight is not 0."""
    last = jnp.sum(table < table[:, -1:], -1)  # the last column that adds to the table
    place = jax.vmap(lambda row, x: jnp.searchsorted(row, x, side="right"))
    return jnp.minimum(place(table, chance * table[:, -1]), last).astype(jnp.int32)
