"""From a plan to batches: grain loads whole steps in threads or processes, ahead of the consumer.

An element of the grain data set is the batch of a step, so that batches never mix however many threads or processes
work on them, and a step number is all there is to resume from. The random numbers of an image depend on (seed, epoch,
step, place in the whole batch) alone.
"""

from collections import Counter
from collections.abc import Callable, Iterator
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


@checked("function")
def train_batches(
    source: Source,
    plan: Plan,
    *,
    transform: Transform | None,
    seed: NonNegativeInt,
    epoch: NonNegativeInt,
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
    """Yields the batches of an epoch from `start_step` on, the same however many threads and processes load them.

    A batch is `{"image": uint8 [b, H, W, C], "label": int32 [b], "id": int32 [b]}`; b is `views` times the batch size
    of the plan divided by `process_count`, and a process gets the places from process_index * b on.

    An image that cannot be decoded is an error (`on_error="raise"`), or another of its class takes its place
    (`"skip"`): the others of the class in an order drawn by (seed, epoch, step, place), those that the step does not
    hold yet first, until one decodes. Two bad images of one class in one step may get the same substitute. The shape of
    a batch never changes.

    Args:
      source: where the images come from.
      plan: a sampler's plan for this epoch, `[steps, batch]`.
      transform: (image, generator) -> image, all of one shape, such as `data.augment.build` makes; None leaves the
        images as they are.
      seed: as given to the sampler.
      epoch: as given to the sampler.
      views: how often each image of a step comes, transformed anew each time: the whole step, view after view.
      start_step: the first step to yield.
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
    steps, size = plan.shape
    if start_step > steps:
        raise UserError(f"start_step={start_step} of a plan of {steps} steps")
    share = _share(views * size, process_index, process_count)
    labels = source.labels if labels is None else labels
    if len(labels) != len(source):
        raise UserError(
            f"labels of {len(labels)} images for a source of {len(source)}; a row for each is accepted"
        )
    load = _LoadTrain(source, labels, plan, transform, seed, epoch, share, on_error == "skip")
    return _batches(load, range(start_step, steps), threads, workers, prefetch, skipped)


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
    steps = range(-(-len(source) // batch_size))
    return _batches(load, steps, threads, workers, prefetch, skipped)


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
class _LoadTrain:
    """Loads this process's share of the batch of a step."""

    source: Source
    labels: np.ndarray
    plan: Plan
    transform: Transform | None
    seed: int
    epoch: int
    share: slice
    skip: bool

    def __call__(self, step: int) -> dict[str, Any]:
        row = self.plan[step]
        images: list[np.ndarray] = []
        ids: list[int] = []
        bad: list[str] = []
        for place in range(self.share.start, self.share.stop):
            # All views of a place show one image, and it counts once where it does not decode.
            view, column = divmod(place, len(row))
            item = self._item(row, step, column, [] if view else bad)
            rng = streams.generator("augment", self.seed, epoch=self.epoch, step=step, place=place)
            images.append(_transformed(self.transform, item["image"], rng))
            ids.append(item["id"])
        return {
            "image": _stack(images, self.source, ids),
            "label": self.labels[ids].astype(np.int32),
            "id": np.array(ids, np.int32),
            "bad": bad,
        }

    def _item(self, row: Int[np.ndarray, " batch"], step: int, place: int, bad: list[str]) -> Item:
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
        rng = streams.generator(
            "replace_image", self.seed, epoch=self.epoch, step=step, place=place
        )
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
class _LoadEval:
    """Loads this process's share of the batch of a step, padded to its full size."""

    source: Source
    batch_size: int
    transform: Transform | None
    share: slice
    skip: bool

    def __call__(self, step: int) -> dict[str, Any]:
        start = step * self.batch_size
        ids = np.arange(start + self.share.start, start + self.share.stop, dtype=np.int32)
        inside = ids < len(self.source)
        images: list[np.ndarray | None] = []
        bad = []
        for i, exists in zip(ids.tolist(), inside, strict=True):
            try:
                images.append(self._image(i) if exists else None)
            except DecodeError as error:
                if not self.skip:
                    raise _refused(error) from error
                images.append(None)
                bad.append(self.source.name(i))
        good = [image for image in images if image is not None]
        blank = np.zeros_like(good[0] if good else self._first_decodable())
        labels = np.append(self.source.labels, -1).astype(np.int32)
        return {
            "image": _stack([blank if x is None else x for x in images], self.source, ids.tolist()),
            "label": labels[np.where(inside, ids, -1)],
            "id": np.where(inside, ids, np.int32(-1)),
            "valid": np.array([image is not None for image in images]),
            "bad": bad,
        }

    def _image(self, index: int) -> np.ndarray:
        rng = streams.generator("augment", 0, place=index)
        return _transformed(self.transform, self.source[index]["image"], rng)

    def _first_decodable(self) -> np.ndarray:
        """Returns the first image that decodes, for the shape of a share that has none of its own."""
        for i in range(len(self.source)):
            try:
                return self._image(i)
            except DecodeError:
                continue
        raise DecodeError(f"none of the {len(self.source)} images can be decoded")


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


def _batches(
    load: Callable[[int], dict[str, Any]],
    steps: range,
    threads: int,
    workers: int,
    prefetch: int,
    skipped: Counter[str] | None,
) -> Iterator[Batch]:
    """Yields the batches that grain loads ahead, and counts the images that did not decode."""
    if not steps:
        return
    dataset = (
        grain.MapDataset.source(steps)
        .map(load)
        # grain's own default keeps 500 elements, and an element is a whole batch here.
        .to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch))
    )
    if workers:
        if not flags.FLAGS.is_parsed():
            # grain asks for a flag of its own, which nobody parsed outside an absl main.
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=prefetch)
        )
    batches = iter(dataset)
    try:
        for batch in batches:
            bad = batch.pop("bad")
            if skipped is not None:
                skipped.update(bad)
            yield batch
    finally:
        batches.close()
