"""The letters of `quickstart.py`, in batches of letters that the network takes for each other.

Data, loss, network and split: as in `quickstart.py`.
Method: 4 letters and the 3 nearest to each of them by the centres of their embeddings, 4 images of each letter; all
training images are embedded anew before every epoch.
Expected: EXPECTED

    python -m dml_jax.train --config=configs/glyphs_hard_classes.py --workdir=runs/glyphs_hard_classes
    python -m dml_jax.evaluate --workdir=runs/glyphs_hard_classes

Arguments after the colon: `runlocal` shrinks it to a few steps.
"""

from configs import common
from dml_jax import config as configs


def get_config(arg=None):
    arg = configs.arguments(arg, runlocal=False)
    config = configs.new()
    config.seed = 0
    config.data = common.glyphs(size=32)
    # `updates`: the embeddings of a step are stored. `refresh`: epochs between passes over all images.
    config.sampler = {"name": "hard_classes", "m": 4, "group": 4, "updates": False, "refresh": 1}
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
