"""Every loss and miner against PyTorch Metric Learning 2.9 in float64 (tests/golden/make_losses.py)."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dml_jax import distances, losses, miners
from dml_jax.losses import triplet
from tests import draws

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "losses.npz")
KEYS = sorted(k[5:-6] for k in GOLDEN.files if k.startswith("loss/") and k.endswith("/value"))
# Every loss and variant by itself and with references in every run; with miners some, and all for `make conformance`.
PLAIN = [key for key in KEYS if key.endswith(("/none", "/refs"))]
MINED = [key for key in KEYS if key not in PLAIN]
THRESHOLD = {"name": "threshold", "low": 0.1, "high": 0.5}
BY_CLASS = {"name": "class_weighted", "weights": tuple(GOLDEN["class_weights"].tolist())}
LP = {"name": "lp", "weight": 0.3}
VARIANTS = {
    "large_margin_softmax/three": dict(margin=3, scale=0.5),
    "soft_triple/sparse": dict(regularizer={"name": "sparse_centers", "weight": 0.2}),
    "proxy_nca/scaled": dict(softmax_scale=3),
    "contrastive/regularized": dict(regularizer=LP),
    "cos_face/regularized": dict(regularizer=[LP, {"name": "regular_face", "weight": 0.5}]),
    "contrastive/class_weighted": dict(reducer=BY_CLASS),
    "triplet_margin/class_weighted": dict(reducer=BY_CLASS),
    "cos_face/class_weighted": dict(reducer=BY_CLASS),
    "contrastive/per_anchor": dict(reducer="per_anchor"),
    "contrastive/per_anchor_non_zero": dict(
        reducer={"name": "per_anchor", "reducer": "avg_non_zero"}
    ),
    "nt_xent/per_anchor": dict(reducer="per_anchor"),
    "contrastive/multiple": dict(
        reducer={"name": "multiple", "positive": "mean", "default": THRESHOLD}
    ),
    "contrastive/cosine": dict(distance="cosine", pos_margin=0.9, neg_margin=0.3),
    "multi_similarity/lp": dict(distance="lp", beta=10.0),
    "nt_xent/lp": dict(distance="lp", temperature=0.5),
    "triplet_margin/squared": dict(distance={"name": "lp", "power": 2}, margin=0.3),
    "triplet_margin/cosine": dict(distance="cosine", margin=0.2),
    "triplet_margin/threshold": dict(reducer=THRESHOLD, margin=0.3),
    "contrastive/threshold": dict(reducer=THRESHOLD),
    "contrastive/mean": dict(reducer="mean"),
    "triplet_margin/mean": dict(reducer="mean"),
    "proxy_anchor/mean": dict(reducer="mean"),
    "generalized_lifted_structure/cosine": dict(distance="cosine", neg_margin=0.4, pos_margin=0.8),
    "instance/gamma": dict(gamma=8),
    "intra_pair_variance/lp": dict(distance="lp", pos_eps=0.1),
    "lifted_structure/cosine": dict(distance="cosine", neg_margin=0.4, pos_margin=0.8),
    "margin/mean": dict(reducer="mean"),
    "margin/non_zero": dict(reducer="avg_non_zero"),
    "margin/learned": dict(learn_beta=True, nu=0.1),
    "margin/per_class": dict(learn_beta=True, nu=0.1, per_class=True),
    "margin/cosine": dict(beta=0.6, distance="cosine"),
    "triplet_margin/smooth": dict(smooth_loss=True),
    "triplet_margin/swap": dict(swap=True),
    "triplet_margin/swap_cosine": dict(swap=True, smooth_loss=True, distance="cosine"),
    # Rankings and distributions.
    "manifold": dict(K=8),
    "pnp/Ds": dict(variant="Ds"),
    "pnp/Dq": dict(variant="Dq", alpha=2.0),
    "pnp/Iu": dict(variant="Iu"),
    "pnp/Ib": dict(variant="Ib"),
    "ranked_list": dict(margin=0.4, Tn=10.0),
    "ranked_list/weighted": dict(margin=0.8, Tn=3.0, Tp=2.0, imbalance=0.3, alpha=1.3),
}
# As in make_losses.py: where PML is wrong, a batch on which it is not.
ARANGE = ("instance", "instance/gamma")
NO_DUPLICATES = (*ARANGE, "tuplet_margin", "triplet_margin/swap", "triplet_margin/swap_cosine")
LEARNED = {"margin/learned": GOLDEN["beta"][0], "margin/per_class": GOLDEN["beta"]}

# torch's softplus is x itself above 20: off by up to e^-20 in the value and in the slope.
TOLERANCE = {"circle/triplet_margin/easy": 2.1e-9}
# Losses that are compared on normalised embeddings (differentiated through the normalisation): PML's
# angular leaves negatives as they are, and vic_reg's variance term needs small deviations.
UNIT = ("angular", "vic_reg")


def miner(name):
    name, _, kind = name.partition("/")
    return miners.get(name, **({"type_of_triplets": kind} if kind else {}))


def split(key):
    """'loss[/variant]/miner[/kind]' -> (loss[/variant], miner[/kind])."""
    parts = key.split("/")
    at = 2 if "/".join(parts[:2]) in VARIANTS and len(parts) > 2 else 1
    return "/".join(parts[:at]), "/".join(parts[at:])


def class_weights(name):
    """[classes, dim], or [classes, centers, dim] for losses with several centers."""
    centers = {"sub_center_arc_face": 3, "soft_triple": 10}.get(name)
    return GOLDEN["centers"][:, :centers] if centers else GOLDEN["weights"]


def evaluate(key, **changes):
    name, mined = split(key)
    spec = VARIANTS.get(name, {}) | changes
    if mined not in ("none", "refs"):
        spec["miner"] = miner(mined)
    loss = losses.get(name.partition("/")[0], **spec)
    unit = name.partition("/")[0] in UNIT
    refs = {}
    if mined == "refs":
        scaled = distances.normalize(jnp.asarray(GOLDEN["refs"])) if unit else GOLDEN["refs"]
        refs = dict(ref_embeddings=scaled, ref_labels=GOLDEN["ref_labels"])
    rows = GOLDEN.get(f"loss/{key}/rows", slice(None))
    state = loss.init(jax.random.key(0), *GOLDEN["weights"].shape).get("state", {})

    labels = np.arange(len(GOLDEN["labels"])) if name in ARANGE else GOLDEN["labels"][rows]

    def value(embeddings, weights):
        variables = {"params": {"beta" if name in LEARNED else "weights": weights}, "state": state}
        embeddings = distances.normalize(embeddings) if unit else embeddings
        return loss.apply(variables, embeddings, labels, **refs)[0].compute()

    embeddings = GOLDEN["distinct" if name in NO_DUPLICATES else "x"][rows]
    weights = LEARNED.get(name, class_weights(name.partition("/")[0]))
    arrays = jnp.asarray(embeddings), jnp.asarray(weights)
    result, (gradient, weights) = jax.jit(jax.value_and_grad(value, argnums=(0, 1)))(*arrays)
    return {"value": result, "gradient": gradient, "weights": weights}


def error(got, key, what):
    want = GOLDEN[f"loss/{key}/{what}"]
    return np.abs(np.asarray(got[what]) - want).max() / max(np.abs(want).max(), 1e-6)


@pytest.mark.parametrize("key", [*PLAIN, *draws.some(MINED, 40, "mined")])
def test_value_and_gradient(key, x64):
    draws.tell()
    got = evaluate(key)
    parts = ["value", "gradient"] + ["weights"] * (f"loss/{key}/weights" in GOLDEN)
    assert got["value"].dtype == jnp.float64
    for part in parts:
        assert error(got, key, part) < TOLERANCE.get(key, 1e-10), part


def test_a_wrong_formula_fails(x64):
    """The tolerance tells the right reducer from its nearest relatives."""
    assert (
        error(evaluate("triplet_margin/none", reducer="mean"), "triplet_margin/none", "value") > 0.1
    )
    assert error(evaluate("sup_con/none", reducer="mean"), "sup_con/none", "value") > 0.01
    assert error(evaluate("nt_xent/none", temperature=0.0701), "nt_xent/none", "gradient") > 1e-4


SORTED = [
    k
    for k in KEYS
    if k.startswith("triplet_margin")
    and split(k)[1] != "batch_hard"
    and not k.startswith(("triplet_margin/smooth", "triplet_margin/swap"))  # they only stream
]


@pytest.mark.parametrize("key", ["triplet_margin/none", *draws.some(SORTED, 5, "sorted")])
def test_sorting(key, x64, monkeypatch):
    """The other evaluation of triplet_margin, which rows of many positives take, gives the same."""
    draws.tell()
    monkeypatch.setattr(triplet, "STREAM_LIMIT", 0)
    jax.clear_caches()
    got = evaluate(key)
    for part in ("value", "gradient"):
        assert error(got, key, part) < 1e-10, part


NAMES = sorted(
    {
        k.split("/", 1)[1].removesuffix("/pos").removesuffix("/neg")
        for k in GOLDEN.files
        if k.startswith("miner/")
    }
)


@pytest.mark.parametrize("name", NAMES)
def test_miners_choose_alike(name, x64):
    chosen = miner(name)(jnp.asarray(GOLDEN["x"]), jnp.asarray(GOLDEN["labels"])).indices()
    parts = {"": chosen} if len(chosen) == 3 else {"/pos": chosen[:2], "/neg": chosen[2:]}
    for side, part in parts.items():
        want = GOLDEN[f"miner/{name}{side}"]
        assert len(want)
        np.testing.assert_array_equal(np.stack(part, 1), want)


def test_distances_by_hand(x64):
    a, r = jnp.asarray([[3.0, 4.0], [0.0, 0.0]]), jnp.asarray([[3.0, 4.0], [0.0, 5.0]])
    raw = dict(normalize_embeddings=False)
    np.testing.assert_allclose(distances.get("cosine")(a, r), [[1, 0.8], [0, 0]])
    np.testing.assert_allclose(distances.get("dot_product", **raw)(a, r), [[25, 20], [0, 0]])
    root10 = np.sqrt(10)
    np.testing.assert_allclose(distances.get("lp", **raw)(a, r), [[0, root10], [5, 5]])
    np.testing.assert_allclose(distances.get("lp", power=2, **raw)(a, r), [[0, 10], [25, 25]])
    np.testing.assert_allclose(distances.get("lp", p=1, **raw)(a, r), [[0, 4], [7, 5]])
    np.testing.assert_allclose(distances.get("lp", p=3, **raw)(a, r)[0], [0, 28 ** (1 / 3)])
    # Var(a - r) / Var(a): the difference (3, -1) has variance 8, a has 1/2; a zero vector has none.
    np.testing.assert_allclose(distances.get("snr", **raw)(a, r), [[0, 16], [0, 0]], atol=1e-12)
