"""Lists what a configuration can name, with hyper-parameters: `dml list [KIND [NAME]]`, as in `dml list losses`."""

import argparse
import inspect
import sys
import textwrap

from dml_jax import command_line, config_files, names
from dml_jax.catalogue import KINDS, Kind, hyper_parameters
from dml_jax.config_files import find
from dml_jax.console import log
from dml_jax.docstrings import summary
from dml_jax.parameters import describe


def add_options(parser: command_line.Parser) -> None:
    """Adds the options of this command.

    Args:
      parser: of the command.
    """
    plurals = [kind.plural for kind in KINDS.values()]
    parser.add_argument("kind", nargs="?", help=f"one of {', '.join(plurals)}, configs")
    parser.add_argument(
        "name", nargs="?", help='one of the names, or "package.module:name" of your own'
    )


def main(options: argparse.Namespace) -> None:
    """Runs the command.

    Args:
      options: those of the command line.

    Raises:
      UserError: a kind or a name that does not exist.
    """
    kinds = {word: kind for kind in KINDS.values() for word in (kind.plural, kind.name)}
    if options.kind is None:
        log("\n".join(f"{k.plural:<14} {', '.join(sorted(k.table))}" for k in KINDS.values()))
        log(f"{'configs':<14} {', '.join(config_files.available())}")
    elif options.kind in ("configs", "config"):
        for name in config_files.available() if options.name is None else [options.name]:
            log(f"{name:<32} {_first_line(name)}")
    elif options.kind not in kinds:
        raise names.unknown("kind", options.kind, [*kinds, "configs"])
    elif options.name is None:
        kind = kinds[options.kind]
        width = max(map(len, kind.table))
        log("\n".join(f"{n:<{width}}  {summary(f)}" for n, f in sorted(kind.table.items())))
    else:
        log(described(kinds[options.kind], options.name))


def _first_line(config: str) -> str:
    return find(config).read_text(encoding="utf-8").removeprefix('"""').partition("\n")[0]


def described(kind: Kind, name: str) -> str:
    """Returns what a name stands for and its hyper-parameters: default, meaning, what is accepted.

    Args:
      kind: what the name is one of.
      name: the name.

    Raises:
      UserError: an unknown name.

    >>> from dml_jax.catalogue import KINDS
    >>> print(described(KINDS["augmentation"], "flip"))
    flip: Mirrors the image left to right at random.
      p=0.5
          the probability, from 0 to 1; torchvision's default. (a number of at least 0 and of at most 1)
    """
    lines = [f"{name}: {summary(kind.factory(name))}"]
    for hyper, found in hyper_parameters(kind, name)[0].items():
        default = "" if found.default is inspect.Parameter.empty else f"={found.default!r}"
        lines.append(f"  {hyper}{default}")
        text = f"{found.meaning} ({describe(found.annotation)})"
        lines.append(textwrap.fill(text, 100, initial_indent=" " * 6, subsequent_indent=" " * 6))
    return "\n".join(lines)


if __name__ == "__main__":
    command_line.run(sys.modules[__name__])
