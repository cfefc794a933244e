"""Correlations of recall with the embedding space in the ICML 2020 study on Omniglot, beside the published ones.

    python benchmarks/icml2020_omniglot.py

It reads results/icml2020_omniglot/embedding_space.csv, which `dml report` wrote for
`dml study --study=icml2020_small:path=omniglot_full.zip`, and writes correlations.md beside it.
"""

import pathlib

from dml_jax import csv_files
from dml_jax.experiments.statistics import correlation

FOLDER = pathlib.Path(__file__).parent / "results" / "icml2020_omniglot"
RECALL = "best test/e_recall@1"
# The name of each quantity and Pearson's r in the paper's figures, on CUB, Cars and SOP.
QUANTITIES = {
    "train/rho_spectrum@2": ("rho", "-.80, -.85, -.63"),
    "train/dists@intra": ("distance within classes", ".25, .39, .36"),
    "train/dists@inter": ("distance between classes", "-.16, -.08, .17"),
    "train/dists@intra_over_inter": ("their ratio", ".79, .65, .22"),
}
# Its embeddings lie in one point: it did not learn at these rates.
COLLAPSED = "ArcFace"


def main() -> None:
    means: dict[str, dict[str, float]] = {}
    for row in csv_files.read_rows(FOLDER / "embedding_space.csv"):
        means.setdefault(row["value"], {})[row["method"]] = float(row["mean"])
    recall = means[RECALL]
    lines = [
        f"| of the training classes | {len(recall)} methods | without {COLLAPSED} | published: CUB, Cars, SOP |",
        "|---|---:|---:|---:|",
    ]
    for value, (called, published) in QUANTITIES.items():
        found = means[f"{value} at {RECALL}"]
        cells = []
        for methods in (list(recall), [m for m in recall if m != COLLAPSED]):
            r = correlation([found[m] for m in methods], [recall[m] for m in methods])
            cells.append(f"{r.r:+.2f} [{r.low:+.2f}, {r.high:+.2f}]")
        lines.append(f"| {called} | {' | '.join(cells)} | {published} |")
    text = "\n".join(lines) + "\n"
    (FOLDER / "correlations.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
