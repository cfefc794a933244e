"""Time and peak memory of every loss, value and gradient, beside PyTorch Metric Learning (PML).

    python benchmarks/losses.py [--pml_python PATH] [--losses a,b] [--batch 256,1024,4096,65536]

PATH is a Python with `pip install torch pytorch-metric-learning`; without it only dml_jax is measured.

Each library runs each case in a process of its own, with the same embeddings, class weights and number
of threads. The two take turns repeating, so that what else the machine does hits both; the time is the
median over the turns (or the only run, where that takes 5 s or more), and compilation is apart. Peak
memory is the highest resident set of the process while it repeats, less its resident set before the first
run (inputs are there, results are not). A case of PML over the limit of memory (RLIMIT_AS) or of time is
recorded as such. Losses run with their default hyper-parameters, four samples a class, without a miner;
those against class weights with 1,000 and 100,000 classes. `multiple`, `cross_batch_memory` and
`self_supervised` are measured around the losses named in `HYPER`; `generic_pair` costs what the user's
kernel costs.

Results are merged into benchmarks/results/NAME.json, so that one may run a part at a time, and NAME.md is
the table of all that is there. Each file belongs to one machine.
"""

import argparse
import json
import os
import pathlib
import selectors
import statistics
import subprocess
import sys
from typing import Any

from machine import RESULTS, cpu

from dml_jax import losses

HERE = pathlib.Path(__file__).parent
# Anchors (or classes) at a time, by batch; 0 for all of them. The larger of CLASSES is never taken at once.
BLOCK = 256
BLOCKS = {256: 0, 1024: 0, 4096: BLOCK, 65536: BLOCK}
CLASSES = (1000, 100_000)
# A run that takes this many seconds is not repeated.
SLOW = 5.0
# What is measured beyond the memory of PML.
LARGE = (
    "nt_xent",
    "multi_similarity",
    "triplet_margin",
    "sup_con",
    "smooth_ap",
    "threshold_consistent_margin",
)
HYPER: dict[str, dict[str, Any]] = {
    "cross_batch_memory": {"loss": "contrastive", "memory_size": 4096},
    "multiple": {"losses": ["contrastive", "multi_similarity"]},
    "ranked_list": {"margin": 0.4, "Tn": 10.0},
    "self_supervised": {"loss": "nt_xent"},
}
SIZES = {"num_classes": "classes", "embedding_size": "dim"}
# name -> PML's class; its arguments are those of HYPER, or of SIZES for a loss against class weights.
PML: dict[str, str | dict[str, Any]] = {
    "angular": "AngularLoss",
    "arc_face": "ArcFaceLoss",
    "circle": "CircleLoss",
    "contrastive": "ContrastiveLoss",
    "cos_face": "CosFaceLoss",
    "cross_batch_memory": {
        "name": "CrossBatchMemory",
        "loss": {"name": "ContrastiveLoss"},
        "embedding_size": "dim",
        "memory_size": 4096,
    },
    "dynamic_soft_margin": "DynamicSoftMarginLoss",
    "fast_ap": "FastAPLoss",
    "generalized_lifted_structure": "GeneralizedLiftedStructureLoss",
    "histogram": "HistogramLoss",
    "instance": "InstanceLoss",
    "intra_pair_variance": "IntraPairVarianceLoss",
    "large_margin_softmax": "LargeMarginSoftmaxLoss",
    "lifted_structure": "LiftedStructureLoss",
    "manifold": {"name": "ManifoldLoss", "l": "dim"},
    "margin": "MarginLoss",
    "multi_similarity": "MultiSimilarityLoss",
    "multiple": {
        "name": "MultipleLosses",
        "losses": [{"name": "ContrastiveLoss"}, {"name": "MultiSimilarityLoss"}],
    },
    "n_pairs": "NPairsLoss",
    "nca": "NCALoss",
    "normalized_softmax": "NormalizedSoftmaxLoss",
    "nt_xent": "NTXentLoss",
    "p2s_grad": {"name": "P2SGradLoss", "descriptors_dim": "dim", "num_classes": "classes"},
    "pnp": "PNPLoss",
    "proxy_anchor": "ProxyAnchorLoss",
    "proxy_nca": "ProxyNCALoss",
    "ranked_list": "RankedListLoss",
    "self_supervised": {"name": "SelfSupervisedLoss", "loss": {"name": "NTXentLoss"}},
    "signal_to_noise_ratio_contrastive": "SignalToNoiseRatioContrastiveLoss",
    "smooth_ap": "SmoothAPLoss",
    "soft_triple": "SoftTripleLoss",
    "sphere_face": "SphereFaceLoss",
    "sub_center_arc_face": "SubCenterArcFaceLoss",
    "sup_con": "SupConLoss",
    "threshold_consistent_margin": "ThresholdConsistentMarginLoss",
    "triplet_margin": "TripletMarginLoss",
    "tuplet_margin": "TupletMarginLoss",
    "vic_reg": "VICRegLoss",
}
PML_CALLS = {"vic_reg": "second view", "self_supervised": "halves", "manifold": "meta-classes"}


class Worker:
    """A process of loss_worker.py that answers line by line."""

    def __init__(self, python: str, case: dict[str, Any]):
        self.process = subprocess.Popen(
            [python, str(HERE / "loss_worker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": str(case["threads"])},
            text=True,
        )
        self.send(case)

    def send(self, message: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def answer(self, seconds: float) -> dict[str, Any]:
        """The next line; {"over": ...} where there is none in so many seconds."""
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as ready:
            ready.register(self.process.stdout, selectors.EVENT_READ)
            if not ready.select(seconds):
                return {"over": f"> {seconds:g} s"}
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} ended with {self.process.wait()}, see above")
        return json.loads(line)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def cases(names: list[str], batches: list[int], block: int | None) -> list[dict[str, Any]]:
    """What is to be measured, in the order of the table."""
    found = []
    for batch in batches:
        for name in names:
            if batch > 4096 and name not in LARGE:
                continue
            loss = losses.get(name, **HYPER.get(name, {}))
            by_class = losses.has_class_weights(loss) and loss.takes_block
            for classes in CLASSES if by_class else (0,):
                usual = BLOCK if classes == max(CLASSES) else BLOCKS.get(batch, BLOCK)
                rows = usual if block is None else block
                found.append(
                    {
                        "loss": name,
                        "batch": batch,
                        "classes": classes,
                        "block": (rows or None) if loss.takes_block else None,
                        "views": isinstance(loss, losses.ViewsLoss),
                    }
                )
    return found


def pml_spec(case: dict[str, Any], dim: int) -> dict[str, Any] | None:
    """PML's class and arguments; None where it has no such loss."""
    spec = PML.get(case["loss"])
    if spec is None:
        return None
    if isinstance(spec, str):
        spec = {"name": spec} | HYPER.get(case["loss"], {}) | (SIZES if case["classes"] else {})
    sizes = {"dim": dim, "classes": case["classes"]}
    return {k: sizes.get(v, v) if isinstance(v, str) else v for k, v in spec.items()}


def measure(case: dict[str, Any], args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """{"ours": ..., "pml": ...} of one case, taking turns."""
    whole = case | {
        "classes": case["classes"] or case["batch"],
        "hyper": HYPER.get(case["loss"], {}),
        "pml": pml_spec(case, args.dim),
        "pml_call": PML_CALLS.get(case["loss"], "labels"),
        "dim": args.dim,
        "per_class": args.per_class,
        "threads": args.threads,
        "limit_gib": args.limit_gib,
    }
    pythons = {"ours": sys.executable}
    if args.pml_python and whole["pml"] and case["batch"] <= 4096:
        pythons["pml"] = args.pml_python
    workers = {side: Worker(python, whole | {"side": side}) for side, python in pythons.items()}
    results: dict[str, dict[str, Any]] = {}
    try:
        for side, worker in workers.items():
            results[side] = worker.answer(600)
        for side, worker in workers.items():
            worker.send("run")
            results[side] |= worker.answer(args.limit_s if side == "pml" else 600)
        turns = {side: [] for side, r in results.items() if r.get("seconds", SLOW) < SLOW}
        for _ in range(args.turns):
            for side, taken in turns.items():
                workers[side].send(args.turn_s)
                taken.append(workers[side].answer(600))
    finally:
        for worker in workers.values():
            worker.close()
    for side, taken in turns.items():
        results[side]["seconds"] = statistics.median(t["seconds"] for t in taken)
        results[side]["spread"] = [f(t["seconds"] for t in taken) for f in (min, max)]
        results[side]["peak_mib"] = max(t["peak_mib"] for t in taken)
    return results


def machine(args: argparse.Namespace) -> dict[str, Any]:
    return {"cpu": cpu(), "threads": args.threads}


def number(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def row_of(r: dict[str, Any]) -> str:
    """A row of the table."""

    def cells(side: dict[str, Any] | None) -> list[str]:
        """[milliseconds, MiB]"""
        if side is None:
            return ["", ""]
        if "over" in side:
            return [side["over"], ""]
        return [number(1e3 * side["seconds"]), number(side["peak_mib"])]

    ours, pml = cells(r["ours"]), cells(r.get("pml"))
    name = f"`{r['loss']}`" + (f", {r['classes']:,} classes" if r["classes"] else "")
    times = ratio(r)
    return " | ".join(
        [
            f"| {name}",
            str(r["block"] or ""),
            ours[0],
            pml[0],
            "" if times is None else f"{times:.1f}",
            ours[1],
            pml[1],
            f"{r['ours']['compile_seconds']:.1f} |",
        ]
    )


def ratio(r: dict[str, Any]) -> float | None:
    """PML's time over ours; None where either has none."""
    times = [r[side].get("seconds") for side in ("ours", "pml") if side in r]
    return times[1] / times[0] if len(times) == 2 and None not in times else None


def summary(rows: list[dict[str, Any]]) -> str:
    """What the rows of one batch come to."""
    ratios = [x for x in map(ratio, rows) if x is not None]
    over = sum("over" in r.get("pml", {}) for r in rows)
    most = max(r["ours"].get("peak_mib", float("inf")) for r in rows)
    out = f"dml_jax takes at most {number(most)} MiB."
    if ratios:
        out = (
            f"PML takes {statistics.median(ratios):.1f} times the time of dml_jax in the median of "
            f"{len(ratios)} cases, {min(ratios):.1f} times at least; {over} more are over its limit. {out}"
        )
    return out


HEAD = """# Losses: time and peak memory

Made by `python benchmarks/losses.py`, whose docstring says how. Value and gradient, float32, dimension {dim},
{per_class} per class. {cpu}, {threads} threads for either library; {versions}. A case of PML is given up
beyond {limit_s:g} s a run or {limit_gib:g} GiB.

`block` is how many anchors (classes, for losses against class weights) dml_jax takes at a time, empty for all
at once. ms: median of {turns} turns. MiB: the process's highest resident set while it runs, less that before.
compile: once for each shape.
"""


def table(results: dict[str, Any]) -> str:
    """The markdown page of all results."""
    out = [HEAD.format(**results["settings"], **results["machine"])]
    rows = list(results["cases"].values())
    for batch in sorted({r["batch"] for r in rows}):
        mine = sorted(
            (r for r in rows if r["batch"] == batch), key=lambda r: (r["loss"], r["classes"])
        )
        out += [f"## Batch {batch:,}", summary(mine), ""]
        out += [
            "| loss | block | ms | PML ms | PML / ours | MiB | PML MiB | compile s |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
        ]
        out += [*map(row_of, mine), ""]
    return "\n".join(out)


def merge(path: pathlib.Path, args: argparse.Namespace) -> dict[str, Any]:
    """The results so far; ValueError where they are of another machine or other settings."""
    keys = ("dim", "per_class", "limit_s", "limit_gib", "turns", "turn_s")
    mine = {"machine": machine(args), "settings": {k: getattr(args, k) for k in keys}}
    if not path.exists():
        return {**mine, "cases": {}}
    found = json.loads(path.read_text())
    found["settings"].pop("versions", None)
    for part, value in mine.items():
        if found[part] != value:
            raise ValueError(f"{path} has {part} {found[part]}, not {value}; give another --name")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    whole = [name for name in losses.available() if name != "generic_pair"]
    listed = lambda text: text.split(",")
    parser.add_argument("--losses", type=listed, default=whole)
    parser.add_argument("--batch", type=lambda t: [int(b) for b in t.split(",")], default=[*BLOCKS])
    parser.add_argument("--block", type=int, help="anchors at a time; 0: all; default: by batch")
    parser.add_argument("--pml_python", help="a Python that has torch and pytorch-metric-learning")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--per_class", type=int, default=4)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--turn_s", type=float, default=0.1, help="a turn repeats for this long")
    parser.add_argument("--limit_s", type=float, default=60)
    parser.add_argument("--limit_gib", type=float, default=8)
    parser.add_argument(
        "--name", default="losses_cpu", help="of the files under benchmarks/results"
    )
    args = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{args.name}.json"
    results = merge(path, args)
    for case in cases(args.losses, args.batch, args.block):
        row = case | measure(case, args)
        key = f"{case['loss']}/{case['batch']}/{case['classes']}"
        results["cases"] = dict(sorted((results["cases"] | {key: row}).items()))
        versions = {
            r[side]["version"]
            for r in results["cases"].values()
            for side in ("ours", "pml")
            if side in r
        }
        results["settings"]["versions"] = "; ".join(sorted(versions))
        path.write_text(json.dumps(results, indent=1) + "\n")
        path.with_suffix(".md").write_text(table(results))
        print(f"{case['batch']} {row_of(row)}", flush=True)


if __name__ == "__main__":
    main()
