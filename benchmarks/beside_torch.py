"""Whole training runs beside PyTorch + PML: MAP@R after every epoch, from the same weights on the same images.

    python benchmarks/beside_torch.py --config=grocery_store_multi_similarity --seeds=0,1,2 --out=DIR \\
        --config.data.path=grocery_store_256.tar --config.model.weights=mobilenet_v2_imagenet_float32.npz

It needs what dml_jax needs and `pip install torch torchvision pytorch-metric-learning faiss-cpu`, in one environment.
The config has the model mobilenet_v2, m_per_class, Adam, and a loss and miner that torch_side.py names.

--sides says what is run (a comma-separated list; each side and seed is a process of its own, one after the other):
  jax              `dml_jax.train` as users run it.
  torch            torchvision's crops, PML's sampler, loss and miner, torch's network and Adam.
  torch_on_jax     the torch network and loss on the batches of dml_jax: its plan, its crops.
  jax_on_torch     the training step of dml_jax on the batches of the torch side.
The two mixed ones say whether a difference comes from what the step gets or from what the step does.

DIR gets SIDE_SEED.csv (epoch, loss as the mean over the epoch's steps, map_at_r), table.md (mean and standard deviation
over seeds) and curves.png. A side and seed whose file is complete is not run again.
"""

import argparse
import csv
import pathlib
import subprocess
import sys

import jax
import numpy as np

from dml_jax import UserError, command_line

SIDES = ("jax", "torch", "torch_on_jax", "jax_on_torch")

Rows = list[dict[str, float]]


def jax_side(config, seed: int, folder: pathlib.Path) -> Rows:
    """A run of `dml_jax.train`, read from its metrics.csv."""
    from dml_jax.training.loop import train

    with config.unlocked():
        config.seed = seed
        config.train.log_steps = 1
        config.evaluation.before_training = True
    train(config, str(folder))
    with open(folder / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    found = []
    for row in rows:
        if not row["test/map_at_r"]:
            continue
        epoch = int(row["epoch"])
        losses = [float(r["loss"]) for r in rows if r["loss"] and int(r["epoch"]) == epoch]
        loss = float(np.mean(losses)) if losses else float("nan")
        found.append({"epoch": epoch, "loss": loss, "map_at_r": float(row["test/map_at_r"])})
    return found


def jax_batches(source, config, seed: int):
    """The batches of a whole training as dml_jax plans, loads and crops them."""
    from dml_jax import data
    from dml_jax.training import build

    sampler, size = build.sampler(config.sampler), config.train.batch_size
    for epoch in range(config.train.epochs):
        plan = sampler.plan(source.labels, size, seed=seed, epoch=epoch)
        transform = build.transform(config.data.augment)
        batches = data.train_batches(source, plan, transform=transform, seed=seed, epoch=epoch)
        yield from ((batch["image"], batch["label"]) for batch in batches)


class JaxRun:
    """The training step of dml_jax, batch by batch."""

    def __init__(self, config, classes: int, seed: int, total_steps: int) -> None:
        from dml_jax.mesh import make_mesh
        from dml_jax.training import build, optim, state
        from dml_jax.training.step import make_train_step

        self.model, loss = build.model(config.model), build.loss(config)
        tx = optim.build(config.optim.to_dict(), total_steps=total_steps, epoch_steps=total_steps)
        self.state = state.init(self.model, loss, tx, seed, classes)
        self.compiled = make_train_step(self.model, loss, tx)
        self.mesh = make_mesh()

    def step(self, images: np.ndarray, labels: np.ndarray) -> float:
        batch = {"image": images, "label": labels.astype(np.int32)}
        with jax.set_mesh(self.mesh):
            self.state, metrics = self.compiled(self.state, batch)
        return float(metrics["loss"])

    def evaluate(self, source, config) -> float:
        from dml_jax import evaluation
        from dml_jax.training import score

        variables = {k: self.state[k]["model"] for k in ("params", "state")}
        embedded = evaluation.embed(
            score.embedder(self.model), variables, score.batches_of(config, source)
        )
        found = evaluation.evaluate_embeddings(
            embedded[0], source.labels[embedded[2]], metrics=("map_at_r",)
        )
        return found["map_at_r"]


def other_side(side: str, config, seed: int) -> Rows:
    """A side that trains batch by batch, evaluated before the first epoch and after every one."""
    import torch_side

    from dml_jax.training import build

    source, test = build.source(config, "train"), build.source(config, "test")
    classes, epochs = len(source.class_names), config.train.epochs
    steps = build.sampler(config.sampler).steps(source.labels, config.train.batch_size)
    if side == "jax_on_torch":
        run = JaxRun(config, classes, seed, steps * epochs)
    else:
        run = torch_side.Run(config, classes, seed)
    loaded = jax_batches if side == "torch_on_jax" else torch_side.train_batches
    rows, losses = [{"epoch": 0, "loss": float("nan"), "map_at_r": run.evaluate(test, config)}], []
    for images, labels in loaded(source, config, seed):
        losses.append(run.step(images, labels))
        if len(losses) == steps:
            mean = float(np.mean(losses))
            rows.append({"epoch": len(rows), "loss": mean, "map_at_r": run.evaluate(test, config)})
            print(side, seed, rows[-1], flush=True)
            losses = []
    return rows


def work(side: str, seed: int, config, out: pathlib.Path) -> None:
    """One side and seed, to its file."""
    rows = (
        jax_side(config, seed, out / f"jax_{seed}")
        if side == "jax"
        else other_side(side, config, seed)
    )
    beside = out / f"{side}_{seed}.new"
    with open(beside, "w", newline="") as file:
        writer = csv.DictWriter(file, ["epoch", "loss", "map_at_r"])
        writer.writeheader()
        writer.writerows(rows)
    beside.rename(beside.with_suffix(".csv"))


def report(out: pathlib.Path) -> None:
    """table.md and curves.png of all the files in the folder."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    lines = []
    for number, side in enumerate(SIDES):
        curves = []
        for path in sorted(out.glob(f"{side}_[0-9]*.csv")):
            with open(path) as file:
                curves.append([float(row["map_at_r"]) for row in csv.DictReader(file)])
        if not curves:
            continue
        values = np.array(curves)
        deviation = values.std(0, ddof=1) if len(values) > 1 else np.full(values.shape[1], np.nan)
        cells = [f"{m:.4f} ± {s:.4f}" for m, s in zip(values.mean(0), deviation, strict=True)]
        lines.append(f"| {side} | {len(values)} | {' | '.join(cells)} |")
        for i, curve in enumerate(values):
            axes.plot(curve, f"C{number}.-", alpha=0.7, label=side if i == 0 else None)
        epochs = values.shape[1]
    axes.set(xlabel="epoch", ylabel="MAP@R of the test classes", xticks=range(epochs))
    axes.legend()
    figure.savefig(out / "curves.png", dpi=150)
    header = ["| side | seeds | " + " | ".join(f"epoch {e}" for e in range(epochs)) + " |"]
    text = "\n".join([*header, "|---|---:" + "|---:" * epochs + "|", *lines]) + "\n"
    (out / "table.md").write_text(text)
    print(text)


def add_options(parser: command_line.Parser) -> None:
    """Adds the options of this benchmark."""
    parser.add_config("grocery_store_multi_similarity")
    parser.add_argument("--sides", default="jax,torch", help=f"some of {', '.join(SIDES)}")
    parser.add_argument("--seeds", default="0,1,2", help="the seeds of each side")
    parser.add_argument(
        "--out", type=command_line.path, required=True, help="the folder for curves and table"
    )
    parser.add_argument("--worker", help="SIDE:SEED, for the processes that this one starts")


def main(options: argparse.Namespace) -> None:
    """Runs the benchmark."""
    out = pathlib.Path(options.out)
    if options.worker:
        side, seed = options.worker.split(":")
        work(side, int(seed), options.config, out)
        return
    sides = options.sides.split(",")
    unknown = [side for side in sides if side not in SIDES]
    if unknown:
        raise UserError(f"unknown side {unknown[0]!r}; accepted: {', '.join(SIDES)}")
    out.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds.split(","):
        for side in sides:
            if not (out / f"{side}_{seed}.csv").exists():
                command = [sys.executable, *sys.argv, f"--worker={side}:{seed}"]
                subprocess.run(command, check=True)
    report(out)


if __name__ == "__main__":
    command_line.run(sys.modules[__name__])
