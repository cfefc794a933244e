"""Softmax losses over the samples of the batch: which of them is the anchor's neighbour."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

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
from dml_jax.losses.kernels import Mask, Pairs, Rows, Sims, log_sum_exp
from dml_jax.losses.pair import nt_xent_rows
from dml_jax.pairwise import Block, Samples, WholeBatch
from dml_jax.parameters import PositiveFloat, checked
from dml_jax.selection import first_place


def nca_rows(sims: Sims, pos: Mask, neg: Mask, *, softmax_scale: float, similarity: bool) -> Rows:
    """Returns the neighbourhood components analysis of each anchor; see `nca`."""
    scaled = softmax_scale * (sims if similarity else -sims)
    positive, negative = log_sum_exp(scaled, pos > 0), log_sum_exp(scaled, neg > 0)
    some = positive != -jnp.inf
    both = some & (negative != -jnp.inf)
    gap = jnp.where(both, negative, 0) - jnp.where(both, positive, 0)
    return jnp.where(both, jax.nn.softplus(gap), 0), some.astype(sims.dtype)


@checked("loss")
def nca(
    softmax_scale: PositiveFloat = 1.0,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes neighbourhood components analysis of each anchor (Goldberger et al., NIPS 2004, in its log form).

    l = -log sum_p softmax_j(-softmax_scale d_aj)[p] = softplus( LSE_n(-c d_an) - LSE_p(-c d_ap) ),    c = softmax_scale

    over all other samples j. The mean is over the anchors that
    have a positive. Differs from PML: anchors whose
    probability underflows, the hardest, keep their loss (PML drops them), and a batch without positives
    is 0 (PML: NaN). With references a sample's copy among them is a positive like any other.

    Args:
      softmax_scale: c, above 0; PML's default.
      miner: weighs the anchors by how often it chose them and narrows no pairs (`dml_jax.miners`); None: alike.
      distance: by default {"name": "lp", "power": 2}, squared Euclidean between normalised vectors, as in PML
        (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: a scale of 0 or less.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(nca()(x, [0, 1, 0, 1])), 3)
      2.03
    """
    parts = build_parts(
        "nca",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        default_distance={"name": "lp", "power": 2},
    )
    how = dict(softmax_scale=softmax_scale, similarity=parts.distance.similarity)
    return on_pairs("nca", parts, from_rows(nca_rows, **how), weighs_samples=True)


def instance_rows(sims: Sims, pos: Mask, neg: Mask, *, gamma: float) -> Rows:
    """Returns the instance loss of each sample; see `instance`."""
    del pos
    log_negatives = log_sum_exp(gamma * sims, neg > 0)
    some = log_negatives != -jnp.inf
    value = jnp.where(some, jax.nn.softplus(jnp.where(some, log_negatives, 0) - gamma), 0)
    return value, jnp.ones_like(value)


@checked("loss")
def instance(
    gamma: PositiveFloat = 64.0,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the instance loss of each sample: a softmax over the batch in which it is to find itself.

    l = -log( e^{gamma} / (e^{gamma} + sum_n e^{gamma s_an}) ) = softplus( LSE_n(gamma s_an) - gamma )

    Zheng et al., ACM TOMM 2020, with the batch in place of class weights; cosine similarity, 1 with itself.
    Samples of the same label are the same instance and no negatives; with a label for every sample all
    others are. Differs from PML, which takes the rank of the label among those of the batch for the
    column of the target: the two agree where the labels are 0, 1, 2, ... in this order.

    Args:
      gamma: the scale, above 0; PML's default.
      miner: narrows the pairs in play (`dml_jax.miners`): a name, a dict with a name, or the object; None: all pairs.
      distance: "cosine" alone (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: another distance than "cosine".

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(instance(gamma=4)(x, [0, 1, 0, 1])), 3)
      0.437
    """
    parts = build_parts(
        "instance",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        only_distances=("cosine",),
    )
    rows = from_rows(instance_rows, gamma=gamma)
    return on_pairs("instance", parts, rows, takes_references=False, needs_positives=False)


def n_pairs_rows(sims: Sims, pos: Mask, neg: Mask, *, similarity: bool) -> Pairs:
    """Returns the cross entropy of each chosen pair; see `n_pairs`."""
    return nt_xent_rows(sims, pos, neg, temperature=1.0, similarity=similarity)


def _choose_pairs(whole_batch: WholeBatch) -> tuple[Samples, Samples]:
    """Returns one pair of each class, chosen by position, as anchors and references."""

    def first_positive(block: Block) -> tuple[tuple[()], Array]:
        return (), first_place(block.selection.pairs()[0] > 0)

    embeddings, labels, _ = whole_batch.anchors
    _, partner = whole_batch.map_blocks(first_positive)
    chosen = first_of_each(labels, partner < labels.shape[0])
    # A class that has a pair has two samples or more: half of the batch holds all that were chosen.
    place = jnp.argsort(~chosen)[: max(labels.shape[0] // 2, 1)]
    partner = jnp.where(chosen, partner, 0)[place]
    there = chosen[place]
    return (
        Samples(embeddings[place], labels[place], there),
        Samples(embeddings[partner], labels[partner], there),
    )


def first_of_each(labels: Int[Array, " b"], some: Bool[Array, " b"]) -> Bool[Array, " b"]:
    """Marks the first sample of each label among those with `some`."""
    order = jnp.lexsort((~some, labels))  # stable: those with `some` first, by position
    ranked = labels[order]
    head = jnp.concatenate([jnp.ones(1, bool), ranked[1:] != ranked[:-1]])
    return some & jnp.zeros_like(some).at[order].set(head)


@checked("loss")
def n_pairs(
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the N-pairs loss of each class (Sohn, NIPS 2016, without the L2 term).

    l_c = -log( e^{s(a_c, p_c)} / sum_k e^{s(a_c, p_k)} )

    Rows are anchors a_c, one a class, columns the positives p_k of all classes: the first sample of the
    class (in the order of the batch) that has a positive in play, and its first positive. Distances are negated.
    A batch without positives is 0. Differs from PML only with miners that list pairs in another order than
    the batch's, where PML takes the first listed (multi_similarity: the least similar positive).

    Args:
      miner: narrows the pairs in play (`dml_jax.miners`): a name, a dict with a name, or the object; None: all pairs.
      distance: by default "dot_product", of normalised vectors unless told otherwise, as in PML (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: a relation without classes.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(n_pairs()(x, [0, 1, 0, 1])), 3)
      0.737
    """
    parts = build_parts(
        "n_pairs",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        default_distance="dot_product",
        with_classes=True,
    )
    return on_pairs(
        "n_pairs",
        parts,
        from_rows(n_pairs_rows, similarity=parts.distance.similarity),
        choose=_choose_pairs,
        takes_references=False,
        reads_classes=True,
    )
