"""One loss of one library in a process of its own, for benchmarks/losses.py.

Reads lines of standard input and answers each with a line of JSON: the case; a word to run it once; then how
many seconds to repeat it for, as often as asked. Imports jax or torch, never both.
"""

import ctypes
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

MIB = 2**20
# What runs: its result is a number, and it has been waited for.
Run = Callable[[], float]


def status_mib(field: str) -> float:
    """VmRSS, VmHWM (the highest VmRSS) or VmSize of this process."""
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(field + ":"):
                return int(line.split()[1]) / 1024
    raise ValueError(f"/proc/self/status has no {field!r}")


def rest_memory() -> float:
    """Hands freed memory back, forgets the highest resident set, and returns the present one, in MiB."""
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return status_mib("VmRSS")


def embeddings(case: dict) -> tuple[np.ndarray, np.ndarray]:
    """Loosely clustered embeddings and their labels, the same for both libraries."""
    rng = np.random.default_rng(0)
    labels = np.arange(case["batch"]) // case["per_class"] % case["classes"]
    centers = rng.standard_normal((labels.max() + 1, case["dim"]), np.float32)
    x = centers[labels] + rng.standard_normal((case["batch"], case["dim"]), np.float32)
    return x, labels


def class_weights(shape: tuple[int, ...]) -> np.ndarray:
    """Unit vectors, the same for both libraries."""
    weights = np.random.default_rng(1).standard_normal(shape, np.float32)
    return weights / np.linalg.norm(weights, axis=-1, keepdims=True)


def prepare_ours(case: dict) -> tuple[Callable[[], Run], dict]:
    """(compile, what is known about the device)."""
    import jax
    import jax.numpy as jnp

    from dml_jax import losses

    loss = losses.get(case["loss"], **case["hyper"])
    x, labels = (jnp.asarray(a) for a in embeddings(case))
    key = jax.random.key(2)
    variables = loss.init(key, case["classes"], case["dim"])
    params, state = variables.get("params", {}), variables.get("state", {})
    if "weights" in params:
        params["weights"] = jnp.asarray(class_weights(params["weights"].shape))
    more = {"ref_embeddings": x[::-1]} if case["views"] else {}
    jax.block_until_ready((x, labels, params, state, more))

    def value(x, params, state):
        variables = {"params": params, "state": state}
        mean, new = loss.apply(variables, x, labels, key=key, block=case["block"], **more)
        return mean.compute(), new

    def compile() -> Run:
        nonlocal state
        graded = jax.jit(jax.value_and_grad(value, argnums=(0, 1), has_aux=True))
        compiled = graded.lower(x, params, state).compile()

        def run() -> float:
            nonlocal state
            (result, state), _ = jax.block_until_ready(compiled(x, params, state))
            return float(result)

        return run

    device = jax.devices()[0]
    return compile, {"version": f"jax {jax.__version__}", "device": device.device_kind}


def prepare_pml(case: dict) -> tuple[Callable[[], Run], dict]:
    """As `prepare_ours`; nothing is compiled."""
    import pytorch_metric_learning as pml
    import torch
    from pytorch_metric_learning import losses

    torch.set_num_threads(case["threads"])

    def build(value: Any) -> Any:
        """Losses are dicts with a name, also inside losses."""
        if isinstance(value, list):
            return [build(v) for v in value]
        if not isinstance(value, dict):
            return value
        return getattr(losses, value["name"])(
            **{k: build(v) for k, v in value.items() if k != "name"}
        )

    loss = build(case["pml"])
    for parameter in loss.parameters():
        if parameter.ndim != 2:
            continue
        rows_first = hasattr(loss, "proxies")
        rows = parameter.shape[0 if rows_first else 1]
        weights = torch.from_numpy(class_weights((rows, case["dim"])))
        parameter.data = weights if rows_first else weights.T.contiguous()
    x, labels = (torch.from_numpy(a) for a in embeddings(case))
    x.requires_grad_()
    second = x.detach().flip(0)
    half = len(x) // 2
    call = {
        "labels": lambda: loss(x, labels),
        "second view": lambda: loss(x, ref_emb=second),
        "halves": lambda: loss(x[:half], x[half:]),
        "meta-classes": lambda: loss(x, None, labels % 50),
    }[case["pml_call"]]
    # Threads and libraries that torch starts at the first use are no part of the loss.
    torch.ones(64, 64, requires_grad=True).matmul(torch.ones(64, 64)).sum().backward()

    def run() -> float:
        if hasattr(loss, "hist_"):  # dynamic_soft_margin: a second step raises
            loss.hist_ = torch.zeros_like(loss.hist_)
        x.grad = None
        loss.zero_grad(set_to_none=True)
        value = call()
        value.backward()
        return value.item()

    version = f"torch {torch.__version__}, pytorch-metric-learning {pml.__version__}"
    return lambda: run, {"version": version, "device": "cpu"}


def main() -> None:
    case = json.loads(sys.stdin.readline())
    # Both libraries take as many threads as there are CPUs for the process.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: case["threads"]])
    prepare = {"ours": prepare_ours, "pml": prepare_pml}[case["side"]]
    compile, about = prepare(case)
    print(json.dumps(about), flush=True)
    if case["side"] == "pml":
        limit = int(status_mib("VmSize") * MIB + case["limit_gib"] * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sys.stdin.readline()
    before = rest_memory()
    start = time.perf_counter()
    run = compile()
    first = {"compile_seconds": time.perf_counter() - start}
    first["compile_peak_mib"] = status_mib("VmHWM") - before
    before = rest_memory()
    start = time.perf_counter()
    try:
        first["value"] = run()
    except (MemoryError, RuntimeError) as error:
        # torch says "not enough memory", some of its kernels std::bad_alloc.
        if not any(sign in str(error).lower() for sign in ("memory", "bad_alloc")):
            raise
        first["over"] = f"> {case['limit_gib']:g} GiB"
    else:
        first["seconds"] = time.perf_counter() - start
        first["peak_mib"] = status_mib("VmHWM") - before
    print(json.dumps(first), flush=True)
    for line in sys.stdin:
        calls, start = 0, time.perf_counter()
        while calls == 0 or time.perf_counter() - start < float(line):
            run()
            calls += 1
        seconds = (time.perf_counter() - start) / calls
        peak = status_mib("VmHWM") - before
        print(json.dumps({"seconds": seconds, "peak_mib": peak}), flush=True)


if __name__ == "__main__":
    main()
