"""Sources by name."""

from collections.abc import Callable
from typing import Any

from dml_jax import names
from dml_jax.data import folder, glyphs, grocery_store, omniglot
from dml_jax.data.base import Source

_TABLE: dict[str, Callable[..., Source]] = {
    "folder": folder.load,
    "glyphs": glyphs.load,
    "grocery_store": grocery_store.load,
    "omniglot": omniglot.load,
}


def available() -> list[str]:
    """The names that `load` accepts."""
    return sorted(_TABLE)


def load(name: str, split: str, **options: Any) -> Source:
    """A split of a data set; the module of the set's name documents its options.

    Raises:
      ValueError: an unknown name, split or option (with the near misses), or data that are not there.
    """
    opened = names.resolve("data set", _TABLE, name)
    names.check_hyper(f"data set {name!r}", names.keywords(opened), options)
    return opened(split, **options)
