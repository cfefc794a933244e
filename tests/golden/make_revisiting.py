"""Values and gradients of the ICML 2020 system's criteria in float64, for tests/losses/test_revisiting.py.

    python tests/golden/make_revisiting.py CHECKOUT

in an environment with torch, where CHECKOUT holds Confusezius/Revisiting_Deep_Metric_Learning_PyTorch; the tests need
neither. Each criterion runs on its own code; `PATCHES` name the lines that are replaced where it cannot run, or does
not compute what was intended (then both are recorded). The batch is unbalanced, with two single samples; triplets are
all there are, or each anchor's hardest. What a criterion draws at random is recorded with its value.
"""

import pathlib
import sys
import types

import numpy as np
import torch

LABELS = np.array([3, 0, 1, 0, 2, 4, 0, 1, 5, 2, 0, 1, 3, 0, 2, 1, 0, 4, 1, 3, 2, 6])
SINGLE = np.array([8, 21])
CLASSES, DIM, CENTERS, HIDDEN = 8, 12, 2, 16  # class 7 does not occur

# The defaults of parameters.py.
OPTIONS = dict(
    device="cpu",
    arch="resnet50_frozen_normalize",
    n_classes=CLASSES,
    embed_dim=DIM,
    lr=1e-5,
    loss_triplet_margin=0.2,
    loss_contrastive_pos_margin=0,
    loss_contrastive_neg_margin=1,
    loss_margin_margin=0.2,
    loss_margin_beta_lr=5e-4,
    loss_margin_beta=1.2,
    loss_margin_nu=0,
    loss_margin_beta_constant=False,
    loss_proxynca_lrmulti=50,
    loss_npair_l2=0.005,
    loss_angular_alpha=45,
    loss_angular_npair_ang_weight=2,
    loss_angular_npair_l2=0.005,
    loss_multisimilarity_pos_weight=2,
    loss_multisimilarity_neg_weight=40,
    loss_multisimilarity_margin=0.1,
    loss_multisimilarity_thresh=0.5,
    loss_lifted_neg_margin=1,
    loss_lifted_l2=0.005,
    loss_quadruplet_margin_alpha_1=0.2,
    loss_quadruplet_margin_alpha_2=0.2,
    loss_softtriplet_n_centroids=CENTERS,
    loss_softtriplet_margin_delta=0.01,
    loss_softtriplet_gamma=0.1,
    loss_softtriplet_lambda=8,
    loss_softtriplet_reg_weight=0.2,
    loss_softtriplet_lr=1,  # the code reads this name; its flag is called ..._lrmulti
    loss_softmax_lr=1e-5,
    loss_softmax_temperature=0.05,
    loss_histogram_nbins=65,
    loss_snr_margin=0.2,
    loss_snr_reg_lambda=0.005,
    loss_arcface_lr=5e-4,
    loss_arcface_angular_margin=0.5,
    loss_arcface_feature_scale=16,
    diva_decorrnet_dim=HIDDEN,
    diva_decorrnet_lr=1e-5,
    diva_decorrelations=["source-target"],
    diva_rho_decorrelation=[1500.0],
)

# name of a patch: (what is replaced, by what)
PATCHES = {
    # The sum of two boolean tensors is a logical or: it counts triplets, where pairs were meant.
    "count pairs": (
        "(pos_loss>0.)+(neg_loss>0.)",
        "(pos_loss>0.).double()+(neg_loss>0.).double()",
    ),
    "spell nu's term": ("beta_regularisation_loss", "beta_regularization_loss"),
    # Written for a PairwiseDistance of (1, D, 1) and (1, D, K) along D.
    "distance along the coordinates": ("nn.PairwiseDistance(p=2)", "along_coordinates"),
    "negative cosines": ("clamp(min=1e-10, max=1-1e-10)", "clamp(min=-1+1e-10, max=1-1e-10)"),
    "released in 2020": ("cos_similarity + pick * (", "cos_similarity + ("),
    # The bin of each pair as an integer, compared with the node's; in the code as floats.
    "node above": (
        "(assigned_bin_values==(self.support-self.bin_width) )",
        "bins(assigned_bin_values, self.bin_width, self.nbins, -1)",
    ),
    "node below": (
        "(assigned_bin_values==self.support)",
        "bins(assigned_bin_values, self.bin_width, self.nbins, 0)",
    ),
    # q_t, in the place of every q_u for every t.
    "a fourth for each triplet": ("batch[fourth_negatives,:]", "batch[fourth_negatives,:][:,None]"),
    # Each center over its coordinates, x of unit length, weights over the centers of a class.
    "unit centers": (
        "functional.normalize(self.intra_class_centroids, dim=1)",
        "functional.normalize(self.intra_class_centroids, dim=0)",
    ),
    "weights over centers": ("Softmax(dim=1)(self.gamma*", "Softmax(dim=2)(1/self.gamma*"),
    "no offset in the root": ("2.00001-2", "2-2"),
    # A Function with instance methods, which torch no longer runs.
    "reversal": ("return GradRev()(x)", "return 2*x.detach()-x"),
}


def along_coordinates(a, b):
    return torch.linalg.vector_norm(a - b + 1e-6, dim=1)


class Listed:
    """A miner that returns what it is given."""

    def __init__(self, triplets, name="listed"):
        self.triplets, self.name = triplets, name

    def __call__(self, batch, labels):
        return self.triplets


def load(checkout: pathlib.Path, name: str, patches: tuple[str, ...] = ()):
    """The module of a criterion, with the named lines replaced."""
    source = (checkout / "criteria" / f"{name}.py").read_text()
    for patch in patches:
        old, new = PATCHES[patch]
        assert old in source, (name, patch)
        source = source.replace(old, new)
    module = types.ModuleType(name)
    module.along_coordinates, module.bins = along_coordinates, bins
    exec(compile(source, f"{name}.py", "exec"), module.__dict__)
    return module


def bins(assigned, width, count, shift):
    """Which pairs lie in the bin of each node, or in the one below it (shift -1)."""
    return np.rint((assigned + 1) / width) == np.arange(count)[:, None] + shift


def batch():
    """Embeddings that cluster loosely, the vectors of the classes, and centers."""
    rng = np.random.default_rng(11)
    centers = rng.normal(size=(CLASSES, DIM))
    x = centers[LABELS] + 1.2 * rng.normal(size=(len(LABELS), DIM))
    return x, rng.normal(size=(CLASSES, DIM)), rng.normal(size=(CLASSES, CENTERS, DIM))


def all_triplets(labels):
    same = labels[:, None] == labels[None, :]
    n = range(len(labels))
    return [[a, p, k] for a in n for p in n for k in n if a != p and same[a, p] and not same[a, k]]


def hardest(x, labels):
    """The farthest positive and the nearest negative of every anchor that has a positive."""
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    d = np.linalg.norm(x[:, None] - x[None, :], axis=-1)
    same = labels[:, None] == labels[None, :]
    positive = same & ~np.eye(len(labels), dtype=bool)
    far, near = np.where(positive, d, -1).argmax(1), np.where(same, np.inf, d).argmin(1)
    return [[a, far[a], near[a]] for a in range(len(labels)) if positive[a].any()]


def main(checkout: pathlib.Path) -> None:
    torch.set_default_dtype(torch.float64)
    torch.float = torch.float64  # the code casts to it
    sys.path.insert(0, str(checkout))
    x, weights, centers = batch()
    rng = np.random.default_rng(12)
    out = dict(x=x, labels=LABELS, weights=weights, centers=centers)
    beta = 1.1 + 0.05 * np.arange(CLASSES)
    out["beta"], out["refs"] = beta, rng.normal(size=x.shape)
    paired = np.setdiff1d(np.arange(len(LABELS)), SINGLE)
    unit = torch.nn.functional.normalize

    def record(
        key,
        name,
        *,
        patches=(),
        rows=None,
        miner=None,
        learned=None,
        options=None,
        scale=unit,
        forward=None,
        **kept,
    ):
        """The value of a criterion on the batch (or rows of it), its gradient and that of its parameter."""
        rows = np.arange(len(LABELS)) if rows is None else rows
        e = torch.tensor(x[rows], requires_grad=True)
        opt = types.SimpleNamespace(**{**OPTIONS, **(options or {})})
        module = load(checkout, name, patches)
        criterion = module.Criterion(opt, **({"batchminer": miner} if miner else {}))
        parameter = None
        if learned is not None:
            attribute, value = learned
            parameter = getattr(criterion, attribute)
            parameter.data = torch.tensor(value)
        forward = forward or (lambda criterion, e, y: criterion(e, y))
        value = forward(criterion, scale(e), torch.tensor(LABELS[rows]))
        value.backward()
        out[f"{key}/value"] = value.detach().numpy()
        out[f"{key}/gradient"] = e.grad.numpy()
        if len(rows) < len(LABELS):
            out[f"{key}/rows"] = rows
        if parameter is not None:
            gradient = parameter.grad.numpy()
            if name == "softtriplet":
                gradient = gradient.T.reshape(CLASSES, CENTERS, DIM)
            out[f"{key}/learned"] = gradient
        for part, array in kept.items():
            out[f"{key}/{part}"] = np.asarray(array)

    raw = lambda e: e
    every, hard = Listed(all_triplets(LABELS)), Listed(hardest(x, LABELS))
    for mined, miner in (("none", every), ("batch_hard", hard)):
        record(f"triplet_margin/icml/{mined}", "triplet", miner=miner)
        record(f"contrastive/icml/{mined}", "contrastive", miner=miner)
        for case, patches in (("/parity", ()), ("", ("count pairs",))):
            record(
                f"revisiting_margin{case}/{mined}",
                "margin",
                patches=patches,
                miner=miner,
                learned=("beta", beta),
            )
        record(
            f"revisiting_margin/nu/{mined}",
            "margin",
            miner=miner,
            learned=("beta", beta),
            patches=("count pairs", "spell nu's term"),
            options=dict(loss_margin_nu=0.01),
        )
        record(f"revisiting_snr/{mined}", "snr", miner=miner, scale=raw)

    own = ("proxies", weights)
    record("revisiting_proxy_nca/none", "proxynca", learned=own)
    own = ("class_map", weights)
    record("revisiting_softmax/none", "softmax", learned=own, scale=raw)
    record("revisiting_arc_face/none", "arcface", learned=own, patches=("negative cosines",))
    record("revisiting_arc_face/parity/none", "arcface", learned=own)
    record(
        "revisiting_arc_face/released/none", "arcface", learned=own, patches=("released in 2020",)
    )
    own = ("intra_class_centroids", centers.reshape(-1, DIM).T)
    record("revisiting_soft_triple/parity/none", "softtriplet", learned=own)
    record(
        "revisiting_soft_triple/none",
        "softtriplet",
        learned=own,
        patches=("unit centers", "weights over centers", "no offset in the root"),
    )

    record("revisiting_multi_similarity/none", "multisimilarity", rows=paired)
    nodes = ("node above", "node below")
    record("revisiting_histogram/none", "histogram")
    for count in (11, 21):
        options = dict(loss_histogram_nbins=count)
        record(
            f"revisiting_histogram/nbins{count}/none", "histogram", patches=nodes, options=options
        )
        record(f"revisiting_histogram/parity{count}/none", "histogram", options=options)

    # One random positive of each anchor, and all negatives.
    anchors = list(paired)
    positive = [
        rng.choice([j for j in paired if j != a and LABELS[j] == LABELS[a]]) for a in anchors
    ]
    negative = [np.flatnonzero(LABELS[a] != LABELS) for a in anchors]
    drawn = np.full(len(LABELS), -1)
    drawn[anchors] = positive
    record(
        "revisiting_n_pair/none",
        "npair",
        miner=Listed((anchors, positive, negative)),
        scale=raw,
        drawn=drawn,
    )
    record(
        "revisiting_n_pair/bninception/none",
        "npair",
        scale=raw,
        drawn=drawn,
        miner=Listed((anchors, positive, negative)),
        options=dict(arch="bninception"),
    )

    def one_by_one(criterion, e, y):
        """The mean over the anchors: the code takes anchors with equally many negatives alone."""
        values = []
        for a, p, n in zip(anchors, positive, negative, strict=True):
            criterion.batchminer = Listed((np.array([a]), np.array([p]), n[None]))
            values.append(criterion(e, y))
        return torch.stack(values).mean()

    # So that no, and some, differences are clipped.
    for case, scale in (("", lambda e: e / 2), ("/clipped", lambda e: 2 * e)):
        record(
            f"revisiting_angular{case}/none",
            "angular",
            miner=Listed(None),
            scale=scale,
            forward=one_by_one,
            drawn=drawn,
        )
    sets = [[j for j in paired if j != a and LABELS[j] == LABELS[a]] for a in anchors]
    record(
        "revisiting_generalized_lifted_structure/none",
        "lifted",
        scale=raw,
        patches=("distance along the coordinates",),
        miner=Listed((anchors, sets, negative)),
    )

    # The code takes a triplet of each sample: no single ones.
    labels = LABELS[paired]
    triplets = Listed(hardest(x[paired], labels))
    choice, chosen = np.random.choice, []

    def remember(options):
        chosen.append(rng.choice(options))
        return chosen[-1]

    np.random.choice = remember
    record("revisiting_quadruplet/parity/batch_hard", "quadruplet", rows=paired, miner=triplets)
    out["revisiting_quadruplet/parity/batch_hard/drawn"] = np.array(chosen)
    fourth = [
        rng.choice([j for j in range(len(labels)) if labels[j] not in (labels[a], labels[n])])
        for a, _, n in triplets.triplets
    ]
    remaining = iter(fourth)
    np.random.choice = lambda options: next(remaining)
    record(
        "revisiting_quadruplet/batch_hard",
        "quadruplet",
        rows=paired,
        miner=triplets,
        patches=("a fourth for each triplet",),
        drawn=fourth,
    )
    np.random.choice = choice

    network = [rng.normal(size=s) / 3 for s in ((HIDDEN, DIM), HIDDEN, (DIM, HIDDEN), DIM)]
    for part, array in zip(("w1", "b1", "w2", "b2"), network, strict=True):
        out[f"network/{part}"] = array

    def separate(criterion, e, y):
        for parameter, value in zip(criterion.parameters(), network, strict=True):
            parameter.data = torch.tensor(value)
        separate.parameters = list(criterion.parameters())
        separate.refs = torch.tensor(out["refs"], requires_grad=True)
        return criterion({"source": e, "target": separate.refs})

    key = "revisiting_adversarial_separation/none"
    record(key, "adversarial_separation", scale=raw, patches=("reversal",), forward=separate)
    out[f"{key}/refs"] = separate.refs.grad.numpy()
    for part, parameter in zip(("w1", "b1", "w2", "b2"), separate.parameters, strict=True):
        out[f"{key}/{part}"] = parameter.grad.numpy()

    path = pathlib.Path(__file__).with_name("revisiting.npz")
    np.savez_compressed(path, **out)
    print(f"{path.name}: {len(out)} arrays, {path.stat().st_size} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]))
