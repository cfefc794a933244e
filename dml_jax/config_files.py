"""Files that hold a configuration: found by path or, of those that come with the library, by name."""

import hashlib
import importlib.util
import pathlib
import re
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any, TypeVar

from ml_collections import ConfigDict

from dml_jax import config as configs
from dml_jax import names
from dml_jax.errors import UserError

T = TypeVar("T")

# Beside the package in a checkout, inside of it where it is installed.
_PACKAGE = pathlib.Path(__file__).parent
SHIPPED = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"
# What the files there share; it makes no configuration.
_SHARED = "common"


def available() -> list[str]:
    """Lists the names of the configurations that come with the library.

    >>> "quickstart" in available()
    True
    """
    return sorted(p.stem for p in SHIPPED.glob("*.py") if p.stem not in (_SHARED, "__init__"))


def find(name: str) -> pathlib.Path:
    """Returns the path of a configuration file.

    Args:
      name: the path, or the name of a configuration that comes with the library.

    Raises:
      UserError: there is no such file, with near misses.

    >>> find("quickstart").name
    'quickstart.py'
    """
    path = pathlib.Path(name).expanduser()
    if path.is_file():
        return path
    if name in available():
        return SHIPPED / f"{name}.py"
    near = [str(p) for p in sorted(path.parent.glob("*.py"))] if path.parent.is_dir() else []
    raise names.unknown("config", name, [*near, *available()])


def load(spec: str) -> ConfigDict:
    """Returns the configuration of `FILE.py[:arguments]` or `NAME[:arguments]`, locked.

    The file may import its neighbours (`from . import common`).

    Args:
      spec: the file or the name, and the arguments of its `get_config` after a colon.

    Raises:
      UserError: there is no such file, or it does not make a configuration. An exception that a function called by
        the file raises for reasons of its own keeps its traceback.

    >>> load("quickstart").data.name
    'glyphs'
    """

    def checked(made: Any) -> ConfigDict:
        if not isinstance(made, ConfigDict):
            raise UserError(f"get_config returned {made!r}; accepted: what config.new() made")
        return configs.completed(made)

    return from_file("config", spec, find(spec.partition(":")[0]), "get_config", checked)


def from_file(
    kind: str, spec: str, path: pathlib.Path, function: str, checked: Callable[[Any], T]
) -> T:
    """Returns what a function of a file makes.

    Args:
      kind: what it is, as errors call it.
      spec: the file or its name, as it was given, and the arguments of the function after a colon.
      path: of the file.
      function: its name in the file; it takes the text of the arguments, where there are any.
      checked: returns what the function made as it is wanted, or raises `UserError`.

    Raises:
      UserError: the file, the function or `checked` fails. An exception that a function called by the file raises for
        reasons of its own keeps its traceback.
    """
    name, _, text = spec.partition(":")
    # A package of the file's folder.
    package = f"_configs_{hashlib.sha256(str(path.parent.absolute()).encode()).hexdigest()[:16]}"
    if package not in sys.modules:
        sys.modules[package] = types.ModuleType(package)
        sys.modules[package].__path__ = [str(path.parent)]
    found = importlib.util.spec_from_file_location(f"{package}.{path.stem}", path)
    if found is None or found.loader is None:
        raise UserError(f"{kind} {name} is no Python file; FILE.py is accepted")
    module = importlib.util.module_from_spec(found)
    try:
        found.loader.exec_module(module)
        make = getattr(module, function)
        return checked(make(text) if text else make())
    except UserError as error:
        raise UserError(f"{kind} {name}: {error}") from error
    except SyntaxError as error:
        raise UserError(f"{kind} {name}, line {error.lineno}: {error.msg}") from error
    except (ValueError, AttributeError, LookupError, TypeError, NameError, ImportError) as error:
        line = _line_of_file(error, path)
        if line is None:
            raise
        raise UserError(f"{kind} {name}{line}: {_message(error)}") from error


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
