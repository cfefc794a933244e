"""A search of seconds on a folder of small pictures; the argument `path` names it."""

from dml_jax import config as configs
from dml_jax import config_files
from dml_jax.experiments import Search
from tests.experiments.small_study import CONFIG


def get_search(arg=None):
    arg = configs.arguments(arg, path="")

    def make(trial):
        config = config_files.load(f"{CONFIG}:steps=2,epochs=1")
        config.data.path = arg.path
        config.data.fractions = (0.8, 0.0, 0.2)
        config.train.devices = 1
        config.optim.head.lr = trial.suggest_float("lr", 1e-4, 1e-2, log=True)
        config.evaluation.metrics = ("recall_at_1", "map_at_r")
        return config

    return Search("Small", make, folds=2, trials=2, seeds=1)
