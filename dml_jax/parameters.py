"""Types and ranges of hyper-parameters: they stand in the signature, and one check enforces them all.

    @checked("loss")
    def contrastive(pos_margin: float = 0.0, neg_margin: float = 1.0, *, miner: Any = None) -> Loss: ...

A parameter is annotated with what it accepts: `float`, `int`, `bool`, `str`, a `Literal` of choices, a tuple of these,
`None` beside any of them, a path (`os.PathLike`), or one of the ranges below. Parameters with other annotations (`Any`,
arrays, functions) are left to the function.
"""

import difflib
import functools
import inspect
import math
import numbers
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

import numpy as np

from dml_jax import names
from dml_jax.errors import UserError

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Interval:
    """The numbers between two bounds.

    Attributes:
      low: the lower bound.
      high: the upper bound.
      closed_low: True where the lower bound itself is accepted.
      closed_high: True where the upper bound itself is accepted.
    """

    low: float = -math.inf
    high: float = math.inf
    closed_low: bool = False
    closed_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value >= self.low if self.closed_low else value > self.low
        below = value <= self.high if self.closed_high else value < self.high
        return above and below

    def __str__(self) -> str:
        parts = []
        if self.low > -math.inf:
            parts.append(f"{'of at least' if self.closed_low else 'above'} {self.low:g}")
        if self.high < math.inf:
            parts.append(f"{'of at most' if self.closed_high else 'below'} {self.high:g}")
        return " and ".join(parts)


PositiveFloat = Annotated[float, Interval(0)]
NonNegativeFloat = Annotated[float, Interval(0, closed_low=True)]
Fraction = Annotated[float, Interval(0, 1, closed_low=True, closed_high=True)]
OpenFraction = Annotated[float, Interval(0, 1)]
PositiveInt = Annotated[int, Interval(1, closed_low=True)]
NonNegativeInt = Annotated[int, Interval(0, closed_low=True)]


def checked(kind: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorates a factory so that every call's arguments are checked against the annotations.

    A hyper-parameter that does not exist, one that is missing, a value of another type or out of range raises
    `UserError`. Lists become tuples and NumPy scalars Python's, so that what is made of them can be hashed.

    Args:
      kind: what the factory makes, as errors call it ("loss", "miner").

    >>> @checked("miner")
    ... def hard(margin: PositiveFloat = 0.2) -> float:
    ...     return margin
    >>> hard(margin=-1)
    Traceback (most recent call last):
    dml_jax.errors.UserError: margin of miner 'hard' is -1; accepted: a number above 0
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(function)

        # Resolved at the first call: an annotation may name what is defined further down.
        @functools.cache
        def annotations() -> dict[str, Any]:
            return typing.get_type_hints(function, include_extras=True)

        name = function.__name__.rstrip("_")
        owner = f"{kind} {name!r}"

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            bound = bind(owner, signature, args, kwargs)
            hints = annotations()
            for parameter, value in bound.arguments.items():
                if parameter in hints and signature.parameters[parameter].kind not in _VARIADIC:
                    where = f"{parameter} of {owner}"
                    bound.arguments[parameter] = check(where, hints[parameter], value)
            return function(*bound.args, **bound.kwargs)

        return call

    return decorate


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def bind(
    owner: str, signature: inspect.Signature, args: Any, kwargs: Any
) -> inspect.BoundArguments:
    """Binds the arguments of a call to a signature.

    Args:
      owner: what is called, as errors name it.
      signature: its signature.
      args: the positional arguments.
      kwargs: the keyword arguments.

    Raises:
      UserError: a keyword that does not exist, with near misses; a required one that is missing; too many arguments.
    """
    accepted = signature.parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    for name in kwargs:
        if name not in accepted and not open_ended:
            raise names.unknown(f"hyper-parameter of {owner}:", name, accepted)
    missing = [
        name
        for name, p in list(accepted.items())[len(args) :]
        if p.default is p.empty and p.kind not in _VARIADIC and name not in kwargs
    ]
    if missing:
        raise UserError(f"{owner} needs a value for {', '.join(map(repr, missing))}")
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        by_position = [n for n, p in accepted.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
        raise UserError(
            f"{owner}: {error}; accepted by position: {', '.join(by_position) or 'nothing'}, the rest by name"
        ) from None


def check(where: str, annotation: Any, value: Any) -> Any:
    """Returns the value as the annotation has it: a tuple for a list, a Python number for NumPy's.

    Args:
      where: what the value is, as in "alpha of loss 'multi_similarity'".
      annotation: the type, with its range.
      value: what was given.

    Raises:
      UserError: a value that the annotation does not accept.

    Example:
      >>> check("alpha", PositiveFloat, 2)
      2
    """
    fits, converted = _convert(annotation, value)
    if not fits:
        near = difflib.get_close_matches(str(value), _choices(annotation), n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{where} is {value!r}; accepted: {describe(annotation)}{hint}")
    return converted


def _choices(annotation: Any) -> list[str]:
    """The texts among the choices of an annotation."""
    args = typing.get_args(annotation)
    if typing.get_origin(annotation) is Literal:
        return [a for a in args if isinstance(a, str)]
    return [choice for a in args for choice in _choices(a)]


def describe(annotation: Any) -> str:
    """Says in words what an annotation accepts.

    Example:
      >>> describe(PositiveInt | None)
      'a whole number of at least 1 or None'
    """
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        text = describe(args[0])
        return " ".join([text, *(str(a) for a in args[1:] if isinstance(a, Interval))])
    if origin is Literal:
        return " or ".join(map(repr, args))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(a) for a in args)
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return f"a sequence, each {describe(args[0])}"
        if len(set(args)) == 1:
            return f"a sequence of {len(args)}, each {describe(args[0])}"
        return f"a sequence of {len(args)}: {', '.join(describe(a) for a in args)}"
    known = origin or annotation
    if known in _WORDS:
        return _WORDS[known]
    return f"a {known.__name__}" if isinstance(known, type) else str(annotation)


_WORDS: dict[Any, str] = {
    float: "a number",
    int: "a whole number",
    bool: "True or False",
    str: "a text",
    types.NoneType: "None",
    os.PathLike: "a path",
    Mapping: "a dict",
    Sequence: "a sequence",
    Callable: "a function",
    Any: "any value",
}


def _convert(annotation: Any, value: Any) -> tuple[bool, Any]:
    """(whether the value is accepted, the value as it is passed on)."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        fits, value = _convert(args[0], value)
        ranges = [a for a in args[1:] if isinstance(a, Interval)]
        return fits and all(value in r for r in ranges), value
    if origin is Literal:
        return any(value == a and type(value) is type(a) for a in args), value
    if origin in (typing.Union, types.UnionType):
        for one in args:
            fits, converted = _convert(one, value)
            if fits:
                return True, converted
        return False, value
    if origin is tuple:
        return _convert_tuple(args, value)
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()
    if annotation is types.NoneType:
        return value is None, value
    if annotation is bool:
        return isinstance(value, bool), value
    if annotation is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool), value
    if annotation is float:
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        return number and not math.isnan(value), value
    if annotation is str:
        return isinstance(value, str), value
    if os.PathLike in (annotation, origin):
        return isinstance(value, os.PathLike), value
    if Mapping in (annotation, origin):
        # A ConfigDict is no Mapping, but has keys and values like one.
        return isinstance(value, Mapping) or hasattr(value, "keys"), value
    return True, value


def _convert_tuple(args: tuple[Any, ...], value: Any) -> tuple[bool, Any]:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, str) or not isinstance(value, (list, tuple)):
        return False, value
    of = [args[0]] * len(value) if len(args) == 2 and args[1] is Ellipsis else list(args)
    if len(of) != len(value):
        return False, value
    pairs = [_convert(a, v) for a, v in zip(of, value, strict=True)]
    return all(fits for fits, _ in pairs), tuple(v for _, v in pairs)


def keyword_parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Returns the keyword-only parameters of a function: the hyper-parameters of what is made of it."""
    return [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]


def check_keywords(
    owner: str, function: Callable[..., Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Checks hyper-parameters against the keyword-only parameters of a function, and fills in its defaults.

    Args:
      owner: what they belong to, as errors call it.
      function: its keyword-only parameters are the accepted ones.
      given: the given ones.

    Raises:
      UserError: a name that does not exist, a required one that is missing, a value of another type or out of range.
    """
    bound = bind(owner, inspect.Signature(keyword_parameters(function)), (), given)
    bound.apply_defaults()
    hints = typing.get_type_hints(function, include_extras=True)
    return {
        name: check(f"{name} of {owner}", hints.get(name, Any), value)
        for name, value in bound.arguments.items()
    }


def make(
    kind: str, table: Mapping[str, Callable[..., Any]], type_: type[T], name: str, given: Any
) -> T:
    """Calls the factory that a name stands for, one of the library's or the user's own, and checks what it returns.

    Args:
      kind: what is made, as errors call it.
      table: the library's factories by name.
      type_: the type of what is made.
      name: a key of the table, or "package.module:name".
      given: the hyper-parameters.

    Raises:
      UserError: a name or a hyper-parameter that does not exist, a value that its annotation does not accept; a
        user's object that is no such factory.
    """
    factory = names.resolve(kind, table, name)
    owner = f"{kind} {name!r}"
    accepted = f"accepted: a function that returns a {type_.__name__}"
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # no function, or one without a signature
        raise UserError(f"{owner} is {factory!r}; {accepted}") from None
    bind(owner, signature, (), given)
    # Of a class, the annotations of the arguments are those of its __init__.
    function: Any = factory
    if isinstance(factory, type):
        function = factory.__init__  # type: ignore[misc]
    hints = typing.get_type_hints(function, include_extras=True)
    made = factory(**{k: check(f"{k} of {owner}", hints.get(k, Any), v) for k, v in given.items()})
    if not isinstance(made, type_):
        raise UserError(f"{owner} returned {made!r}; {accepted}")
    return made
