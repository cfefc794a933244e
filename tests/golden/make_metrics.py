"""Makes metrics.npz: retrieval metrics of PyTorch Metric Learning's AccuracyCalculator.

Run in an environment with numpy, torch, faiss-cpu, scikit-learn and pytorch_metric_learning==2.9.0:

    python tests/golden/make_metrics.py

Each case has unbalanced classes, labels that occur once, and duplicates that share their label (so
that how ties are ordered changes nothing). Cases in which neighbours of different classes lie closer
together than float32 tells apart are drawn again.
"""

import pathlib

import numpy as np
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

NAMES = ("precision_at_1", "r_precision", "mean_average_precision_at_r")


def draw(rng: np.random.Generator, size: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings around class centres; the sizes of the classes fall off like 1 / rank."""
    share = 1 / np.arange(1, classes + 1)
    labels = rng.choice(classes, size, p=share / share.sum())
    centres = np.random.default_rng(7).normal(size=(classes, 8))
    embeddings = (centres[labels] + rng.normal(size=(size, 8))).astype(np.float32)
    twins = rng.permutation(size)[:20]
    embeddings[twins[10:]], labels[twins[10:]] = embeddings[twins[:10]], labels[twins[:10]]
    return embeddings, labels


def separated(queries, query_labels, references, labels) -> bool:
    """Whether neighbours that differ in their label differ in distance, as float32 goes."""
    apart = queries[:, None].astype(np.float64) - references[None].astype(np.float64)
    squared = (apart**2).sum(axis=2)
    order = np.argsort(squared, axis=1, kind="stable")
    gaps = np.diff(np.take_along_axis(squared, order, axis=1), axis=1)
    hit = labels[order] == query_labels[:, None]
    # Beyond the largest R no metric looks.
    depth = min(len(labels), np.bincount(labels).max() + 2)
    return not np.any(((gaps < 2e-6) & (hit[:, 1:] != hit[:, :-1]))[:, :depth])


def main() -> None:
    out = {}
    cases = (("alone", 0, False), ("separate", 200, False), ("including", 200, True))
    for case, extra, includes in cases:
        for seed in range(1000):
            rng = np.random.default_rng([seed, extra, includes])
            queries, query_labels = draw(rng, 150, 30)
            references, labels = (queries, query_labels) if not extra else draw(rng, extra, 25)
            if includes:
                references = np.concatenate([queries, references])
                labels = np.concatenate([query_labels, labels])
            if separated(queries, query_labels, references, labels):
                break
        else:
            raise SystemExit(f"{case}: no well separated draw in 1000")
        own = includes or not extra
        counts = np.bincount(labels, minlength=30)[query_labels] - own
        assert (counts == 0).any() and (counts > 20).any()
        out[f"{case}/queries"], out[f"{case}/query_labels"] = queries, query_labels
        out[f"{case}/references"], out[f"{case}/labels"] = references, labels
        for k in (None, "max_bin_count"):
            found = AccuracyCalculator(include=NAMES, k=k).get_accuracy(
                queries,
                query_labels,
                *(() if not extra else (references, labels, includes)),
            )
            out[f"{case}/{k}"] = np.array([found[name] for name in NAMES])
            print(case, k, seed, found)
    np.savez_compressed(pathlib.Path(__file__).with_name("metrics.npz"), **out)


if __name__ == "__main__":
    main()
