"""Configurations: the sections of a run with their fields, defaults, types and ranges, and files that hold one.

A configuration file (`dml_jax.config_files`) has a function `get_config(arg=None)`, which begins with `new()` and
returns what it made of it:

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
import json
import os
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict, config_dict

from dml_jax import names
from dml_jax.config_options import DataOptions, EvaluationOptions, GroupOptions, TrainOptions
from dml_jax.errors import UserError
from dml_jax.parameters import check

T = TypeVar("T")
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
        kind = accepted.pop()
        return config_dict.placeholder(typing.get_origin(kind) or kind)
    return dict(value) if isinstance(value, Mapping) else value


def data(name: str, **options: Any) -> ConfigDict:
    """Returns the section `data`.

    Args:
      name: the data set.
      **options: fields of `DataOptions`, and options of the data set.

    >>> data("glyphs", size=32).threads
    2
    """
    return ConfigDict({"name": name, **dataclasses.asdict(DataOptions()), **options})


def optim(**groups: Mapping[str, Any] | None) -> ConfigDict:
    """Returns the section `optim` with the groups `backbone`, `head` and `loss`, or others.

    Args:
      **groups: for each of the groups, the fields that differ from Adam at a constant rate of 1e-3; None leaves the
        group out. A group of another name needs `match`, the pattern of its parameters' paths.

    Raises:
      UserError: a group of another name without a pattern.

    >>> optim(loss={"lr": 0.5}).loss.lr
    0.5
    """
    patterns = {
        "backbone": "model/backbone/.*",
        "head": "model/(head|pooling|lora)/.*",
        "loss": "loss/.*",
    }
    for name, given in groups.items():
        if name not in patterns and not (given or {}).get("match"):
            raise UserError(
                f"group of optim: {name!r} has no match, the pattern of its parameters' paths; without one "
                f"{', '.join(patterns)} are accepted"
            )
    left = {name: pattern for name, pattern in patterns.items() if groups.get(name, {}) is not None}
    others = {
        name: given["match"] for name, given in groups.items() if given and name not in patterns
    }
    # Made anew for each group: a field of one that is set does not change the others.
    return ConfigDict(
        {
            group: {**dataclasses.asdict(GroupOptions(match=pattern)), **(groups.get(group) or {})}
            for group, pattern in {**left, **others}.items()
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
    """Returns a section of a configuration, or a dict, as plain nested dicts.

    Example:
      >>> plain(ConfigDict({"a": {"b": 1}}))
      {'a': {'b': 1}}
    """
    return section.to_dict() if isinstance(section, ConfigDict) else section


def located(config: ConfigDict) -> ConfigDict:
    """Returns the configuration with `data.path` as a path from the root, which means the same in every folder.

    What is no path of a file or folder that exists stays as it is: a URL, or what a function of one's own makes of it.

    Args:
      config: the configuration, which is not changed.

    >>> import os
    >>> config = new()
    >>> config.data = data(name="folder", path=".")
    >>> located(config).data.path == os.getcwd()
    True
    """
    path = plain(config.data).get("path")
    if not isinstance(path, str | os.PathLike) or not os.path.exists(os.path.expanduser(path)):
        return config
    config = config.copy_and_resolve_references()
    config.data.path = os.path.abspath(os.path.expanduser(path))
    return config


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """Returns the configuration as JSON has it.

    Raises:
      UserError: a value that JSON has no form for; an object of one's own is configured by its name.

    Example:
      >>> to_dict(new())["train"]["epochs"]
      10
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

    Args:
      stored: what `to_dict` returned.

    Raises:
      UserError: a section or a field that does not exist any more.

    Example:
      >>> from_dict({"train": {"epochs": 3}}).train.epochs
      3
    """
    config = new()
    with config.unlocked():
        for name, section in json.loads(json.dumps(dict(stored)), object_hook=_tuples).items():
            if name in FIXED_SECTIONS:
                # Field by field: each keeps its type.
                for field, value in section.items():
                    config[name][field] = value
            else:
                config[name] = section
    return completed(config)


def _tuples(section: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in section.items()}


def completed(config: ConfigDict) -> ConfigDict:
    """Returns a configuration in which what is not set has its default: sections, and fields of sections.

    New fields are errors in it, but for the hyper-parameters of what a section names.

    Args:
      config: the configuration, with sections that may have been set as a whole.

    Raises:
      UserError: a section that does not exist, a field of `train` or `evaluation` that does not, or a section that
        is no dict.

    >>> config = new()
    >>> config.data = {"name": "folder", "path": "photos"}
    >>> completed(config).data.threads
    2
    """
    default = new()
    for name in config:
        if name not in default:
            raise names.unknown("section", name, default)
    with config.unlocked(), config.ignore_type(), default.unlocked():
        for name in default:
            if (
                name in config
                and name not in ("seed", "miner")
                and not hasattr(config[name], "keys")
            ):
                raise UserError(f"section {name!r} is {config[name]!r}; a dict is accepted")
            config[name] = _completed(name, config, default)
    config.lock()
    for name in set(default) - {"seed", *FIXED_SECTIONS}:
        # Which hyper-parameters there are depends on what is named: they are checked where it is made.
        if config[name] is not None:
            config[name].unlock()
    return config


def _completed(name: str, config: ConfigDict, default: ConfigDict) -> Any:
    if name not in config:
        return default[name]
    section = config[name]
    if name == "data":
        return data(**section)
    if name == "optim":
        group = dataclasses.asdict(GroupOptions())
        return {k: {**group, **v} if hasattr(v, "keys") else v for k, v in section.items()}
    if name not in FIXED_SECTIONS:
        return section
    for field in section:
        if field not in default[name]:
            raise names.unknown(f"field of {name}:", field, default[name])
    if len(section) == len(default[name]):
        return section
    for field, value in section.items():
        default[name][field] = value
    return default[name]
