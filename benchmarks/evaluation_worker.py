"""One evaluation by one library in a process of its own, for benchmarks/evaluation.py.

    python benchmarks/evaluation_worker.py dml_jax|pml CASE EMBEDDINGS.npy LABELS.npy REPEAT

Prints a line of JSON. Imports jax or torch, never both.
"""

import json
import os
import sys
import time

import numpy as np
from loss_worker import rest_memory, status_mib

METRICS = ("precision_at_1", "r_precision", "map_at_r")
# With every R@k that the papers of the data set report; PML has none.
RECALLS = ("recall_at_1", "recall_at_10", "recall_at_100")
# Over whole rankings.
RANKS = ("mean_average_precision", "mean_reciprocal_rank", "ndcg", "minp")
# Rates, thresholds, area and consistency over all pairs.
PAIRS = ("tar@far=0.001", "fnmr@fmr=0.01", "eer", "auc", "opis", "opis@epsilon=0.1")
PML = ("precision_at_1", "r_precision", "mean_average_precision_at_r")


def run_ours(case: str, embeddings: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    from dml_jax.evaluation import evaluate_embeddings

    if case == "million":
        some = np.random.default_rng(1).permutation(len(labels))[:10_000]
        given = {"gallery": embeddings, "gallery_labels": labels}
        given |= {"ids": some, "gallery_ids": np.arange(len(labels))}
        return evaluate_embeddings(embeddings[some], labels[some], metrics=("map_at_r",), **given)
    metrics = METRICS + RECALLS if case.endswith("+") else METRICS
    if case == "sop128-ranks":
        metrics = RANKS
    if case == "sop-verification":
        metrics = PAIRS
    return evaluate_embeddings(embeddings, labels, metrics=metrics)


def run_pml(case: str, embeddings: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    import torch
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    torch.set_num_threads(os.cpu_count() or 1)
    calculator = AccuracyCalculator(include=PML, k="max_bin_count")
    return calculator.get_accuracy(embeddings, labels)


def main() -> None:
    library, case, embeddings, labels, repeat = sys.argv[1:]
    vectors, classes = np.load(embeddings), np.load(labels)
    run = run_ours if library == "dml_jax" else run_pml
    # Imports and thread pools are there before memory is measured.
    run("", vectors[:300], classes[:300] % 5)
    before = rest_memory()
    times = []
    for _ in range(int(repeat)):
        start = time.perf_counter()
        values = run(case, vectors, classes)
        times.append(time.perf_counter() - start)
    peak = status_mib("VmHWM") - before
    print(
        json.dumps({"first": times[0], "seconds": min(times), "peak_mib": peak, "values": values})
    )


if __name__ == "__main__":
    main()
