"""Time and peak memory of retrieval metrics beside PyTorch Metric Learning (PML) with faiss-cpu.

    python benchmarks/evaluation.py [--pml_python PATH] [--sop_test Ebay_test.txt] [--cases sop128,inat768]

PATH is a Python with `pip install torch pytorch-metric-learning faiss-cpu`; without it only dml_jax is measured.
Embeddings are drawn around class centres: `sop` has the labels of the test split of Stanford Online Products (60,502
images; its list is `--sop_test`), `inat` 136,093 items in 8,142 classes of 2 to 500, `million` 100,000 classes of 10
in the gallery and 10,000 queries (PML is not asked for it). P@1, R-precision and MAP@R; `sop128+` adds R@1, R@10 and
R@100, which PML lacks, as it lacks verification over all pairs: `sop-verification`, in 128 dimensions. `sop128-ranks`
is mean average precision, reciprocal rank, NDCG and mINP over whole rankings; PML, which has the first two, would list
all 3.7e9 neighbours and is not asked. PML runs with k="max_bin_count". Each library runs in a process of its own, one
after the other; the time is the faster of `--repeat` runs ("first" includes compilation), peak memory the highest
resident set less that before, with the embeddings loaded. The table is printed and left in benchmarks/results/NAME.md.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from machine import record

WORKER = pathlib.Path(__file__).with_name("evaluation_worker.py")
TITLE = "Evaluation: time and peak memory"
CASES = ("sop128", "sop128+", "sop128-ranks", "sop-verification", "sop768", "inat768", "million")
# Without a counterpart in PML, or with one that needs more memory than there is.
ALONE = ("million", "sop128-ranks", "sop-verification")


def labels_of(case: str, sop_test: str | None) -> np.ndarray:
    """The labels of a case; ValueError where their list is missing."""
    if case.startswith("sop"):
        if sop_test is None:
            raise ValueError(f"case {case!r} needs --sop_test, the list of the test split")
        return np.loadtxt(sop_test, dtype=np.int64, skiprows=1, usecols=1)
    if case == "million":
        return np.arange(1_000_000) // 10
    low, high = 0.1, 3.0
    for _ in range(50):
        # Sizes fall off like a power of the rank: the power that gives the number of items.
        power = (low + high) / 2
        sizes = np.round(np.clip(500 * (1 + np.arange(8142) / 12) ** -power, 2, 500)).astype(int)
        low, high = (power, high) if sizes.sum() > 136_093 else (low, power)
    missing = 136_093 - sizes.sum()
    sizes[100 : 100 + abs(missing)] += np.sign(missing)
    return np.repeat(np.arange(len(sizes)), sizes)


def draw(labels: np.ndarray, dim: int) -> np.ndarray:
    """Unit vectors around class centres, hard enough that neighbours are often wrong."""
    rng = np.random.default_rng(0)
    _, of = np.unique(labels, return_inverse=True)
    centres = rng.standard_normal((of.max() + 1, dim), np.float32)
    found = np.empty((len(labels), dim), np.float32)
    noise = 1.5 * (dim / 128) ** 0.25
    for start in range(0, len(labels), 1 << 14):
        some = slice(start, start + (1 << 14))
        part = centres[of[some]] + noise * rng.standard_normal((len(of[some]), dim), np.float32)
        found[some] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pml_python")
    parser.add_argument("--sop_test")
    parser.add_argument(
        "--cases", default="sop128,sop128-ranks,sop-verification,sop768,inat768,million"
    )
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument(
        "--name", default="evaluation_cpu", help="of the file under benchmarks/results"
    )
    args = parser.parse_args()
    root = str(WORKER.parents[1])
    columns = ["case", "library", "seconds", "first", "MiB", "values"]
    for case in args.cases.split(","):
        if case not in CASES:
            sys.exit(f"unknown case {case!r}; accepted: {', '.join(CASES)}")
        labels = labels_of(case, args.sop_test)
        with tempfile.TemporaryDirectory() as folder:
            paths = [str(pathlib.Path(folder) / name) for name in ("x.npy", "y.npy")]
            np.save(paths[0], draw(labels, 768 if "768" in case else 128))
            np.save(paths[1], labels)
            libraries = {"dml_jax": sys.executable}
            if args.pml_python and case not in ALONE:
                libraries["pml"] = args.pml_python
            seconds = {}
            for library, python in libraries.items():
                command = [python, str(WORKER), library, case, *paths, str(args.repeat)]
                environment = os.environ | {"PYTHONPATH": root if library == "dml_jax" else ""}
                out = subprocess.run(command, capture_output=True, text=True, env=environment)
                if out.returncode:
                    print(f"{case} {library} failed: {out.stderr.strip().splitlines()[-1:]}")
                    continue
                r = json.loads(out.stdout.splitlines()[-1])
                seconds[library] = r["seconds"]
                values = " ".join(f"{name} {value:.4f}" for name, value in r["values"].items())
                figures = [f"{r['seconds']:.1f}", f"{r['first']:.1f}", f"{r['peak_mib']:.0f}"]
                record(args.name, TITLE, columns, [case, library, *figures, values])
            if len(seconds) == 2:
                ratio = f"{seconds['pml'] / seconds['dml_jax']:.2f}"
                record(args.name, TITLE, columns, [case, "ratio", ratio, "", "", ""])


if __name__ == "__main__":
    main()
