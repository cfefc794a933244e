"""What else decides a result (Roth et al., ICML 2020): sampler, backbone, augmentation, dimension, size of the batch.

    dml study --study=icml2020_factors:factor=dimension,data=cub200,path=CUB_200_2011,weights=resnet50-19c8e357.pth \\
        --workdir=runs/dimension

One factor is varied at a time, for four methods, with all else as in the study `icml2020`.

Arguments: `factor` (sampler, backbone, augmentation, dimension, batch_size), `data`, `path`, `weights` (where backbones
are compared a folder with resnet50.pth, bn_inception.pth and googlenet.pth), `seeds`, `runlocal`.
"""

import os

from dml_jax import config as configs
from dml_jax import config_files, experiments, names

from . import common
from .icml2020 import loss_and_miner

METHODS = ("MS", "Margin (D, 1.2)", "Triplet (D)", "Softmax")
FACTORS = {
    "sampler": (
        "class_random",
        "d2_coreset",
        "greedy_coreset",
        "fid_batchmatch",
        "disthist_batchmatch",
    ),
    "backbone": ("resnet50", "bn_inception", "googlenet"),
    "augmentation": ("base", "adv", "big", "red"),
    "dimension": (16, 32, 64, 128, 256, 512, 1024),
    "batch_size": (28, 56, 112, 224),
}


def get_study(arg=None):
    arg = configs.arguments(
        arg, factor="dimension", data="cub200", path="", weights="", seeds=5, runlocal=False
    )
    values = names.resolve("argument factor:", FACTORS, arg.factor)

    def make(method, **factor):
        value = factor[arg.factor]
        chosen = f",{arg.factor}={value}" if arg.factor in ("backbone", "augmentation") else ""
        config = config_files.load(f"icml2020:data={arg.data}{chosen}")
        loss, miner, normalize, rate = loss_and_miner(method, arg.data)
        weights = arg.weights
        if arg.factor == "backbone" and weights:
            weights = os.path.join(weights, f"{value}.pth")
        with config.unlocked():
            config.loss, config.miner, config.model.normalize = loss, miner, normalize
            config.optim.loss = configs.optim(loss={"lr": rate}).loss
            if arg.factor == "sampler":
                config.sampler = {"name": value}
        if arg.factor == "dimension":
            config.model.embedding_dim = value
        if arg.factor == "batch_size":
            config.train.batch_size = value
        common.paths(config, arg.path, weights)
        return common.small(config) if arg.runlocal else config

    cells = experiments.grid(make, seeds=range(arg.seeds), method=METHODS, **{arg.factor: values})
    recall = "best test/e_recall@1"
    numbers = all(isinstance(value, int) for value in values)
    return experiments.Study(
        f"{arg.factor} on {arg.data} (ICML 2020)",
        cells,
        tables=(experiments.Table("recall", "method", (recall,), columns=arg.factor),),
        figures=(
            experiments.Figure(
                "recall", "lines", y=recall, x=arg.factor, lines="method", log_x=numbers
            ),
        ),
    )
