"""Losses on triplets, as the ICML 2020 system computes them.

What holds for all of them stands in `dml_jax.revisiting`.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dml_jax import reducers
from dml_jax.bound import Bound
from dml_jax.distances import Distance
from dml_jax.errors import UserError
from dml_jax.losses.base import (
    DistanceSpec,
    Loss,
    MinerSpec,
    ReducerSpec,
    RegularizerSpec,
    RelationSpec,
    build_parts,
)
from dml_jax.losses.forms import (
    on_pairs,
    partner_sims,
)
from dml_jax.losses.kernels import Mask, Rows, Sims
from dml_jax.losses.margins import Terms, margin_args, margin_beta, margin_rows, reduce_beta
from dml_jax.losses.triplet import TripletsPerAnchor, drawn, sum_triplets, triplet_margin_rows
from dml_jax.pairwise import Block, WholeBatch
from dml_jax.parameters import (
    NonNegativeFloat,
    checked,
)
from dml_jax.selection import (
    Listed,
    Triplets,
    draw,
    pairs_of_triplets,
)

RAW_SNR = {"name": "snr", "normalize_embeddings": False}


def revisiting_margin_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    margin: float,
    nu: float,
    beta: float | Float[Array, " a"],
    learn_beta: bool,
    parity: bool,
    triplets: Triplets | None = None,
    low: float = -math.inf,
    high: float = math.inf,
) -> Terms:
    """Returns (mean over its triplets, their number, its divisor) of each anchor; see `revisiting_margin`."""
    d = jnp.sqrt(sims * sims + 1e-8)
    how: dict[str, Any] = dict(margin=margin, nu=nu, beta=beta, triplets=triplets, similarity=False)
    terms = margin_rows(d, pos, neg, learn_beta=learn_beta, low=low, high=high, **how)
    if parity:
        value, count, _ = terms["margin"]
        active = margin_rows(d, pos, neg, learn_beta=False, low=0.0, high=math.inf, **how)[
            "margin"
        ][1]
        terms["margin"] = (value, count, active)
    return terms


def _margin(block: Block, *, beta: float, **hyper: Any) -> Terms:
    chosen = block.selection
    learned = block.anchor_args.get("beta", beta)
    how = dict(beta=learned, triplets=chosen.triplets) | hyper
    return revisiting_margin_rows(block.sims, chosen.pos, chosen.neg, **how)


@checked("loss")
def revisiting_margin(
    margin: float = 0.2,
    nu: float = 0.0,
    beta: float = 1.2,
    learn_beta: bool = True,
    parity: bool = False,
    per_class: bool = True,
    triplets_per_anchor: TripletsPerAnchor = "all",
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the margin loss of each anchor as in the ICML 2020 system.

    l_apn = [D_ap - beta_y + margin]+ + [beta_y - D_an + margin]+,    D = sqrt(d^2 + 1e-8)

    summed over the triplets and divided by how many of their hinges are above 0 (Wu et al., ICCV 2017), 0 where none
    is. `parity=True` divides by how many *triplets* have a hinge above 0, which is what the code does (it adds two
    boolean tensors), up to half as many. beta, `params["beta"]`, is learned for each class (there: learning rate 5e-4,
    no weight decay); nu adds nu sum beta_y over all triplets, not divided (the code raises NameError for it).

    Args:
      margin: half the width of the band around beta; the code's default.
      nu: the weight of the learned beta in the loss; the code's default.
      beta: what the learned boundary starts from; the code's default.
      learn_beta: False keeps beta as it is.
      parity: True divides as the code does.
      per_class: True learns a beta for each class, as the code does; False one for all.
      triplets_per_anchor: "all", or how many to draw for each anchor where there is no miner.
      miner: narrows the triplets (`dml_jax.miners`): a name, a dict with a name, or the object; None: all triplets.
      distance: "lp" alone, Euclidean between normalised vectors by default (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "divisor".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: a relation without classes for a beta of each.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(revisiting_margin(learn_beta=False)(x, [0, 1, 0, 1])), 3)
      0.528
    """
    each = learn_beta and per_class
    parts = build_parts(
        "revisiting_margin",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        default_distance="lp",
        default_reducer="divisor",
        only_distances=("lp",),
        with_classes=each,
    )
    if learn_beta and nu:
        parts = parts._replace(reducer=reduce_beta(parts.reducer, reducers.sum_()))
    kernel = Bound(
        _margin,
        margin=margin,
        nu=nu,
        beta=beta,
        learn_beta=learn_beta,
        parity=parity,
        low=parts.reducer.low,
        high=parts.reducer.high,
    )
    more = drawn("revisiting_margin", triplets_per_anchor)
    if learn_beta:
        more |= dict(
            init_variables=Bound(margin_beta, beta=beta, per_class=per_class),
            anchor_args=Bound(margin_args, per_class=per_class),
            reads_classes=each,
        )
    if each:
        more["label_values"] = "numbers of classes"
    return on_pairs("revisiting_margin", parts, kernel, **more)


def revisiting_snr_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    margin: float,
    reg_lambda: float,
    triplets: Triplets | None = None,
    vectors: tuple[Array, Array],
    low: float,
    high: float,
) -> dict[str, Rows]:
    """Returns both terms of each anchor; see `revisiting_snr`. `vectors` are the anchors and the references."""
    value, count = triplet_margin_rows(
        sims,
        pos,
        neg,
        margin=margin,
        swap=False,
        smooth_loss=False,
        similarity=False,
        triplets=triplets,
        low=low,
        high=high,
    )
    every = jnp.sum(pairs_of_triplets(pos, neg, triplets, sims.dtype)[0], -1)
    penalty = reg_lambda * jnp.abs(jnp.sum(vectors[0], -1))
    return {"triplets": (value, count), "mean": (penalty.astype(sims.dtype), every)}


def _snr(block: Block, **hyper: Any) -> dict[str, Rows]:
    chosen, vectors = block.selection, (block.anchors, block.refs)
    how = dict(triplets=chosen.triplets, vectors=vectors) | hyper
    return revisiting_snr_rows(block.sims, chosen.pos, chosen.neg, **how)


@checked("loss")
def revisiting_snr(
    margin: float = 0.2,
    reg_lambda: NonNegativeFloat = 0.005,
    triplets_per_anchor: TripletsPerAnchor = "all",
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the signal-to-noise triplet loss of each anchor, with a penalty on the sum of its coordinates.

    triplets: [r_ap - r_an + margin]+, r_ij = Var(x_i - x_j) / Var(x_i), averaged over those above 0
    mean:     reg_lambda |sum_d x_ad|, averaged over all triplets

    (Yuan et al., CVPR 2019), of vectors as they are. The code sets reg_lambda to 0 with its miners distance and
    random_distance. No triplet above 0: that term is 0 (the code: NaN). Otherwise the same.

    Args:
      margin: what a negative is to be farther than a positive; the code's default.
      reg_lambda: the weight of the penalty, 0 or more; the code's default.
      triplets_per_anchor: "all", or how many to draw for each anchor where there is no miner.
      miner: narrows the triplets (`dml_jax.miners`): a name, a dict with a name, or the object; None: all triplets.
      distance: "snr" alone, by default of vectors as they are (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "avg_non_zero", and "mean" for the
        penalty.
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: a hyper-parameter out of range.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(revisiting_snr()(x, [0, 1, 0, 1])), 3)
      14.702
    """
    parts = build_parts(
        "revisiting_snr",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        default_distance=RAW_SNR,
        default_reducer={"name": "multiple", "default": "avg_non_zero", "mean": "mean"},
        only_distances=("snr",),
    )
    bounds = dict(low=parts.reducer.low, high=parts.reducer.high)
    kernel = Bound(_snr, margin=margin, reg_lambda=reg_lambda, **bounds)
    return on_pairs("revisiting_snr", parts, kernel, **drawn("revisiting_snr", triplets_per_anchor))


def revisiting_quadruplet_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    alpha1: float,
    alpha2: float,
    triplets: Triplets | None = None,
    unmined: Mask,
    partner: Callable[[Array, Array], Array],
    refs: Float[Array, "n d"],
    ref_labels: Int[Array, " n"],
    keys: Array,
    sums: Int[Array, " n"] | None = None,
    low: float,
    high: float,
) -> dict[str, Rows]:
    """Returns the hinges of triplets and of quadruplets of each anchor; see `revisiting_quadruplet`.

    `unmined` are the negatives before mining, `partner(one, refs)` the distances of one reference of each row to all,
    `keys` the anchors' own, and `sums` with `parity` how often each sample was drawn.
    """
    first = triplet_margin_rows(
        sims,
        pos,
        neg,
        margin=alpha1,
        swap=False,
        smooth_loss=False,
        similarity=False,
        triplets=triplets,
        low=low,
        high=high,
    )
    if sums is not None and isinstance(triplets, Listed):
        far = partner(triplets.negative == jnp.arange(len(ref_labels))[None, :], refs)
        near = jnp.take_along_axis(sims, triplets.positive, axis=-1)
        share = sums.astype(sims.dtype) / jnp.maximum(jnp.sum(sums), 1)
        second = jnp.sum(share[None, :] * jax.nn.relu(near - far + alpha2), -1)
        return {"triplets": first, "quadruplets": (second, triplets.weight[:, 0])}
    fourth, exists = fourth_distances(unmined > 0, partner, refs, ref_labels, keys)
    neg = jnp.where(exists, neg, jnp.zeros_like(neg))
    if isinstance(triplets, Listed):
        there = jnp.take_along_axis(exists, triplets.negative, axis=-1)
        triplets = replace(triplets, weight=triplets.weight * there)
    hinge = lambda d_ap, d_nq: jax.nn.relu(d_ap - d_nq + alpha2)
    total, count = sum_triplets(hinge, sims, fourth, pos, neg, triplets, low=low, high=high)
    second = jnp.where(count > 0, total / jnp.where(count > 0, count, 1), 0)
    return {"triplets": first, "quadruplets": (second, count)}


def fourth_distances(
    others: Bool[Array, "a n"],
    partner: Callable[[Array, Array], Array],
    refs: Float[Array, "n d"],
    labels: Int[Array, " n"],
    keys: Array,
) -> tuple[Sims, Bool[Array, "a n"]]:
    """Returns the distance of each reference n to the q of (a, n), and whether there is one.

    One of the anchor's negatives is q for all n that are not of its class, and one of other classes than that
    for the rest: for every n a uniform draw.
    """
    halves = jax.vmap(jax.random.split)(keys)
    columns = jnp.arange(len(labels))[None, :]
    first = draw(halves[:, 0], others)
    same = labels[first] == labels[None, :]
    rest = others & ~same
    second = draw(halves[:, 1], rest)
    exists = jnp.where(same, jnp.any(rest, -1, keepdims=True), jnp.any(others, -1, keepdims=True))
    far = jnp.where(same, partner(second == columns, refs), partner(first == columns, refs))
    return far, exists


def _quadruplet(block: Block, *, distance: Distance, **hyper: Any) -> dict[str, Rows]:
    if block.keys is None:
        raise UserError(
            "loss 'revisiting_quadruplet' draws fourth samples at random and needs a key"
        )
    chosen = block.selection
    return revisiting_quadruplet_rows(
        block.sims,
        chosen.pos,
        chosen.neg,
        triplets=chosen.triplets,
        unmined=block.related.neg,
        partner=Bound(partner_sims, distance=distance),
        refs=block.refs,
        ref_labels=block.ref_labels,
        keys=block.keys,
        sums=block.prepass_sums,
        **hyper,
    )


def _count_fourths(whole_batch: WholeBatch) -> tuple[Array, None]:
    """Returns how often each sample is drawn by the triplets of the whole batch, with `parity`."""
    name = "revisiting_quadruplet"
    if whole_batch.key is None:
        raise UserError(f"loss {name!r} draws fourth samples at random and needs a key")
    if not whole_batch.refs_include_batch:
        raise UserError(
            f"loss {name!r} with parity=True draws from the batch; accepted: no ref_embeddings"
        )

    def listed(block: Block) -> tuple[tuple[()], tuple[Array, Array]]:
        chosen = block.selection.triplets
        if not isinstance(chosen, Listed) or chosen.negative.shape[1] != 1:
            raise UserError(
                f"loss {name!r} with parity=True needs a miner that lists one triplet of each "
                "anchor, 'batch_hard' say"
            )
        return (), (chosen.negative[:, 0], chosen.weight[:, 0] > 0)

    _, found = whole_batch.map_blocks(listed)

    def fourths(block: Block) -> tuple[Array, tuple[()]]:
        negatives, there = block.prepass_sums
        rows = block.anchor_ids
        allowed = there[None, :] & (negatives[rows][:, None] != negatives[None, :])
        allowed &= (there[rows] & block.anchor_valid)[:, None]
        assert block.keys is not None  # the loss asks for a key
        one = draw(block.keys, allowed) == jnp.arange(len(negatives))[None, :]
        return jnp.sum(one & allowed, 0), ()

    return whole_batch.map_blocks(fourths, found)[0], None


@checked("loss")
def revisiting_quadruplet(
    alpha1: float = 0.2,
    alpha2: float = 0.2,
    parity: bool = False,
    triplets_per_anchor: TripletsPerAnchor = "all",
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the quadruplet loss of each anchor (Chen et al., CVPR 2017, eq. 6, with one fourth sample a triplet).

    triplets:    [d_ap - d_an + alpha1]+
    quadruplets: [d_ap - d_nq + alpha2]+,    q a sample of a class other than a's and n's

    each averaged over all triplets, the second over those for which there is such a class. q is drawn uniformly by
    `apply`'s key and the anchor's position: two for each anchor, which its triplets share. Differs from the code,
    whose q may be of any class, the anchor's included. With `parity` it is the code's function: of the T triplets a
    miner lists, one an anchor, triplet u draws q_u among the
    anchors whose own negative is another sample than its negative, whatever their class, and every triplet is
    compared with every draw: mean_t mean_u [d_ap - d_(n_t, q_u) + alpha2]+. (The code takes ranks in the list of
    triplets for positions in the batch, and fails unless every sample is an anchor.)

    Args:
      alpha1: the margin of the triplets; the code's default.
      alpha2: the margin of the quadruplets; the code's default.
      parity: True draws fourths as the code does; it needs a miner that lists one triplet of each anchor.
      triplets_per_anchor: "all", or how many to draw for each anchor where there is no miner.
      miner: narrows the triplets (`dml_jax.miners`): a name, a dict with a name, or the object; None: all triplets.
      distance: "lp" alone, Euclidean between normalised vectors by default (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: a relation without classes; at the call, no key.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> round(float(revisiting_quadruplet()(x, [0, 1, 0, 1], key=jax.random.key(0))), 3)
      0.671
    """
    parts = build_parts(
        "revisiting_quadruplet",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        default_distance="lp",
        only_distances=("lp",),
        with_classes=True,
    )
    kernel = Bound(
        _quadruplet,
        distance=parts.distance,
        alpha1=alpha1,
        alpha2=alpha2,
        low=parts.reducer.low,
        high=parts.reducer.high,
    )
    name = "revisiting_quadruplet"
    more = drawn(name, triplets_per_anchor)
    if parity:
        more["prepare"] = _count_fourths
    return on_pairs(name, parts, kernel, reads_classes=True, **more)
