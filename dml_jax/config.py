"""Configurations: the sections of a run with their fields, defaults, types and ranges, and files that hold one.

A configuration file has a function `get_config(arg=None)`, which begins with `new()` and returns what it made of it:

    from dml_jax import config as configs

    def get_config(arg=None):
        arg = configs.arguments(arg, runlocal=False)
        config = configs.new()
        config.data = configs.data(name="folder", path="photos")
        config.loss = {"name": "cos_face", "margin": 0.35, "scale": 64.0}
        config.optim = configs.optim(loss={"lr": 1e-2})
        config.train.epochs = 1 if arg.runlocal else 10
        return config

`loss.name` (and the name of a miner, sampler, model, data set, augmentation, metric, optimizer or schedule) may also be
"package.module:name", for an object of one's own.
"""

import dataclasses
import importlib.util
import json
import pathlib
import re
import traceback
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from ml_collections import ConfigDict, config_dict

from dml_jax import names
from dml_jax.errors import UserError
from dml_jax.evaluation import DEFAULT_METRICS
from dml_jax.parameters import Interval, NonNegativeFloat, NonNegativeInt, PositiveInt, check

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The section `train`.

    Attributes:
      epochs: how often the sampler's plan of an epoch is trained.
      batch_size: images of a step, on all devices together.
      views: how often each image of a batch comes, augmented anew; for self_supervised, with as many views.
      micro_batch: images that go through the backbone at a time; None: all at once. The gradient is the same.
      block: anchors (or classes) that the loss looks at at a time; None: all at once. The value is the same.
      devices: how many devices of each process are used; None: all.
      monitor: the metric that chooses the best checkpoint and stops training early, as in `val/map_at_r`; "": none.
      patience: epochs without a better value of `monitor` after which training stops (0 counts as 1); None: never.
      checkpoint_steps: a checkpoint is written at the end of every epoch, and every so many steps; 0: no more.
      checkpoint_minutes: and when so many minutes have passed since the last one; 0: no more.
      log_steps: steps between two rows of metrics.
      log_seconds: seconds between two lines of progress, where the output is no terminal.
      wandb: the Weights & Biases project that metrics are reported to; "": none.
    """

    epochs: NonNegativeInt = 10
    batch_size: PositiveInt = 64
    views: PositiveInt = 1
    micro_batch: PositiveInt | None = None
    block: PositiveInt | None = None
    devices: PositiveInt | None = None
    monitor: str = "val/map_at_r"
    patience: NonNegativeInt | None = 3
    checkpoint_steps: NonNegativeInt = 0
    checkpoint_minutes: NonNegativeFloat = 10.0
    log_steps: PositiveInt = 10
    log_seconds: NonNegativeFloat = 15.0
    wandb: str = ""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The fields of the section `data` that every data set has.

    Attributes:
      augment: what is applied to training images, in turn.
      prepare: what is applied to images that are evaluated, in turn.
      validation: the share of the training classes that is held out as `val`; 0 where the set has a `val` of its
        own, or for none.
      threads: threads that load images, or threads of each process that does.
      workers: processes that load images; 0: threads of this process do.
      prefetch: batches that are loaded ahead.
      on_error: what happens where an image cannot be decoded: "raise", or "skip" with a count in the log.
    """

    augment: Any = ()
    prepare: Any = ()
    validation: Annotated[float, Interval(0, 1, closed_low=True)] = 0.0
    threads: PositiveInt = 2
    workers: NonNegativeInt = 0
    prefetch: PositiveInt = 4
    on_error: Literal["raise", "skip"] = "raise"


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """The section `evaluation`.

    Attributes:
      splits: the splits that are evaluated after every epoch.
      before_training: True to evaluate them before the first epoch, too.
      metrics: the names of the metrics.
      distance: euclidean or cosine, for metrics without a distance of their own.
      normalize: True to normalise embeddings before they are compared.
      embeddings: what is evaluated of the model's outputs: `embedding`, `features` (of the backbone, before the
        head), or weighted ones together, as in Combined_embedding_features-1-0.5. Reports show the first one.
      relation: when an image is relevant to another: label, hierarchy or overlap; {"name": "hierarchy", "level": 0}
        for the coarser classes.
      among: the images among which a query is searched: all, same_parent, other_parents.
      average: the mean is over each query, class or parent; or there is a value for each_class.
      k: how many neighbours are looked at by metrics whose names leave it open: a number, max_bin_count (the largest
        class), or None: all of them, for r_precision and map_at_r the first R.
      gallery: by split, another split that is searched in place of the split itself; "" for none.
      distractors: by split, a split that is added to what is searched and is relevant to nothing; "" for none.
      batch_size: images that are embedded at a time.
      backend: what searches: jax or faiss, or a backend that may miss neighbours.
      kmeans: what clusters for nmi, ami and f1: jax or faiss.
      block: rows of queries and of what is searched that are compared at a time, which bounds the memory; None: 1024
        and 2048.
      map: the map of a report: pca, or tsne (which needs the extra `map`).
      after: steps after training whose recall and bytes per image a report compares; see
        `evaluation.after_training`.
    """

    splits: tuple[str, ...] = ("val",)
    before_training: bool = False
    metrics: tuple[str, ...] = tuple(DEFAULT_METRICS)
    distance: str = "euclidean"
    normalize: bool = False
    embeddings: tuple[str, ...] = ("embedding",)
    relation: Any = "label"
    among: str = "all"
    average: str = "query"
    k: int | str | None = None
    gallery: Mapping[str, str] = dataclasses.field(default_factory=lambda: _no_splits())
    distractors: Mapping[str, str] = dataclasses.field(default_factory=lambda: _no_splits())
    batch_size: int = 256
    backend: str = "jax"
    kmeans: str = "faiss"
    block: int | None = None
    map: str = "pca"
    after: tuple[str, ...] = ()


def _no_splits() -> dict[str, str]:
    return {"train": "", "val": "", "test": ""}


# The sections that have the fields of `new` and no others.
FIXED_SECTIONS = ("train", "evaluation")
# The fields of the section `data` that are not options of the data set.
DATA_FIELDS = tuple(field.name for field in dataclasses.fields(DataOptions))


def new() -> ConfigDict:
    """Returns a configuration of every section, with the defaults, in which unknown fields are errors.

    `data`, `sampler`, `model`, `loss` and `miner` also take the options of what they name: set them as a whole, as in
    `config.loss = dict(name="cos_face", margin=0.35, scale=64.0)`. Beside its hyper-parameters a loss takes `distance`,
    `reducer` and `relation` by name; with the relation "hierarchy" it is given the parents of the classes, too, where
    the data set has them. `miner` is None for a loss without one. The fields of `train` are those of `TrainOptions`,
    those of `evaluation` are those of `EvaluationOptions`.

    >>> config = new()
    >>> config.train.epochs, config.loss.name
    (10, 'multi_similarity')
    """
    config = ConfigDict()
    config.seed = 0
    config.data = data(name="glyphs")
    config.sampler = dict(name="m_per_class", m=4)
    config.model = dict(name="convnet")
    config.loss = dict(name="multi_similarity")
    # Not a placeholder, whose fields the command line could not set.
    config.miner = None
    config.optim = optim()
    config.train = _section(TrainOptions())
    config.evaluation = _section(EvaluationOptions())
    return config.lock()


def _section(options: Any) -> dict[str, Any]:
    """Returns the fields of the options with the types that the command line gives them."""
    hints = typing.get_type_hints(type(options))
    return {
        field.name: _typed_field(hints[field.name], getattr(options, field.name))
        for field in dataclasses.fields(options)
    }


def _typed_field(hint: Any, value: Any) -> Any:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    accepted = set(typing.get_args(hint)) - {types.NoneType} if union else {hint}
    if hint is Any or len(accepted) > 1:
        return config_dict.FieldReference(value, field_type=object)
    if value is None:
        return config_dict.placeholder(accepted.pop())
    return dict(value) if isinstance(value, Mapping) else value


def data(name: str, **options: Any) -> ConfigDict:
    """Returns the section `data`.

    Args:
      name: the data set.
      **options: fields of `DataOptions`, and options of the data set.

    >>> data("glyphs", size=32).threads
    2
    """
    defaults = {f: getattr(DataOptions(), f) for f in DATA_FIELDS}
    return ConfigDict({"name": name, **defaults, **options})


def optim(**groups: Mapping[str, Any]) -> ConfigDict:
    """Returns the section `optim` with the groups `backbone`, `head` and `loss`.

    Args:
      **groups: for each of the groups, the fields that differ from Adam at a constant rate of 1e-3.

    Raises:
      UserError: another group.

    >>> optim(loss={"lr": 0.5}).loss.lr
    0.5
    """
    patterns = {
        "backbone": "model/backbone/.*",
        "head": "model/head/.*",
        "loss": "loss/.*",
    }
    unknown = [g for g in groups if g not in patterns]
    if unknown:
        raise names.unknown("group of optim:", unknown[0], patterns)
    # A schedule of each group's own: a field of one that is set does not change the others.
    return ConfigDict(
        {
            group: {
                "match": pattern,
                "name": "adam",
                "lr": 1e-3,
                "weight_decay": 0.0,
                "schedule": {"name": "constant"},
                "warmup_steps": 0,
                **groups.get(group, {}),
            }
            for group, pattern in patterns.items()
        }
    )


def arguments(text: str | None, **defaults: Any) -> ConfigDict:
    """Returns what follows the colon in `--config=FILE:a=3,b`, over defaults whose types decide what is accepted.

    Args:
      text: the arguments, separated by commas; a name alone is True.
      **defaults: the arguments that there are, with their defaults.

    Raises:
      UserError: an unknown name, no value where one is needed, or a value of another type.

    >>> arguments("size=64,runlocal", size=32, runlocal=False).to_dict()
    {'runlocal': True, 'size': 64}
    """
    values = dict(defaults)
    for part in filter(None, (text or "").split(",")):
        name, equals, value = part.partition("=")
        if name not in defaults:
            raise names.unknown("argument of the config:", name, defaults)
        values[name] = _argument(name, value if equals else None, type(defaults[name]))
    return ConfigDict(values)


def _argument(name: str, value: str | None, kind: type) -> Any:
    if value is None:
        if kind is bool:
            return True
        raise UserError(
            f"argument {name} of the config has no value; {name}=VALUE of type {kind.__name__} is accepted"
        )
    try:
        return _to_bool(value) if kind is bool else kind(value)
    except ValueError:
        raise UserError(
            f"argument {name}={value!r} of the config; a value of type {kind.__name__} is accepted"
        ) from None


def _to_bool(value: str) -> bool:
    if value.lower() not in ("true", "false", "1", "0"):
        raise ValueError(value)
    return value.lower() in ("true", "1")


def typed(section: str, options: type[T], values: Mapping[str, Any]) -> T:
    """Returns a section as an object with typed attributes.

    Args:
      section: what errors call it, as in "train".
      options: the class of the object, such as `TrainOptions`.
      values: the fields by name; further ones are ignored.

    Raises:
      UserError: a value of another type or out of range.

    >>> typed("train", TrainOptions, {**new().train, "epochs": -1})
    Traceback (most recent call last):
    dml_jax.errors.UserError: train.epochs is -1; accepted: a whole number of at least 0
    """
    hints = typing.get_type_hints(options, include_extras=True)
    return options(**{f: check(f"{section}.{f}", hints[f], plain(values[f])) for f in hints})


def plain(section: Any) -> Any:
    """Returns a section of a configuration, or a dict, as plain nested dicts."""
    return section.to_dict() if isinstance(section, ConfigDict) else section


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """Returns the configuration as JSON has it.

    Raises:
      UserError: a value that JSON has no form for; an object of one's own is configured by its name.
    """
    try:
        stored: dict[str, Any] = json.loads(config.to_json())
    except TypeError as error:
        raise UserError(
            f"the config has a value that cannot be stored: {error}; accepted: numbers, texts, and sequences and "
            "dicts of them, and 'package.module:name' for an object of your own"
        ) from None
    return stored


def from_dict(stored: Mapping[str, Any]) -> ConfigDict:
    """Returns the configuration that `to_dict` made a dict of.

    Sections and fields that came after it was stored have their defaults; those of what a section names have them
    where it is built.

    Raises:
      UserError: a section or a field that does not exist any more.
    """
    config = new()
    with config.unlocked():
        for name, section in json.loads(json.dumps(dict(stored)), object_hook=_tuples).items():
            if name in FIXED_SECTIONS:
                # Field by field: each keeps the type that the command line gives it.
                for field, value in section.items():
                    config[name][field] = value
            else:
                config[name] = data(**section) if name == "data" else section
    check_sections(config)
    return config.lock()


def _tuples(section: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in section.items()}


def check_sections(config: ConfigDict) -> None:
    """Checks that a configuration has all sections, and those of fixed fields these fields and no others.

    Raises:
      UserError: it does not.
    """
    default = new()
    for name in config:
        if name not in default:
            raise names.unknown("section", name, default)
    for name in default:
        if name not in config:
            raise UserError(f"section {name!r} is missing")
    for section in FIXED_SECTIONS:
        for field in config[section]:
            if field not in default[section]:
                raise names.unknown(f"field of {section}:", field, default[section])
        missing = [k for k in default[section] if k not in config[section]]
        if missing:
            raise UserError(f"{section} lacks {missing[0]!r}: set its fields one by one")


def load(spec: str) -> ConfigDict:
    """Returns the configuration of `FILE.py[:arguments]`, locked.

    Args:
      spec: the file, and the arguments of its `get_config` after a colon.

    Raises:
      UserError: there is no such file, or it does not make a configuration. An exception that a function called by
        the file raises for reasons of its own keeps its traceback.
    """
    file, _, text = spec.partition(":")
    path = pathlib.Path(file)
    if not path.is_file():
        near = [str(p) for p in sorted(path.parent.glob("*.py"))] if path.parent.is_dir() else []
        raise names.unknown("config file", file, near)
    found = importlib.util.spec_from_file_location("dml_jax_config", path)
    if found is None or found.loader is None:
        raise UserError(f"config {file} is no Python file; FILE.py is accepted")
    module = importlib.util.module_from_spec(found)
    try:
        found.loader.exec_module(module)
        config: ConfigDict = module.get_config(text) if text else module.get_config()
        check_sections(config)
    except UserError as error:
        raise UserError(f"config {file}: {error}") from error
    except SyntaxError as error:
        raise UserError(f"config {file}, line {error.lineno}: {error.msg}") from error
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        line = _line_of_file(error, path)
        if line is None:
            raise
        raise UserError(f"config {file}{line}: {_message(error)}") from error
    return config.lock()


def _line_of_file(error: Exception, path: pathlib.Path) -> str | None:
    """Returns ", line 7" of the file where it, or ml_collections on its behalf, raised the error; else None."""
    frames = traceback.extract_tb(error.__traceback__)
    of_file = [i for i, f in enumerate(frames) if pathlib.Path(f.filename) == path.absolute()]
    of_file = of_file or [i for i, f in enumerate(frames) if pathlib.Path(f.filename) == path]
    if not of_file:
        # `get_config` is missing, or takes other arguments.
        return "" if pathlib.Path(frames[-1].filename) == pathlib.Path(__file__) else None
    below = frames[of_file[-1] + 1 :]
    if all("ml_collections" in pathlib.Path(f.filename).parts for f in below):
        return f", line {frames[of_file[-1]].lineno}"
    return None


def _message(error: Exception) -> str:
    """Returns the gist of an error: ml_collections prints the whole section before the near miss."""
    text = str(error)
    found = re.search(r'Did you mean "(.*)" instead of "(.*)"', text)
    if found:
        return f"unknown field {found[2]!r}; did you mean {found[1]!r}?"
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"
