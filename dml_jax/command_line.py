"""The command line that all commands share: options, the configuration, and errors of one line.

A command is a module with `add_options(parser)` and `main(options)`; `run` is what calls it.
"""

import argparse
import errno
import json
import os
import pathlib
import re
import shlex
import shutil
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn, Protocol

from ml_collections import ConfigDict

from dml_jax import config as configs
from dml_jax import config_files, names, processes, run_folder
from dml_jax.__main__ import COMMANDS
from dml_jax.errors import UserError


class Command(Protocol):
    """A module that is a command; its docstring is what `--help` begins with."""

    def add_options(self, parser: "Parser") -> None:
        """Adds the options."""

    def main(self, options: argparse.Namespace) -> None:
        """Runs the command."""


class Parser(argparse.ArgumentParser):
    """A parser that raises `UserError` where the command line is wrong, with near misses.

    Attributes:
      takes_config: True where the command has `--config` and `--config.FIELD`.
      needs_run: True where there must be a run in `--workdir`.
    """

    def __init__(self, program: str, description: str = ""):
        """Makes a parser without options but `--help`.

        Args:
          program: what the command is called, as in "dml train".
          description: what `--help` begins with.
        """
        super().__init__(
            prog=program,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.takes_config = self.needs_run = False

    def add_workdir(self, meaning: str = "the folder of the run", required: bool = True) -> None:
        """Adds `--workdir`.

        Args:
          meaning: what it is.
          required: True where it must be given.
        """
        self.add_argument("--workdir", type=path, required=required, help=meaning, metavar="FOLDER")

    def add_config(self, default: str | None = None, *, of_run: bool = False) -> None:
        """Adds `--config`, `--config.FIELD` and `--print_config`.

        Args:
          default: the configuration where none is given; None: that of the run in `--workdir`.
          of_run: True where there must be a run, whatever the configuration.
        """
        self.takes_config, self.needs_run = True, of_run
        self.add_argument(
            "--config",
            default=default,
            metavar="NAME|FILE.py[:ARGUMENTS]",
            help="the configuration: a file, or one that comes with the library "
            f"({', '.join(config_files.available())}); by default {default or 'that of the run in --workdir'}",
        )
        self.add_argument(
            "--config.FIELD",
            metavar="VALUE",
            dest=argparse.SUPPRESS,
            help="sets a field of the configuration, as in --config.train.epochs=3; the fields are listed below",
        )
        self.add_argument(
            "--print_config", action="store_true", help="prints the configuration and ends"
        )

    def format_help(self) -> str:
        """Returns what `--help` prints: options, and the fields of a configuration where there is one."""
        text = super().format_help()
        if not self.takes_config:
            return text
        from dml_jax import config_fields  # it imports every part that a field can name

        return f"{text}\n{config_fields.as_text()}"

    def error(self, message: str) -> NoReturn:
        """Raises the error that argparse found.

        Args:
          message: what argparse says.

        Raises:
          UserError: always.
        """
        missing = re.fullmatch(r"the following arguments are required: (--\w+).*", message)
        if missing:
            option = self._option_string_actions[missing[1]]
            raise UserError(f"{missing[1]} is missing: {option.help}")
        raise UserError(message)

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Returns the options, of which `config` is the configuration with its overrides.

        Args:
          argv: the arguments after the program's name.

        Raises:
          UserError: an option that does not exist, with near misses, or a value that one does not accept.
        """
        overrides: list[Any] = []
        rest = list(argv)
        if self.takes_config:
            from dml_jax import overrides as overriding  # likewise

            overrides, rest = overriding.split(rest)
        # Before argparse, for which a misspelt option is first of all one that is missing.
        accepted = [o for o in self._option_string_actions if o.startswith("--")]
        for argument in rest:
            name = argument.partition("=")[0]
            if name.startswith("--") and name != "--" and name not in accepted:
                raise names.unknown("option", name, accepted)
        if "--print_config" in rest:  # nothing else is done
            for action in self._actions:
                action.required = False
        options, unknown = self.parse_known_args(rest)
        if unknown:
            raise UserError(f"{unknown[0]!r} is not an option; --name=value is accepted")
        if self.takes_config:
            options.config = _config(options, self.needs_run)
            for note in overriding.apply(options.config, overrides):
                print(f"note: {note}", file=sys.stderr)
        return options


def path(text: str) -> str:
    """Returns a path in which `~` is the home folder; the type of every option that is a path.

    Args:
      text: the path as it was written.

    >>> path("runs/a")
    'runs/a'
    """
    return os.path.expanduser(text)


def _config(options: argparse.Namespace, needs_run: bool) -> ConfigDict:
    if options.config is not None:
        return config_files.load(options.config)
    if getattr(options, "embeddings", None) is not None:
        return configs.new()  # of which evaluation is used
    if options.workdir is None:
        if options.print_config:
            raise UserError(
                "there is no configuration to print: neither --config nor --workdir, the folder of a run, is given"
            )
        raise UserError("--workdir is missing: the folder of the run")
    if not needs_run and not (pathlib.Path(options.workdir) / "config.json").is_file():
        raise UserError(
            f"there is no {options.workdir}/config.json, and no --config; accepted: the folder of a run, or --config "
            f"with a file or one of {', '.join(config_files.available())}"
        )
    return run_folder.read_config(options.workdir)


def run(command: Command, argv: Sequence[str] | None = None, program: str | None = None) -> None:
    """Parses a command line and calls the command.

    A `UserError` is printed as one line and ends the process with status 1, a wrong command line likewise with status
    2; an interrupt from the keyboard ends it with 130. Every other exception is a defect, of the program or the
    machine, and keeps its traceback.

    Args:
      command: the module.
      argv: the arguments; those of the process by default.
      program: what the command is called; its module by default.
    """
    program = program or f"python -m {_module_name(command)}"
    parser = Parser(program, getattr(command, "__doc__", None) or "")
    command.add_options(parser)
    try:
        options = parser.parse(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        _fail(error, 2)
    try:
        if getattr(options, "print_config", False):
            print(json.dumps(configs.to_dict(options.config), indent=2))
        else:
            command.main(options)
        sys.stdout.flush()
    except UserError as error:
        _fail(error, 1)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        processes.exit_process(130)
    except BrokenPipeError:
        # Whoever read the output has enough of it (`| head`): what is still buffered goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        processes.exit_process(141)
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            traceback.print_exc()
            processes.exit_process(1)
        _fail(UserError(f"{error.filename or 'a file of the run'}: {error.strerror}"), 1)
    except Exception as error:
        if processes.lost(error):
            _fail(
                UserError(
                    "another process of this command is gone, killed or cut off; the same command, started in all "
                    "processes, goes on from the last checkpoint"
                ),
                1,
            )
        traceback.print_exc()
        processes.exit_process(1)


# A folder that cannot be written and a disk that is full are not the program's faults.
_OF_THE_DISK = (errno.EACCES, errno.EDQUOT, errno.ENOSPC, errno.EPERM, errno.EROFS)


def _module_name(command: Command) -> str:
    found = getattr(command, "__spec__", None)
    return found.name if found is not None else "dml_jax"


def _fail(error: Exception, status: int) -> NoReturn:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    processes.exit_process(status)


def shell(command: str, *arguments: str) -> str:
    """Returns a command that can be pasted into a shell as it is, with the Python that runs now.

    Args:
      command: the command's name, a key of `COMMANDS`, as in "evaluate".
      *arguments: its arguments.

    >>> shell("evaluate", "--workdir=my run").endswith("evaluate '--workdir=my run'")
    True
    """
    python = pathlib.Path(sys.executable)
    dml = shutil.which("dml")
    if dml and pathlib.Path(dml).parent == python.parent:
        return shlex.join(["dml", command, *arguments])
    found = shutil.which("python")
    if found and pathlib.Path(found) == python:
        python = pathlib.Path("python")
    elif pathlib.Path.cwd() in python.parents:
        python = python.relative_to(pathlib.Path.cwd())
    return shlex.join([str(python), "-m", COMMANDS[command], *arguments])
