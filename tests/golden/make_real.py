"""Makes real.npz: PML's AccuracyCalculator on the embeddings of a trained network.

Two steps, as no environment needs to have both libraries:

    python tests/golden/make_real.py embeddings   # with dml_jax: trains, a minute or two on two CPU cores
    python tests/golden/make_real.py values       # with torch, faiss-cpu, scikit-learn, pytorch_metric_learning==2.9.0

The network is that of the quickstart, trained on its letters for five epochs; the embeddings, kept as float16, are of
letters that it never saw: classes of 1 to 16 images, some of them alone, a part of the images as queries and the
others as references, whose classes are partly others. PML searches with faiss in float32, as it is; that an exact
search gives the same values is checked.
"""

import pathlib
import sys
import tempfile

import numpy as np

PATH = pathlib.Path(__file__).with_name("real.npz")
# In the order of the values.
NAMES = (
    "precision_at_1",
    "r_precision",
    "mean_average_precision_at_r",
    "mean_average_precision",
    "mean_reciprocal_rank",
    "NMI",
    "AMI",
)
CLASSES, IMAGES = 90, 16


def embeddings() -> dict[str, np.ndarray]:
    """Queries and references of the trained network, and their labels."""
    import jax

    from dml_jax import config_files, evaluation
    from dml_jax.evaluate import restored
    from dml_jax.training import build, score
    from dml_jax.training.loop import train

    config = config_files.load("quickstart")
    config.train.epochs = 5
    model = build.model(config.model)
    with tempfile.TemporaryDirectory() as workdir:
        train(config, workdir)
        *_, variables = restored(workdir, "last", model)
    source = build.source(config, "test")
    found, labels, _ = evaluation.embed(
        jax.jit(score.embedder(model)), variables, score.batches_of(config, source)
    )
    rng = np.random.default_rng(0)
    queries, references = [], []
    for label in rng.permutation(len(source.class_names))[:CLASSES]:
        rows = rng.permutation(np.flatnonzero(labels == label))
        # Few classes are large, and some have one image.
        rows = rows[: min(1 + int(rng.exponential(6)), IMAGES)]
        cut = int(rng.integers(0, len(rows) + 1))
        queries += rows[:cut].tolist()
        references += rows[cut:].tolist()
    return {
        "queries": found[queries].astype(np.float16),
        "query_labels": labels[queries],
        "references": found[references].astype(np.float16),
        "labels": labels[references],
    }


def values(stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """PML's, by case, k and average."""
    import torch
    from make_metrics import exact_knn
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    # PML computes the reciprocal ranks in torch's default type.
    torch.set_default_dtype(torch.float64)
    queries, query_labels = stored["queries"].astype(np.float32), stored["query_labels"]
    references, labels = stored["references"].astype(np.float32), stored["labels"]
    both = np.concatenate([queries, references]), np.concatenate([query_labels, labels])
    cases = {
        "alone": (queries, query_labels),
        "separate": (queries, query_labels, references, labels),
        "including": (queries, query_labels, *both, True),
    }
    out = {}
    for case, given in cases.items():
        for k in (None, "max_bin_count", 5):
            for average in ("query", "class", "each_class"):
                options = {
                    "include": NAMES,
                    "k": k,
                    "avg_of_avgs": average == "class",
                    "return_per_class": average == "each_class",
                }
                found, exact = (
                    AccuracyCalculator(**options, **search).get_accuracy(*given)
                    for search in ({}, {"knn_func": exact_knn})
                )
                for name in NAMES[:-2]:
                    np.testing.assert_allclose(found[name], exact[name], atol=1e-12, rtol=0)
                out[f"{case}/{k}/{average}"] = np.array([found[name] for name in NAMES[:-2]])
                clusters = np.array([found[name] for name in NAMES[-2:]])
                assert np.array_equal(out.setdefault(f"{case}/clusters", clusters), clusters)
    return out


def main(step: str) -> None:
    if step == "embeddings":
        out = embeddings()
    else:
        stored = dict(np.load(PATH))
        stored = {
            name: stored[name] for name in ("queries", "query_labels", "references", "labels")
        }
        out = stored | values(stored)
        for name, value in out.items():
            print(name, value.shape if value.size > 8 else value)
    np.savez_compressed(PATH, **out)
    _, sizes = np.unique(out["query_labels"], return_counts=True)
    print(f"{len(out['queries'])} queries, {len(out['references'])} references, sizes {sizes}")


if __name__ == "__main__":
    main(sys.argv[1])
