"""Time and peak memory of a loss, value and gradient, at large batches on one device.

    python benchmarks/losses.py [--batch 16384] [--dim 128] [--per_class 4] [--block 256] [--losses a,b]

Each case runs in a process of its own. Peak memory is the resident set at its highest (getrusage)
less the resident set before the loss was compiled, so compilation counts and the inputs do not; on a
GPU it is the allocator's peak. Compile time is apart; the time is the median of the repetitions.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

DEFAULT = "nt_xent,multi_similarity,triplet_margin"


def resident_mib() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def one(name: str, batch: int, dim: int, per_class: int, block: int | None, repeat: int) -> dict:
    """Runs one loss in this process."""
    import jax
    import jax.numpy as jnp

    from dml_jax import losses

    loss = losses.get(name)
    labels = jnp.arange(batch) // per_class
    centers = jax.random.normal(jax.random.key(0), (-(-batch // per_class), dim))
    x = centers[labels] + jax.random.normal(jax.random.key(1), (batch, dim))
    variables = loss.init(jax.random.key(2), len(centers), dim)
    jax.block_until_ready((x, labels, variables))

    def value(x, variables):
        return loss.apply(variables, x, labels, block=block)[0].compute()

    before = resident_mib()
    start = time.perf_counter()
    run = jax.jit(jax.value_and_grad(value, argnums=(0, 1))).lower(x, variables).compile()
    compiled = time.perf_counter() - start
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        result, _ = jax.block_until_ready(run(x, variables))
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    stats = jax.devices()[0].memory_stats()
    if stats:
        peak = stats["peak_bytes_in_use"] / 2**20
    return {
        "loss": name,
        "value": float(result),
        "peak_mib": round(peak),
        "seconds": sorted(times)[len(times) // 2],
        "compile_seconds": compiled,
        "device": jax.devices()[0].device_kind,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=16384)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--per_class", type=int, default=4)
    parser.add_argument("--block", type=int, default=256, help="anchors at a time; 0: all at once")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--losses", default=DEFAULT)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    settings = (args.batch, args.dim, args.per_class, args.block or None, args.repeat)
    if args.one:
        print(json.dumps(one(args.one, *settings)))
        return
    print(
        f"batch {args.batch}, dimension {args.dim}, {args.per_class} per class, block {args.block}"
    )
    print(f"{'loss':<30}{'value':>10}{'peak MiB':>10}{'seconds':>10}{'compile s':>11}  device")
    for name in args.losses.split(","):
        command = [sys.executable, *sys.argv, "--one", name]
        out = subprocess.run(command, capture_output=True, text=True)
        if out.returncode:
            sys.exit(f"{name} failed:\n{out.stderr}")
        r = json.loads(out.stdout.splitlines()[-1])
        print(
            f"{r['loss']:<30}{r['value']:>10.4f}{r['peak_mib']:>10}{r['seconds']:>10.1f}"
            f"{r['compile_seconds']:>11.1f}  {r['device']}"
        )


if __name__ == "__main__":
    main()
