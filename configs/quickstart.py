"""Letters of many scripts, learned on half of them and retrieved among letters never seen.

Data: the built-in `glyphs`, 32 x 32, a class per letter and an image per typeface.
Method: multi-similarity loss and miner (Wang et al., CVPR 2019), 16 letters x 4 images a batch, a small convolutional
network from scratch, 128-d.
Split: 688 letters to train, 142 to validate, 553 to test, all different.
Expected: MAP@R 0.44 on the test letters (raw pixels 0.06, the network untrained 0.01) after two minutes on two cores.

    dml quickstart --workdir=runs/quickstart

Arguments after the colon: `runlocal` shrinks it to a few steps.
"""

from dml_jax import config as configs

from . import common


def get_config(arg=None):
    arg = configs.arguments(arg, runlocal=False)
    config = configs.new()
    config.seed = 0
    config.data = common.glyphs(size=32)
    config.sampler = {"name": "m_per_class", "m": 4}
    config.model = common.convnet(size=32)
    config.loss = {"name": "multi_similarity", "alpha": 2.0, "beta": 50.0, "base": 0.5}
    config.miner = {"name": "multi_similarity", "epsilon": 0.1}
    group = {"name": "adamw", "lr": 1e-3, "weight_decay": 1e-2, "schedule": {"name": "cosine"}}
    config.optim = configs.optim(backbone=group, head=group)
    config.train.epochs = 30
    config.train.batch_size = 64
    config.train.monitor = "val/map_at_r"
    config.train.patience = 3
    config.evaluation.splits = ("val",)
    if arg.runlocal:
        common.runlocal(config)
    return config
