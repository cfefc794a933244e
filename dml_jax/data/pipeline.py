"""From plans to batches: grain loads image after image in threads or processes, ahead of the consumer.

An element of the grain data set is a few images of a plan (one, where a batch has no more than threads), so that as
many are decoded at a time as there are threads. The order of the elements, and the random numbers of an image, depend
on (seed, epoch, step, place in the whole batch) alone, so that batches are the same however many threads and processes
load them, and (epoch, step) is all there is to resume from.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import grain
import numpy as np
from absl import flags
from jaxtyping import Int

from dml_jax import streams
from dml_jax.data.base import DecodeError, Item, Source
from dml_jax.errors import UserError
from dml_jax.parameters import NonNegativeInt, PositiveInt, checked

Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]
Batch = dict[str, np.ndarray]


class Plan(Protocol):
    """The plan of an epoch by a sampler: an array `[steps, batch]` of positions in a source, or an object that computes
    its rows when they are read.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, step: int, /) -> Int[np.ndarray, " batch"]: ...


# The plan of an epoch, by its number.
Plans = Callable[[int], Plan]


@checked("function")
def train_batches(
    source: Source,
    plan: Plan | Plans,
    *,
    transform: Transform | None,
    seed: NonNegativeInt,
    epoch: NonNegativeInt,
    epochs: PositiveInt = 1,
    views: PositiveInt = 1,
    start_step: NonNegativeInt = 0,
    process_index: NonNegativeInt = 0,
    process_count: PositiveInt = 1,
    threads: PositiveInt = 2,
    workers: NonNegativeInt = 0,
    prefetch: PositiveInt = 4,
    on_error: Literal["raise", "skip"] = "raise",
    skipped: Counter[str] | None = None,
    labels: np.ndarray | None = None,
) -> Iterator[Batch]:
    """Yields the batches of one or more epochs, the same however many threads and processes load them.

    A batch is `{"image": uint8 [b, H, W, C], "label": int32 [b], "id": int32 [b]}`; b is `views` times the batch size
    of the plan divided by `process_count`, and a process gets the places from process_index * b on.

    An image that cannot be decoded is an error (`on_error="raise"`), or another of its class takes its place
    (`"skip"`): the others of the class in an order drawn by (seed, epoch, step, place), those that the step does not
    hold yet first, until one decodes. Two bad images of one class in one step may get the same substitute. The shape of
    a batch never changes.

    Args:
      source: where the images come from.
      plan: a sampler's plan for this epoch, `[steps, batch]`; for several epochs a function that returns that of any
        of them, all of one shape, which is pickled where `workers` load.
      transform: (image, generator) -> image, all of one shape, such as `data.augment.build` makes; None leaves the
        images as they are.
      seed: as given to the sampler.
      epoch: as given to the sampler; the first one of several.
      epochs: how many are loaded in one go.
      views: how often each image of a step comes, transformed anew each time: the whole step, view after view. It is
        decoded once.
      start_step: the first step of the first epoch to yield.
      process_index: which share of every batch this process gets.
      process_count: the number of shares.
      threads: of each process that loads (this one, or each worker).
      workers: processes that load; 0 loads in threads of this one.
      prefetch: batches that are loaded ahead.
      on_error: "raise" or "skip".
      skipped: counts the images passed over, by name, as their batches are delivered.
      labels: what "label" holds, `[N, ...]`, a row for each image of the source; None is its own labels.

    Raises:
      UserError: an option out of range; while iterating, images of different shapes.
      DecodeError: while iterating, an image that cannot be decoded, or a class of which none can.

    Example:
      >>> from dml_jax import data
      >>> source = data.glyphs("test", size=8, classes=2)
      >>> plan = np.arange(6).reshape(2, 3)
      >>> [b["id"].tolist() for b in train_batches(source, plan, transform=None, seed=0, epoch=0)]
      [[0, 1, 2], [3, 4, 5]]
    """
    plans = plan if callable(plan) else _OnePlan(plan)
    steps, size = plans(epoch).shape
    if start_step > steps:
        raise UserError(f"start_step={start_step} of a plan of {steps} steps")
    share = _share(views * size, process_index, process_count)
    labels = source.labels if labels is None else labels
    if len(labels) != len(source):
        raise UserError(
            f"labels of {len(labels)} images for a source of {len(source)}; a row for each is accepted"
        )
    places = np.arange(share.start, share.stop)
    columns = np.unique(places % size)
    load = _LoadTrain(
        source, plans, steps, transform, seed, epoch, size, places, columns, on_error == "skip"
    )
    join = _JoinTrain(source, labels, size, places, columns)
    numbers = range(start_step, epochs * steps)
    return _batches(load, join, numbers, len(columns), threads, workers, prefetch, skipped)


@checked("function")
def eval_batches(
    source: Source,
    batch_size: PositiveInt,
    *,
    transform: Transform | None,
    process_index: NonNegativeInt = 0,
    process_count: PositiveInt = 1,
    threads: PositiveInt = 2,
    workers: NonNegativeInt = 0,
    prefetch: PositiveInt = 4,
    on_error: Literal["raise", "skip"] = "raise",
    skipped: Counter[str] | None = None,
) -> Iterator[Batch]:
    """Yields every image once, in the order of the source, in batches of one shape.

    A batch is as in `train_batches` with `"valid": bool [b]`. Batch k covers the images from k * batch_size on, and a
    process gets a contiguous share of each, so that all processes see equally many batches. Places beyond the end are
    zeros with id and label -1 and not valid; so are images that cannot be decoded under `on_error="skip"`, but for
    their id and label. The transform gets a generator that depends on the image's id alone.

    Args:
      source: where the images come from.
      batch_size: images of a batch over all processes.
      transform: (image, generator) -> image, all of one shape; None leaves the images as they are.
      process_index: which share of every batch this process gets.
      process_count: the number of shares.
      threads: of each process that loads (this one, or each worker).
      workers: processes that load; 0 loads in threads of this one.
      prefetch: batches that are loaded ahead.
      on_error: "raise" or "skip".
      skipped: counts the images passed over, by name, as their batches are delivered.

    Raises:
      UserError: an option out of range; while iterating, images of different shapes.
      DecodeError: while iterating, an image that cannot be decoded under `on_error="raise"`, or none that can.

    Example:
      >>> from dml_jax import data
      >>> source = data.glyphs("test", size=8, classes=1)
      >>> [int(b["valid"].sum()) for b in eval_batches(source, 8, transform=None)]
      [8, 8]
    """
    share = _share(batch_size, process_index, process_count)
    load = _LoadEval(source, batch_size, transform, share, on_error == "skip")
    join = _JoinEval(source, batch_size, share, load)
    numbers = range(-(-len(source) // batch_size))
    size = share.stop - share.start
    return _batches(load, join, numbers, size, threads, workers, prefetch, skipped)


def _share(batch_size: int, index: int, count: int) -> slice:
    """Returns the places of a batch that a process loads."""
    if index >= count:
        raise UserError(f"process_index={index} of process_count={count}")
    if batch_size % count:
        raise UserError(
            f"batch_size={batch_size} does not divide among {count} processes; "
            f"a multiple of {count} is accepted"
        )
    size = batch_size // count
    return slice(index * size, (index + 1) * size)


@dataclass(frozen=True, eq=False)
class _OnePlan:
    """The plan of whatever epoch it is asked for."""

    plan: Plan

    def __call__(self, epoch: int) -> Plan:
        return self.plan


Element = dict[str, Any]


@dataclass(frozen=True, eq=False)
class _LoadTrain:
    """Loads an image of a step, in all views that this process has of it."""

    source: Source
    plans: Plans
    steps: int
    transform: Transform | None
    seed: int
    first_epoch: int
    size: int
    places: np.ndarray
    columns: np.ndarray
    skip: bool

    def __call__(self, number: int, which: int) -> Element:
        """Loads the image of one of the process's columns.

        Args:
          number: of the step, counted from the beginning of the first epoch.
          which: of the columns.
        """
        epoch, step = divmod(number, self.steps)
        epoch += self.first_epoch
        row = np.asarray(self.plans(epoch)[step])
        column = int(self.columns[which])
        bad: list[str] = []
        item = self._item(row, epoch, step, column, bad)
        images = []
        for place in self.places[self.places % self.size == column].tolist():
            rng = streams.generator("augment", self.seed, epoch=epoch, step=step, place=place)
            images.append(_transformed(self.transform, item["image"], rng))
        # All views of a place show one image, and it counts once where it does not decode.
        counts = column in self.places
        return {"images": images, "id": item["id"], "bad": bad if counts else []}

    def _item(
        self, row: Int[np.ndarray, " batch"], epoch: int, step: int, place: int, bad: list[str]
    ) -> Item:
        """Reads the image of a place, or a substitute; names that do not decode are added to `bad`."""
        index = int(row[place])
        try:
            return self.source[index]
        except DecodeError as error:
            if not self.skip:
                raise _refused(error) from error
        bad.append(self.source.name(index))
        label = self.source.labels[index]
        others = np.setdiff1d(np.flatnonzero(self.source.labels == label), [index])
        rng = streams.generator("replace_image", self.seed, epoch=epoch, step=step, place=place)
        others = rng.permutation(others)
        others = others[np.argsort(np.isin(others, row), kind="stable")]
        for other in others:
            try:
                return self.source[int(other)]
            except DecodeError:
                bad.append(self.source.name(int(other)))
        raise DecodeError(
            f"none of the {len(others) + 1} images of class {self.source.class_names[label]!r} can be "
            f"decoded; one of them is {self.source.name(index)}"
        )


@dataclass(frozen=True, eq=False)
class _JoinTrain:
    """Makes a batch of the images of a step."""

    source: Source
    labels: np.ndarray
    size: int
    places: np.ndarray
    columns: np.ndarray

    def __call__(self, number: int, elements: Sequence[Element]) -> Element:
        del number
        views = {c: iter(e["images"]) for c, e in zip(self.columns, elements, strict=True)}
        id_of = {c: e["id"] for c, e in zip(self.columns, elements, strict=True)}
        columns = self.places % self.size
        ids = [id_of[column] for column in columns]
        return {
            "image": _stack([next(views[column]) for column in columns], self.source, ids),
            "label": self.labels[ids].astype(np.int32),
            "id": np.array(ids, np.int32),
            "bad": [name for element in elements for name in element["bad"]],
        }


@dataclass(frozen=True, eq=False)
class _LoadEval:
    """Loads an image of a batch; None where there is none, and where it does not decode."""

    source: Source
    batch_size: int
    transform: Transform | None
    share: slice
    skip: bool

    def __call__(self, number: int, which: int) -> Element:
        """Loads the image of one of the process's places.

        Args:
          number: of the batch.
          which: of the places.
        """
        index = number * self.batch_size + self.share.start + which
        if index >= len(self.source):
            return {"image": None, "bad": []}
        try:
            return {"image": self._image(index), "bad": []}
        except DecodeError as error:
            if not self.skip:
                raise _refused(error) from error
            return {"image": None, "bad": [self.source.name(index)]}

    def _image(self, index: int) -> np.ndarray:
        rng = streams.generator("augment", 0, place=index)
        return _transformed(self.transform, self.source[index]["image"], rng)

    def first_decodable(self) -> np.ndarray:
        """Returns the first image that decodes, for the shape of a share that has none of its own."""
        for i in range(len(self.source)):
            try:
                return self._image(i)
            except DecodeError:
                continue
        raise DecodeError(f"none of the {len(self.source)} images can be decoded")


@dataclass(frozen=True, eq=False)
class _JoinEval:
    """Makes a batch of images, padded to its full size."""

    source: Source
    batch_size: int
    share: slice
    load: _LoadEval

    def __call__(self, number: int, elements: Sequence[Element]) -> Element:
        start = number * self.batch_size
        ids = np.arange(start + self.share.start, start + self.share.stop, dtype=np.int32)
        inside = ids < len(self.source)
        images = [element["image"] for element in elements]
        good = [image for image in images if image is not None]
        blank = np.zeros_like(good[0] if good else self.load.first_decodable())
        labels = np.append(self.source.labels, -1).astype(np.int32)
        return {
            "image": _stack([blank if x is None else x for x in images], self.source, ids.tolist()),
            "label": labels[np.where(inside, ids, -1)],
            "id": np.where(inside, ids, np.int32(-1)),
            "valid": np.array([image is not None for image in images]),
            "bad": [name for element in elements for name in element["bad"]],
        }


def _refused(error: DecodeError) -> DecodeError:
    return DecodeError(
        f"{error}; on_error='skip' (data.on_error in a config) leaves such images out"
    )


def _transformed(
    transform: Transform | None, image: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    return image if transform is None else transform(image, rng)


def _stack(images: list[np.ndarray], source: Source, ids: list[int]) -> np.ndarray:
    for image, i in zip(images, ids, strict=True):
        if image.shape != images[0].shape:
            raise UserError(
                f"images of one batch have shapes {images[0].shape} ({source.name(ids[0])}) and "
                f"{image.shape} ({source.name(i)}); a transform that ends in one size is needed"
            )
    return np.stack(images)


# Images that a thread loads one after the other: what grain does for an element takes as long as decoding a small one.
RUN = 8


@dataclass(frozen=True, eq=False)
class _Order:
    """The order of the elements: (number of the batch, which of its runs of images) by their positions.

    grain gives worker w of n the elements w, w + n, w + 2n, ... and takes batches from the workers in turn: so these
    elements are whole batches w, w + n, ... of its own.
    """

    numbers: range
    size: int
    workers: int

    def __len__(self) -> int:
        # As many for each worker; those of batches beyond the last are empty.
        return -(-len(self.numbers) // self.workers) * self.workers * self.size

    def __call__(self, position: int) -> tuple[int | None, int]:
        own, worker = divmod(position, self.workers)
        turn, which = divmod(own, self.size)
        batch = turn * self.workers + worker
        return (self.numbers[batch] if batch < len(self.numbers) else None), which


@dataclass(frozen=True, eq=False)
class _Load:
    order: _Order
    run: int
    load: Callable[[int, int], Element]

    def __call__(self, position: int) -> tuple[int | None, list[Element]]:
        number, which = self.order(position)
        if number is None:
            return None, []
        first = which * self.run
        return number, [self.load(number, i) for i in range(first, first + self.run)]


@dataclass(frozen=True, eq=False)
class _Join:
    join: Callable[[int, Sequence[Element]], Element]

    def __call__(self, runs: Sequence[tuple[int | None, list[Element]]]) -> Element:
        number = runs[0][0]
        return {} if number is None else self.join(number, [e for _, run in runs for e in run])


def _batches(
    load: Callable[[int, int], Element],
    join: Callable[[int, Sequence[Element]], Element],
    numbers: range,
    size: int,
    threads: int,
    workers: int,
    prefetch: int,
    skipped: Counter[str] | None,
) -> Iterator[Batch]:
    """Yields the batches that grain loads ahead, and counts the images that did not decode."""
    if not numbers:
        return
    most = min(RUN, max(size // threads, 1))
    run = next(n for n in range(most, 0, -1) if size % n == 0)
    order = _Order(numbers, size // run, max(workers, 1))
    dataset = (
        grain.MapDataset.source(range(len(order)))
        .map(_Load(order, run, load))
        # grain looks at every element that waits for each one that it gives: a long queue would cost more than
        # decoding. The batches that are loaded ahead wait in a queue of their own.
        .to_iter_dataset(grain.ReadOptions(threads, 2 * threads))
        .batch(size // run, drop_remainder=True, batch_fn=_Join(join))
    )
    if workers:
        if not flags.FLAGS.is_parsed():
            # grain asks for a flag of its own, which nobody parsed outside an absl main.
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=prefetch)
        )
    else:
        dataset = grain.experimental.ThreadPrefetchIterDataset(
            dataset, prefetch_buffer_size=prefetch
        )
    batches = iter(dataset)
    try:
        for batch in itertools.islice(batches, len(numbers)):
            bad = batch.pop("bad")
            if skipped is not None:
                skipped.update(bad)
            yield batch
    finally:
        batches.close()
