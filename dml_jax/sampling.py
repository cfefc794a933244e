"""What a sampler is: a plan of an epoch, made of functions, and the classes of a set.

The samplers themselves are in `dml_jax.samplers`, those of the ICML 2020 study in `dml_jax.revisiting.samplers`.
"""

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int, Int32

from dml_jax import parameters, streams
from dml_jax.bound import Bound
from dml_jax.errors import UserError
from dml_jax.parameters import NonNegativeInt, PositiveInt

Labels = Int[np.ndarray, " n"] | Sequence[int]

# step -> the positions of its batch, int [batch]
Rows = Callable[[int], Int[np.ndarray, " batch"]]


@dataclass(frozen=True, eq=False)
class Classes:
    """The classes of a set that have an image, numbered 0..C-1 in the order of their labels, whatever those are.

    Attributes:
      of_image: the class of each image.
      sizes: how many images each class has, at least 1.
      first: where the images of each class begin in `members`.
      members: the images, class after class: those of class c are `members[first[c] : first[c] + sizes[c]]`.
      rank: where each image stands among those of its class.

    >>> classes = Classes.of(np.array([7, 3, 7]))
    >>> classes.of_image.tolist(), classes.sizes.tolist(), classes.members.tolist()
    ([1, 0, 1], [1, 2], [1, 0, 2])
    """

    of_image: Int[np.ndarray, " n"]
    sizes: Int[np.ndarray, " c"]
    first: Int[np.ndarray, " c"]
    members: Int[np.ndarray, " n"]
    rank: Int[np.ndarray, " n"]

    @classmethod
    def of(cls, labels: Int[np.ndarray, " n"]) -> "Classes":
        """Returns the classes of these labels."""
        _, of_image, sizes = np.unique(labels, return_inverse=True, return_counts=True)
        first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        members = np.argsort(of_image, kind="stable")
        rank = np.empty(len(members), np.int64)
        rank[members] = np.arange(len(members)) - np.repeat(first, sizes)
        return cls(of_image, sizes, first, members, rank)

    def images(
        self, classes: Int[np.ndarray, " r"], ranks: Int[np.ndarray, "r m"]
    ) -> Int[np.ndarray, "r m"]:
        """Returns the images of these ranks within the class of each row."""
        images: np.ndarray = self.members[self.first[classes][:, None] + ranks]
        return images

    def draw(
        self, rng: np.random.Generator, classes: Int[np.ndarray, " r"], m: int
    ) -> Int[np.ndarray, "r m"]:
        """Draws m images of each class: distinct ones where it has as many, else with replacement."""
        return self.images(classes, choose(rng, self.sizes[classes], m))

    def draw_others(
        self, rng: np.random.Generator, images: Int[np.ndarray, " r"], m: int
    ) -> Int[np.ndarray, "r m"]:
        """Draws m other images of the class of each image: distinct where there are as many, else with replacement.

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
    """Draws m numbers below sizes[i] in row i: distinct ones where sizes[i] >= m, else independent ones."""
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
class PlanInputs:
    """What the plan of an epoch is made of.

    Attributes:
      classes: of the set's images.
      steps: batches of the epoch.
      batch_size: images in a batch, of all processes together.
      seed: of the run.
      epoch: from 0 on.
      parents: the coarser class of each image; empty where the sampler does not need it.
      embeddings: of each image; empty where the sampler does not need them.
    """

    classes: Classes
    steps: int
    batch_size: int
    seed: int
    epoch: int
    parents: Int[np.ndarray, " n"] = field(default_factory=lambda: np.empty(0, int))
    embeddings: Float[np.ndarray, "n d"] = field(default_factory=lambda: np.empty((0, 0)))

    @property
    def images(self) -> int:
        """The number of images in the set."""
        return len(self.classes.of_image)

    def generator(self) -> np.random.Generator:
        """Returns the random numbers of the epoch."""
        return streams.generator("epoch_plan", self.seed, epoch=self.epoch)

    def step_generator(self, step: int) -> np.random.Generator:
        """Returns the random numbers of one step, whichever steps were planned before it, and by which thread."""
        return streams.generator("step_plan", self.seed, epoch=self.epoch, step=step)

    def set_generator(self) -> np.random.Generator:
        """Returns random numbers that are the same in all epochs."""
        return streams.generator("sampler_set", self.seed)


@dataclass(frozen=True, kw_only=True)
class Sampler(ABC):
    """Plans epochs: `plan` is a pure function of its arguments.

    Rules that hold for all samplers: classes are those that have an image, whatever the labels' numbers; the images
    that do not fill a batch wait for another epoch; where a class has too few images for its share of a batch they
    are drawn with replacement, and `notes` says so; a batch that cannot be filled otherwise is refused with what
    would be accepted.

    The functions are plain functions or `bound.Bound` ones, so that equal samplers are equal.

    Attributes:
      name: as errors call it.
      length: images an epoch, rounded down to whole batches; None for the size of the set.
      needs: what `plan` needs beside labels: nothing, "parents" or "embeddings".
      refuse: `refuse(classes, batch_size)` raises `UserError` where a batch cannot be filled.
      count_steps: `count_steps(classes, batch_size)` gives the batches of an epoch, where `length` does not.
      remark: `remark(classes, batch_size, parents)` gives what a log should say about the set.
    """

    name: str
    length: int | None = None
    needs: Literal["", "parents", "embeddings"] = ""
    refuse: Callable[[Classes, int], None] | None = None
    count_steps: Callable[[Classes, int], int] | None = None
    remark: Callable[[Classes, int, Int[np.ndarray, " n"] | None], list[str]] | None = None

    def steps(self, labels: Labels, batch_size: int) -> int:
        """Returns the number of batches of an epoch.

        Args:
          labels: integers `[n]`, in any order.
          batch_size: images in a batch, of all processes together.

        Raises:
          UserError: such batches cannot be made of these labels.
        """
        return self._steps(Classes.of(_labels("labels", labels)), batch_size)

    def _steps(self, classes: Classes, batch_size: int) -> int:
        batch_size = parameters.check("batch_size", PositiveInt, batch_size)
        # What a sampler refuses comes first: a batch may have to be smaller than an epoch allows.
        if self.refuse is not None:
            self.refuse(classes, batch_size)
        if self.count_steps is not None:
            return self.count_steps(classes, batch_size)
        images = len(classes.of_image) if self.length is None else self.length
        if images < batch_size:
            raise UserError(
                f"an epoch of {images} images has no whole batch of batch_size={batch_size}; "
                f"a batch_size up to {images} is accepted"
            )
        return images // batch_size

    def notes(
        self,
        labels: Labels,
        batch_size: int,
        *,
        parents: Labels | None = None,
    ) -> list[str]:
        """Returns remarks on a set that a log should carry.

        Args:
          labels: integers `[n]`.
          batch_size: images in a batch.
          parents: the coarser class of each image, where the sampler needs it.
        """
        if self.remark is None:
            return []
        found = _labels("labels", labels)
        coarse = None
        if self.needs == "parents":
            coarse = _labels("parents", self._of_each(len(found), parents))
        return self.remark(Classes.of(found), batch_size, coarse)

    def plan(
        self,
        labels: Labels,
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        parents: Labels | None = None,
        embeddings: Float[np.ndarray, "n d"] | None = None,
    ) -> Int32[np.ndarray, "steps batch"]:
        """Returns the batches of an epoch as positions in `labels`, a pure function of the arguments.

        With several processes each takes its columns of this one plan.

        Args:
          labels: integers `[n]`, in any order.
          batch_size: images in a batch, of all processes together.
          seed: of the run, from 0 on.
          epoch: from 0 on; (seed, epoch) is the key of all draws.
          parents: the coarser class of each image, for samplers with `needs == "parents"`.
          embeddings: of each image, for samplers with `needs == "embeddings"`.

        Raises:
          UserError: batches cannot be made of these labels (each sampler says when), or what the sampler needs is
            missing.
        """
        inputs = self.inputs(
            labels, batch_size, seed=seed, epoch=epoch, parents=parents, embeddings=embeddings
        )
        plan = np.asarray(self._draw(inputs))
        shape = (inputs.steps, inputs.batch_size)
        if plan.shape != shape or plan.dtype.kind not in "iu":
            raise UserError(
                f"sampler {self.name!r} planned {plan.dtype} of shape {plan.shape}; accepted: integers of shape "
                f"[steps, batch] = {list(shape)}"
            )
        if plan.min() < 0 or plan.max() >= inputs.images:
            raise UserError(
                f"sampler {self.name!r} planned images {plan.min()} to {plan.max()}; accepted: 0 to "
                f"{inputs.images - 1}"
            )
        return np.ascontiguousarray(plan, np.int32)

    def inputs(
        self,
        labels: Labels,
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        parents: Labels | None = None,
        embeddings: Float[np.ndarray, "n d"] | None = None,
    ) -> PlanInputs:
        """Returns the arguments of `plan`, checked."""
        seed = parameters.check("seed", NonNegativeInt, seed)
        epoch = parameters.check("epoch", NonNegativeInt, epoch)
        found = _labels("labels", labels)
        classes = Classes.of(found)
        steps = self._steps(classes, batch_size)
        needed: dict[str, np.ndarray] = {}
        if self.needs == "parents":
            needed["parents"] = _labels("parents", self._of_each(len(found), parents))
        if self.needs == "embeddings":
            needed["embeddings"] = _embeddings(self._of_each(len(found), embeddings))
        return PlanInputs(classes, steps, int(batch_size), seed, epoch, **needed)

    def _of_each(self, images: int, value: Any) -> Any:
        """Returns what the sampler needs; raises `UserError` unless there is one for each image."""
        have = "none" if value is None else len(value) if hasattr(value, "__len__") else repr(value)
        if have != images:
            raise UserError(
                f"sampler {self.name!r} needs {self.needs} of each of the {images} images, and there are {have}"
            )
        return value

    @abstractmethod
    def _draw(self, inputs: PlanInputs) -> Int[np.ndarray, "steps batch"]:
        """Returns the plan."""


@dataclass(frozen=True, kw_only=True)
class EpochSampler(Sampler):
    """A sampler that plans an epoch at once.

    Attributes:
      draw: `draw(inputs) -> [steps, batch]`, positions of images.
    """

    draw: Callable[[PlanInputs], Int[np.ndarray, "steps batch"]]

    def _draw(self, inputs: PlanInputs) -> Int[np.ndarray, "steps batch"]:
        return self.draw(inputs)


@dataclass(frozen=True, kw_only=True)
class StorageSampler(Sampler):
    """A sampler that looks at stored embeddings of all images, and plans each step on its own.

    Attributes:
      rows: `rows(inputs)` gives a function of the step alone, so that steps can be planned in any order and by several
        threads.
      updates: True where a step's embeddings (of augmented images, by the network in training) take the places of the
        stored ones.
      refresh: epochs between passes that embed all training images anew; 0 for only the one before training.
    """

    rows: Callable[[PlanInputs], Rows]
    updates: bool
    refresh: int
    needs: Literal["", "parents", "embeddings"] = "embeddings"

    def _draw(self, inputs: PlanInputs) -> Int[np.ndarray, "steps batch"]:
        rows = self.rows(inputs)
        return np.stack([rows(step) for step in range(inputs.steps)])


def custom(draw: Callable[..., Int[np.ndarray, "steps batch"]]) -> Callable[..., Sampler]:
    """Makes a sampler of the user's own: a factory out of a function that draws the plan of an epoch.

    Args:
      draw: `draw(inputs, *, hyper-parameters) -> [steps, batch]`, positions of images; `inputs` is `PlanInputs`. It
        draws from `inputs.generator()` alone. The annotations of its keywords are types and ranges, as in
        `dml_jax.parameters`, and are checked.

    Returns:
      A factory that takes the keywords of `draw` and `length`. A config names it as "package.module:name".

    Example:
      >>> import numpy as np
      >>> from dml_jax.samplers import PlanInputs, custom
      >>> @custom
      ... def strided(inputs: PlanInputs, *, stride: PositiveInt = 2):
      ...     places = np.arange(inputs.steps * inputs.batch_size) * stride % inputs.images
      ...     return inputs.generator().permutation(places.reshape(inputs.steps, inputs.batch_size))
      >>> sorted(strided(stride=3).plan([0, 0, 1, 1], 2, seed=0, epoch=0).tolist())
      [[0, 3], [2, 1]]
    """
    name = draw.__name__
    length = inspect.Parameter(
        "length", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=PositiveInt | None
    )

    @functools.wraps(draw)
    def factory(*, length: int | None = None, **hyper: Any) -> Sampler:
        owner = f"sampler {name!r}"
        length = parameters.check(f"length of {owner}", PositiveInt | None, length)
        hyper = parameters.check_keywords(owner, draw, hyper)
        return EpochSampler(name=name, draw=Bound(draw, **hyper), length=length)

    own = parameters.keyword_parameters(draw)
    vars(factory)["__signature__"] = inspect.Signature([*own, length])
    return factory


def groups_of(batch_size: int, m: int) -> int:
    """Returns batch_size / m; raises `UserError` where that is not whole."""
    if batch_size % m:
        near = max(batch_size // m, 1) * m
        raise UserError(
            f"batch_size={batch_size} is not a multiple of m={m} images per class; "
            f"{near} or {near + m} would be accepted"
        )
    return batch_size // m


def check_groups(classes: Classes, batch_size: int, *, m: int) -> None:
    """Raises `UserError` where m does not divide the batch, or no class has two images and m > 1."""
    groups_of(batch_size, m)
    if m > 1 and classes.sizes.max() == 1:
        raise UserError(
            f"m={m} images per class, but each of the {len(classes.sizes)} classes has a single image, so "
            "that no two images match; sampler 'random' or m=1 is accepted"
        )


def check_distinct_classes(classes: Classes, batch_size: int, *, m: int) -> None:
    """As `check_groups`; raises also where the set has fewer classes than a batch of distinct ones needs."""
    if groups_of(batch_size, m) > len(classes.sizes):
        raise UserError(
            f"a batch of {batch_size} with m={m} needs {batch_size // m} classes and the set has "
            f"{len(classes.sizes)}; a batch of {len(classes.sizes) * m} or less is accepted "
            f"(--config.train.batch_size={len(classes.sizes) * m})"
        )
    check_groups(classes, batch_size, m=m)


def remark_small_classes(
    classes: Classes, batch_size: int, parents: Int[np.ndarray, " n"] | None, *, m: int
) -> list[str]:
    """Says how many classes have fewer than m images, if any do."""
    del batch_size, parents
    few = int((classes.sizes < m).sum())
    if not few:
        return []
    return [
        f"{few} of {len(classes.sizes)} classes have fewer than m={m} images; theirs are drawn with replacement"
    ]


def permutations(rng: np.random.Generator, size: int, count: int) -> Int[np.ndarray, " count"]:
    """Returns the first `count` numbers of one permutation of 0..size-1 after another."""
    return np.concatenate([rng.permutation(size) for _ in range(-(-count // size))])[:count]


def _labels(what: str, labels: Any) -> Int[np.ndarray, " n"]:
    """Returns labels as an array; raises `UserError` unless there is one integer for each image."""
    try:
        found = np.asarray(labels)
    except ValueError:  # lists of unlike lengths
        found = np.empty((0, 0))
    if found.ndim != 1:
        raise UserError(f"{what} have shape {found.shape}; accepted: one integer for each image")
    if found.size == 0:
        raise UserError("the set to sample from is empty: it has no labels")
    if found.dtype.kind not in "iub":
        raise UserError(f"{what} are {found.dtype}; accepted: one integer for each image")
    return found


def _embeddings(embeddings: Any) -> Float[np.ndarray, "n d"]:
    """Returns embeddings as an array; raises `UserError` unless they are finite vectors."""
    found = np.asarray(embeddings)
    if found.ndim != 2 or found.dtype.kind in "OSU":
        raise UserError(
            f"embeddings are {found.dtype} of shape {found.shape}; accepted: a vector for each image, [n, d]"
        )
    if not np.isfinite(found).all():
        raise UserError("embeddings hold NaN or infinity; accepted: finite numbers")
    return found
