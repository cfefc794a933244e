"""What a training run consists of: the one place where a configuration turns into objects."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from dml_jax import config as configs
from dml_jax import data, evaluation
from dml_jax.config import typed
from dml_jax.config_options import TrainOptions
from dml_jax.errors import UserError
from dml_jax.losses import Loss
from dml_jax.models import Model
from dml_jax.samplers import Sampler
from dml_jax.training import build, optim, tasks
from dml_jax.training.loading import Loader
from dml_jax.training.position import Better


@dataclass(frozen=True)
class Experiment:
    """What is trained, on what, and how it is evaluated.

    Attributes:
      options: the section `train`.
      seed: of everything that is drawn.
      model: the embedding model.
      loss: the loss with its miner.
      groups: how the groups of parameters are optimized, by name.
      source: the training images.
      labels: what the loss takes, a row for each training image.
      num_weight_classes: the classes for which a loss against class weights has weights.
      sampler: plans the batches of an epoch.
      loader: makes the batches.
      eval_specs: what is evaluated after every epoch, a spec for each split.
      embeddings: the outputs of the model that are evaluated.
      before_training: True where they are evaluated before the first epoch, too.
      at_end: what the best model is evaluated on at the end.
      monitors: the monitored metrics, and which values of each are better.
      data_name: the name of the data set.
      config: the configuration as JSON has it, for the files of the run.
    """

    options: TrainOptions
    seed: int
    model: Model
    loss: Loss
    groups: dict[str, optim.Group]
    source: data.Source
    labels: np.ndarray
    num_weight_classes: int
    sampler: Sampler
    loader: Loader
    eval_specs: tuple[tasks.EvalSpec, ...]
    embeddings: tuple[str, ...]
    before_training: bool
    at_end: tuple[tasks.EvalSpec, ...]
    monitors: dict[str, Better]
    data_name: str
    config: dict[str, Any]

    @property
    def trained_model(self) -> Model:
        """The model as the step computes it: in `train.precision`."""
        precision = self.options.precision
        return self.model if not precision else replace(self.model, dtype=precision)

    @classmethod
    def from_config(cls, config: ConfigDict) -> "Experiment":
        """Makes the experiment of a configuration.

        Raises:
          UserError: a section that its object does not take, sections that do not go together, or data that are not
            there.
        """
        # Names of images, and what is stored of the run, do not depend on the folder in which it begins.
        config = configs.located(config)
        options = typed("train", TrainOptions, config.train)
        tasks.check_reported(config)
        better = {monitor: monitor_better(monitor) for monitor in options.monitors}
        model, loss = build.model(config.model), build.loss(config)
        for field in ("augment", "prepare"):
            build.check_size(f"data.{field}", config.data[field], model)
        source = build.training_source(config)
        eval_specs = [tasks.eval_spec(config, split, model) for split in config.evaluation.splits]
        labels = build.labels(loss.relation, source)
        build.check_views(loss, options.views)
        build.check_pairs(loss, labels, options.views)
        return cls(
            options=options,
            seed=config.seed,
            model=model,
            loss=loss,
            groups=optim.groups_of(config.optim),
            source=source,
            labels=labels,
            num_weight_classes=build.num_weight_classes(loss, labels, source),
            sampler=build.sampler(config.sampler),
            loader=Loader.from_config(config),
            eval_specs=tuple(eval_specs),
            embeddings=tuple(config.evaluation.embeddings),
            before_training=config.evaluation.before_training,
            at_end=tuple(
                tasks.eval_spec(config, split, model) for split in config.evaluation.at_end
            ),
            monitors=better,
            data_name=config.data.name,
            config=configs.to_dict(config),
        )


def monitor_better(monitor: str) -> Better:
    """Returns which values of a monitored metric are better: "high" ones, or "low" ones of an error rate.

    Args:
      monitor: one of `train.monitor`, as in "val/map_at_r".

    Raises:
      UserError: neither is better.

    >>> monitor_better("val/eer")
    'low'
    """
    metric = monitor.rpartition("/")[2]
    directions: dict[str, Better] = {"high": "high", "low": "low"}
    better = directions.get(evaluation.get(metric).better)
    if better is None:
        raise UserError(
            f"train.monitor={monitor!r}: of {metric} neither high nor low values are better; a metric of which "
            "either are is accepted, or '' for none"
        )
    return better
