"""The comparison of methods of the ICML 2020 study, on Omniglot with a small network: what two cores train in an hour.

    dml study --study=icml2020_small:path=omniglot_full.zip --workdir=runs/icml2020_small --jobs=2

Losses, miners, batches of 112 images and the evaluation of both splits after each epoch are those of `icml2020`. What
is reduced: twelve of the 23 methods, half of Omniglot's training characters, 28 pixels, a small network from scratch
with 64 dimensions, 4 epochs of 160 steps. Rates are a hundred times those of the study, which trains from ImageNet:
1e-3 for the network, and as many times a method's own for its loss.

Arguments: `path`, `seeds`, `runlocal`.
"""

from dml_jax import config as configs
from dml_jax import config_files, experiments

from . import common, icml2020

METHODS = (
    "Npair", "ProxyNCA", "ArcFace", "MS", "Softmax", "Contrastive (D)", "Triplet (R)", "Triplet (S)", "Triplet (D)",
    "Margin (D, 1.2)", "R-Triplet (D)", "R-Margin (D, 1.2)",
)  # fmt: skip
FASTER = 100


def get_study(arg=None):
    arg = configs.arguments(arg, path="", seeds=3, runlocal=False)

    def make(method):
        config = config_files.load("omniglot_multi_similarity:size=28")
        loss, miner, normalize, rate = icml2020.loss_and_miner(method, "cub200")
        group = {"name": "adam", "lr": 1e-5 * FASTER, "weight_decay": 4e-4}
        with config.unlocked():
            config.data.validation, config.data.train_classes = 0.0, 0.5
            config.model.width, config.model.embedding_dim = 16, 64
            config.loss, config.miner = loss, miner
            config.model.normalize = normalize
            config.optim = configs.optim(
                backbone=group, head=group, loss={"name": "adam", "lr": rate * FASTER}
            )
            config.sampler = {"name": "class_random", "m": 2, "length": 112 * 160}
        common.paths(config, arg.path, "")
        config.train.epochs, config.train.batch_size = 4, 112
        config.train.monitor, config.train.patience = "", None
        config.evaluation.metrics = icml2020.METRICS
        config.evaluation.splits = ("test", "train")
        return common.small(config) if arg.runlocal else config

    cells = experiments.grid(make, seeds=range(arg.seeds), method=METHODS)
    recall = "best test/e_recall@1"
    metrics = tuple(f"best test/{name}" for name in icml2020.TABLES)
    figures = [
        experiments.Figure("recall", "bars", y=recall, x="method"),
        experiments.Figure("metrics", "matrix", y=metrics),
        experiments.Figure("curves", "curves", y="test/e_recall@1"),
    ]
    figures += [
        experiments.Figure(
            f"recall_and_{name.replace('@', '_')}",
            "scatter",
            x=f"train/{name} at {recall}",
            y=recall,
            lines="method",
        )
        for name in icml2020.QUANTITIES
    ]
    embedding = tuple(f"train/{name} at {recall}" for name in icml2020.QUANTITIES)
    return experiments.Study(
        "Training strategies on Omniglot (ICML 2020, reduced)",
        cells,
        tables=(
            experiments.Table("omniglot", "method", (*metrics, f"epoch of {recall}")),
            experiments.Table("embedding_space", "method", (recall, *embedding)),
        ),
        figures=tuple(figures),
        reference={"method": "Margin (D, 1.2)"},
        text="The best test epoch of each metric by itself, as published: chosen on the test classes, so too high.",
    )
