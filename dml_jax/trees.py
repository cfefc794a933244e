"""Nested dicts as flat ones and back."""

from collections.abc import Mapping
from typing import Any


def flatten(tree: Mapping[str, Any], separator: str = "/", prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of a nested mapping by path.

    Args:
      tree: the nested mapping.
      separator: what stands between the keys of a path.
      prefix: what every path begins with.

    >>> flatten({"a": {"b": 1, "c": 2}, "d": 3})
    {'a/b': 1, 'a/c': 2, 'd': 3}
    """
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat |= flatten(value, separator, path + separator)
        else:
            flat[path] = value
    return flat


def unflatten(flat: Mapping[str, Any], separator: str = "/") -> dict[str, Any]:
    """Returns the nested dict that `flatten` made a flat one of.

    Args:
      flat: leaves by path.
      separator: what stands between the keys of a path.

    >>> unflatten({"a/b": 1, "a/c": 2, "d": 3})
    {'a': {'b': 1, 'c': 2}, 'd': 3}
    """
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, last = path.split(separator)
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = leaf
    return tree
