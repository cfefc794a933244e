"""A study of seconds on a folder of small pictures: a loss against class weights and one on pairs, two seeds each.

Arguments after the colon: `path` of the pictures, `epochs`, and `breaks` for a third loss whose rate is beyond bounds.
"""

import pathlib

from dml_jax import config as configs
from dml_jax import config_files, experiments

CONFIG = pathlib.Path(__file__).parents[1] / "training" / "tiny_config.py"


def get_study(arg=None):
    arg = configs.arguments(arg, path="", epochs=1, breaks=False)

    def make(loss):
        config = config_files.load(f"{CONFIG}:steps=2,epochs={arg.epochs}")
        config.data.path = arg.path
        config.train.devices = 1
        config.train.checkpoint_steps = 1
        if loss == "broken":
            config.optim.head.lr = 1e38
            config.optim.backbone.lr = 1e38
        elif loss != "cos_face":
            with config.unlocked():
                config.loss = {"name": loss}
        config.evaluation.splits = ("val",)
        config.evaluation.metrics = ("recall_at_1", "map_at_r")
        return config

    losses = ("cos_face", "nt_xent", *(("broken",) if arg.breaks else ()))
    return experiments.Study(
        "Two losses",
        experiments.grid(make, seeds=(0, 1), loss=losses),
        tables=(experiments.Table("losses", "loss", ("val/map_at_r", "best val/recall_at_1")),),
        figures=(experiments.Figure("losses", "bars", y="val/map_at_r", x="loss"),),
        reference={"loss": "cos_face"},
    )
