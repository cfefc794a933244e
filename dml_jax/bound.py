"""Functions with their hyper-parameters, as values that can be compared and hashed."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Bound(Generic[T]):
    """A function with some of its keywords given.

    Two of them are equal where function and keywords are, so that what holds one can be a static argument of
    `jax.jit` and compiles once. (`functools.partial` is equal to itself alone, a lambda likewise.)

    Attributes:
      function: the function, with a name of its own module (not a lambda), so that it can be pickled.
      keywords: the given keywords; their values can be hashed.

    >>> double = Bound(pow, exp=2)
    >>> double(3), double == Bound(pow, exp=2), hash(double) == hash(Bound(pow, exp=2))
    (9, True, True)
    """

    __slots__ = ("function", "keywords")
    function: Callable[..., T]
    keywords: Mapping[str, Any]

    def __init__(self, function: Callable[..., T], /, **keywords: Any) -> None:
        object.__setattr__(self, "function", function)
        object.__setattr__(self, "keywords", MappingProxyType(keywords))

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__} cannot be changed")

    def __call__(self, *args: Any, **keywords: Any) -> T:
        return self.function(*args, **self.keywords, **keywords)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Bound):
            return NotImplemented
        return self.function == other.function and self.keywords == other.keywords

    def __hash__(self) -> int:
        return hash((self.function, frozenset(self.keywords.items())))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.function, dict(self.keywords))

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.keywords.items())
        return f"{self.function.__name__}({given})"


def _rebuild(function: Callable[..., T], keywords: dict[str, Any]) -> Bound[T]:
    return Bound(function, **keywords)
