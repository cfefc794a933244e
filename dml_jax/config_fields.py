"""The fields of a configuration as a list, for `--help` and docs/config.md."""

import dataclasses
import textwrap
import typing
from typing import Any

from dml_jax.catalogue import KINDS
from dml_jax.config_options import DataOptions, EvaluationOptions, GroupOptions, TrainOptions
from dml_jax.docstrings import entries
from dml_jax.parameters import describe

# Sections of fixed fields, by what they are called on a command line.
SECTIONS = {
    "data": DataOptions,
    "optim.GROUP": GroupOptions,
    "train": TrainOptions,
    "evaluation": EvaluationOptions,
}
# Sections that name something.
NAMED = {
    "data": "data",
    "sampler": "sampler",
    "model": "model",
    "loss": "loss",
    "miner": "miner",
    "optim.GROUP": "optimizer",
    "optim.GROUP.schedule": "schedule",
}


def fields(section: str) -> list[tuple[str, str, str, str]]:
    """Lists (name, what is accepted, default, meaning) of the fields of a section.

    Args:
      section: a key of `SECTIONS`.

    >>> fields("train")[0][:3]
    ('epochs', 'a whole number of at least 0', '10')
    """
    options: Any = SECTIONS[section]
    hints = typing.get_type_hints(options, include_extras=True)
    meanings = entries(options, "Attributes")
    made = options()
    return [
        (
            field.name,
            describe(hints[field.name]),
            repr(getattr(made, field.name)),
            meanings[field.name],
        )
        for field in dataclasses.fields(options)
    ]


def as_text() -> str:
    """Returns the fields of all sections for a terminal, each with its default and its meaning."""
    lines = [
        "fields of the configuration, with the defaults that a file may change:",
        f"  --config.seed=0\n{_indented('the number that everything random follows from.')}",
    ]
    for section, kind in NAMED.items():
        plural = KINDS[kind].plural
        lines.append(
            f"  --config.{section}=NAME, --config.{section}.HYPER=VALUE\n"
            + _indented(
                f"`dml list {plural}` has the names, `dml list {plural} NAME` the hyper-parameters."
            )
        )
    for section in SECTIONS:
        for name, accepted, default, meaning in fields(section):
            lines.append(
                f"  --config.{section}.{name}={default}\n{_indented(f'{meaning} ({accepted})')}"
            )
    return "\n".join(lines) + "\n"


def _indented(text: str) -> str:
    return textwrap.fill(text, 100, initial_indent=" " * 6, subsequent_indent=" " * 6)


def as_markdown() -> str:
    """Returns the fields of all sections as docs/config.md has them."""
    lines = [
        "# Fields of a configuration",
        "",
        "<!-- Made by docs/tools/config.py from the docstrings of the library. -->",
        "",
        "On a command line a field is set with `--config.SECTION.FIELD=VALUE`, in a file with",
        "`config.SECTION.FIELD = value`; [Configurations](guide/configs.md) says how both are used.",
        "`dml list` says which names there are, and what hyper-parameters stand beside a name.",
        "",
        "`config.seed` is the number that everything random follows from; its default is 0.",
        "",
        "| section | names one of |",
        "|---|---|",
        *(f"| `{s}` | {KINDS[k].plural}: {_names(k)} |" for s, k in NAMED.items()),
    ]
    for section in SECTIONS:
        lines += ["", f"## `{section}`", ""]
        if section == "optim.GROUP":
            lines += ["GROUP is `backbone`, `head` or `loss`, or what a file calls its groups.", ""]
        lines += ["| field | default | accepted | meaning |", "|---|---|---|---|"]
        for row in fields(section):
            name, accepted, default, meaning = (cell.replace("|", "\\|") for cell in row)
            lines.append(f"| `{name}` | `{default}` | {accepted} | {meaning} |")
    return "\n".join(lines) + "\n"


def _names(kind: str) -> str:
    return ", ".join(f"`{name}`" for name in sorted(KINDS[kind].table))
