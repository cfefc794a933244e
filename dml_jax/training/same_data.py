"""A run is bound to the images that it began with: they are stored by class, and compared when it goes on."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from dml_jax import config as configs
from dml_jax import csv_files, data
from dml_jax.errors import UserError
from dml_jax.training import build
from dml_jax.training.experiment import Experiment

FILE = "data.json"
LABELS = "training_images.csv"
Splits = dict[str, dict[str, data.ClassImages]]


def of_experiment(experiment: Experiment) -> Splits:
    """Returns what the images of the training split and of the evaluated splits are called, by class.

    Args:
      experiment: what is trained.
    """
    root = root_of(experiment.config)
    found = {"train": data.fingerprint(experiment.source, root)}
    for spec in experiment.eval_specs:
        found.setdefault(spec.split, data.fingerprint(spec.sources["queries"], root))
    return found


def root_of(config: Mapping[str, Any]) -> str:
    """Returns where the data of a configuration are, which names of images begin with; "" where that is not said.

    Args:
      config: as nested dicts.
    """
    path = config["data"].get("path")
    return path if isinstance(path, str) else ""


def write(workdir: pathlib.Path, splits: Splits) -> None:
    """Writes `data.json` of a run that begins.

    Args:
      workdir: the folder of the run.
      splits: what `of_experiment` returned.
    """
    text = json.dumps(splits, indent=1) + "\n"
    (workdir / FILE).write_text(text, encoding="utf-8", errors="surrogateescape")


def write_labels(workdir: pathlib.Path, experiment: Experiment) -> None:
    """Writes `training_images.csv`, what is trained with which label, where that is not the whole split as it is.

    Args:
      workdir: the folder of the run.
      experiment: what is trained.
    """
    section, source = experiment.config["data"], experiment.source
    if not (
        section["train_classes"] or section["train_images_per_class"] or section["label_noise"]
    ):
        return
    true = build.source(configs.from_dict(experiment.config), "train").labels
    names, root = source.class_names, root_of(experiment.config)
    rows = [
        {
            "image": data.relative_name(source.name(i), root),
            "label": names[label],
            "true_label": names[true_label],
        }
        for i, (label, true_label) in enumerate(zip(source.labels, true, strict=True))
    ]
    csv_files.write_rows(workdir / LABELS, list(rows[0]), rows)


def read(workdir: str | pathlib.Path) -> Splits:
    """Returns what `write` stored; nothing for a run that is older than that.

    Args:
      workdir: the folder of the run.
    """
    path = pathlib.Path(workdir) / FILE
    if not path.is_file():
        return {}
    stored: Splits = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
    return stored


def check(workdir: pathlib.Path, splits: Splits) -> list[str]:
    """Checks that a run goes on with the training images that it began with; returns notes on other splits.

    Args:
      workdir: the folder of the run.
      splits: what `of_experiment` returned.

    Raises:
      UserError: the training images differ.
    """
    notes = []
    for split, before in read(workdir).items():
        found = data.differences(before, splits[split]) if split in splits else ""
        if found and split == "train":
            raise UserError(
                f"the training images of {workdir} have changed since it began: {found}; accepted: the images that it "
                "began with, or another --workdir. Where classes are divided at random, one that comes or goes divides "
                "all of them anew"
            )
        if found:
            notes.append(f"the images of {split} have changed since the run began: {found}")
    return notes


def trained_on(workdir: str, config: Mapping[str, Any], split: str, source: data.Source) -> str:
    """Returns a note where images that are evaluated were trained on, and another split is said to hold them; else "".

    It happens where the classes are divided at random and one of them is removed or renamed: the rest is dealt anew.

    Args:
      workdir: the folder of the run.
      config: what is evaluated, as `config.to_dict` returned it.
      split: the name of the split.
      source: its images.
    """
    before = read(workdir).get("train", {})
    if split in ("train", "all") or not before:
        return ""
    now = data.fingerprint(source, root_of(config))
    both = [name for name, images in now.items() if before.get(name) == images]
    if not both:
        return ""
    return (
        f"{len(both)} of the {len(now)} classes of {split} were trained on with these very images, {both[0]!r} among "
        "them: the data have changed since the training"
    )
