"""Batches from few parent classes, so that their classes are hard to tell apart."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Int

from dml_jax.samplers.base import (
    Classes,
    Sampler,
    Task,
    check_pairs,
    generator,
    groups_of,
    note_small,
)


@dataclass(frozen=True, kw_only=True)
class Hierarchical(Sampler):
    """Every batch holds some parent classes, equally many classes of each, and m images of each class.

    `HierarchicalSampler` of PyTorch Metric Learning. There an epoch goes through all combinations of parent classes,
    which it lists (1.2 billion for six of a hundred); here an epoch has `length` images, and combinations are drawn
    uniformly. There a batch comes out short where a parent class has too few classes; here its classes are drawn
    again, after all of them have had their turn. There `samples_per_class` may be "all", for batches of various
    sizes; here it is a number.

    Refused: batch_size is not a multiple of parent classes x m; fewer parent classes than a batch needs; m > 1 where
    no class has two images; images of one class with different parents.

    Attributes:
      samples_per_class: images of a class, m.
      batches_per_super_tuple: batches drawn from a combination of parent classes before the next is drawn; the
        batches of an epoch are shuffled.
      super_classes_per_batch: parent classes in a batch.
    """

    samples_per_class: int = 4
    batches_per_super_tuple: int = 4
    super_classes_per_batch: int = 2

    needs: ClassVar[str] = "parents"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(1, "samples_per_class", "images;")
        self._at_least(1, "batches_per_super_tuple", "batches;")
        self._at_least(1, "super_classes_per_batch", "parent classes;")

    def check(self, classes: Classes, batch_size: int) -> None:
        if batch_size % self.super_classes_per_batch:
            raise ValueError(
                f"batch_size={batch_size} is not a multiple of "
                f"super_classes_per_batch={self.super_classes_per_batch}, as is accepted"
            )
        groups_of(batch_size // self.super_classes_per_batch, self.samples_per_class)
        check_pairs(classes, self.samples_per_class)

    def draw(self, task: Task) -> Int[np.ndarray, "steps batch"]:
        rng = generator(task.seed, task.epoch)
        of_class, parents = _parents(task.classes, task.given)
        wanted = self.super_classes_per_batch
        if wanted > parents:
            raise ValueError(
                f"super_classes_per_batch={wanted} and the set has {parents} parent classes; "
                f"up to {parents} is accepted"
            )
        groups = task.size // wanted // self.samples_per_class
        children = [np.flatnonzero(of_class == p) for p in range(parents)]
        rows = []
        for step in range(task.steps):
            if step % self.batches_per_super_tuple == 0:
                chosen = rng.choice(parents, wanted, replace=False)
            for p in chosen:
                rounds = -(-groups // len(children[p]))
                turns = [rng.permutation(children[p]) for _ in range(rounds)]
                rows.append(np.concatenate(turns)[:groups])
        images = task.classes.draw(rng, np.concatenate(rows), self.samples_per_class)
        return rng.permutation(images.reshape(task.steps, task.size))

    def notes(
        self, labels: Int[np.ndarray, " n"], batch_size: int, *, parents: np.ndarray | None = None
    ) -> list[str]:
        classes = Classes.of(labels)
        notes = note_small(classes, self.samples_per_class)
        of_class, count = _parents(classes, self.needed(labels, parents))
        groups = batch_size // self.super_classes_per_batch // self.samples_per_class
        few = int((np.bincount(of_class, minlength=count) < groups).sum())
        if few:
            notes.append(
                f"{few} of {count} parent classes have fewer than {groups} classes; theirs are in a batch "
                "more than once"
            )
        return notes


def _parents(classes: Classes, parents: np.ndarray) -> tuple[Int[np.ndarray, " c"], int]:
    """(the parent 0..P-1 of each class, P)."""
    found, of_image = np.unique(np.asarray(parents), return_inverse=True)
    of_class = of_image[classes.members[classes.first]]
    if (of_class[classes.of_image] != of_image).any():
        raise ValueError(
            "images of one class have different parent labels; one parent for each class is accepted"
        )
    return of_class, len(found)
