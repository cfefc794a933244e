"""The command line that all commands share: options, and errors of one line."""

import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

from dml_jax import config as configs
from dml_jax import names, processes
from dml_jax.errors import UserError


def define_flags(*, config: str | None = None) -> None:
    """Defines `--config` and `--workdir`, which every command has.

    Args:
      config: the default of `--config`.
    """
    config_flags.DEFINE_config_file("config", config, "FILE.py[:arguments]", lock_config=True)
    flags.DEFINE_string("workdir", None, "The folder of the run.")


def run(
    main: Callable[..., None],
    *,
    required: Mapping[str, str] = MappingProxyType({"workdir": "the folder of the run"}),
    positional: bool = False,
) -> None:
    """Parses the command line and calls `main`.

    A `UserError` is printed as one line and ends the process with status 1, a wrong command line likewise with status
    2. Every other exception is a defect, of the program or the machine, and keeps its traceback.

    Args:
      main: the command.
      required: options that must be given, and what they are.
      positional: True where `main` takes the arguments that are not options; else such arguments are errors.
    """
    if {"--help", "-help", "-h"} & set(sys.argv):
        print(sys.modules["__main__"].__doc__)
        return
    try:
        arguments = _parse(sys.argv, required, positional)
    except (flags.Error, UserError) as error:
        _fail(error, 2)
    try:
        main(*arguments)
    except UserError as error:
        _fail(error, 1)
    except Exception:
        traceback.print_exc()
        processes.exit_process(1)


def _fail(error: Exception, status: int) -> NoReturn:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    processes.exit_process(status)


def _parse(argv: list[str], required: Mapping[str, str], positional: bool) -> list[str]:
    """Returns the arguments that are not options."""
    config = _option(argv, "config")
    if config is not None and "config" in flags.FLAGS:
        _check_fields(argv, configs.load(config))
    rest: list[str] = flags.FLAGS(argv)[1:]
    if rest and not positional:
        raise UserError(f"{rest[0]!r} is not an option; --name=value is accepted")
    for name, what in required.items():
        if not flags.FLAGS[name].value:
            raise UserError(f"--{name} is missing: {what}")
    return rest


def _option(argv: Sequence[str], name: str) -> str | None:
    for i, arg in enumerate(argv):
        flag, equals, value = arg.partition("=")
        if flag in (f"--{name}", f"-{name}"):
            return value if equals else next(iter(argv[i + 1 : i + 2]), None)
    return None


def _check_fields(argv: Sequence[str], config: ConfigDict) -> None:
    """Raises UserError for the first `--config.a.b` that is no field, with the near misses of its level."""
    for arg in argv:
        found = re.match(r"--?(?:no)?config\.([^=]+)", arg)
        if not found:
            continue
        level: Any = config
        for key in found[1].split("."):
            if not isinstance(level, ConfigDict) or key not in level:
                accepted = list(level) if isinstance(level, ConfigDict) else []
                raise UserError(f"--config.{found[1]}: {names.unknown('field', key, accepted)}")
            level = level[key]
