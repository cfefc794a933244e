"""Backbones beside torch: images per second of the forward pass and of a training step, memory and compile time.

    python benchmarks/backbones.py --torch_python PATH [--quick] [--only NAME,NAME] [--rounds 5]

PATH is a Python with `pip install torch torchvision timm`; without it only dml_jax is measured. Each side of a case
runs in a process of its own; the two take turns, and the median of the rounds counts, of the ratio likewise. A training
step is the gradient of the mean of the squared features by all parameters, and a step of plain gradient descent; images
of 224 x 224 lie in memory, float32, BatchNorm in training mode. Memory is the process's highest resident set less what
it was before the model was made. Compile time is that of dml_jax's training step, traced and compiled without a cache.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

from machine import record

TITLE = "Backbones on this machine's processor, beside torch"
COLUMNS = [
    "backbone",
    "batch",
    "forward images/s",
    "torch / dml_jax seconds",
    "step images/s",
    "torch / dml_jax seconds, step",
    "peak MiB",
    "torch",
    "compile s",
]
# Our model, and the name of torch's in timm ("torchvision:" in torchvision).
CASES = {
    "ResNet-50": ("resnet", {"size": 50}, "torchvision:resnet50"),
    "GoogLeNet": ("googlenet", {}, "torchvision:googlenet"),
    "ViT-S/14": ("vit", {"size": "s"}, "vit_small_patch14_dinov2"),
    "ViT-B/14": ("vit", {"size": "b"}, "vit_base_patch14_dinov2"),
    "ConvNeXt-T": ("convnext", {"size": "t"}, "torchvision:convnext_tiny"),
    "MobileNetV2": ("mobilenet_v2", {}, "torchvision:mobilenet_v2"),
}


def ours(name: str, batch: int):
    """(forward, step, seconds of compiling the step)."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from dml_jax import models

    model_name, hyper, _ = CASES[name]
    model = models.get(model_name, normalize=False, **hyper)
    variables = model.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.integers(0, 256, (batch, 224, 224, 3), np.uint8))
    held = [variables]

    def value(params, state, images):
        given = {"params": params, "state": state}
        features, state = model.apply(given, images, train=True, key=jax.random.key(1))
        return jnp.mean(features**2), state

    def update(variables, images):
        (_, state), slope = jax.value_and_grad(value, has_aux=True)(
            variables["params"], variables["state"], images
        )
        params = jax.tree.map(lambda p, g: p - 1e-3 * g, variables["params"], slope)
        return {"params": params, "state": state}

    start = time.perf_counter()
    compiled = jax.jit(update, donate_argnums=0).lower(variables, images).compile()
    seconds = time.perf_counter() - start
    apply = jax.jit(lambda v, x: model.apply(v, x)[0])

    def step():
        held[0] = jax.block_until_ready(compiled(held[0], images))

    return lambda: jax.block_until_ready(apply(held[0], images)), step, seconds


def torchs(name: str, batch: int):
    """The same of torch."""
    import torch

    # A build without its C++ operators does not load otherwise; none of them is used here.
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        try:
            library.define(f"{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor")
        except RuntimeError:
            continue
    where, _, known = CASES[name][2].rpartition(":")
    if where:
        import torchvision

        more = {"aux_logits": False, "init_weights": False} if known == "googlenet" else {}
        model = getattr(torchvision.models, known)(weights=None, **more)
        last = "fc" if hasattr(model, "fc") else "classifier"
        setattr(model, last, torch.nn.Flatten(1))
    else:
        import timm

        model = timm.create_model(known, num_classes=0, img_size=224)
    torch.set_num_threads(os.cpu_count() or 1)
    images = torch.rand(batch, 3, 224, 224)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def forward():
        model.eval()
        with torch.inference_mode():
            model(images)

    def step():
        model.train()
        optimizer.zero_grad()
        (model(images) ** 2).mean().backward()
        optimizer.step()

    return forward, step, 0.0


def resident(field: str) -> float:
    """MiB of this process, by the system."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def work(side: str, name: str, batch: int) -> None:
    """Measures what the lines of standard input ask for: "forward" or "step"; the end tells the memory."""
    if side == "dml_jax":
        import jax

        jax.config.update("jax_enable_compilation_cache", False)
    else:
        import torch  # noqa: F401
    before = resident("VmRSS")
    forward, step, compiling = (ours if side == "dml_jax" else torchs)(name, batch)
    forward(), step()
    print(json.dumps(compiling), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        (forward if line.strip() == "forward" else step)()
        seconds = time.perf_counter() - start
        print(json.dumps([seconds, resident("VmHWM") - before]), flush=True)


class Side:
    """A process that measures one side of a case."""

    def __init__(self, python: str, side: str, name: str, batch: int) -> None:
        command = [python, __file__, "--work", side, name, str(batch)]
        root = str(pathlib.Path(__file__).resolve().parents[1])
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": root}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.compiling = json.loads(self.process.stdout.readline() or "null")
        if self.compiling is None:
            raise SystemExit(f"failed: {' '.join(command)}")

    def ask(self, what: str) -> tuple[float, float]:
        """(seconds, peak MiB) of one more forward pass or step."""
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch_python")
    parser.add_argument("--quick", action="store_true", help="batches of 2, two rounds")
    parser.add_argument("--only", default=",".join(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", default="8,32")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        side, name, batch = given.work
        work(side, name, int(batch))
        return
    batches = [2] if given.quick else list(map(int, given.batches.split(",")))
    rounds = 2 if given.quick else given.rounds
    for name in given.only.split(","):
        for batch in batches:
            sides = [Side(sys.executable, "dml_jax", name, batch)]
            if given.torch_python:
                sides.append(Side(given.torch_python, "torch", name, batch))
            found = {
                what: [[side.ask(what) for side in sides] for _ in range(rounds)]
                for what in ("forward", "step")
            }
            cells = []
            for turns in found.values():
                mine = statistics.median(turn[0][0] for turn in turns)
                ratios = [turn[1][0] / turn[0][0] for turn in turns if len(turn) == 2]
                cells += [
                    f"{batch / mine:.1f}",
                    f"{statistics.median(ratios):.2f}" if ratios else "-",
                ]
            peaks = [f"{peak:.0f}" for _, peak in found["step"][-1]]
            compiling = f"{sides[0].compiling:.1f}"
            for side in sides:
                side.close()
            row = [name, str(batch), *cells, *[*peaks, "-"][:2], compiling]
            record("quick_backbones" if given.quick else "backbones", TITLE, COLUMNS, row)


if __name__ == "__main__":
    main()
