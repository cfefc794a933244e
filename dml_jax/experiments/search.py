"""What a search for hyper-parameters is: a file with a function `get_search`.

from dml_jax import config_files, experiments

def get_search(arg=None):
    def make(trial):
        config = config_files.load("quickstart")
        config.optim.backbone.lr = trial.suggest_float("backbone_rate", 1e-5, 1e-2, log=True)
        return config

    return experiments.Search("Rates on letters", make, trials=20, seeds=3)
"""

import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from dml_jax import config_files, names
from dml_jax.errors import UserError
from dml_jax.experiments.study import Cell


@dataclass(frozen=True, eq=False)
class Search:
    """What is searched for, and how long.

    Attributes:
      title: what it is called.
      make: a function of an Optuna trial, which proposes hyper-parameters, that returns a configuration.
      metric: of the validation, which is to be best.
      folds: parts of the training classes.
      trials: how many hyper-parameters are tried.
      seeds: how many models of each fold are trained with the best ones.
      split: what is evaluated with them.

    Raises:
      UserError: fewer than two folds, no trial, no seed, or a metric of another split than val.
    """

    title: str
    make: Callable[[Any], ConfigDict]
    metric: str = "val/map_at_r"
    folds: int = 4
    trials: int = 50
    seeds: int = 10
    split: str = "test"

    def __post_init__(self) -> None:
        for name, least in (("folds", 2), ("trials", 1), ("seeds", 1)):
            if getattr(self, name) < least:
                raise UserError(
                    f"search {self.title!r}: {name}={getattr(self, name)}; a whole number from {least} on is accepted"
                )
        if not self.metric.startswith("val/"):
            raise UserError(
                f"search {self.title!r}: metric={self.metric!r}; one of the split val is accepted, as in "
                "'val/map_at_r': the folds are what is validated on"
            )

    def cell(self, trial: Any, factors: dict[str, Any], fold: int, seed: int) -> Cell:
        """Returns the run without one of the folds."""
        config = self.make(trial)
        config.seed = seed
        config.data.update(validation=1 / self.folds, validation_by="fold", fold=fold)
        config.train.monitor = self.metric
        config.evaluation.update(splits=("val",), at_end=())
        return Cell({**factors, "fold": fold}, seed, config)


def load_search(spec: str) -> Search:
    """Returns the search of `FILE.py[:arguments]`, which its function `get_search` makes.

    Args:
      spec: the file, and the arguments of its `get_search` after a colon.

    Raises:
      UserError: there is no such file, or it does not make a search.
    """

    def checked(made: Any) -> Search:
        if not isinstance(made, Search):
            raise UserError(f"get_search returned {made!r}; accepted: an experiments.Search")
        return made

    path = pathlib.Path(spec.partition(":")[0]).expanduser()
    if not path.is_file():
        raise names.unknown("search", str(path), map(str, path.parent.glob("*.py")))
    return config_files.from_file("search", spec, path, "get_search", checked)
