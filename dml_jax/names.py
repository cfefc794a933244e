"""Looks things up by name, with errors that say what would have been accepted."""

import difflib
import importlib
import inspect
import traceback
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dml_jax.errors import UserError


def unknown(kind: str, name: object, accepted: Iterable[str]) -> UserError:
    """Makes the error for a name that is not accepted; it lists near misses, or all names where none is near.

    Args:
      kind: what was looked for, as in "loss" or "field of train:".
      name: the name that was given.
      accepted: the names that would have been accepted.

    Example:
      >>> str(unknown("loss", "cos_fase", ["cos_face"]))
      "unknown loss 'cos_fase'; did you mean 'cos_face'?"
    """
    accepted = sorted(accepted)
    near = difflib.get_close_matches(str(name), accepted, n=3, cutoff=0.5)
    hint = f"accepted: {', '.join(accepted) or 'none'}"
    if near:
        hint = f"did you mean {' or '.join(map(repr, near))}?"
    return UserError(f"unknown {kind} {name!r}; {hint}")


def resolve(kind: str, table: Mapping[str, Any], name: str) -> Any:
    """Returns `table[name]`, or for "package.module:name" that object of the user's own.

    Args:
      kind: what is looked for, as errors call it.
      table: the library's own things by name.
      name: a key of the table, or the module and the name of an object, with a colon between them.

    Raises:
      UserError: a name that is not in the table, with near misses; a module that cannot be found, or that has no
        such object, or that fails while it is imported.

    Example:
      >>> resolve("number", {"one": 1}, "one")
      1
    """
    if isinstance(name, str) and ":" in name:
        return imported(kind, name)
    if not isinstance(name, str) or name not in table:
        raise unknown(kind, name, table)
    return table[name]


def imported(kind: str, name: str) -> Any:
    """Returns the object that "package.module:name" names.

    Args:
      kind: what is looked for, as errors call it.
      name: the module and the object's name in it, with a colon between them.

    Raises:
      UserError: a module that cannot be found (the current folder is looked in, too, where the command runs with
        `python -m`), that fails while it is imported, or that has no such object.
    """
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # Only where this module or its package is missing; one that it imports is a defect of the module.
        missing = error.name or ""
        if module_name != missing and not module_name.startswith(f"{missing}."):
            raise _fails(f"{kind} {name!r}", module_name, error) from error
        raise UserError(
            f"{kind} {name!r}: there is no module {module_name!r}; accepted: a module that Python finds "
            "(in the current folder, or installed), a colon, and a name in it"
        ) from None
    # The code is the user's, and may raise anything; who wants the whole traceback imports the module.
    except Exception as error:
        raise _fails(f"{kind} {name!r}", module_name, error) from error
    found: Any = module
    for part in attribute.split("."):
        if not part or not hasattr(found, part):
            public = [n for n, value in vars(module).items() if _offers(module, n, value)]
            raise unknown(f"{kind} of module {module_name}:", attribute, public)
        found = getattr(found, part)
    return found


def _fails(what: str, module_name: str, error: Exception) -> UserError:
    """Makes the error for a module that fails while it is imported; it names the line that does."""
    if isinstance(error, SyntaxError):
        file, line = error.filename, error.lineno
    else:
        last = traceback.extract_tb(error.__traceback__)[-1]
        file, line = last.filename, last.lineno
    return UserError(
        f"{what}: the module {module_name} fails while it is imported, in {file}, line {line}: "
        f"{type(error).__name__}: {error}"
    )


def _offers(module: types.ModuleType, name: str, value: Any) -> bool:
    """Returns True for what a module defines, and not for what it imports from another package."""
    if name.startswith("_") or inspect.ismodule(value):
        return False
    package = module.__name__.partition(".")[0]
    imported = inspect.isroutine(value) or inspect.isclass(value)
    return not imported or str(value.__module__).partition(".")[0] == package


def keywords(fn: Callable[..., Any], *, without: Iterable[str] = ()) -> dict[str, Any]:
    """Returns the keyword-only parameters of `fn` with their defaults (`inspect.Parameter.empty` where there is none).

    Args:
      fn: a function.
      without: names to leave out.
    """
    without = set(without)
    return {
        p.name: p.default
        for p in inspect.signature(fn).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name not in without
    }


def check_hyper(owner: str, accepted: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Checks the names of hyper-parameters.

    Args:
      owner: what they belong to, as errors call it.
      accepted: the accepted names with their defaults.
      given: the given ones.

    Raises:
      UserError: a name that is not accepted, or a required one that is missing.
    """
    for name in given:
        if name not in accepted:
            raise unknown(f"hyper-parameter of {owner}:", name, accepted)
    missing = [n for n, d in accepted.items() if d is inspect.Parameter.empty and n not in given]
    if missing:
        raise UserError(f"{owner} needs a value for {', '.join(map(repr, missing))}")


def build(kind: str, get: Callable[..., Any], type_: type | tuple[type, ...], spec: Any) -> Any:
    """Makes an object from what a user may write for it: the object, its name, or a mapping with a name.

    Args:
      kind: what is made, as errors call it.
      get: `get(name, **hyper)`, the look-up of that kind.
      type_: the type of the object.
      spec: what the user wrote; None is returned as it is.

    Raises:
      UserError: anything else.
    """
    if spec is None or isinstance(spec, type_):
        return spec
    if isinstance(spec, str):
        return get(spec)
    # A ConfigDict is no Mapping, but has keys and values like one.
    if hasattr(spec, "keys") and "name" in spec:
        return get(**{key: spec[key] for key in spec})
    shown = f"{type(spec).__name__} {spec.name!r}" if hasattr(spec, "name") else repr(spec)
    raise UserError(
        f"{kind} is {shown}; accepted: a name, a dict with a 'name', a {kind} object, or None"
    )
