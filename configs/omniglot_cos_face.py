"""Omniglot: hand-written characters of 30 alphabets, retrieved among those of 20 other alphabets.

Method: CosFace (Wang et al., CVPR 2018), random batches of 128, a small convolutional network from scratch, 128-d; the
classifier learns ten times as fast as the network.
Split: images_background to train (a tenth of its characters held out as val), images_evaluation to test.
Expected on test (seed 0): P@1 0.6808, R-precision 0.4176, MAP@R 0.3214.

    dml train --config=omniglot_cos_face \\
        --config.data.path=omniglot_full.zip --workdir=runs/omniglot_cos_face
    dml evaluate --workdir=runs/omniglot_cos_face

Arguments after the colon: `runlocal` shrinks it to a few steps.
"""

from dml_jax import config as configs

from . import common


def get_config(arg=None):
    arg = configs.arguments(arg, runlocal=False)
    config = configs.new()
    config.seed = 0
    config.data = common.omniglot(size=48)
    config.sampler = {"name": "random"}
    config.model = common.convnet(size=48)
    config.loss = {"name": "cos_face", "margin": 0.35, "scale": 30.0}
    config.miner = None
    group = {"name": "adamw", "weight_decay": 1e-2, "schedule": {"name": "cosine"}}
    config.optim = configs.optim(
        backbone={**group, "lr": 1e-3},
        head={**group, "lr": 1e-3},
        loss={**group, "lr": 1e-2, "weight_decay": 0.0},
    )
    config.train.epochs = 20
    config.train.batch_size = 128
    config.train.monitor = "val/map_at_r"
    config.train.patience = 3
    config.evaluation.splits = ("val",)
    if arg.runlocal:
        common.runlocal(config)
    return config
