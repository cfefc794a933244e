"""Nested dicts as flat ones and back."""

import jax
import pytest

from dml_jax import trees

TREE = {"b": {"y": 1, "x": {"deep": 2}}, "a": 3}
FLAT = {"b/y": 1, "b/x/deep": 2, "a": 3}


def test_flat_and_back():
    assert trees.flatten(TREE) == FLAT
    assert list(trees.flatten(TREE)) == list(FLAT)  # in the order of the tree
    assert trees.unflatten(FLAT) == TREE
    assert trees.flatten(TREE, separator=".", prefix="my.") == {
        "my.b.y": 1,
        "my.b.x.deep": 2,
        "my.a": 3,
    }
    assert trees.unflatten({"b.y": 1, "b/y": 2}, separator=".") == {"b": {"y": 1}, "b/y": 2}
    # Leaves that are no mappings stay whole.
    assert trees.flatten({"a": [1, {"b": 2}]}) == {"a": [1, {"b": 2}]}


def test_what_cannot_come_back():
    """An empty branch has no leaf, so that it does not come back."""
    assert trees.unflatten(trees.flatten({"a": {}, "b": 1})) == {"b": 1}
    with pytest.raises((AttributeError, TypeError)):
        trees.unflatten({"a": 1, "a/b": 2})  # a leaf cannot have leaves


def test_leaves_of_any_tree():
    tree = {"b": ({"y": 1}, [2, 3]), "a": 4}
    found = trees.leaves_by_path(tree)
    assert found == {"a": 4, "b/0/y": 1, "b/1/0": 2, "b/1/1": 3}
    assert list(found.values()) == jax.tree.leaves(tree)
    assert [trees.path_of(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(tree)] == list(
        found
    )
