"""Names and layouts of published weights, and ours: a table of rules for each source, read both ways.

A rule pairs a name in the file with a path of ours, `{}` in both for the same numbers, and says how it lies there:

    Rule("blocks.{}.attn.qkv.weight", "block_{:02}/qkv/kernel", LINEAR)

`Table.load` reads a backbone from a file, one array after the other; `Table.save` gives a backbone the names and
layouts of the file.
"""

import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from dml_jax.errors import UserError

Arrays = Mapping[str, np.ndarray]


class Layout(NamedTuple):
    """How an array lies in a file, and with us.

    Attributes:
      load: the file's array to ours.
      save: ours to the file's.
    """

    load: Callable[[np.ndarray], np.ndarray]
    save: Callable[[np.ndarray], np.ndarray]


def _conv(array: np.ndarray) -> np.ndarray:
    return array.transpose(2, 3, 1, 0)


def _patches_back(array: np.ndarray) -> np.ndarray:
    side = round((array.shape[0] / 3) ** 0.5)
    return array.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)


SAME = Layout(lambda a: a, lambda a: a)
# [out, in] and [in, out].
LINEAR = Layout(np.transpose, np.transpose)
# [out, in, h, w] and [h, w, in, out]; depthwise kernels have one "in" on both sides.
CONV = Layout(_conv, lambda a: a.transpose(3, 2, 0, 1))
# A convolution of patches without overlap, [out, 3, p, p], and the linear map of their pixels, [p p 3, out].
PATCHES = Layout(lambda a: _conv(a).reshape(-1, a.shape[0]), _patches_back)
# A leading axis of length 1 that we do not have, and two of them.
ROW = Layout(lambda a: a[0], lambda a: a[None])
TWO_ROWS = Layout(lambda a: a[0, 0], lambda a: a[None, None])
# A linear map that the file has as a convolution of 1 x 1.
POINTWISE = Layout(lambda a: a[:, :, 0, 0].T, lambda a: a.T[:, :, None, None])


@dataclass(frozen=True)
class Rule:
    """One array, or several that we have as one.

    Attributes:
      theirs: its name in the file, with `{}` for numbers; or the names of several that are joined along the first
        axis there, in this order, all of the same shape but for `shares`.
      ours: its path, with as many `{}` or `{:02}`.
      layout: how it lies here and there.
      shares: how long the first axes of several are, relative to each other; None: all alike.
      stacked: True where the file has the arrays of all layers as one, along a first axis of its own; `ours` then has
        one `{}`, the number of the layer, and `theirs` has none.
    """

    theirs: str | tuple[str, ...]
    ours: str
    layout: Layout = SAME
    shares: tuple[int, ...] | None = None
    stacked: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        """The names in the file."""
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs


class Named(NamedTuple):
    """Where an array of ours lies in a file.

    Attributes:
      rule: of the array.
      names: in the file.
      layer: its place along the first axis of an array that holds all layers; None for an array of its own.
    """

    rule: Rule
    names: tuple[str, ...]
    layer: int | None


@dataclass(frozen=True)
class Table:
    """All names of one source.

    Attributes:
      source: who publishes such files, as errors and lists name it.
      rules: of all arrays that are used.
      ignored: regular expressions of the names of whole arrays that are not, each with the reason.

    Example:
      >>> table = Table("a source", (Rule("fc.{}.weight", "layer_{}/kernel", LINEAR),), {"head.*": "of another task"})
      >>> file, expected = {"fc.3.weight": np.ones((2, 5))}, {"layer_3/kernel": np.zeros((5, 2))}
      >>> [(path, array.shape) for path, array in table.load(file, expected, "a file")]
      [('layer_3/kernel', (5, 2))]
    """

    source: str
    rules: tuple[Rule, ...]
    ignored: Mapping[str, str] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((self.source, self.rules))

    @cached_property
    def _theirs(self) -> list[tuple[re.Pattern[str], Rule]]:
        return [(_pattern(part), rule) for rule in self.rules for part in rule.parts]

    def within(self, prefix: str, ignored: Mapping[str, str]) -> "Table":
        """Returns the table of files that have the same names behind a prefix, and others beside them.

        Args:
          prefix: of the names.
          ignored: regular expressions of the others, each with the reason.

        Example:
          >>> table = Table("a source", (Rule("fc", "layer/kernel"),))
          >>> table = table.within("backbone.", {"head.*": "of pre-training"})
          >>> table.knows("backbone.fc"), table.knows("fc"), table.reason("head.fc")
          (True, False, 'of pre-training')
        """
        rules = tuple(
            replace(
                rule,
                theirs=(
                    prefix + rule.theirs
                    if isinstance(rule.theirs, str)
                    else tuple(prefix + part for part in rule.theirs)
                ),
            )
            for rule in self.rules
        )
        inner = {re.escape(prefix) + f"(?:{name})": why for name, why in self.ignored.items()}
        return Table(f"{self.source} within {prefix!r}", rules, {**inner, **ignored})

    def knows(self, name: str) -> bool:
        """Returns True for a name of the file that a rule has.

        Args:
          name: in the file.
        """
        return any(pattern.fullmatch(name) for pattern, _ in self._theirs)

    def names(self, path: str) -> "Named | None":
        """Returns the rule of a path of ours and the names in the file; None for a path that no rule has.

        Args:
          path: of an array of the backbone.
        """
        for rule in self.rules:
            if found := _pattern(rule.ours).fullmatch(path):
                numbers = tuple(map(int, found.groups()))
                names = tuple(part.format(*numbers) for part in rule.parts)
                return Named(rule, names, numbers[0] if rule.stacked else None)
        return None

    def reason(self, name: str) -> str | None:
        """Returns why a name of the file is not used; None where it is, or should be.

        Args:
          name: in the file.
        """
        reasons = (why for pattern, why in self.ignored.items() if re.fullmatch(pattern, name))
        return next(reasons, None)

    def load(
        self, file: Arrays, expected: Mapping[str, Any], source: str
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Yields `(path, array)` of every expected array, float32; one array of the file is read at a time.

        They come in the order of the names in the file that they are made of, and of the paths for equal names.

        Args:
          file: arrays by the names in the file; each is read when it is asked for.
          expected: what has a `shape`, by our paths.
          source: what the arrays came from, as errors name it.

        Raises:
          UserError: arrays that are missing, of another shape, or neither used nor known to be of no use.
        """
        wanted = {path: self.names(path) for path in sorted(expected)}
        used = {name for found in wanted.values() if found for name in found.names}
        named = {
            name for path, found in wanted.items() for name in (found.names if found else (path,))
        }
        missing = sorted(name for name in named if name not in file)
        extra = [name for name in file if name not in used and self.reason(name) is None]
        if missing or extra:
            problems = [("missing", missing), ("not expected", extra)]
            listed = "; ".join(f"{word}: {shorten(names)}" for word, names in problems if names)
            raise UserError(f"{source}: by the names of {self.source}: {listed}")
        return self._arrays(file, expected, wanted, source)

    def _arrays(
        self, file: Arrays, expected: Mapping[str, Any], wanted: Mapping[str, Any], source: str
    ) -> Iterator[tuple[str, np.ndarray]]:
        # Arrays that hold all layers are read once.
        ordered = sorted(wanted, key=lambda path: (wanted[path].names, path))
        for names, group in itertools.groupby(ordered, key=lambda path: wanted[path].names):
            paths = list(group)
            parts = [np.asarray(file[name]) for name in names]
            for path in paths:
                rule, _, layer = wanted[path]
                if layer is not None and any(part.shape[:1] != (len(paths),) for part in parts):
                    shapes = ", ".join(str(part.shape) for part in parts)
                    raise UserError(
                        f"{source}: {names[0]!r} has shape {shapes}, and there are {len(paths)} layers"
                    )
                own = parts if layer is None else [part[layer] for part in parts]
                try:
                    array = rule.layout.load(own[0] if len(own) == 1 else np.concatenate(own))
                except (ValueError, IndexError) as error:
                    raise UserError(
                        f"{source}: {names[0]!r} has shape {parts[0].shape}: {error}"
                    ) from error
                if array.shape != expected[path].shape:
                    ours = "" if rule.layout == SAME else f" ({array.shape} in our layout)"
                    raise UserError(
                        f"{source}: {names[0]!r} has shape {own[0].shape}{ours}, not {expected[path].shape}"
                    )
                yield path, np.ascontiguousarray(array, np.float32)

    def save(self, backbone: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Returns arrays by the names and in the layouts of the source's files.

        Args:
          backbone: arrays by our paths.

        Raises:
          UserError: a path that no rule has.
        """
        arrays: dict[str, np.ndarray] = {}
        layers: dict[str, dict[int, np.ndarray]] = {}
        for path, array in backbone.items():
            found = self.names(path)
            if found is None:
                raise UserError(f"{path}: files of {self.source} have no such array")
            rule, names, layer = found
            theirs = rule.layout.save(np.asarray(array))
            ends = np.cumsum(rule.shares or [1] * len(names))
            parts = (
                np.split(theirs, ends[:-1] * len(theirs) // ends[-1])
                if len(names) > 1
                else [theirs]
            )
            for name, part in zip(names, map(np.ascontiguousarray, parts), strict=True):
                if layer is None:
                    arrays[name] = part
                else:
                    layers.setdefault(name, {})[layer] = part
        stacks = {name: np.stack([of[i] for i in sorted(of)]) for name, of in layers.items()}
        return arrays | stacks


def recognised(tables: tuple[Table, ...], names: Collection[str]) -> Table | None:
    """Returns the table that has most of the names; None where none has any.

    Args:
      tables: of a model.
      names: of the arrays of a file.

    Example:
      >>> some = [Table("x", (Rule("a", "b"),)), Table("y", (Rule("c", "b"), Rule("d", "e")))]
      >>> recognised(tuple(some), ["c", "d"]).source
      'y'
    """
    counts = [sum(table.knows(name) for name in names) for table in tables]
    most = max(counts, default=0)
    return tables[counts.index(most)] if most else None


def shorten(names: Collection[str]) -> str:
    """Returns the first three names in order, and how many more there are, as a text for errors.

    Args:
      names: the names.

    Example:
      >>> shorten("dcba")
      "'a', 'b', 'c' and 1 more"
    """
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, sorted(names)[:3])) + more


def _pattern(name: str) -> re.Pattern[str]:
    """The regular expression of a name with `{}` for numbers."""
    parts = re.split(r"\{[^}]*\}", name)
    return re.compile(r"(\d+)".join(map(re.escape, parts)))
