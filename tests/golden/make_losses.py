"""Values and gradients of PyTorch Metric Learning 2.9 in float64, for tests/losses and tests/miners.

    python tests/golden/make_losses.py

in an environment with torch and pytorch-metric-learning==2.9.0; the tests need neither. The batch is
unbalanced: classes of 6, 5, 4, 3, 2 and two single samples, two of them exact duplicates.
"""

import pathlib

import numpy as np
import pytorch_metric_learning as pml
import torch
from pytorch_metric_learning import distances, losses, miners, reducers

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
# many classes as samples in each (smooth_ap), as many samples as references (vic_reg).
ROWS = {
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
        "proxy_anchor": (classes("ProxyAnchorLoss", weights), ()),
        "proxy_anchor/mean": (
            classes("ProxyAnchorLoss", weights, reducer=reducers.MeanReducer()),
            (),
        ),
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

    def record(key, loss, miner, with_refs=False):
        name = key.partition("/")[0]
        rows = ROWS.get(name, list(range(len(LABELS))))
        if name in ROWS:
            out[f"loss/{key}/rows"] = np.array(rows)
        scale = torch.nn.functional.normalize if name in UNIT else (lambda e: e)
        e, y = torch.tensor(x[rows], requires_grad=True), labels[rows]
        indices = None if miner is None else MINERS[miner]()(e.detach(), y)
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
            out[f"loss/{key}/weights"] = gradient if gradient.shape[0] == CLASSES else gradient.T

    for name, (make, mined) in cases(weights).items():
        if mined is not None:
            record(f"{name}/none", make(), None)
        if name.partition("/")[0] in (
            "contrastive",
            "multi_similarity",
            "nt_xent",
            "sup_con",
            *WITH_REFS,
        ) or name in ("triplet_margin",):
            record(f"{name}/refs", make(), None, with_refs=True)
        for miner in mined or ():
            record(f"{name}/{miner}", make(), miner)
    path = pathlib.Path(__file__).with_name("losses.npz")
    np.savez_compressed(path, **out)
    print(f"{path.name}: {len(out)} arrays, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
