"""Softmax losses over the samples of the batch: which of them is the anchor's neighbour."""

import jax
import jax.numpy as jnp

from dml_jax.losses.pair import Mask, Pairs, Rows, Sims, log_sum_exp, nt_xent_rows


def nca_rows(
    sims: Sims, pos: Mask, neg: Mask, *, softmax_scale: float = 1.0, similarity: bool = False
) -> Rows:
    """Neighbourhood components analysis of each anchor (Goldberger et al., NIPS 2004, in its log form).

    l = -log sum_p softmax_j(-softmax_scale d_aj)[p] = softplus( LSE_n(-c d_an) - LSE_p(-c d_ap) )

    over all other samples j; squared Euclidean distance by default. The mean is over the anchors that
    have a positive. A miner only weighs the anchors, as in PML. Differs from PML: anchors whose
    probability underflows, the hardest, keep their loss (PML drops them), and a batch without positives
    is 0 (PML: NaN). With references a sample's copy among them is a positive like any other.
    """
    scaled = softmax_scale * (sims if similarity else -sims)
    positive, negative = log_sum_exp(scaled, pos > 0), log_sum_exp(scaled, neg > 0)
    some = positive != -jnp.inf
    both = some & (negative != -jnp.inf)
    gap = jnp.where(both, negative, 0) - jnp.where(both, positive, 0)
    return jnp.where(both, jax.nn.softplus(gap), 0), some.astype(sims.dtype)


def instance_rows(sims: Sims, pos: Mask, neg: Mask, *, gamma: float = 64.0) -> Rows:
    """Instance loss of each sample: a softmax over the batch in which it is to find itself.

    l = -log( e^{gamma} / (e^{gamma} + sum_n e^{gamma s_an}) ) = softplus( LSE_n(gamma s_an) - gamma )

    Zheng et al., ACM TOMM 2020, with the batch in place of class weights; cosine similarity, 1 with itself.
    Samples of the same label are the same instance and no negatives; with a label for every sample all
    others are. Differs from PML, which takes the rank of the label among those of the batch for the
    column of the target: the two agree where the labels are 0, 1, 2, ... in this order.
    """
    del pos
    log_negatives = log_sum_exp(gamma * sims, neg > 0)
    some = log_negatives != -jnp.inf
    value = jnp.where(some, jax.nn.softplus(jnp.where(some, log_negatives, 0) - gamma), 0)
    return value, jnp.ones_like(value)


def n_pairs_rows(sims: Sims, pos: Mask, neg: Mask, *, similarity: bool = True) -> Pairs:
    """N-pairs loss of each class (Sohn, NIPS 2016, without the L2 term).

    l_c = -log( e^{s(a_c, p_c)} / sum_k e^{s(a_c, p_k)} )

    Rows are anchors a_c, one a class, columns the positives p_k of all classes: the first sample of the
    class (in the order of the batch) that has a positive in play, and its first positive. The similarity
    is the dot product, of normalised vectors unless told otherwise, as in PML; distances are negated.
    A batch without positives is 0. Differs from PML only with miners that list pairs in another order than
    the batch's, where PML takes the first listed (multi_similarity: the least similar positive).
    """
    return nt_xent_rows(sims, pos, neg, temperature=1.0, similarity=similarity)
