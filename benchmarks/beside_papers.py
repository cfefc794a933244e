"""Fifty steps of both papers' released code beside ours: the losses from the same weights on the same batches.

    python benchmarks/beside_papers.py --torch_python=PATH --revisiting=DIR --retrieval=DIR --dinov2=DIR [--steps=50]

DIR are checkouts of Confusezius/Revisiting_Deep_Metric_Learning_PyTorch (ICML 2020), gmberton/image-retrieval (2025)
and facebookresearch/dinov2; PATH is a Python with torch, torchvision, pytorch-metric-learning, pretrainedmodels, munch,
faiss-cpu and scikit-learn. Images are letters of 64 x 64 (56 x 56 for the ViT), 48 a batch, two of a class, float32,
without augmentation; both sides take them in the order of one list. The ICML 2020 code trains its ResNet-50 with frozen
BatchNorm (random weights, with running statistics of noise) and its Adam at 1e-5 with decay; the 2025 code DINOv2's
ViT-S/14 (random weights) with Adam at 1e-6, and 1.0 for the classifier. Its bfloat16 is left out.
results/beside_papers.md has the largest relative difference of a loss, and that of the released code from itself in
double precision: rounding alone. results/beside_papers.png has the curves.
"""

import argparse
import pathlib
import subprocess
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from machine import RESULTS, record

from dml_jax import config as configs
from dml_jax import data, losses, miners, models, samplers
from dml_jax.mesh import make_mesh
from dml_jax.training import optim, state
from dml_jax.training.step import make_train_step

HERE = pathlib.Path(__file__).parent
CASES = {
    ("icml2020", "multisimilarity"): ("revisiting_multi_similarity", {}, None),
    ("icml2020", "arcface"): ("revisiting_arc_face", {"parity": True}, None),
    ("icml2020", "softmax"): ("revisiting_softmax", {}, None),
    ("gmb2025", "MultiSimilarityLoss"): ("multi_similarity", {}, "multi_similarity"),
    ("gmb2025", "CosFaceLoss"): ("cos_face", {}, None),
}


def batches(size: int, steps: int) -> dict[str, np.ndarray]:
    """Images, their labels, and the rows of each batch."""
    source = data.load("glyphs", "train", size=size, classes=60)
    images = np.stack([source[i]["image"] for i in range(len(source))]).repeat(3, -1)
    labels = np.asarray(source.labels, np.int64)
    sampler = samplers.m_per_class(m=2)
    plan = np.concatenate([sampler.plan(labels, 48, seed=0, epoch=e) for e in range(steps)])
    return {"images": images, "labels": labels, "plan": plan[:steps]}


def model_of(study: str, size: int, folder: pathlib.Path) -> models.Model:
    weights = str(folder / "weights.pth")
    if study == "icml2020":
        return models.get(
            "resnet", size=50, norm="frozen", image_size=size, embedding_dim=128, weights=weights
        )
    return models.get("vit", size="s", offset=0.1, image_size=size, weights=weights)


def groups(study: str, loss: str) -> dict:
    if study == "icml2020":
        given = {"name": "adam", "lr": 1e-5, "weight_decay": 4e-4}
        rate = {"arcface": 5e-4, "softmax": 1e-5}.get(loss, 1e-5)
    else:
        given, rate = {"name": "adam", "lr": 1e-6}, 1.0
    return configs.optim(backbone=given, head=given, loss={"name": "adam", "lr": rate}).to_dict()


def ours(study: str, loss: str, given: dict[str, np.ndarray], folder: pathlib.Path) -> np.ndarray:
    """The losses of our step, from what the other side began with."""
    name, hyper, miner = CASES[study, loss]
    made = losses.get(name, miner=miners.get(miner) if miner else None, **hyper)
    model = model_of(study, given["images"].shape[1], folder)
    steps, classes = len(given["plan"]), int(given["labels"].max()) + 1
    tx = optim.build(groups(study, loss), total_steps=steps, epoch_steps=steps)
    begun = state.init(model, made, tx, 0, classes)
    begin = np.load(folder / "begin.npz")
    params = begun["params"]
    if "head/kernel" in begin:
        head = {"kernel": begin["head/kernel"], "bias": begin["head/bias"]}
        params["model"]["head"] = _in_place_of(params["model"]["head"], head)
    if "loss/weights" in begin:
        params["loss"] = _in_place_of(params["loss"], {"weights": begin["loss/weights"]})
    step, mesh = make_train_step(model, made, tx), make_mesh(1)
    found = []
    for rows in given["plan"]:
        batch = {"image": given["images"][rows], "label": given["labels"][rows].astype(np.int32)}
        with jax.set_mesh(mesh):
            begun, metrics = step(begun, batch)
        found.append(float(metrics["loss"]))
    return np.array(found)


def _in_place_of(drawn, begin):
    """The other side's arrays, which must have the shapes of ours, in our structure."""
    return jax.tree.map(lambda old, new: jnp.asarray(new).reshape(old.shape), drawn, begin)


def draw(curves: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(curves), figsize=(3 * len(curves), 2.6), layout="constrained", squeeze=False
    )
    for panel, ((study, loss), (theirs, mine)) in zip(axes[0], curves.items(), strict=True):
        panel.plot(theirs, lw=4, alpha=0.35, label="released code")
        panel.plot(mine, lw=1, label="dml_jax")
        panel.set_title(f"{study}: {loss}", fontsize=8)
        panel.set_xlabel("step", fontsize=8)
        panel.tick_params(labelsize=7)
    axes[0][0].legend(fontsize=7)
    figure.savefig(RESULTS / "beside_papers.png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("torch_python", "revisiting", "retrieval", "dinov2"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--only", default="", help="a loss of CASES")
    options = parser.parse_args()
    curves = {}
    for study, loss in CASES:
        if options.only and options.only != loss:
            continue
        with tempfile.TemporaryDirectory() as place:
            folder = pathlib.Path(place)
            given = batches(64 if study == "icml2020" else 56, options.steps)
            np.savez(folder / "batches.npz", **given)
            code = options.revisiting if study == "icml2020" else options.retrieval
            command = [options.torch_python, HERE / "papers_torch.py", study, loss, code, folder]
            command.append(f"--dinov2={options.dinov2}")
            subprocess.run([*command, "--float64"], check=True)
            # It begins with the same weights: the seed is the same.
            subprocess.run(command, check=True)
            exact, theirs = (np.load(folder / f"theirs{kind}.npy") for kind in ("64", ""))
            mine = ours(study, loss, given, folder)
        curves[study, loss] = theirs, mine
        apart = np.abs(mine - theirs) / np.abs(theirs)
        floor = np.abs(theirs - exact) / np.abs(exact)
        record(
            "beside_papers",
            "The papers' released code and ours, from the same weights on the same batches",
            ["study", "loss", "steps", "first loss", "last loss", "apart at first", "apart at last", "at most",
             "theirs and float64 at last", "at most "],
            [
                study,
                loss,
                str(options.steps),
                f"{theirs[0]:.5f}",
                f"{theirs[-1]:.5f}",
                *(f"{x:.1e}" for x in (apart[0], apart[-1], apart.max(), floor[-1], floor.max())),
            ],
        )  # fmt: skip
    draw(curves)


if __name__ == "__main__":
    main()
