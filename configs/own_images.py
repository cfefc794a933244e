"""Images of your own, in a folder with a sub-folder for each class or in a CSV file with the columns path and label.

Method: multi-similarity loss and miner (Wang et al., CVPR 2019), 16 classes x 4 images a batch; all weights train.
Data: classes are divided at random, half of them to train, a tenth to choose the epoch, the rest to test, except where
the folder has train, val and test, or the file a column split.
Model: MobileNetV2 with the ImageNet weights of a file, or the small network of the argument `scratch`.

    dml train --config=own_images --config.data.path=photos --config.model.weights=mobilenet_v2.npz --workdir=runs/own
    dml train --config=own_images:scratch --config.data.path=list.csv --workdir=runs/own

Arguments after the colon: `size` of the images (224, or 64 with `scratch`), `scratch` for a small network from random
weights, `runlocal` shrinks it to a few steps.
"""

from dml_jax import config as configs

from . import common


def get_config(arg=None):
    arg = configs.arguments(arg, size=0, scratch=False, runlocal=False)
    size = arg.size or (64 if arg.scratch else 224)
    config = configs.new()
    config.seed = 0
    config.data = common.photographs(size)
    config.sampler = {"name": "m_per_class", "m": 4}
    config.model = common.convnet(size, channels=3) if arg.scratch else common.mobilenet_v2(size)
    config.loss = {"name": "multi_similarity", "alpha": 2.0, "beta": 50.0, "base": 0.5}
    config.miner = {"name": "multi_similarity", "epsilon": 0.1}
    group = {"name": "adam", "lr": 1e-3 if arg.scratch else 1e-4}
    config.optim = configs.optim(backbone=group, head=group)
    config.train.epochs = 20
    config.train.batch_size = 32
    config.train.monitor = "val/map_at_r"
    config.train.patience = 3
    config.evaluation.splits = ("val",)
    config.evaluation.batch_size = 64
    if arg.runlocal:
        common.runlocal(config)
    return config
