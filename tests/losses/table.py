"""The losses under test. A new loss is a new row here: every law then runs on it.

A row is (hyper-parameters, naive double loop), its key the loss's name, "name/variant" for further hyper-parameters.
The double loops (`loops`, by family) follow the papers in plain numpy and know nothing of the library: `sim` is the
cosine matrix, `same` the matrix of equal labels.
"""

import math

import numpy as np

from tests.losses.loops import classes, common, pair, ranking, revisiting

LABELS = np.array([3, 0, 1, 0, 2, 4, 0, 1, 5, 2, 0, 1, 3, 0, 2, 1, 0, 4, 1, 3, 2, 6], np.int32)
CLASSES, DIM = 11, 8  # classes 7..10 never occur; 11 is no multiple of any device count


def label_sets(labels):
    """Labels that are sets, multi-hot: c, c + 1, c + 2, and one more where c is odd.

    Neighbouring classes share two, others one or none.
    """
    sets = np.zeros((len(labels), 14), np.int32)
    for row, c in zip(sets, np.asarray(labels), strict=True):
        row[[c, c + 1, c + 2]] = 1
        row[13] = c % 2
    return sets


def paths(labels):
    """Labels that are paths in a tree of three levels, coarse to fine."""
    labels = np.asarray(labels)
    return np.stack([labels // 4, labels // 2, labels], 1)


TWO_SHARED = {"name": "overlap", "threshold": 2}
BOTH = {"near": "nt_xent", "far": {"name": "triplet_margin"}}
# Losses that draw where there is no miner, by the position of the anchor in the batch.
DRAWN = {
    "revisiting_angular": revisiting.angular,
    "revisiting_n_pair": revisiting.n_pair,
    "revisiting_quadruplet": revisiting.quadruplet,
}
# Losses whose references are a second view of the batch.
VIEWS = ("vic_reg", "revisiting_adversarial_separation")


LOSSES = {
    "angular": ({}, ranking.angular),
    "dynamic_soft_margin": ({}, ranking.dynamic_soft_margin),
    "fast_ap": ({}, ranking.fast_ap),
    "happier": ({}, ranking.happier),
    "happier/hierarchy": ({"relation": "hierarchy"}, ranking.happier),
    "histogram": ({}, ranking.histogram),
    "manifold": ({}, ranking.manifold),
    "pnp": ({}, ranking.pnp),
    "ranked_list": (dict(margin=0.4, Tn=10.0), ranking.ranked_list),
    "recall_at_k": ({}, ranking.recall_at_k),
    "roadmap": ({}, ranking.roadmap),
    "smooth_ap": ({}, ranking.smooth_ap),
    "vic_reg": ({}, ranking.vic_reg),
    "arc_face": ({}, classes.softmax(classes.arc, 64)),
    "contrastive": ({}, pair.contrastive),
    "cos_face": ({}, classes.softmax(lambda c: c - 0.35, 64)),
    "multi_similarity": ({}, pair.multi_similarity),
    "multi_similarity/overlap": ({"relation": TWO_SHARED}, pair.multi_similarity),
    "normalized_softmax": ({}, classes.softmax(lambda c: c, 20)),
    "nt_xent": ({}, pair.nt_xent),
    "proxy_anchor": ({}, classes.proxy_anchor),
    "sup_con": ({}, pair.sup_con),
    "threshold_consistent_margin": ({}, pair.threshold_consistent_margin),
    "triplet_margin": ({}, pair.triplet_margin),
    "circle": ({}, pair.circle),
    "generalized_lifted_structure": ({}, pair.generalized_lifted_structure),
    "instance": ({"gamma": 8.0}, pair.instance),  # at 64 the batch has hardly any loss
    "intra_pair_variance": ({"pos_eps": 0.1, "neg_eps": 0.2}, pair.intra_pair_variance),
    "lifted_structure": ({}, pair.lifted_structure),
    "margin": ({}, lambda *arrays: pair.margin(0)(*arrays)[0]),
    "margin/learned": ({"learn_beta": True, "nu": 0.1}, pair.margin_learned),
    "margin/per_class": ({"learn_beta": True, "nu": 0.1, "per_class": True}, pair.margin_per_class),
    "n_pairs": ({}, pair.n_pairs),
    "nca": ({}, pair.nca),
    "signal_to_noise_ratio_contrastive": ({}, pair.signal_to_noise_ratio_contrastive),
    "triplet_margin/smooth": ({"smooth_loss": True}, pair.triplet_variant(False, common.softplus)),
    "triplet_margin/swap": ({"swap": True}, pair.triplet_variant(True, lambda v: max(v, 0))),
    "tuplet_margin": ({}, pair.tuplet_margin),
    "cross_batch_memory": ({"loss": "triplet_margin", "memory_size": 30}, pair.triplet_margin),
    "generic_pair": ({"rows": pair.nearest_rows, "margin": 0.4}, pair.generic_pair),
    "large_margin_softmax": ({}, classes.multiple_angle(True)),
    "multiple": ({"losses": BOTH, "weights": {"near": 1, "far": 0.5}}, pair.multiple),
    "p2s_grad": ({}, classes.p2s_grad),
    "proxy_nca": ({}, classes.proxy_nca(1)),
    "proxy_nca_pp": ({}, classes.proxy_nca(9)),
    "sigmoid": ({}, pair.sigmoid),
    "soft_triple": ({}, classes.soft_triple),
    "sphere_face": ({}, classes.multiple_angle(False)),
    "sub_center_arc_face": ({}, classes.sub_center_arc_face),
    **{name: ({}, loop) for name, loop in DRAWN.items()},
    "revisiting_adversarial_separation": (
        {"proj_dim": 5},
        revisiting.adversarial_separation,
    ),
    "revisiting_arc_face": ({}, classes.softmax(lambda c: math.cos(math.acos(c) + 0.5), 16)),
    "revisiting_generalized_lifted_structure": (
        {},
        revisiting.generalized_lifted_structure,
    ),
    "revisiting_histogram": ({}, revisiting.histogram(65)),
    "revisiting_histogram/parity": (
        {"nbins": 11, "parity": True},
        revisiting.histogram(11, parity=True),
    ),
    "revisiting_margin": ({}, revisiting.margin(False)),
    "revisiting_margin/parity": ({"parity": True}, revisiting.margin(True)),
    "revisiting_multi_similarity": ({}, revisiting.multi_similarity),
    "revisiting_proxy_nca": ({}, revisiting.proxy_nca),
    "revisiting_snr": ({}, revisiting.snr),
    "revisiting_soft_triple": ({}, revisiting.soft_triple(False)),
    "revisiting_soft_triple/parity": ({"parity": True}, revisiting.soft_triple(True)),
    "revisiting_softmax": ({}, revisiting.softmax),
}
# Rows whose labels are not classes: what to make of these.
LABELLED = {"happier/hierarchy": paths, "multi_similarity/overlap": label_sets}
# Losses whose batch has an order, or which are not a function of one batch: tests/losses/test_wrappers.py.
# With the hyper-parameters that tests/losses/conformance.py measures them with.
APART = {"self_supervised": {"loss": "nt_xent"}}
# Losses whose laws are in a file of their own: partial_fc draws classes, test_partial_fc.py.
ELSEWHERE = {"partial_fc": {"loss": "cos_face"}}
