"""Fields of a configuration that the command line sets: `--config.loss.margin=0.2`, `--config.miner=semihard`.

What a value may be is what the field's or the hyper-parameter's annotation says. Where a field names something (a
loss, a miner, an optimizer, ...), the bare name is enough; another name drops the hyper-parameters of the one before.
"""

import ast
import inspect
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ml_collections import ConfigDict

from dml_jax import names
from dml_jax.catalogue import KINDS, Kind, hyper_parameters
from dml_jax.config import plain
from dml_jax.config_options import DataOptions, EvaluationOptions, GroupOptions, TrainOptions
from dml_jax.errors import UserError
from dml_jax.parameters import check

# Options with the same names mean the same in these: another model keeps its image_size, another sampler its length.
_KEEP = ("model", "sampler")
# The fields that stand beside the hyper-parameters of what a section names.
_BESIDE = {"data": DataOptions, "optimizer": GroupOptions}
_SECTIONS = {"train": TrainOptions, "evaluation": EvaluationOptions}


@dataclass(frozen=True)
class Override:
    """A field and its new value, as in `--config.train.epochs=3`.

    Attributes:
      keys: where the field is, from the section on.
      text: the value as it was written.
    """

    keys: tuple[str, ...]
    text: str

    @property
    def field(self) -> str:
        """What errors call it."""
        return f"--config.{'.'.join(self.keys)}"


@dataclass
class Notes:
    """What a command line dropped or left.

    Attributes:
      given: where all fields are that it sets.
      lines: the notes.
    """

    given: frozenset[tuple[str, ...]]
    lines: list[str] = field(default_factory=list)


def split(argv: Sequence[str]) -> tuple[list[Override], list[str]]:
    """Takes the overrides out of a command line; returns (overrides, the rest).

    Args:
      argv: the arguments; a field alone is True, or has the argument after it for a value.

    >>> split(["--config=quickstart", "--config.train.epochs=3", "--workdir=runs/a"])
    ([Override(keys=('train', 'epochs'), text='3')], ['--config=quickstart', '--workdir=runs/a'])
    """
    found, rest = [], []
    waiting = list(argv)
    while waiting:
        argument = waiting.pop(0)
        option = re.fullmatch(r"--config\.([^=]+)(?:=(.*))?", argument, flags=re.S)
        if not option:
            rest.append(argument)
            continue
        text = option[2]
        if text is None:
            text = waiting.pop(0) if waiting and not waiting[0].startswith("--") else "True"
        found.append(Override(tuple(option[1].split(".")), text))
    return found, rest


def apply(config: ConfigDict, overrides: Sequence[Override]) -> list[str]:
    """Sets fields of a configuration; returns notes on what that dropped or left.

    Names are changed first, so that hyper-parameters are those of the new names.

    Args:
      config: the configuration, which is changed.
      overrides: what is set.

    Raises:
      UserError: a field that does not exist, with near misses, or a value that it does not accept.

    >>> from dml_jax import config as configs
    >>> config = configs.new()
    >>> apply(config, split(["--config.loss=contrastive", "--config.loss.neg_margin=0.5"])[0])
    []
    >>> config.loss.to_dict()
    {'name': 'contrastive', 'neg_margin': 0.5}
    """
    notes = Notes(frozenset(override.keys for override in overrides))
    loss = plain(config.loss).get("name")
    ordered = sorted(overrides, key=lambda o: (not _changes_name(o.keys), len(o.keys)))
    for override in ordered:
        section = override.keys[0]
        if section not in config:
            raise UserError(f"{override.field}: {names.unknown('field', section, config)}")
        _write(config, section, _section(config, override, notes))
    renamed = {o.keys[0] for o in ordered if _changes_name(o.keys)}
    if plain(config.loss)["name"] != loss and config.miner is not None and "miner" not in renamed:
        notes.lines.append(
            f"the miner {config.miner.name!r} stays; --config.miner=None trains without one"
        )
    return notes.lines


def _write(config: ConfigDict, section: str, value: Any) -> None:
    """Sets a section; one that stays a section field by field, so that what refers to a field follows it."""
    with config.unlocked(), config.ignore_type():
        if section in _SECTIONS:
            for field, new in value.items():
                if plain(config[section][field]) != new:
                    config[section][field] = new
        else:
            config[section] = value


def _section(config: ConfigDict, override: Override, notes: Notes) -> Any:
    section = override.keys[0]
    value = plain(config[section])
    if section == "seed":
        return _parsed(override, int, value)
    if section in _SECTIONS:
        return _in_fields(value, section, _fields(_SECTIONS[section]), override, 1, notes)
    if section == "optim":
        if len(override.keys) < 2 or override.keys[1] not in value:
            group = override.keys[1] if len(override.keys) > 1 else override.text
            raise UserError(f"{override.field}: {names.unknown('group of optim', group, value)}")
        group = override.keys[1]
        return {
            **value,
            group: _in_named(value[group], KINDS["optimizer"], override, 2, notes),
        }
    return _in_named(value, KINDS[section], override, 1, notes)


def _changes_name(keys: tuple[str, ...]) -> bool:
    return keys[-1] == "name" or _kind(keys) is not None


def _kind(keys: tuple[str, ...]) -> Kind | None:
    """Returns the kind of thing that a field names; None for a field that names nothing."""
    if len(keys) == 2 and keys[0] == "optim":
        return KINDS["optimizer"]
    if len(keys) > 1 and keys[-2] in ("augment", "prepare"):
        return KINDS["augmentation"]
    if keys[0] in _SECTIONS:
        return KINDS["relation"] if keys[-1] == "relation" else None
    nested = ("loss", "miner", "distance", "reducer", "regularizer", "relation", "schedule")
    return KINDS.get(keys[-1]) if len(keys) == 1 or keys[-1] in nested else None


def _fields(options: type) -> dict[str, Any]:
    return typing.get_type_hints(options, include_extras=True)


def _in(value: Any, annotation: Any, override: Override, depth: int, notes: Notes) -> Any:
    """Returns a value in which what lies `depth` keys deep in the configuration is set."""
    kind = _kind(override.keys[:depth])
    if kind is not None:
        return _in_named(value, kind, override, depth, notes)
    if depth == len(override.keys):
        return _parsed(override, annotation, value)
    if isinstance(value, (tuple, list)):
        return _in_sequence(value, override, depth, notes)
    if isinstance(value, Mapping):
        return _in_fields(value, override.keys[depth - 1], {}, override, depth, notes)
    where = ".".join(override.keys[:depth])
    raise UserError(f"{override.field}: {where} is {value!r} and has no fields")


def _in_sequence(
    value: Sequence[Any], override: Override, depth: int, notes: Notes
) -> tuple[Any, ...]:
    key = override.keys[depth]
    places = [str(i) for i in range(len(value))]
    if key not in places:
        raise UserError(f"{override.field}: {names.unknown('place', key, places)}")
    i = int(key)
    return (*value[:i], _in(value[i], Any, override, depth + 1, notes), *value[i + 1 :])


def _in_fields(
    value: Mapping[str, Any],
    owner: str,
    annotations: Mapping[str, Any],
    override: Override,
    depth: int,
    notes: Notes,
) -> dict[str, Any]:
    """Returns a mapping of fixed fields in which one is set."""
    if depth == len(override.keys):
        given = _parsed(override, Any, value)
        if not isinstance(given, Mapping):
            raise UserError(
                f"{override.field} is {given!r}; accepted: {override.field}.FIELD=VALUE with one of the fields "
                f"{', '.join(value)}"
            )
        for field in given:
            if field not in value:
                raise UserError(
                    f"{override.field}: {names.unknown(f'field of {owner}', field, value)}"
                )
        return {**value, **given}
    key = override.keys[depth]
    if key not in value:
        raise UserError(f"{override.field}: {names.unknown(f'field of {owner}', key, value)}")
    annotation = annotations.get(key, Any)
    return {**value, key: _in(value[key], annotation, override, depth + 1, notes)}


def _in_named(value: Any, kind: Kind, override: Override, depth: int, notes: Notes) -> Any:
    """Returns what a name and hyper-parameters describe, with another name or with a hyper-parameter set."""
    if isinstance(value, str):
        value = {"name": value}
    rest = override.keys[depth:]
    if not rest or rest == ("name",):
        return _renamed(value, kind, override, notes)
    if value is None:
        where = ".".join(override.keys[:depth])
        raise UserError(
            f"{override.field}: {where} is None and has no hyper-parameters; name one with --config.{where}=NAME"
        )
    if not isinstance(value, Mapping):
        raise UserError(f"{override.field}: {value!r} is no {kind.name} that has a name")
    key, name = rest[0], value["name"]
    hyper, others = hyper_parameters(kind, name)
    annotations = {k: h.annotation for k, h in hyper.items()} | _fields_beside(kind)
    if key not in annotations and key not in value and not others:
        accepted = {*annotations, "name"}
        raise UserError(
            f"{override.field}: {names.unknown(f'hyper-parameter of {kind.name} {name!r}:', key, accepted)}"
        )
    old = value.get(key, hyper[key].default if key in hyper else None)
    old = None if old is inspect.Parameter.empty else old
    new = _in(old, annotations.get(key, Any), override, depth + 1, notes)
    return {**value, key: new}


def _fields_beside(kind: Kind) -> dict[str, Any]:
    return _fields(_BESIDE[kind.name]) if kind.name in _BESIDE else {}


def _renamed(value: Any, kind: Kind, override: Override, notes: Notes) -> Any:
    given = _literal(override.text)
    if given is None:
        if kind.name not in ("miner", "distance", "reducer", "regularizer", "relation", "schedule"):
            raise UserError(f"{override.field} is None; accepted: the name of a {kind.name}")
        return None
    given = {"name": given} if isinstance(given, str) else given
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        raise UserError(
            f"{override.field} is {override.text}; accepted: the name of a {kind.name}, or a dict with a 'name'"
        )
    hyper, others = hyper_parameters(kind, given["name"])
    accepted = {*hyper, *_fields_beside(kind), "name"}
    for key in given:
        if key not in accepted and not others:
            owner = f"hyper-parameter of {kind.name} {given['name']!r}:"
            raise UserError(f"{override.field}: {names.unknown(owner, key, accepted)}")
    before = value if isinstance(value, Mapping) else {}
    if before.get("name") == given["name"]:
        return {**before, **given}
    stay = {*_fields_beside(kind), *(hyper if kind.name in _KEEP else ())}
    kept = {k: v for k, v in before.items() if k in stay and k != "name"}
    where = override.keys[:-1] if override.keys[-1] == "name" else override.keys
    replaced = {*kept, *given, *(k for k in before if (*where, k) in notes.given)}
    dropped = [k for k in before if k not in replaced]
    if dropped:
        notes.lines.append(
            f"{override.field}={given['name']}: {', '.join(dropped)} of {before['name']!r} "
            f"{'is' if len(dropped) == 1 else 'are'} dropped"
        )
    return {**given, **{k: v for k, v in kept.items() if k not in given}}


def _parsed(override: Override, annotation: Any, old: Any) -> Any:
    """Returns the value of an override, as its annotation or else the type of the value before has it."""
    if annotation is Any and isinstance(old, (bool, int, float, str)):
        annotation = type(old)
    elif annotation is Any and isinstance(old, (tuple, list)):
        annotation = tuple[Any, ...]
    candidates = _candidates(override.text, annotation)
    for candidate in candidates:
        try:
            value = check(override.field, annotation, candidate)
        except UserError:
            continue
        whole = isinstance(value, int) and not isinstance(value, bool)
        return float(value) if whole and isinstance(old, float) else value
    # The error of the value as it was meant: a number that is out of range, or a text that is no number.
    return check(override.field, annotation, candidates[0])


def _literal(text: str) -> Any:
    """Returns what Python, or JSON, makes of a text; the text itself where that is nothing."""
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _candidates(text: str, annotation: Any) -> list[Any]:
    """Lists what a text may stand for, the likeliest first."""
    literal = _literal(text)
    found = [literal, text] if not isinstance(literal, str) else [text]
    if annotation is not Any:
        found.append(tuple(_literal(part.strip()) for part in text.split(",") if part.strip()))
        found.append(tuple(part.strip() for part in text.split(",") if part.strip()))
    return found
