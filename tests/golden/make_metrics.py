"""Makes metrics.npz: metrics of PyTorch Metric Learning, of the ICML 2020 code and of scikit-learn.

Run in an environment with numpy, torch, faiss-cpu, scikit-learn and pytorch_metric_learning==2.9.0, with the folder of
https://github.com/Confusezius/Revisiting_Deep_Metric_Learning_PyTorch as the argument:

    python tests/golden/make_metrics.py FOLDER

Each case has unbalanced classes, labels that occur once, and duplicates that share their label (so that how ties are
ordered changes nothing). Both systems get their neighbours from an exact search in float64 in place of faiss's in
float32. The ICML 2020 code is patched where it is wrong: `PATCHES` and `Exact` say how.
"""

import pathlib
import sys
import types

import faiss
import numpy as np
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn import metrics as sk
from sklearn.preprocessing import normalize

NAMES = (
    "precision_at_1",
    "r_precision",
    "mean_average_precision_at_r",
    "mean_average_precision",
    "mean_reciprocal_rank",
)
# Neighbours that do not exist are not asked for; the largest mean is taken among the classes that have one.
PATCHES = {
    "mAP": ("R             = len(features)", "R = len(features) - 1"),
    "mAP_1000": ("R             = 1000", "R = min(1000, len(features) - 1)"),
    "mAP_lim": ("min(1023,len(features))", "min(1023, len(features) - 1)"),
    "c_mAP_1000": ("R             = 1000", "R = min(1000, len(features_cosine) - 1)"),
    "c_mAP_lim": ("min(1023,len(features_cosine))", "min(1023, len(features_cosine) - 1)"),
    "dists": ("intra_dists[1-np.isnan(intra_dists)]", "intra_dists[np.isfinite(intra_dists)]"),
}
REVISITING = ("mAP", "mAP_c", "mAP_1000", "mAP_lim", "c_mAP_c", "c_mAP_1000", "c_mAP_lim")


def draw(
    rng: np.random.Generator, size: int, classes: int, dim: int, unit: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings around class centres; the sizes of the classes fall off like 1 / rank."""
    share = 1 / np.arange(1, classes + 1)
    labels = rng.choice(classes, size, p=share / share.sum())
    labels[:3] = classes + np.arange(3)
    centres = np.random.default_rng(7).normal(size=(classes + 3, dim))
    embeddings = centres[labels] + rng.normal(size=(size, dim))
    if unit:
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    embeddings = embeddings.astype(np.float32)
    twins = 3 + rng.permutation(size - 3)[:20]
    embeddings[twins[10:]], labels[twins[10:]] = embeddings[twins[:10]], labels[twins[:10]]
    return embeddings, labels


def nearest(queries: np.ndarray, references: np.ndarray, k: int) -> np.ndarray:
    """The k nearest, lower rows first among equals."""
    references = references.astype(np.float64)
    squared = np.stack([((references - q) ** 2).sum(axis=1) for q in queries.astype(np.float64)])
    return np.argsort(squared, axis=1, kind="stable")[:, :k]


def exact_knn(query, k, reference, ref_includes_query):
    """For PML: the search of `nearest`, self left out by its row."""
    found = nearest(query.numpy(), reference.numpy(), k + ref_includes_query)
    if ref_includes_query:
        own = np.arange(len(found))[:, None]
        own_at = np.where((found == own).any(1), (found == own).argmax(1), k)
        found = found[np.arange(k + 1)[None] != own_at[:, None]].reshape(-1, k)
    return torch.zeros(found.shape), torch.from_numpy(found)


class Exact:
    """For the ICML 2020 code: an index with the exact search; the query itself comes first."""

    def __init__(self, dim: int) -> None:
        self.references = np.zeros((0, dim))

    def add(self, references: np.ndarray) -> None:
        self.references = references

    def search(self, queries: np.ndarray, k: int) -> tuple[None, np.ndarray]:
        found = nearest(queries, self.references, len(self.references))
        own = np.arange(len(queries))[:, None]
        others = found[found != own].reshape(len(queries), -1)
        return None, np.concatenate([own, others], axis=1)[:, :k]


def revisiting(folder: pathlib.Path, name: str) -> types.ModuleType:
    """A module of the ICML 2020 code's metrics, patched."""
    source = (folder / "metrics" / f"{name}.py").read_text()
    if name in PATCHES:
        assert PATCHES[name][0] in source
        source = source.replace(*PATCHES[name])
    module = types.ModuleType(name)
    exec(source, vars(module))
    vars(module)["faiss"] = types.SimpleNamespace(IndexFlatL2=Exact, IndexFlatIP=Exact)
    return module


def centroids(features: np.ndarray, clusters: int) -> np.ndarray:
    """k-means as that code sets it up, with the set's own number of classes."""
    kmeans = faiss.Clustering(features.shape[1], clusters)
    kmeans.niter = 20
    kmeans.min_points_per_centroid, kmeans.max_points_per_centroid = 1, 1000000000
    kmeans.train(features, faiss.IndexFlatL2(features.shape[1]))
    return faiss.vector_float_to_array(kmeans.centroids).reshape(clusters, -1)


def revisited(folder: pathlib.Path, features: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """All metrics of the ICML 2020 code of one set."""
    out = {}
    columns = labels.reshape(-1, 1)
    cosine = normalize(features.astype(np.float64), axis=1).astype(np.float32)
    for name in REVISITING:
        key = "features_cosine" if name.startswith("c_") else "features"
        given = {"target_labels": columns, key: cosine if name.startswith("c_") else features}
        out[name] = revisiting(folder, name).Metric()(**given)
    for prefix, vectors, suffix in (("e", features, ""), ("c", cosine, "_cosine")):
        closest = labels[_with(vectors).search(vectors, 9)[1][:, 1:]]
        for k in (1, 4):
            found = revisiting(folder, f"{prefix}_recall").Metric(k)(
                columns, **{f"k_closest_classes{suffix}": closest}
            )
            out[f"{prefix}_recall@{k}"] = found
    count = len(np.unique(labels))
    centre = centroids(features, count)
    clusters = ((features[:, None] - centre[None]) ** 2).sum(axis=2).argmin(axis=1)
    unit = normalize(features, axis=1)
    directions = normalize(centroids(unit, count), axis=1)
    cosine_clusters = (unit @ directions.T).argmax(axis=1)
    out["nmi"] = revisiting(folder, "nmi").Metric()(columns, clusters)
    out["f1"] = revisiting(folder, "f1").Metric()(columns, clusters, features, centre)
    out["c_nmi"] = revisiting(folder, "c_nmi").Metric()(columns, cosine_clusters)
    out["c_f1"] = revisiting(folder, "c_f1").Metric()(columns, cosine_clusters, unit, directions)
    for mode in ("intra", "inter", "intra_over_inter"):
        out[f"dists@{mode}"] = revisiting(folder, "dists").Metric(mode)(
            features.astype(np.float64), columns
        )
    for mode in (0, 1, 2, -1, -2):
        found = revisiting(folder, "rho_spectrum").Metric(None, mode)(
            torch.from_numpy(features.astype(np.float64))
        )
        out[f"rho_spectrum@{mode}"] = found
    return out


def _with(vectors: np.ndarray) -> Exact:
    index = Exact(vectors.shape[1])
    index.add(vectors)
    return index


def judged(queries, labels) -> dict[str, np.ndarray]:
    """Each against all others by scikit-learn: AP and nDCG of queries, ROC of all pairs, scores of clusterings."""
    squared = np.stack([((queries - q) ** 2).sum(axis=1) for q in queries.astype(np.float64)])
    others = ~np.eye(len(labels), dtype=bool)
    same = labels[:, None] == labels[None]
    scored = np.flatnonzero((same & others).any(axis=1))
    precision = [
        sk.average_precision_score(same[i][others[i]], -squared[i][others[i]]) for i in scored
    ]
    gain = [sk.ndcg_score([same[i][others[i]]], [-squared[i][others[i]]]) for i in scored]
    fpr, tpr, _ = sk.roc_curve(same[others], -squared[others], drop_intermediate=False)
    rates = (0.001, 0.01, 0.1)
    clusters = np.random.default_rng(3).integers(0, 12, len(labels))
    both = sk.cluster.pair_confusion_matrix(labels, clusters)
    return {
        "ap": np.mean(precision),
        "ndcg": np.mean(gain),
        "tar": np.array([tpr[fpr <= rate].max() for rate in rates]),
        "clusters": clusters,
        "nmi": sk.normalized_mutual_info_score(labels, clusters),
        "ami": sk.adjusted_mutual_info_score(labels, clusters),
        "f1": 2 * both[1, 1] / (2 * both[1, 1] + both[0, 1] + both[1, 0]),
    }


def main(folder: pathlib.Path) -> None:
    # PML computes the reciprocal ranks in torch's default type.
    torch.set_default_dtype(torch.float64)
    out = {}
    cases = (
        ("alone", 0, False, 8, False),
        ("separate", 200, False, 8, False),
        ("including", 200, True, 8, False),
        ("unit", 0, False, 48, True),
    )
    for case, extra, includes, dim, unit in cases:
        rng = np.random.default_rng([dim, extra, includes])
        queries, query_labels = draw(rng, 150, 30, dim, unit)
        references, labels = (
            (queries, query_labels) if not extra else draw(rng, extra, 25, dim, unit)
        )
        if includes:
            references = np.concatenate([queries, references])
            labels = np.concatenate([query_labels, labels])
        own = includes or not extra
        counts = np.bincount(labels, minlength=33)[query_labels] - own
        assert (counts == 0).any() and (counts > 20).any()
        out[f"{case}/queries"], out[f"{case}/query_labels"] = queries, query_labels
        out[f"{case}/references"], out[f"{case}/labels"] = references, labels
        given = () if not extra else (references, labels, includes)
        for k in (None, "max_bin_count", 5):
            for average in ("query", "class", "each_class"):
                # The code needs one of the others to compute mean_reciprocal_rank.
                found = AccuracyCalculator(
                    include=NAMES,
                    k=k,
                    knn_func=exact_knn,
                    avg_of_avgs=average == "class",
                    return_per_class=average == "each_class",
                ).get_accuracy(queries, query_labels, *given)
                out[f"{case}/{k}/{average}"] = np.array([found[name] for name in NAMES])
        found = AccuracyCalculator(include=("NMI", "AMI")).get_accuracy(queries, query_labels)
        out[f"{case}/clusters"] = np.array([found["NMI"], found["AMI"]])
    for case in ("alone", "unit"):
        queries, labels = out[f"{case}/queries"], out[f"{case}/query_labels"]
        for name, value in revisited(folder, queries, labels).items():
            out[f"{case}/{name}"] = value
    # More than mAP_1000 and mAP_lim look at.
    queries, labels = draw(np.random.default_rng(11), 1200, 40, 6, False)
    out["many/queries"], out["many/query_labels"] = queries, labels
    for name, value in revisited(folder, queries, labels).items():
        if "mAP" in name:
            out[f"many/{name}"] = value
    rng = np.random.default_rng(5)
    # Without duplicates: scikit-learn shares the places of ties.
    queries, labels = rng.normal(size=(90, 4)).astype(np.float32), rng.integers(0, 9, 90)
    labels[:2] = 20, 21
    out["judged/queries"], out["judged/query_labels"] = queries, labels
    out |= {f"judged/{name}": value for name, value in judged(queries, labels).items()}
    for name, value in out.items():
        if np.ndim(value) == 0 or np.size(value) < 8:
            print(name, value)
    np.savez_compressed(pathlib.Path(__file__).with_name("metrics.npz"), **out)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
