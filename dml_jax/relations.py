"""Which references are positives and which negatives of an anchor.

A relation sees a block of anchors and all references; that a sample is not its own positive is the
driver's business (by global id). A loss never compares labels itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped

from dml_jax import names


def same_label(anchor_labels: Array, ref_labels: Array) -> tuple[Array, Array]:
    """Positives have the anchor's integer label; all others are negatives. Labels `[a]`, `[n]`."""
    positive = anchor_labels[:, None] == ref_labels[None, :]
    return positive, ~positive


def matrix(anchor_labels: Array, ref_labels: Array | None) -> tuple[Array, Array]:
    """The labels are the boolean matrix of positives itself, `[anchors, references]`.

    For positives that no label of a sample can express (pairs without classes, nearest neighbours). What
    is not a positive is a negative. `ref_labels` are not read.
    """
    del ref_labels
    positive = anchor_labels.astype(bool)
    return positive, ~positive


MEASURES = ("count", "jaccard")


def overlap(
    anchor_labels: Shaped[Array, "a labels"],
    ref_labels: Shaped[Array, "n labels"],
    *,
    threshold: float = 1,
    measure: str = "count",
) -> tuple[Array, Array]:
    """Samples with several labels each: positives have enough of them in common, negatives none.

    positive: |A n R| >= threshold ("count"), |A n R| / |A u R| >= threshold ("jaccard"); negative: |A n R| = 0

    A label set is a multi-hot row: what is not 0 is in it. Pairs that share labels, but too few, are neither
    positives nor negatives: calling them negatives would push apart what has something in common. A sample
    without labels has no positives, and is a negative of all others.
    """
    # Counts of up to 2^24 labels are exact in float32; products of 0 and 1 in any precision.
    a, r = ((x != 0).astype(jnp.float32) for x in (anchor_labels, ref_labels))
    shared = a @ r.T
    if measure == "count":
        return shared >= threshold, shared == 0
    union = jnp.sum(a, -1)[:, None] + jnp.sum(r, -1)[None, :] - shared
    # 3/5 is to reach the threshold 0.6, however its float is rounded.
    return (shared >= (threshold - 1e-6) * union) & (shared > 0), shared == 0


def hierarchy(
    anchor_labels: Int[Array, "a levels"], ref_labels: Int[Array, "n levels"], *, level: int = -1
) -> tuple[Array, Array]:
    """Samples with a class at each level of a tree, coarse to fine: positives share that of `level`.

    `level` is a position among the columns, by default the finest; what is not a positive is a negative.
    Classes of a level have integers of their own, so that samples that share one share all coarser ones.
    Losses of graded relevance (happier) read how many levels two samples share, whatever `level` is.
    """
    return same_label(_column(anchor_labels, level), _column(ref_labels, level))


def _column(labels: Int[Array, "b levels"], level: int = -1) -> Int[Array, " b"]:
    """The classes at one level."""
    levels = labels.shape[1]
    if not -levels <= level < levels:
        raise ValueError(
            f"relation 'hierarchy' has level={level}, and labels of {levels} levels; accepted: {-levels} to "
            f"{levels - 1}"
        )
    return labels[:, level]


@dataclass(frozen=True)
class Kind:
    """How a named relation works.

    Attributes:
      relate: `(anchor labels, reference labels, *, ...) -> (positives, negatives)`.
      rank: the number of axes that its labels have.
      of_samples: whether labels are the samples' own; otherwise they are of pairs, and references have none.
      has_classes: whether a sample has a class (at every level of a tree).
    """

    relate: Callable[..., tuple[Array, Array]]
    rank: int
    of_samples: bool
    has_classes: bool


RELATIONS: dict[str, Kind] = {
    "hierarchy": Kind(hierarchy, 2, True, True),
    "label": Kind(same_label, 1, True, True),
    "matrix": Kind(matrix, 2, False, False),
    "overlap": Kind(overlap, 2, True, False),
}


@dataclass(frozen=True)
class Relation:
    """A named relation with its hyper-parameters."""

    name: str
    hyper: tuple[tuple[str, Any], ...] = ()

    @property
    def kind(self) -> Kind:
        return RELATIONS[self.name]

    def __call__(
        self, anchor_labels: Array, ref_labels: Array | None
    ) -> tuple[Bool[Array, "a n"], Bool[Array, "a n"]]:
        """(positives, negatives), both `[anchors, references]`; a pair may be neither."""
        return self.kind.relate(anchor_labels, ref_labels, **dict(self.hyper))

    def classes(self, labels: Any) -> Any:
        """The class of each sample, `[B]`, where it has one; else the labels as they are."""
        return _column(labels, **dict(self.hyper)) if self.name == "hierarchy" else labels

    def shared_levels(self, anchor_labels: Array, ref_labels: Array) -> tuple[Array, int]:
        """(how many levels two samples share, `[anchors, references]`; how many levels there are).

        For relations with classes; equal integer labels are a tree of one level.
        """
        a, r = (x.reshape(x.shape[0], -1) for x in (anchor_labels, ref_labels))
        levels = a.shape[1]
        same = [(a[:, None, i] == r[None, :, i]).astype(jnp.int32) for i in range(levels)]
        return sum(same[1:], same[0]), levels

    def check(self, labels: Any, ref_labels: Any, rows: int, ref_rows: int | None) -> None:
        """ValueError unless the labels are those of `rows` samples and `ref_rows` references.

        `ref_rows` is None where the references are the samples.
        """
        columns = rows if ref_rows is None else ref_rows
        shape = tuple(labels.shape)
        wanted: tuple[Any, ...] = (rows,)
        if self.kind.rank == 2 and not self.kind.of_samples:
            wanted = (rows, columns)
        elif self.kind.rank == 2:
            wanted = (rows, shape[1] if len(shape) == 2 and shape[1] else "labels")
        if shape != wanted:
            raise ValueError(
                f"labels have shape {shape}; relation {self.name!r} takes {_written(wanted)} for "
                f"{rows} embeddings"
            )
        if ref_rows is None or not self.kind.of_samples:
            return
        ref_shape = None if ref_labels is None else tuple(ref_labels.shape)
        wanted = (ref_rows, *shape[1:])
        if ref_shape != wanted:
            raise ValueError(f"ref_labels have shape {ref_shape}; accepted: {wanted}")


def _written(shape: tuple[Any, ...]) -> str:
    """A shape as a reader expects it, with the names of sizes that are free."""
    return str(shape).replace("'", "")


SAME_LABEL = Relation("label")
# The relations that give a sample a class, as errors name them.
WITH_CLASSES = " or ".join(repr(n) for n, kind in sorted(RELATIONS.items()) if kind.has_classes)


def available() -> list[str]:
    """The names that `get` takes."""
    return sorted(RELATIONS)


def get(name: str, **hyper: Any) -> Relation:
    """The relation called `name`; ValueError for an unknown name, hyper-parameter or value."""
    kind = names.resolve("relation", RELATIONS, name)
    names.check_hyper(f"relation {name!r}", names.keywords(kind.relate), hyper)
    measure, threshold = hyper.get("measure", "count"), hyper.get("threshold", 1)
    names.resolve(f"measure of relation {name!r}:", dict.fromkeys(MEASURES), measure)
    most, accepted = (1, "above 0, to 1") if measure == "jaccard" else (float("inf"), "above 0")
    number = isinstance(threshold, (int, float)) and not isinstance(threshold, bool)
    if not number or not 0 < threshold <= most:
        raise ValueError(
            f"relation {name!r} has threshold={threshold!r} by measure {measure!r}; accepted: {accepted}"
        )
    level = hyper.get("level", -1)
    if isinstance(level, bool) or not isinstance(level, int):
        raise ValueError(f"relation {name!r} has level={level!r}; accepted: an integer")
    return Relation(name, tuple(sorted(hyper.items())))


def build(spec: Any) -> Relation:
    """A relation from its name, a dict with a name, or itself; equal integer labels for None."""
    return names.build("relation", get, Relation, spec) or SAME_LABEL
