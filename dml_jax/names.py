"""Looking things up by name, with errors that say what would have been accepted."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def unknown(kind: str, name: object, accepted: Iterable[str]) -> ValueError:
    """The error for a name that is not among `accepted`: near misses first, else all of them."""
    accepted = sorted(accepted)
    near = difflib.get_close_matches(str(name), accepted, n=3, cutoff=0.5)
    hint = f"accepted: {', '.join(accepted) or 'none'}"
    if near:
        hint = f"did you mean {' or '.join(map(repr, near))}?"
    return ValueError(f"unknown {kind} {name!r}; {hint}")


def resolve(kind: str, table: Mapping[str, Any], name: str) -> Any:
    """`table[name]`, or a ValueError that names the near misses."""
    if not isinstance(name, str) or name not in table:
        raise unknown(kind, name, table)
    return table[name]


def keywords(fn: Callable[..., Any], *, without: Iterable[str] = ()) -> dict[str, Any]:
    """The keyword-only parameters of `fn` with their defaults (`inspect.Parameter.empty` if none)."""
    without = set(without)
    return {
        p.name: p.default
        for p in inspect.signature(fn).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name not in without
    }


def check_hyper(owner: str, accepted: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raises ValueError unless `given` names only `accepted` hyper-parameters and all required ones."""
    for name in given:
        if name not in accepted:
            raise unknown(f"hyper-parameter of {owner}:", name, accepted)
    missing = [n for n, d in accepted.items() if d is inspect.Parameter.empty and n not in given]
    if missing:
        raise ValueError(f"{owner} needs a value for {', '.join(map(repr, missing))}")


def build(kind: str, get: Callable[..., Any], type_: type | tuple[type, ...], spec: Any) -> Any:
    """An object from what a user may write for it: the object, its name, or a dict with a name."""
    if spec is None or isinstance(spec, type_):
        return spec
    if isinstance(spec, str):
        return get(spec)
    if isinstance(spec, Mapping) and "name" in spec:
        return get(**spec)
    raise ValueError(f"{kind} is {spec!r}; accepted: a name, a dict with a 'name', or None")
