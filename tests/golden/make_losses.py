"""Values and gradients of PyTorch Metric Learning 2.9 in float64, for tests/losses and tests/miners.

    python tests/golden/make_losses.py

in an environment with torch and pytorch-metric-learning==2.9.0; the tests need neither. The batch is
unbalanced: classes of 6, 5, 4, 3, 2 and two single samples, two of them exact duplicates.
"""

import pathlib

import numpy as np
import pytorch_metric_learning as pml
import torch
from pytorch_metric_learning import distances, losses, miners, reducers, regularizers

LABELS = np.array([3, 0, 1, 0, 2, 4, 0, 1, 5, 2, 0, 1, 3, 0, 2, 1, 0, 4, 1, 3, 2, 6])
CLASSES, DIM = 8, 12  # class 7 does not occur


def batch() -> tuple[np.ndarray, np.ndarray]:
    """Embeddings that cluster loosely, one pair of duplicates within a class, and class weights."""
    rng = np.random.default_rng(7)
    centers = rng.normal(size=(CLASSES, DIM))
    x = centers[LABELS] + 1.2 * rng.normal(size=(len(LABELS), DIM))
    x[3] = x[1]
    return x, rng.normal(size=(CLASSES, DIM))


def pairs(name, **hyper):
    return lambda **kw: getattr(losses, name)(**hyper, **kw)


def constant_histogram():
    """DynamicSoftMarginLoss whose histogram is a constant of the step, as in the paper."""
    loss = losses.DynamicSoftMarginLoss()
    update = loss.update_histogram
    loss.update_histogram = lambda data: update(data.detach())
    return loss


class MetaClasses(torch.nn.Module):
    """ManifoldLoss with the labels as meta-classes."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def forward(self, embeddings, labels, indices):
        return self.loss(embeddings, None, labels)


class Views(torch.nn.Module):
    """A loss that compares two views and takes no labels."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def forward(self, embeddings, labels, indices, ref_emb, ref_labels):
        return self.loss(embeddings, ref_emb=ref_emb)


# Where PML is right or runs for some batches alone: no duplicates and no single samples (histogram), as
# many classes as samples in each (smooth_ap), as many samples as references (vic_reg), no sample that the
# miner leaves out of all pairs (proxy_anchor, where PML keeps it).
ROWS = {
    "proxy_anchor/batch_hard": [i for i in range(22) if i not in (8, 21)],
    "histogram": [i for i in range(22) if i not in (3, 8, 21)],
    "smooth_ap": [1, 6, 10, 2, 7, 11, 4, 9, 14],
    "vic_reg": list(range(9)),
}
# Compared on normalised embeddings, differentiated through the normalisation.
UNIT = ("angular", "vic_reg")
WITH_REFS = ("angular", "dynamic_soft_margin", "vic_reg")


def classes(name, weights, **hyper):
    def make(**kw):
        sizes = dict(num_classes=CLASSES, embedding_size=DIM)
        if name == "ManifoldLoss":
            sizes = dict(K=CLASSES, l=DIM)
        loss = getattr(losses, name)(**sizes, **hyper, **kw)
        parameter = loss.proxies if hasattr(loss, "proxies") else loss.W
        value = torch.tensor(weights) if hasattr(loss, "proxies") else torch.tensor(weights).T
        parameter.data = value.clone()
        return loss

    return make


BETA = 1.1 + 0.05 * np.arange(CLASSES)
# Where PML is wrong, a batch on which it is not: InstanceLoss takes the rank of a label for a column;
# TupletMarginLoss gives NaN at duplicates; at those a swapped triplet is an exact tie.
ARANGE = ("instance", "instance/gamma")
NO_DUPLICATES = (*ARANGE, "tuplet_margin", "triplet_margin/swap", "triplet_margin/swap_cosine")


def margin(beta=1.2, **hyper):
    """MarginLoss with its beta in float64 (PML rounds it to float32)."""

    def make(**kw):
        loss = losses.MarginLoss(**hyper, **kw)
        loss.beta.data = torch.tensor(np.atleast_1d(beta), dtype=torch.float64)
        return loss

    return make


CENTERS = 10
CLASS_WEIGHTS = np.arange(1, 9) / 4.0


def centers():
    """Several vectors of each class, `[classes, centers, dim]`."""
    return np.random.default_rng(8).normal(size=(CLASSES, CENTERS, DIM))


def several(name, count, **hyper):
    """A loss with `count` centers a class: PML's columns are c * count + k."""

    def make(**kw):
        loss = getattr(losses, name)(num_classes=CLASSES, embedding_size=DIM, **hyper, **kw)
        parameter = loss.fc if hasattr(loss, "fc") else loss.W
        parameter.data = torch.tensor(centers()[:, :count].reshape(-1, DIM)).T.clone()
        return loss

    return make


def p2s_grad(weights):
    """P2SGradLoss rescales its weights in place to norm n / (n + 1e-7), which is 1 for huge ones only.

    Its gradient by unit weights has a radial part that the rescaling undoes; what is recorded is the
    gradient by the given weights, through the rescaling.
    """
    size = np.linalg.norm(weights, axis=1)
    unit = torch.tensor(weights / size[:, None]).T

    def make(**kw):
        loss = losses.P2SGradLoss(descriptors_dim=DIM, num_classes=CLASSES, **kw)
        loss.weight.data = 1e9 * torch.tensor(weights).T
        loss.weight.register_hook(
            lambda g: (g - unit * (unit * g).sum(0, keepdim=True)) / torch.tensor(size)
        )
        return loss

    return make


def class_cases(weights):
    """Losses against class weights, regularizers on losses, and reducers."""
    every = tuple(MINERS)
    lp = dict(embedding_regularizer=regularizers.LpRegularizer(), embedding_reg_weight=0.3)
    face = dict(weight_regularizer=regularizers.RegularFaceRegularizer(), weight_reg_weight=0.5)
    sparse = dict(
        weight_regularizer=regularizers.SparseCentersRegularizer(CLASSES, CENTERS),
        weight_reg_weight=0.2,
    )
    weighted = dict(reducer=reducers.ClassWeightedReducer(torch.tensor(CLASS_WEIGHTS)))
    by_anchor = dict(reducer=reducers.PerAnchorReducer())
    by_anchor_non_zero = dict(reducer=reducers.PerAnchorReducer(reducers.AvgNonZeroReducer()))
    apart = dict(
        reducer=reducers.MultipleReducers(
            {"pos_loss": reducers.MeanReducer()},
            default_reducer=reducers.ThresholdReducer(low=0.1, high=0.5),
        )
    )
    return {
        "large_margin_softmax": (classes("LargeMarginSoftmaxLoss", weights), every),
        "large_margin_softmax/three": (
            classes("LargeMarginSoftmaxLoss", weights, margin=3, scale=0.5),
            (),
        ),
        "sphere_face": (classes("SphereFaceLoss", weights), every),
        "sub_center_arc_face": (several("SubCenterArcFaceLoss", 3), every),
        "soft_triple": (several("SoftTripleLoss", CENTERS), every),
        "soft_triple/sparse": (several("SoftTripleLoss", CENTERS, **sparse), ()),
        "proxy_nca": (classes("ProxyNCALoss", weights), every),
        "proxy_nca/scaled": (classes("ProxyNCALoss", weights, softmax_scale=3), ()),
        "p2s_grad": (p2s_grad(weights), ()),
        "contrastive/regularized": (pairs("ContrastiveLoss", **lp), ()),
        "cos_face/regularized": (classes("CosFaceLoss", weights, **lp, **face), ()),
        "contrastive/class_weighted": (pairs("ContrastiveLoss", **weighted), SOME),
        "triplet_margin/class_weighted": (pairs("TripletMarginLoss", **weighted), SOME),
        "cos_face/class_weighted": (classes("CosFaceLoss", weights, **weighted), SOME),
        "contrastive/per_anchor": (pairs("ContrastiveLoss", **by_anchor), ()),
        "contrastive/per_anchor_non_zero": (pairs("ContrastiveLoss", **by_anchor_non_zero), ()),
        "nt_xent/per_anchor": (pairs("NTXentLoss", **by_anchor), ()),
        "contrastive/multiple": (pairs("ContrastiveLoss", **apart), ()),
    }


REGULARIZERS = {
    "lp": lambda: regularizers.LpRegularizer(),
    "lp/cubed": lambda: regularizers.LpRegularizer(p=3, power=2),
    "zero_mean": lambda: regularizers.ZeroMeanRegularizer(),
    "center_invariant": lambda: regularizers.CenterInvariantRegularizer(),
    "regular_face": lambda: regularizers.RegularFaceRegularizer(),
    "sparse_centers": lambda: regularizers.SparseCentersRegularizer(CLASSES, CENTERS),
}
MEMORY = 50  # the third batch of 22 wraps around, unevenly
INNER = {
    "contrastive": (lambda: losses.ContrastiveLoss(), None),
    "contrastive/batch_hard": (lambda: losses.ContrastiveLoss(), miners.BatchHardMiner),
    "multi_similarity/multi_similarity": (
        lambda: losses.MultiSimilarityLoss(),
        miners.MultiSimilarityMiner,
    ),
    "nt_xent": (lambda: losses.NTXentLoss(), None),
    "sup_con": (lambda: losses.SupConLoss(), None),
    "triplet_margin": (lambda: losses.TripletMarginLoss(), None),
    "triplet_margin/multi_similarity": (
        lambda: losses.TripletMarginLoss(),
        miners.MultiSimilarityMiner,
    ),
    "triplet_margin/batch_hard": (lambda: losses.TripletMarginLoss(), miners.BatchHardMiner),
    "triplet_margin/triplet_margin": (
        lambda: losses.TripletMarginLoss(),
        miners.TripletMarginMiner,
    ),
}


def graded(array, function):
    """(value, gradient) of a torch function at a numpy array."""
    x = torch.tensor(array, requires_grad=True)
    value = function(x)
    value.backward()
    return value.detach().numpy(), x.grad.numpy()


def of_losses(x, weights):
    """Regularizers by themselves, losses made of losses, and the query of sub_center_arc_face."""
    out, labels = {"centers": centers(), "class_weights": CLASS_WEIGHTS}, torch.tensor(LABELS)

    def put(key, result):
        out[f"{key}/value"], out[f"{key}/gradient"] = result

    for name, make in REGULARIZERS.items():
        rows = out["centers"].reshape(-1, DIM) if name == "sparse_centers" else weights
        put(f"regularizer/{name}", graded(rows, make()))
    rng = np.random.default_rng(9)
    orders = np.stack([rng.permutation(len(LABELS)) for _ in range(5)])
    batches = x[orders] + 0.3 * rng.normal(size=(5, *x.shape))
    out["memory/x"], out["memory/labels"] = batches, LABELS[orders]
    for name, (make, miner) in INNER.items():
        memory = losses.CrossBatchMemory(make(), DIM, MEMORY, miner=miner() if miner else None)
        steps = [
            graded(batch, lambda e, memory=memory, order=order: memory(e, labels[order]))
            for batch, order in zip(batches, orders, strict=True)
        ]
        put(f"memory/{name}", (np.stack([s[0] for s in steps]), np.stack([s[1] for s in steps])))
    for name in ("contrastive", "nt_xent", "triplet_margin"):
        for symmetric in (True, False):
            loss = losses.SelfSupervisedLoss(INNER[name][0](), symmetric=symmetric)
            result = graded(x, lambda e, loss=loss: loss(e[:11], e[11:]))
            put(f"views/{name}/{'symmetric' if symmetric else 'first'}", result)
    both = losses.MultipleLosses(
        [losses.ContrastiveLoss(), losses.TripletMarginLoss()],
        miners=[miners.MultiSimilarityMiner(), None],
        weights=[1, 0.5],
    )
    put("multiple", graded(x, lambda e: both(e, labels)))
    loss = several("SubCenterArcFaceLoss", 3)()
    for threshold in (75, 90):
        found, dominant = loss.get_outliers(torch.tensor(x), labels, threshold=threshold)
        out[f"outliers/{threshold}"] = np.sort(found.numpy())
    out["outliers/dominant"] = dominant.numpy().T[:7]  # class 7 does not occur
    return out


def cases(weights):
    """name -> (loss, the miners it also runs with)."""
    lp = dict(distance=distances.LpDistance(power=2))
    cosine = dict(distance=distances.CosineSimilarity())
    low = reducers.ThresholdReducer(low=0.1, high=0.5)
    return {
        "contrastive": (pairs("ContrastiveLoss"), tuple(MINERS)),
        "contrastive/cosine": (
            pairs("ContrastiveLoss", pos_margin=0.9, neg_margin=0.3, **cosine),
            (),
        ),
        "contrastive/mean": (pairs("ContrastiveLoss", reducer=reducers.MeanReducer()), ()),
        "contrastive/threshold": (pairs("ContrastiveLoss", reducer=low), ()),
        "multi_similarity": (pairs("MultiSimilarityLoss"), tuple(MINERS)),
        "multi_similarity/lp": (
            pairs("MultiSimilarityLoss", distance=distances.LpDistance(), beta=10.0),
            (),
        ),
        "nt_xent": (pairs("NTXentLoss"), tuple(MINERS)),
        "nt_xent/lp": (pairs("NTXentLoss", temperature=0.5, distance=distances.LpDistance()), ()),
        "sup_con": (pairs("SupConLoss"), tuple(MINERS)),
        "threshold_consistent_margin": (pairs("ThresholdConsistentMarginLoss"), tuple(MINERS)),
        "triplet_margin": (pairs("TripletMarginLoss"), tuple(MINERS)),
        "triplet_margin/squared": (pairs("TripletMarginLoss", margin=0.3, **lp), ()),
        "triplet_margin/cosine": (
            pairs("TripletMarginLoss", margin=0.2, **cosine),
            ("triplet_margin",),
        ),
        "triplet_margin/mean": (pairs("TripletMarginLoss", reducer=reducers.MeanReducer()), SOME),
        "triplet_margin/threshold": (pairs("TripletMarginLoss", margin=0.3, reducer=low), SOME),
        "circle": (pairs("CircleLoss"), tuple(MINERS)),
        "generalized_lifted_structure": (pairs("GeneralizedLiftedStructureLoss"), tuple(MINERS)),
        "generalized_lifted_structure/cosine": (
            pairs("GeneralizedLiftedStructureLoss", neg_margin=0.4, pos_margin=0.8, **cosine),
            (),
        ),
        "instance": (pairs("InstanceLoss"), ()),
        "instance/gamma": (pairs("InstanceLoss", gamma=8), ()),
        "intra_pair_variance": (pairs("IntraPairVarianceLoss"), tuple(MINERS)),
        "intra_pair_variance/lp": (
            pairs("IntraPairVarianceLoss", pos_eps=0.1, distance=distances.LpDistance()),
            (),
        ),
        "lifted_structure": (pairs("LiftedStructureLoss"), tuple(MINERS)),
        "lifted_structure/cosine": (
            pairs("LiftedStructureLoss", neg_margin=0.4, pos_margin=0.8, **cosine),
            SOME,
        ),
        "margin": (margin(), tuple(MINERS)),
        "margin/mean": (margin(reducer=reducers.MeanReducer()), SOME),
        "margin/non_zero": (margin(reducer=reducers.AvgNonZeroReducer()), SOME),
        "margin/learned": (margin(BETA[0], learn_beta=True, nu=0.1), tuple(MINERS)),
        "margin/per_class": (
            margin(BETA, learn_beta=True, nu=0.1, num_classes=CLASSES),
            tuple(MINERS),
        ),
        "margin/cosine": (margin(0.6, **cosine), SOME),
        # Not multi_similarity: of several positives PML takes the first listed, and it lists by similarity.
        "n_pairs": (pairs("NPairsLoss"), tuple(MINERS)[1:]),
        "nca": (pairs("NCALoss"), tuple(MINERS)),
        "signal_to_noise_ratio_contrastive": (
            pairs("SignalToNoiseRatioContrastiveLoss"),
            tuple(MINERS),
        ),
        "triplet_margin/smooth": (pairs("TripletMarginLoss", smooth_loss=True), tuple(MINERS)),
        "triplet_margin/swap": (pairs("TripletMarginLoss", swap=True), tuple(MINERS)),
        "triplet_margin/swap_cosine": (
            pairs("TripletMarginLoss", swap=True, smooth_loss=True, **cosine),
            SOME,
        ),
        "tuplet_margin": (pairs("TupletMarginLoss"), tuple(MINERS)),
        # Rankings and distributions.
        "angular": (pairs("AngularLoss"), tuple(MINERS)),
        "dynamic_soft_margin": (constant_histogram, tuple(MINERS)),
        "fast_ap": (pairs("FastAPLoss"), tuple(MINERS)),
        "histogram": (pairs("HistogramLoss"), ()),
        "manifold": (lambda: MetaClasses(classes("ManifoldLoss", weights)()), ()),
        "pnp": (pairs("PNPLoss"), ()),
        "pnp/Ds": (pairs("PNPLoss", variant="Ds"), ()),
        "pnp/Dq": (pairs("PNPLoss", variant="Dq", alpha=2), ()),
        "pnp/Iu": (pairs("PNPLoss", variant="Iu"), ()),
        "pnp/Ib": (pairs("PNPLoss", variant="Ib"), ()),
        "ranked_list": (pairs("RankedListLoss", margin=0.4, Tn=10), ()),
        "ranked_list/weighted": (
            pairs("RankedListLoss", margin=0.8, Tn=3, Tp=2, imbalance=0.3, alpha=1.3),
            (),
        ),
        "smooth_ap": (pairs("SmoothAPLoss"), tuple(MINERS)),
        "vic_reg": (lambda: Views(losses.VICRegLoss()), None),
        "arc_face": (classes("ArcFaceLoss", weights), tuple(MINERS)),
        "cos_face": (classes("CosFaceLoss", weights), tuple(MINERS)),
        "normalized_softmax": (classes("NormalizedSoftmaxLoss", weights), tuple(MINERS)),
        "proxy_anchor": (classes("ProxyAnchorLoss", weights), tuple(MINERS)),
        "proxy_anchor/mean": (
            classes("ProxyAnchorLoss", weights, reducer=reducers.MeanReducer()),
            (),
        ),
        **class_cases(weights),
    }


MINERS = {
    "multi_similarity": lambda: miners.MultiSimilarityMiner(),
    "batch_hard": lambda: miners.BatchHardMiner(),
    "triplet_margin": lambda: miners.TripletMarginMiner(),
    "triplet_margin/semihard": lambda: miners.TripletMarginMiner(type_of_triplets="semihard"),
    "triplet_margin/hard": lambda: miners.TripletMarginMiner(type_of_triplets="hard"),
    "triplet_margin/easy": lambda: miners.TripletMarginMiner(type_of_triplets="easy"),
}


SOME = ("batch_hard", "triplet_margin/semihard", "triplet_margin/easy")


def main() -> None:
    assert pml.__version__ == "2.9.0", pml.__version__
    # PML makes some of its constants in the default type and casts to float32 in places.
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double
    torch.manual_seed(0)
    x, weights = batch()
    labels = torch.tensor(LABELS)
    refs, ref_labels = x[::-1][:9] + 0.3, LABELS[::-1][:9].copy()
    out = {"x": x, "labels": LABELS, "weights": weights, "refs": refs, "ref_labels": ref_labels}
    for name, make in MINERS.items():
        chosen = make()(torch.tensor(x), labels)
        parts = {"": chosen} if len(chosen) == 3 else {"/pos": chosen[:2], "/neg": chosen[2:]}
        for side, part in parts.items():
            rows = np.stack([np.asarray(index) for index in part], 1)
            out[f"miner/{name}{side}"] = rows[np.lexsort(rows.T[::-1])].astype(np.int16)

    distinct = x.copy()
    distinct[3] += 0.1 * np.arange(DIM)
    out["distinct"], out["beta"] = distinct, BETA

    def rows_of(name, mined):
        """The rows of the batch that a case is restricted to, or None."""
        return ROWS.get(f"{name}/{mined}", ROWS.get(name.partition("/")[0]))

    def data(name, mined):
        """The batch of a case: embeddings, labels, and how the embeddings are scaled."""
        family, rows = name.partition("/")[0], rows_of(name, mined) or list(range(len(LABELS)))
        e = torch.tensor((distinct if name in NO_DUPLICATES else x)[rows], requires_grad=True)
        y = torch.arange(len(rows)) if name in ARANGE else labels[rows]
        return e, y, torch.nn.functional.normalize if family in UNIT else (lambda e: e)

    def record(name, mined, loss, miner=None, with_refs=False):
        key, (e, y, scale) = f"{name}/{mined}", data(name, mined)
        if rows := rows_of(name, mined):
            out[f"loss/{key}/rows"] = np.array(rows)
        indices = None if miner is None else miner(e.detach(), y)
        extra = (
            dict(ref_emb=scale(torch.tensor(refs)), ref_labels=torch.tensor(ref_labels))
            if with_refs
            else {}
        )
        value = loss(scale(e), y, indices, **extra)
        value.backward()
        out[f"loss/{key}/value"] = value.detach().numpy()
        out[f"loss/{key}/gradient"] = e.grad.numpy()
        for parameter in loss.parameters():
            gradient = parameter.grad.numpy()
            gradient = gradient if gradient.shape[0] == CLASSES else gradient.T
            if len(gradient) > CLASSES:
                gradient = gradient.reshape(CLASSES, -1, DIM)
            out[f"loss/{key}/weights"] = gradient

    for name, (make, mined) in cases(weights).items():
        if mined is not None:
            record(name, "none", make())
        if name.partition("/")[0] in (
            "contrastive",
            "multi_similarity",
            "nt_xent",
            "sup_con",
            "circle",
            "generalized_lifted_structure",
            "intra_pair_variance",
            "margin",
            "nca",
            "signal_to_noise_ratio_contrastive",
            "tuplet_margin",
            *WITH_REFS,
        ) or name in ("triplet_margin", "triplet_margin/smooth"):
            record(name, "refs", make(), with_refs=True)
        for miner in mined or ():
            record(name, miner, make(), MINERS[miner]())
    out |= of_losses(x, weights)
    path = pathlib.Path(__file__).with_name("losses.npz")
    np.savez_compressed(path, **out)
    print(f"{path.name}: {len(out)} arrays, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
