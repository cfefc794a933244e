"""What a sampler is: the interface of all samplers, the classes of a set, and generators of random numbers."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int, Int32

# step -> the positions of its batch, int [batch]
Rows = Callable[[int], np.ndarray]

# Streams under one key of Philox. The data pipeline uses 1 and 2, the division of classes 3.
_EPOCH, _STEP, _SET = 0, 4, 5


def generator(seed: int, epoch: int) -> np.random.Generator:
    """The random numbers of an epoch: Philox under the key (seed, epoch).

    Never seed + epoch: epoch 1 of seed 0 would be epoch 0 of seed 1, and runs with neighbouring seeds
    would share their batches.
    """
    return _generator(seed, epoch, _EPOCH, 0)


def of_step(seed: int, epoch: int, step: int) -> np.random.Generator:
    """The random numbers of one step, whichever steps were planned before it, and by which thread."""
    return _generator(seed, epoch, _STEP, step)


def of_set(seed: int) -> np.random.Generator:
    """Random numbers that are the same in all epochs."""
    return _generator(seed, 0, _SET, 0)


def _generator(seed: int, epoch: int, stream: int, step: int) -> np.random.Generator:
    for name, value in (("seed", seed), ("epoch", epoch)):
        if value < 0:
            raise ValueError(f"{name}={value} is negative; a whole number from 0 on is accepted")
    counter = np.array([0, stream, step, 0], np.uint64)
    philox = np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=counter)
    return np.random.Generator(philox)


@dataclass(frozen=True, eq=False)
class Classes:
    """The classes of a set that have an image, 0..C-1 in the order of their labels, whatever those are.

    Attributes:
      of_image: the class of each image.
      sizes: how many images each class has, at least 1.
      first, members: the images of class c are `members[first[c] : first[c] + sizes[c]]`.
      rank: where each image stands among those of its class.
    """

    of_image: Int[np.ndarray, " n"]
    sizes: Int[np.ndarray, " c"]
    first: Int[np.ndarray, " c"]
    members: Int[np.ndarray, " n"]
    rank: Int[np.ndarray, " n"]

    @classmethod
    def of(cls, labels: Int[np.ndarray, " n"]) -> "Classes":
        _, of_image, sizes = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
        first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        members = np.argsort(of_image, kind="stable")
        rank = np.empty(len(members), np.int64)
        rank[members] = np.arange(len(members)) - np.repeat(first, sizes)
        return cls(of_image, sizes, first, members, rank)

    def images(
        self, classes: Int[np.ndarray, " r"], ranks: Int[np.ndarray, "r m"]
    ) -> Int[np.ndarray, "r m"]:
        """The images of these ranks within a class for each row."""
        return self.members[self.first[classes][:, None] + ranks]

    def draw(
        self, rng: np.random.Generator, classes: Int[np.ndarray, " r"], m: int
    ) -> Int[np.ndarray, "r m"]:
        """m images of each class: distinct where it has as many, else with replacement."""
        return self.images(classes, choose(rng, self.sizes[classes], m))

    def others(
        self, rng: np.random.Generator, images: Int[np.ndarray, " r"], m: int
    ) -> Int[np.ndarray, "r m"]:
        """m other images of the class of each image: distinct where there are as many, else with replacement.

        A class of one image gives that image.
        """
        classes = self.of_image[images]
        ahead = 1 + choose(rng, np.maximum(self.sizes[classes] - 1, 1), m)
        return self.images(
            classes, (self.rank[images][:, None] + ahead) % self.sizes[classes][:, None]
        )


def choose(
    rng: np.random.Generator, sizes: Int[np.ndarray, " r"], m: int
) -> Int[np.ndarray, "r m"]:
    """m numbers below sizes[i] in row i: distinct where sizes[i] >= m, else independent."""
    distinct = sizes >= m
    picks = np.empty((len(sizes), m), np.int64)
    for j in range(m):
        # The draw is a rank among the numbers not taken yet; stepping over the taken ones in ascending
        # order turns it into the number itself.
        draw = rng.integers(0, np.where(distinct, sizes - j, sizes))
        for taken in np.sort(picks[:, :j], axis=1).T:
            draw += distinct & (draw >= taken)
        picks[:, j] = draw
    return picks


@dataclass(frozen=True, eq=False)
class Task:
    """What a plan is made of: the classes, its shape, the key of its draws.

    `given` is what the sampler needs beside labels: parents or embeddings of the images, or nothing (empty).
    """

    classes: Classes
    steps: int
    size: int
    seed: int
    epoch: int
    given: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Sampler(ABC):
    """Plans epochs: `plan` is a pure function of its arguments.

    Rules that hold for all: classes are those that have an image, whatever the labels' numbers; the images
    that do not fill a batch wait for another epoch; where a class has too few images for its share of a
    batch they are drawn with replacement, and `notes` says so; where a batch cannot be filled otherwise it
    is refused with what would be accepted.

    Attributes:
      length: images an epoch, rounded down to whole batches; the size of the set if None.
    """

    length: int | None = None

    # What `plan` needs beside labels: nothing, "parents" or "embeddings".
    needs: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if self.length is not None:
            self._at_least(1, "length", "images an epoch; None (the whole set) or")

    def _at_least(self, least: float, name: str, unit: str) -> None:
        value = getattr(self, name)
        if not value >= least:
            raise ValueError(f"{name}={value} {unit} at least {least} is accepted")

    def steps(self, labels: Int[np.ndarray, " n"], batch_size: int) -> int:
        """The batches of an epoch.

        Raises ValueError where such batches cannot be made of these labels.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}; at least 1 is accepted")
        if len(labels) == 0:
            raise ValueError("the set to sample from is empty: it has no labels")
        classes = Classes.of(labels)
        steps = self.count(classes, batch_size)
        self.check(classes, batch_size)
        return steps

    def check(self, classes: Classes, batch_size: int) -> None:  # noqa: B027 - few have more to refuse
        """Raises ValueError where a batch cannot be filled."""

    def count(self, classes: Classes, batch_size: int) -> int:
        """The batches of an epoch. Raises ValueError where that is none."""
        images = self.images(len(classes.of_image))
        if images < batch_size:
            raise ValueError(
                f"an epoch of {images} images has no whole batch of batch_size={batch_size}; "
                f"a batch_size up to {images} is accepted"
            )
        return images // batch_size

    def images(self, size: int) -> int:
        """The images of an epoch, of a set of this size."""
        return size if self.length is None else self.length

    def notes(
        self, labels: Int[np.ndarray, " n"], batch_size: int, *, parents: np.ndarray | None = None
    ) -> list[str]:
        """Remarks on a set that a log should carry."""
        return []

    def plan(
        self,
        labels: Int[np.ndarray, " n"],
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        parents: Int[np.ndarray, " n"] | None = None,
        embeddings: Float[np.ndarray, "n d"] | None = None,
    ) -> Int32[np.ndarray, "steps batch"]:
        """The batches of an epoch as positions in `labels`, pure in its arguments.

        With several processes each takes its columns of this one plan.

        Args:
          labels: integers, in any order.
          batch_size: of all processes together.
          seed, epoch: the key of all draws.
          parents: the coarser class of each image, for samplers with `needs == "parents"`.
          embeddings: of each image, for samplers with `needs == "embeddings"`.

        Raises ValueError where batches cannot be made of these labels (each sampler says when), or what the
        sampler needs is missing.
        """
        given = {"parents": parents, "embeddings": embeddings}.get(self.needs)
        task = self.task(labels, batch_size, seed=seed, epoch=epoch, given=given)
        return np.ascontiguousarray(self.draw(task), np.int32)

    def task(
        self,
        labels: Int[np.ndarray, " n"],
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        given: np.ndarray | None,
    ) -> Task:
        """The arguments of `plan`, checked."""
        steps = self.steps(labels, batch_size)
        given = self.needed(labels, given) if self.needs else np.empty(0)
        return Task(Classes.of(labels), steps, batch_size, seed, epoch, given)

    def needed(self, labels: np.ndarray, value: np.ndarray | None) -> np.ndarray:
        """What the sampler needs. Raises ValueError unless there is one for each image."""
        if value is None or len(value) != len(labels):
            have = "there are none" if value is None else f"there are {len(value)}"
            raise ValueError(
                f"{type(self).__name__} needs {self.needs} of each of the {len(labels)} images, and {have}"
            )
        return value

    @abstractmethod
    def draw(self, task: Task) -> Int[np.ndarray, "steps batch"]:
        """The plan."""


@dataclass(frozen=True, kw_only=True)
class PerClass(Sampler):
    """A sampler of m images per class.

    Refused: m does not divide batch_size; m > 1 where no class has two images.

    Attributes:
      m: images per class.
    """

    m: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(1, "m", "images per class;")

    def check(self, classes: Classes, batch_size: int) -> None:
        groups_of(batch_size, self.m)
        check_pairs(classes, self.m)

    def notes(
        self, labels: Int[np.ndarray, " n"], batch_size: int, *, parents: np.ndarray | None = None
    ) -> list[str]:
        return note_small(Classes.of(labels), self.m)


@dataclass(frozen=True, kw_only=True)
class StorageSampler(Sampler):
    """A sampler that looks at stored embeddings of all images; each step is planned on its own.

    Attributes:
      updates: whether a step's embeddings (of augmented images, by the network in training) take the places
        of the stored ones.
      refresh: epochs between passes that embed all training images anew; 0: only the one before training.
    """

    updates: bool = True
    refresh: int = 0

    needs: ClassVar[str] = "embeddings"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(0, "refresh", "epochs;")

    def draw(self, task: Task) -> Int[np.ndarray, "steps batch"]:
        rows = self.rows(task)
        return np.stack([rows(step) for step in range(task.steps)])

    @abstractmethod
    def rows(self, task: Task) -> Rows:
        """A function of the step alone, so that steps can be planned in any order and by several threads."""


def groups_of(batch_size: int, m: int) -> int:
    """batch_size / m. Raises ValueError where that is not whole."""
    if batch_size % m:
        near = max(batch_size // m, 1) * m
        raise ValueError(
            f"batch_size={batch_size} is not a multiple of m={m} images per class; "
            f"{near} or {near + m} would be accepted"
        )
    return batch_size // m


def check_pairs(classes: Classes, m: int) -> None:
    """Raises ValueError where m > 1 images of a class are wanted and no class has two."""
    if m > 1 and classes.sizes.max() == 1:
        raise ValueError(
            f"m={m} images per class, but each of the {len(classes.sizes)} classes has a single image, so "
            "that no two images match; sampler 'random' or m=1 is accepted"
        )


def check_distinct(classes: Classes, batch_size: int, m: int) -> None:
    """Raises ValueError where the set has fewer classes than a batch of distinct ones needs."""
    if groups_of(batch_size, m) > len(classes.sizes):
        raise ValueError(
            f"a batch of {batch_size} with m={m} needs {batch_size // m} classes and the set has "
            f"{len(classes.sizes)}; batch_size up to {len(classes.sizes) * m} is accepted"
        )


def note_small(classes: Classes, m: int) -> list[str]:
    """Says how many classes have fewer than m images, if any do."""
    few = int((classes.sizes < m).sum())
    if not few:
        return []
    return [
        f"{few} of {len(classes.sizes)} classes have fewer than m={m} images; theirs are drawn with replacement"
    ]
