"""What the studies share: arguments, and runs that are shrunk to a sign of life."""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from dml_jax import config as configs
from dml_jax import config_files, experiments

# The sections that a shrunk run takes over, and their fields.
SECTIONS: dict[str, tuple[str, ...]] = {
    "data": ("validation_by", "label_noise", "train_classes", "train_images_per_class"),
    "train": ("monitor", "patience"),
    "evaluation": ("splits", "at_end", "metrics", "k", "before_training"),
    "loss": (),
    "sampler": (),
    "optim": (),
}


def paths(config: ConfigDict, path: str, weights: str) -> None:
    """Sets where data and weights are; texts that are empty leave them open."""
    config.data.path = path or None
    if "weights" in config.model:
        config.model.weights = weights or None


def lines(factor: str, values: Sequence[Any], dashed: tuple[str, ...]) -> experiments.Figure:
    """Returns the figure of MAP@R by a factor of the 2025 study, a line for each loss.

    Args:
      factor: what is compared.
      values: of it; a logarithmic axis is drawn where all are numbers above 0.
      dashed: the losses that classify.
    """
    numbers = all(isinstance(value, int | float) and value > 0 for value in values)
    return experiments.Figure(
        "map", "lines", y="test/map_at_r", x=factor, lines="loss", dashed=dashed, log_x=numbers
    )


def small(config: ConfigDict) -> ConfigDict:
    """Returns the run on built-in letters with a small network, two steps of eight images: a sign of life."""
    found = config_files.load("quickstart:runlocal")
    given = {name: configs.plain(config[name]) for name in config if name in SECTIONS}
    with found.unlocked():
        found.loss, found.miner = given["loss"], config.miner
        found.sampler = {**given["sampler"], "length": 16}
        if "m" in found.sampler:
            found.sampler.m = min(found.sampler.m, 8)
        for section, fields in SECTIONS.items():
            for name in fields:
                found[section][name] = given[section][name]
        found.optim = configs.optim(loss=given["optim"].get("loss"))
        found.data.classes, found.data.validation = 24, 0.25
    found.model.update(width=8, depth=1, embedding_dim=16)
    found.train.update(epochs=min(config.train.epochs, 1), batch_size=16, log_steps=1, devices=1)
    if "test" in found.evaluation.splits:
        found.train.monitor = ""
    return found
