"""The classes of a source divided among train, val and test."""

from dml_jax.data.base import Source, Subset, split_classes, subset
from dml_jax.errors import UserError

Fractions = tuple[float, float, float]


def share_of(
    source: Source, split: str, fractions: Fractions, seed: int, owner: str, place: str
) -> Subset:
    """Returns the classes of one of the three splits.

    Args:
      source: with all classes.
      split: "train", "val" or "test".
      fractions: the shares of the three, with sum 1.
      seed: of the division.
      owner: the data set, as errors name it.
      place: where the images are, as errors name it.

    Raises:
      UserError: fractions that have another sum, or leave nothing for the split.
    """
    classes = split_classes(len(source.class_names), fractions, seed, owner)[split]
    if not classes:
        raise UserError(
            f"{owner}: {place} has {len(source.class_names)} classes and fractions={tuple(fractions)} leave "
            f"none for split {split!r}; larger fractions or split 'all' are accepted"
        )
    return subset(source, classes)
