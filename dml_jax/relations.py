"""Which references are positives and which negatives of an anchor.

A relation sees a block of anchors and all references; that a sample is not its own positive is the
driver's business (by global id). A loss never compares labels itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Array, Bool

from dml_jax import names


def same_label(anchor_labels: Array, ref_labels: Array) -> tuple[Array, Array]:
    """Positives have the anchor's integer label; all others are negatives. Labels `[a]`, `[n]`."""
    positive = anchor_labels[:, None] == ref_labels[None, :]
    return positive, ~positive


def matrix(anchor_labels: Array, ref_labels: Array | None) -> tuple[Array, Array]:
    """The labels are the boolean matrix of positives itself, `[anchors, references]`.

    For positives that no integer label can express (several labels, pairs without classes, nearest
    neighbours). What is not a positive is a negative. `ref_labels` are not read.
    """
    del ref_labels
    positive = anchor_labels.astype(bool)
    return positive, ~positive


@dataclass(frozen=True)
class Relation:
    """A named relation; `rank` is the number of axes that its labels have."""

    name: str
    rank: int

    def __call__(
        self, anchor_labels: Array, ref_labels: Array | None
    ) -> tuple[Bool[Array, "a n"], Bool[Array, "a n"]]:
        """(positives, negatives), both `[anchors, references]`."""
        return RELATIONS[self.name][0](anchor_labels, ref_labels)


RELATIONS: dict[str, tuple[Callable[..., tuple[Array, Array]], int]] = {
    "label": (same_label, 1),
    "matrix": (matrix, 2),
}


SAME_LABEL = Relation("label", 1)


def available() -> list[str]:
    """The names that `get` takes."""
    return sorted(RELATIONS)


def get(name: str, **hyper: Any) -> Relation:
    """The relation called `name`; ValueError for an unknown name."""
    _, rank = names.resolve("relation", RELATIONS, name)
    names.check_hyper(f"relation {name!r}", {}, hyper)
    return Relation(name, rank)
