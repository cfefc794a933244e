"""What an accelerator shows: training, losses, neighbours, numerics and resumed runs of one device, in one file.

    python benchmarks/gpu.py [--quick] [--only PART,PART] [--limit 600]

Writes results/gpu_DEVICE.md with a section for each part. A part that is run again replaces its section; one that
fails or takes longer than `--limit` seconds leaves what it found, and its last lines. Each part runs in a process of
its own, one after the other:

- device: versions, and products of square matrices, which are the peaks that other parts are compared with.
- train: the whole training step of a ViT-B/14 that computes in bfloat16, on images of 224 x 224 that lie on the device,
  with multi_similarity, its miner and AdamW. Operations are three times those of the forward pass, counted by hand;
  memory is XLA's analysis of the program, arguments and temporary arrays.
- loss: value and gradient of multi_similarity with its miner, 128 dimensions, four samples a class. Operations are
  those of four products of all pairs: the similarities twice, since a block computes them again, and two gradients.
  Memory is XLA's analysis of the program, temporary arrays alone.
- neighbours: MAP@R of embeddings among themselves, 128 dimensions, classes of ten, from an array of the host to the
  number, the second of two evaluations.
- numerics: every loss of the tests with each kind of its miners, value and gradient: between the device and the host's
  CPU, between all anchors at once and blocks of eight, and whether three evaluations have the same bits.
- resume: `dml train` twice, and once more killed and started again, with and without `train.deterministic`.

`--quick` takes small sizes, which show that the command works; it writes results/quick_gpu_DEVICE.md. Where there is no
accelerator the parts run on the CPU.
"""

import argparse
import functools
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from machine import RESULTS

ROOT = pathlib.Path(__file__).resolve().parents[1]
Row = list[str]


def timed(function: Callable, *arguments, repeat: int = 3) -> float:
    """The median seconds of a call, without the first one."""
    import jax

    jax.block_until_ready(function(*arguments))
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def product_peak(dtype: str, size: int) -> float:
    """Operations a second of the product of two square matrices; float32 without shortened mantissas."""
    import jax
    import jax.numpy as jnp

    product = jax.jit(functools.partial(jnp.matmul, precision="highest"))
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    return 2 * size**3 / timed(product, a, a)


def peak(dtype: str, quick: bool) -> float:
    return product_peak(dtype, 512 if quick else 8192)


def device(quick: bool) -> Iterator[Row]:
    import flax
    import jax

    from dml_jax import __version__

    yield ["what", "found"]
    found = jax.devices()[0]
    memory = (found.memory_stats() or {}).get("bytes_limit", 0)
    yield ["device", f"{found.device_kind} ({found.platform}), {memory / 2**30:.1f} GiB for JAX"]
    yield ["host", f"{len(os.sched_getaffinity(0))} threads"]
    yield ["versions", f"dml_jax {__version__}, jax {jax.__version__}, flax {flax.__version__}"]
    for dtype in ("bfloat16", "float32"):
        yield [f"product of matrices, {dtype}", f"{peak(dtype, quick) / 1e12:.1f} TFLOP/s"]


def vit_operations(size: str, image_size: int) -> float:
    """Operations of the forward pass of one image through a ViT with patches of 14: products of matrices alone."""
    from dml_jax.models.backbones.vit import PATCH, SIZES

    width, depth, _ = SIZES[size]
    patches = (image_size // PATCH) ** 2
    tokens = patches + 1
    layer = tokens * (24 * width**2 + 4 * tokens * width)
    return depth * layer + 2 * patches * 3 * PATCH**2 * width


def train_step(size: str, image_size: int, batch: int, micro_batch: int | None):
    """(compiled step, state, batch on the device)."""
    import jax

    from dml_jax import losses, models
    from dml_jax.training import optim, state
    from dml_jax.training.schedules import RunLength
    from dml_jax.training.step import make_train_step

    model = models.get("vit", size=size, image_size=image_size, embedding_dim=128, dtype="bfloat16")
    loss = losses.get("multi_similarity", miner="multi_similarity")
    group = {"match": ".*", "name": "adamw", "lr": 1e-5, "weight_decay": 1e-2}
    tx = optim.partition(optim.groups_of({"all": group}), RunLength(100, 1))
    made = jax.jit(lambda: state.init(model, loss, tx, 0, 0))()
    step = make_train_step(model, loss, tx, micro_batch=micro_batch)
    shape = (batch, image_size, image_size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    given = {"image": images, "label": np.arange(batch, dtype=np.int32) // 4}
    images = jax.device_put(given)
    return step.lower(made, images).compile(), made, images


def train(quick: bool) -> Iterator[Row]:
    import jax

    from dml_jax.mesh import make_mesh

    jax.set_mesh(make_mesh(1))
    yield [
        "batch",
        "at a time",
        "images/s",
        "ms a step",
        "TFLOP/s",
        "share of the bfloat16 product",
        "GiB",
    ]
    size, image_size = ("s", 56) if quick else ("b", 224)
    best = peak("bfloat16", quick)
    operations = 3 * vit_operations(size, image_size)
    cases = ((8, None), (8, 4)) if quick else ((64, None), (128, None), (256, None), (1024, 128))
    for batch, micro_batch in cases:
        step, state, images = train_step(size, image_size, batch, micro_batch)
        for _ in range(2):
            state, metrics = step(state, images)
        jax.block_until_ready(metrics)
        steps, start = 3 if quick else 20, time.perf_counter()
        for _ in range(steps):
            state, metrics = step(state, images)
        loss = float(metrics["loss"])
        seconds = (time.perf_counter() - start) / steps
        assert np.isfinite(loss), loss
        # Micro-batches run the forward pass twice, which is no work of the training.
        rate = batch * operations / seconds
        memory = step.memory_analysis()
        memory = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        yield [
            f"{batch:,}",
            str(micro_batch or batch),
            f"{batch / seconds:,.0f}",
            f"{1e3 * seconds:.1f}",
            f"{rate / 1e12:.1f}",
            f"{rate / best:.1%}",
            f"{memory / 2**30:.1f}",
        ]
        del state, step, images


def loss(quick: bool) -> Iterator[Row]:
    import jax
    import jax.numpy as jnp

    from dml_jax import losses

    yield [
        "anchors",
        "block",
        "seconds",
        "TFLOP/s",
        "share of the float32 product",
        "temporary MiB",
    ]
    best = peak("float32", quick)
    measured = losses.get("multi_similarity", miner="multi_similarity")
    cases = ((2**10, 64), (2**10, 256))
    if not quick:
        cases = (
            *((2**16, block) for block in (64, 256, 1024, 4096)),
            *((2**20, block) for block in (32, 64, 256, 1024)),
        )
    for anchors, block in cases:
        x = jax.random.normal(jax.random.key(0), (anchors, 128))
        labels = jnp.arange(anchors, dtype=jnp.int32) // 4

        @jax.jit
        @jax.value_and_grad
        def value(x, labels=labels, block=block):
            return measured.apply({}, x, labels, block=block)[0].compute()

        memory = value.lower(x).compile().memory_analysis().temp_size_in_bytes
        seconds = timed(value, x, repeat=1 if anchors > 2**16 else 3)
        rate = 8 * anchors**2 * 128 / seconds
        yield [
            f"{anchors:,}",
            f"{block:,}",
            f"{seconds:.3f}",
            f"{rate / 1e12:.1f}",
            f"{rate / best:.1%}",
            f"{memory / 2**20:,.0f}",
        ]


def neighbours(quick: bool) -> Iterator[Row]:
    from dml_jax.evaluation import evaluate_embeddings

    yield ["queries and gallery", "seconds", "the first time", "MAP@R"]
    for size in (2_000,) if quick else (60_000, 1_000_000):
        rng = np.random.default_rng(0)
        labels = np.arange(size) // 10
        centers = rng.standard_normal((labels[-1] + 1, 128), np.float32)
        embeddings = centers[labels] + 1.1 * rng.standard_normal((size, 128), np.float32)
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            values = evaluate_embeddings(embeddings, labels, metrics=("map_at_r",))
            seconds.append(time.perf_counter() - start)
        yield [
            f"{size:,}",
            f"{seconds[1]:.1f}",
            f"{seconds[0]:.1f}",
            f"{values['map_at_r']:.4f}",
        ]


def numerics(quick: bool) -> Iterator[Row]:
    import jax

    from tests.losses import test_laws as laws

    yield ["compared", "cases", "value differs at most", "gradient at most", "which"]
    here, host = jax.devices()[0], jax.devices("cpu")[0]
    cases = laws.CASES[:6] if quick else laws.CASES

    def evaluated(case, where, block=None) -> tuple[float, np.ndarray]:
        """Value and all gradients in a row."""
        name, miner = case
        with jax.default_device(where):
            found, gradients = laws.evaluate(name, laws.batch(), miner=miner, block=block)
        flat = [np.ravel(g) for g in jax.tree.leaves(gradients)]
        return float(found), np.concatenate(flat).astype(np.float64)

    def of(case):
        blocks = laws.make(*case).takes_block
        runs = [evaluated(case, here) for _ in range(3)]
        return {
            "the device and the CPU": (runs[0], evaluated(case, host)),
            "blocks of 8 and all at once": (evaluated(case, here, 8), runs[0]) if blocks else None,
            "three evaluations": max(
                ((runs[0], other) for other in runs[1:]), key=lambda pair: differ(*pair)
            ),
        }

    def differ(one, other) -> tuple[float, float]:
        """Relative differences of values and of gradients."""
        value = abs(one[0] - other[0]) / max(abs(other[0]), 1e-30)
        norm = np.linalg.norm(other[1])
        return value, float(np.linalg.norm(one[1] - other[1]) / max(norm, 1e-30))

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        found = dict(zip(cases, pool.map(of, cases), strict=True))
    for what in ("the device and the CPU", "blocks of 8 and all at once", "three evaluations"):
        by = {case: differ(*f[what]) for case, f in found.items() if f[what] is not None}
        values, gradients = (max(d[i] for d in by.values()) for i in (0, 1))
        least = 0.0 if what.startswith("three") else 1e-5
        beyond = [
            f"{case[0]}{f' + {case[1]}' if case[1] else ''} {max(d):.0e}"
            for case, d in by.items()
            if max(d) > least
        ]
        told = f"beyond {least:g}: {', '.join(beyond) or 'none'}"
        yield [what, str(len(by)), f"{values:.1e}", f"{gradients:.1e}", told]


def resume(quick: bool) -> Iterator[Row]:
    from tests.training import commands

    yield ["train.deterministic", "two runs", "a run and one that was killed"]
    epochs = 2
    steps = 20 if quick else 200

    def run(data, workdir, deterministic, kill_at=None) -> None:
        module, *arguments = commands.train_command(
            data,
            workdir,
            f"--config.train.deterministic={deterministic}",
            "--config.model.width=64",
            arguments=f"steps={steps},epochs={epochs},loss=multi_similarity",
        )
        command = [sys.executable, "-m", module, *arguments]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        while kill_at is not None and process.poll() is None:
            if commands.logged(workdir) >= kill_at:
                process.kill()
            time.sleep(0.005)
        if process.wait() and kill_at is None:
            raise SystemExit(f"failed: {' '.join(command)}")

    def same(one: pathlib.Path, other: pathlib.Path) -> str:
        from tests.training.test_resume import arrays

        first, second = (arrays(folder, steps * epochs) for folder in (one, other))
        bits = [np.asarray(first[k]).tobytes() == np.asarray(second[k]).tobytes() for k in first]
        return "same bits" if all(bits) else f"{len(bits) - sum(bits)} of {len(bits)} arrays differ"

    for deterministic in (True, False):
        with tempfile.TemporaryDirectory() as place:
            folder = pathlib.Path(place)
            data = commands.pictures(folder / "data")
            run(data, folder / "whole", deterministic)
            run(data, folder / "again", deterministic)
            run(data, folder / "killed", deterministic, kill_at=steps + steps // 3)
            run(data, folder / "killed", deterministic)
            yield [
                str(deterministic),
                same(folder / "whole", folder / "again"),
                same(folder / "whole", folder / "killed"),
            ]


PARTS = {
    "device": (device, "Device"),
    "train": (train, "Training step of a ViT-B/14"),
    "loss": (loss, "Value and gradient of multi_similarity"),
    "neighbours": (neighbours, "MAP@R of all among all"),
    "numerics": (numerics, "Every loss"),
    "resume": (resume, "Runs that are repeated and killed"),
}


def run_part(name: str, quick: bool, limit: float, told: Callable[[list[str]], None]) -> None:
    """Runs a part in a process of its own; `told` gets all lines of its table whenever there is one more."""
    command = [sys.executable, __file__, f"--part={name}", *(["--quick"] if quick else [])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    lines: list[str] = []
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        watch = threading.Timer(limit, process.kill)
        watch.start()
        for line in process.stdout:
            if line.startswith("| "):
                lines.append(line.rstrip())
                told(lines)
        status = process.wait()
        late = not watch.is_alive()
        watch.cancel()
        if status:
            errors.seek(0)
            last = [] if late else errors.read().splitlines()[-3:]
            why = f"was not over after {limit:g} s" if late else f"failed with status {status}"
            told([*lines, "", f"This part {why}.", *(f"    {line}" for line in last)])


def table(rows: Iterator[Row]) -> None:
    """Prints the lines of a table, each as soon as it is known; the first row is the header."""
    for i, row in enumerate(rows):
        print(f"| {' | '.join(row)} |", flush=True)
        if i == 0:
            print("| --- " + "|---:" * (len(row) - 1) + "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--limit", type=float, default=600, help="seconds of a part")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        table(PARTS[given.part][0](given.quick))
        return
    chosen = given.only.split(",")
    for name in chosen:
        if name not in PARTS:
            parser.error(f"--only={name}; known: {', '.join(PARTS)}")
    kind = subprocess.check_output(
        [sys.executable, "-c", "import jax; print(jax.devices()[0].device_kind)"], text=True
    )
    slug = re.sub(r"\W+", "_", kind.strip().lower())
    path = RESULTS / f"{'quick_' if given.quick else ''}gpu_{slug}.md"
    title = (
        f"# {kind.strip()}\n\nMade by `python benchmarks/gpu.py`, which says what is measured.\n"
    )
    sections = dict.fromkeys(PARTS, "")
    if path.exists():
        for section in path.read_text().split("\n## ")[1:]:
            heading, _, text = section.partition("\n")
            of = [name for name, (_, known) in PARTS.items() if known == heading]
            sections |= dict.fromkeys(of, text)

    def told(name: str, lines: list[str]) -> None:
        print(lines[-1], flush=True)
        sections[name] = "\n".join(["", *lines, ""])
        parts = [f"## {PARTS[n][1]}\n{text}" for n, text in sections.items() if text]
        RESULTS.mkdir(exist_ok=True)
        path.write_text("\n".join([title, *parts]))

    for name in chosen:
        print(f"{PARTS[name][1]}:", flush=True)
        run_part(name, given.quick, given.limit, functools.partial(told, name))


if __name__ == "__main__":
    main()
