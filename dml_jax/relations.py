"""Which references are positives and which negatives of an anchor.

A relation sees a block of anchors and all references; that a sample is not its own positive is the
driver's business (by its position in the batch). A loss never compares labels itself. `relations.overlap(threshold=2)`
is a `Relation`; `relations.get("overlap", threshold=2)` is the same, by name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Shaped

from dml_jax import names, parameters
from dml_jax.bound import Bound
from dml_jax.errors import UserError
from dml_jax.parameters import PositiveFloat, checked

INT32 = np.iinfo(np.int32)


def same_label(anchor_labels: Array, ref_labels: Array) -> tuple[Array, Array]:
    """Returns (positives, negatives): positives have the anchor's integer label. Labels `[a]`, `[n]`.

    Example:
      >>> positives, negatives = same_label(jnp.array([0, 1]), jnp.array([0, 0, 1]))
      >>> positives.tolist()
      [[True, True, False], [False, False, True]]
    """
    positive = anchor_labels[:, None] == ref_labels[None, :]
    return positive, ~positive


def given_positives(anchor_labels: Array, ref_labels: Array | None) -> tuple[Array, Array]:
    """Returns (positives, negatives), where the labels are the matrix of positives itself."""
    del ref_labels
    positive = anchor_labels.astype(bool)
    return positive, ~positive


def shared_labels(
    anchor_labels: Shaped[Array, "a labels"],
    ref_labels: Shaped[Array, "n labels"],
    *,
    threshold: float,
    measure: str,
) -> tuple[Array, Array]:
    """Returns (positives, negatives) of label sets; see `overlap`."""
    # Counts of up to 2^24 labels are exact in float32; products of 0 and 1 in any precision.
    a, r = ((x != 0).astype(jnp.float32) for x in (anchor_labels, ref_labels))
    shared = a @ r.T
    if measure == "count":
        return shared >= threshold, shared == 0
    union = jnp.sum(a, -1)[:, None] + jnp.sum(r, -1)[None, :] - shared
    # 3/5 is to reach the threshold 0.6, however its float is rounded.
    return (shared >= (threshold - 1e-6) * union) & (shared > 0), shared == 0


def same_at_level(
    anchor_labels: Int[Array, "a levels"], ref_labels: Int[Array, "n levels"], *, level: int
) -> tuple[Array, Array]:
    """Returns (positives, negatives) by the classes of one level of a tree; see `hierarchy`."""
    return same_label(_column(anchor_labels, level), _column(ref_labels, level))


def _column(labels: Int[Array, "b levels"], level: int) -> Int[Array, " b"]:
    """Returns the classes at one level."""
    levels = labels.shape[1]
    if not -levels <= level < levels:
        raise UserError(
            f"relation 'hierarchy' has level={level}, and labels of {levels} levels; accepted: {-levels} to "
            f"{levels - 1}"
        )
    return labels[:, level]


@dataclass(frozen=True)
class Relation:
    """A relation with its hyper-parameters, equal when made equally.

    A relation of one's own: `Relation("next", Bound(neighbours, reach=1))`, with
    `neighbours(anchor_labels, ref_labels, *, reach) -> (positives, negatives)`.

    Attributes:
      name: its name.
      relate: `relate(anchor_labels, ref_labels) -> (positives, negatives)`, a plain function or a `Bound` one.
      label_rank: the number of axes that its labels have.
      of_samples: True where labels are the samples' own; otherwise they are of pairs, and references have none.
      has_classes: True where a sample has a class (at every level of a tree).
      level: the column of a sample's class, where labels are rows with a class for each level.
    """

    name: str
    relate: Callable[[Array, Any], tuple[Array, Array]]
    label_rank: int = 1
    of_samples: bool = True
    has_classes: bool = False
    level: int | None = None

    @property
    def hyper(self) -> dict[str, Any]:
        """The hyper-parameters, by name."""
        return dict(self.relate.keywords) if isinstance(self.relate, Bound) else {}

    def __call__(
        self, anchor_labels: Array, ref_labels: Array | None
    ) -> tuple[Bool[Array, "a n"], Bool[Array, "a n"]]:
        """Returns (positives, negatives), both `[anchors, references]`; a pair may be neither."""
        return self.relate(anchor_labels, ref_labels)

    def classes(self, labels: Any) -> Any:
        """Returns the class of each sample, `[B]`, where it has one; else the labels as they are."""
        return labels if self.level is None else _column(labels, self.level)

    def shared_levels(self, anchor_labels: Array, ref_labels: Array) -> tuple[Array, int]:
        """Returns (how many levels two samples share, `[anchors, references]`; how many levels there are).

        It is for relations with classes; equal integer labels are a tree of one level.
        """
        a, r = (x.reshape(x.shape[0], -1) for x in (anchor_labels, ref_labels))
        levels = a.shape[1]
        same = [(a[:, None, i] == r[None, :, i]).astype(jnp.int32) for i in range(levels)]
        return sum(same[1:], same[0]), levels

    def check(self, labels: Any, ref_labels: Any, rows: int, ref_rows: int | None) -> None:
        """Checks that the labels are those of `rows` samples and `ref_rows` references.

        Args:
          labels: of the samples.
          ref_labels: of the references.
          rows: the number of samples.
          ref_rows: the number of references; None where the references are the samples.

        Raises:
          UserError: labels of another shape.
        """
        columns = rows if ref_rows is None else ref_rows
        shape = tuple(labels.shape)
        wanted: tuple[Any, ...] = (rows,)
        if self.label_rank == 2 and not self.of_samples:
            wanted = (rows, columns)
        elif self.label_rank == 2:
            wanted = (rows, shape[1] if len(shape) == 2 and shape[1] else "labels")
        if shape != wanted:
            raise UserError(
                f"labels have shape {shape}; relation {self.name!r} takes {_written(wanted)} for "
                f"{rows} embeddings"
            )
        if ref_rows is None or not self.of_samples:
            return
        ref_shape = None if ref_labels is None else tuple(ref_labels.shape)
        wanted = (ref_rows, *shape[1:])
        if ref_shape != wanted:
            raise UserError(f"ref_labels have shape {ref_shape}; accepted: {wanted}")

    def prepare_labels(
        self, labels: Any, ref_labels: Any = None, *, by_value: str | None = None
    ) -> tuple[Any, Any]:
        """Returns the labels of a batch and of its references as JAX takes them, without merging any two.

        JAX has integers of 32 bits unless told otherwise and cuts longer ones silently: classes 2^32 apart, or hashes
        of 64 bits, would become one class. Where labels are only compared with each other, such labels are numbered
        anew on the host, those of the batch and of the references together. Lists are taken, too.

        Args:
          labels: of the batch: an array, a list, or an array that is traced.
          ref_labels: of the references; None where there are none.
          by_value: says what the values of the labels are for, where they are not only compared ("loss 'arc_face',
            whose labels are numbers of classes"); then labels beyond 32 bits are refused.

        Raises:
          UserError: labels that are no integers where the relation needs some, or beyond 32 bits with `by_value`.
        """
        given = [_on_host(labels, "labels")]
        if ref_labels is not None and self.of_samples:
            given.append(_on_host(ref_labels, "ref_labels"))
        if not self.of_samples or (self.label_rank == 2 and not self.has_classes):
            # Only whether an entry is 0 matters; 2^32 cut to 32 bits would be 0.
            found = [x != 0 if _beyond_32_bits(x) else x for x in given]
        else:
            for x in given:
                if not (jnp.issubdtype(x.dtype, jnp.integer) or x.dtype == bool):
                    raise UserError(
                        f"labels are {x.dtype}; relation {self.name!r} accepts integers"
                        " (np.unique(labels, return_inverse=True)[1] makes them of others)"
                    )
            found = given
            if any(_beyond_32_bits(x) for x in given):
                found = _numbered(given, by_value)
        return found[0], found[1] if len(found) == 2 else ref_labels


def _on_host(labels: Any, name: str) -> Any:
    """Returns an array: JAX's as it is, anything else as NumPy's."""
    if isinstance(labels, (jax.Array, np.ndarray)):
        return labels
    try:
        found = np.asarray(labels)
    except ValueError:
        found = np.asarray(None)
    if found.dtype == object and not all(isinstance(x, int) for x in found.ravel()):
        raise UserError(f"{name} are {labels!r}; accepted: an array, or a list of integers")
    return found


def _beyond_32_bits(labels: Any) -> bool:
    """Returns True where the labels have values that JAX would cut."""
    if isinstance(labels, jax.core.Tracer) or labels.dtype == bool or not labels.size:
        return False
    if labels.dtype != object:
        wide = np.issubdtype(labels.dtype, np.integer) and labels.dtype.itemsize * 8 >= 32
        # The host has no other way to look at an array of other processes.
        if not wide or not getattr(labels, "is_fully_addressable", True):
            return False
        if labels.dtype == np.int32:
            return False
    host = np.asarray(labels)
    return bool(host.min() < INT32.min or host.max() > INT32.max)


def _numbered(given: list[Any], by_value: str | None) -> list[Any]:
    """Returns the labels numbered anew, column by column."""
    if by_value is not None:
        values = [int(v) for x in given for v in (np.min(np.asarray(x)), np.max(np.asarray(x)))]
        worst = max(values, key=abs)
        raise UserError(
            f"labels have the value {worst}, beyond 32 bits, for {by_value}; accepted: {INT32.min} to {INT32.max}"
            " (np.unique(labels, return_inverse=True)[1] numbers the classes)"
        )
    for x in given:
        if isinstance(x, jax.core.Tracer):
            raise UserError(
                "labels or ref_labels are beyond 32 bits and the others are traced, so that they cannot be numbered "
                "together; accepted: both outside of jit, or 32 bits"
            )
    arrays = [np.asarray(x) for x in given]
    columns = [x.reshape(len(x), -1) for x in arrays]
    numbered = np.zeros((sum(map(len, arrays)), columns[0].shape[1]), np.int32)
    for i in range(columns[0].shape[1]):
        together = np.concatenate([c[:, i] for c in columns])
        numbered[:, i] = np.unique(together, return_inverse=True)[1]
    ends = np.cumsum([len(x) for x in arrays])[:-1]
    parts = np.split(numbered, ends)
    return [part.reshape(x.shape) for part, x in zip(parts, arrays, strict=True)]


def _written(shape: tuple[Any, ...]) -> str:
    """Writes a shape as a reader expects it, with the names of sizes that are free."""
    return str(shape).replace("'", "")


@checked("relation")
def label() -> Relation:
    """Makes the relation of equal integer labels: positives have the anchor's label, all others are negatives.

    Labels `[B]`.

    Example:
      >>> label()(jnp.asarray([0, 1]), jnp.asarray([1, 1]))[0].tolist()
      [[False, False], [True, True]]
    """
    return Relation("label", same_label, has_classes=True)


@checked("relation")
def matrix() -> Relation:
    """Makes the relation whose labels are the boolean matrix of positives itself, `[anchors, references]`.

    It is for positives that no label of a sample can express (pairs without classes, nearest neighbours). What
    is not a positive is a negative. Labels of the references are not read.

    Example:
      >>> matrix()(jnp.asarray([[0, 1], [1, 0]]), None)[0].tolist()
      [[False, True], [True, False]]
    """
    return Relation("matrix", given_positives, label_rank=2, of_samples=False)


@checked("relation")
def overlap(
    *, threshold: PositiveFloat = 1, measure: Literal["count", "jaccard"] = "count"
) -> Relation:
    """Makes the relation of samples with several labels: positives have enough of them in common, negatives none.

    positive: |A n R| >= threshold ("count"), |A n R| / |A u R| >= threshold ("jaccard"); negative: |A n R| = 0

    A label set is a multi-hot row, labels `[B, L]`: what is not 0 is in it. Pairs that share labels, but too few, are
    neither positives nor negatives: calling them negatives would push apart what has something in common. A sample
    without labels has no positives, and is a negative of all others.

    Args:
      threshold: above 0; by measure "jaccard" at most 1. The default asks for one label in common.
      measure: "count" of the labels in common, or "jaccard", their share of all labels of the two.

    Example:
      >>> overlap()(jnp.asarray([[1, 1, 0]]), jnp.asarray([[0, 1, 1], [0, 0, 1]]))[0].tolist()
      [[True, False]]
    """
    if measure == "jaccard" and threshold > 1:
        raise UserError(
            f"relation 'overlap' has threshold={threshold!r} by measure 'jaccard'; accepted: above 0, to 1"
        )
    relate = Bound(shared_labels, threshold=threshold, measure=measure)
    return Relation("overlap", relate, label_rank=2)


@checked("relation")
def hierarchy(*, level: int = -1) -> Relation:
    """Makes the relation of samples with a class at each level of a tree: positives share that of `level`.

    Labels `[B, levels]`, coarse to fine; what is not a positive is a negative. Classes of a level have integers of
    their own, so that samples that share one share all coarser ones. Losses of graded relevance (happier) read how
    many levels two samples share, whatever `level` is.

    Args:
      level: a position among the columns; by default the finest.

    Example:
      >>> hierarchy(level=0)(jnp.asarray([[0, 3]]), jnp.asarray([[0, 4], [1, 5]]))[0].tolist()
      [[True, False]]
    """
    relate = Bound(same_at_level, level=level)
    return Relation("hierarchy", relate, label_rank=2, has_classes=True, level=level)


RELATIONS: dict[str, Callable[..., Relation]] = {
    "hierarchy": hierarchy,
    "label": label,
    "matrix": matrix,
    "overlap": overlap,
}
SAME_LABEL = label()
# The relations that give a sample a class, as errors name them.
WITH_CLASSES = "'hierarchy' or 'label'"


def available() -> list[str]:
    """Lists the names that `get` takes.

    Example:
      >>> available()
      ['hierarchy', 'label', 'matrix', 'overlap']
    """
    return sorted(RELATIONS)


def get(name: str, **hyper: Any) -> Relation:
    """Returns the relation called `name`.

    Args:
      name: one of `available()`, or "package.module:name" for a function of the user's own that returns a `Relation`.
      **hyper: its hyper-parameters.

    Raises:
      UserError: an unknown name or hyper-parameter, or a value out of range.

    Example:
      >>> get("hierarchy", level=0) == hierarchy(level=0)
      True
    """
    return parameters.make("relation", RELATIONS, Relation, name, hyper)


def build(spec: Any) -> Relation:
    """Makes a relation from its name, a dict with a name, or itself; equal integer labels for None.

    Example:
      >>> build("label") == label()
      True
    """
    return names.build("relation", get, Relation, spec) or SAME_LABEL
