"""Omniglot: hand-written characters of 30 alphabets, retrieved among those of 20 other alphabets.

Method: multi-similarity loss and miner (Wang et al., CVPR 2019), 32 characters x 4 drawings a batch, a small
convolutional network from scratch, 128-d.
Split: images_background to train (a tenth of its characters held out as val), images_evaluation to test.
Expected on test (seed 0): P@1 0.7687, R-precision 0.5057, MAP@R 0.4107.

    dml train --config=omniglot_multi_similarity \\
        --config.data.path=omniglot_full.zip --workdir=runs/omniglot_ms
    dml evaluate --workdir=runs/omniglot_ms

Arguments after the colon: `size` of the images in pixels, by default 48; `runlocal` shrinks it to a few steps.
"""

from dml_jax import config as configs

from . import common


def get_config(arg=None):
    arg = configs.arguments(arg, size=48, runlocal=False)
    config = configs.new()
    config.seed = 0
    config.data = common.omniglot(arg.size)
    config.sampler = {"name": "m_per_class", "m": 4}
    config.model = common.convnet(arg.size)
    config.loss = {"name": "multi_similarity", "alpha": 2.0, "beta": 50.0, "base": 0.5}
    config.miner = {"name": "multi_similarity", "epsilon": 0.1}
    group = {"name": "adamw", "lr": 1e-3, "weight_decay": 1e-2, "schedule": {"name": "cosine"}}
    config.optim = configs.optim(backbone=group, head=group)
    config.train.epochs = 20
    config.train.batch_size = 128
    config.train.monitor = "val/map_at_r"
    config.train.patience = 3
    config.evaluation.splits = ("val",)
    if arg.runlocal:
        common.runlocal(config)
    return config
