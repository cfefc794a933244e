"""Time and peak memory of every miner beside PyTorch Metric Learning (PML): mining alone, no loss.

    python benchmarks/miners.py [--pml_python PATH] [--miners a,b] [--batch 256,1024,4096]

PATH is a Python with `pip install torch pytorch-metric-learning`; without it only dml_jax is measured.

Each library runs each case in a process of its own, on the same embeddings (128 dimensions, four samples a
class, loosely clustered and normalised) and as many threads; ours is compiled beforehand and gives its
choice as weights of pairs [B, B], PML its lists of indices. The time is the median of several runs (of one
where it takes 5 s or more); peak memory is the highest resident set of the process in these runs, less its
resident set before them. A case over the limit of memory (RLIMIT_AS) or of time is recorded as such. The table is
printed and left in benchmarks/results/NAME.md.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from loss_worker import embeddings, rest_memory, status_mib
from machine import record

PML = {
    "angular": "AngularMiner",
    "batch_easy_hard": "BatchEasyHardMiner",
    "batch_hard": "BatchHardMiner",
    "distance_weighted": "DistanceWeightedMiner",
    "embeddings_already_packaged_as_triplets": "EmbeddingsAlreadyPackagedAsTriplets",
    "hdc": "HDCMiner",
    "multi_similarity": "MultiSimilarityMiner",
    "pair_margin": "PairMarginMiner",
    "triplet_margin": "TripletMarginMiner",
    "uniform_histogram": "UniformHistogramMiner",
}
SLOW, RUNS = 5.0, 5


def batch_of(name: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Normalised embeddings, because PML's angular measures them as they are, and labels.

    PML's packaged triplets must be whole: that miner has as many samples less as that takes.
    """
    if name == "embeddings_already_packaged_as_triplets":
        size -= size % 12
    x, labels = embeddings({"batch": size, "per_class": 4, "classes": size, "dim": 128})
    return x / np.linalg.norm(x, axis=1, keepdims=True), labels


def ours(name: str, batch: int) -> Callable[[], float]:
    """One run of dml_jax, compiled: the number of pairs chosen."""
    import jax
    import jax.numpy as jnp

    from dml_jax import miners

    miner, key = miners.get(name), jax.random.key(0)
    x, labels = (jnp.asarray(a) for a in batch_of(name, batch))
    mine = jax.jit(lambda x: miner(x, labels, key=key).selection.pairs())
    compiled = mine.lower(x).compile()
    return lambda: float(jax.block_until_ready(compiled(x))[1][0, 0])


def theirs(name: str, batch: int) -> Callable[[], float]:
    """One run of PML."""
    import torch
    from pytorch_metric_learning import miners

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    miner = getattr(miners, PML[name])()
    x, labels = (torch.from_numpy(a) for a in batch_of(name, batch))
    return lambda: float(len(miner(x, labels)[0]))


def work(side: str, name: str, batch: int, limit_gib: float) -> dict[str, Any]:
    """Seconds and MiB of a case, in this process."""
    run = {"ours": ours, "pml": theirs}[side](name, batch)
    if side == "pml":
        limit = int(status_mib("VmSize") * 2**20 + limit_gib * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before, seconds = rest_memory(), []
    try:
        while len(seconds) < RUNS and (not seconds or max(seconds) < SLOW):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
    except (MemoryError, RuntimeError) as error:
        if "memory" not in str(error).lower():
            raise
        return {"over": f"> {limit_gib:g} GiB"}
    # The first run warms allocators and caches up.
    return {
        "seconds": statistics.median(seconds[1:] or seconds),
        "mib": status_mib("VmHWM") - before,
    }


def measure(python: str, side: str, name: str, batch: int, args: Any) -> dict[str, Any]:
    """A case in a process of its own."""
    case = [side, name, str(batch), str(args.limit_gib)]
    try:
        done = subprocess.run(
            [python, __file__, "--worker", *case],
            stdout=subprocess.PIPE,
            timeout=args.limit_s,
            check=True,
        )
    except subprocess.TimeoutExpired:
        return {"over": f"> {args.limit_s:g} s"}
    return json.loads(done.stdout.splitlines()[-1])


def cell(result: dict[str, Any] | None) -> str:
    """Time and memory as the table shows them."""
    if result is None:
        return ""
    return result.get("over") or f"{1e3 * result['seconds']:.1f} ms, {result['mib']:.0f} MiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pml_python", help="a Python with pytorch-metric-learning")
    parser.add_argument("--miners", help="names, by commas; all of them by default")
    parser.add_argument("--batch", default="256,1024,4096", help="sizes, by commas")
    parser.add_argument("--limit_gib", type=float, default=6.0, help="memory of PML")
    parser.add_argument("--limit_s", type=float, default=120.0, help="time of a case")
    parser.add_argument("--name", default="miners_cpu", help="of the file under benchmarks/results")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        side, name, batch, limit = args.worker
        print(json.dumps(work(side, name, int(batch), float(limit))))
        return
    # Not at the top: PML's worker runs this file without jax.
    from dml_jax import miners

    columns = ["miner", "batch", "ours", "PML", "PML / ours"]
    for name in args.miners.split(",") if args.miners else miners.available():
        for batch in map(int, args.batch.split(",")):
            mine = measure(sys.executable, "ours", name, batch, args)
            beside = args.pml_python and name in PML
            other = measure(args.pml_python, "pml", name, batch, args) if beside else None
            both = other is not None and "seconds" in mine and "seconds" in other
            ratio = f"{other['seconds'] / mine['seconds']:.1f}" if both else ""
            row = [name, str(batch), cell(mine), cell(other), ratio]
            record(args.name, "Miners: time and peak memory", columns, row)


if __name__ == "__main__":
    main()
