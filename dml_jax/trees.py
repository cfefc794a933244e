"""Nested dicts as flat ones and back."""

from collections.abc import Mapping
from typing import Any

import jax


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


def path_of(keys: tuple[Any, ...]) -> str:
    """Returns the path of a leaf of any pytree, such as `model/backbone/conv/kernel`.

    Args:
      keys: what `jax.tree_util` calls the leaf's key path.
    """
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """Returns the leaves of any pytree by path, in the order of `jax.tree.leaves`.

    Args:
      tree: the pytree; unlike in `flatten` it may hold tuples and other nodes than mappings.

    >>> leaves_by_path({"a": ({"b": 1}, 2)})
    {'a/0/b': 1, 'a/1': 2}
    """
    return {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
