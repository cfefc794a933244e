"""Data sets of TensorFlow Datasets, read at random without TensorFlow."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from dml_jax import names
from dml_jax.data.base import Images, Source, integer_labels
from dml_jax.data.decoding import decode
from dml_jax.data.fractions import share_of
from dml_jax.errors import UserError
from dml_jax.parameters import Fraction, NonNegativeInt, checked


@checked("data set")
def tfds(
    split: Literal["train", "val", "test", "all"],
    *,
    dataset: str,
    path: str | os.PathLike[str] = "~/tensorflow_datasets",
    image: str = "image",
    label: str = "label",
    by: Literal["class", "split"] = "class",
    fractions: tuple[Fraction, Fraction, Fraction] = (0.5, 0.1, 0.4),
    seed: NonNegativeInt = 0,
    channels: Literal[1, 3] = 3,
    exif: bool = True,
) -> Source:
    """Reads a set that tensorflow-datasets has prepared with `file_format="array_record"`.

    It is not downloaded here: `tfds.builder(NAME, file_format="array_record").download_and_prepare()` does that, in an
    environment with TensorFlow. Reading needs the extra `tfds`, and no TensorFlow. Opening a set goes over its examples
    once, for their classes.

    Args:
      split: "train", "val" or "test"; "all" are these three together.
      dataset: the name, with a version or configuration where there are several, as in "oxford_flowers102/2.1.1".
      path: the data_dir of tensorflow-datasets.
      image: the feature with the images.
      label: the feature with the classes.
      by: "class" pools the set's splits and divides the classes by `fractions`, because theirs share classes, which
        retrieval must not; "split" takes theirs, of which "validation" is `val`.
      fractions: the shares of the classes for train, val and test, with sum 1.
      seed: of that division.
      channels: 3 (RGB) or 1 (grey).
      exif: False to leave images as they lie in their files.

    Raises:
      UserError: the package is missing, there is no such set, in another format, without such features or split.

    Example:
      >>> tfds("train", dataset="nothing", path="nowhere")
      Traceback (most recent call last):
      dml_jax.errors.UserError: tfds: there is no data set 'nothing' in nowhere; ...
    """
    builder = _builder(dataset, os.path.expanduser(os.fspath(path)))
    for what, feature in (("image", image), ("label", label)):
        if feature not in builder.info.features:
            raise names.unknown(f"feature of tfds: {what}=", feature, builder.info.features)
    called = {"validation": "val"}
    there = {called.get(name, name): name for name in builder.info.splits}
    if by == "split" and split != "all":
        if split not in there:
            raise names.unknown(f"split of {dataset}:", split, there)
        return _source(builder, [there[split]], image, label, channels, exif)
    whole = _source(builder, list(there.values()), image, label, channels, exif)
    if split == "all":
        return whole
    return share_of(whole, split, fractions, seed, "tfds", dataset)


def _builder(dataset: str, path: str) -> Any:
    try:
        import tensorflow_datasets as library
    except ImportError:
        raise UserError(
            "data set 'tfds' needs the package tensorflow-datasets: pip install 'dml_jax[tfds]'"
        ) from None
    parts = dataset.split("/")
    folder = os.path.join(path, *parts)
    # A version is the last folder; of several the newest.
    for _ in range(2):
        if os.path.isfile(os.path.join(folder, "dataset_info.json")):
            return library.builder_from_directory(folder)
        below = [e.name for e in os.scandir(folder) if e.is_dir()] if os.path.isdir(folder) else []
        if not below:
            break
        folder = os.path.join(folder, max(below, key=_version))
    raise UserError(
        f"tfds: there is no data set {dataset!r} in {path}; accepted: NAME, NAME/VERSION or NAME/CONFIG/VERSION that "
        "download_and_prepare() of tensorflow-datasets has written there"
    )


def _version(name: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdecimal() else -1 for part in name.split("."))


def _source(
    builder: Any, splits: Sequence[str], image: str, label: str, channels: int, exif: bool
) -> Images:
    reader = TfdsReader(str(builder.data_path), tuple(splits), image, channels, exif)
    labels = []
    for name in splits:
        try:
            labels += [example[label] for example in _examples(builder, name, image)]
        except NotImplementedError as error:
            raise UserError(
                f"tfds: {builder.data_path} cannot be read at random ({error}); a set that was prepared with "
                "file_format='array_record' is accepted"
            ) from None
    known = getattr(builder.info.features[label], "names", None)
    decoded = [value.decode() if isinstance(value, bytes) else value for value in labels]
    if known:
        numbers, present = integer_labels(int(value) for value in decoded)
        classes = [str(known[number]) for number in present]
    else:
        numbers, found = integer_labels(decoded)
        classes = list(map(str, found))
    ids = [f"{name}/{i}" for name in splits for i in range(builder.info.splits[name].num_examples)]
    return Images(numbers, tuple(classes), [f"{builder.info.full_name}:{i}" for i in ids], reader)


def _examples(builder: Any, split: str, image: str) -> Any:
    """Returns the examples of a split, whose images stay encoded."""
    import tensorflow_datasets as library

    return builder.as_data_source(split=split, decoders={image: library.decode.SkipDecoding()})


@dataclass(frozen=True, eq=False)
class TfdsReader:
    """Reads the images of a set's splits, one after the other.

    Attributes:
      folder: of the set.
      splits: of it.
      image: the feature.
      channels: 1 (grey) or 3 (RGB).
      exif: as in `decode`.
    """

    folder: str
    splits: tuple[str, ...]
    image: str
    channels: int
    exif: bool
    # One for each process: what is open does not travel.
    _opened: list[Any] = field(default_factory=list, repr=False)

    def __call__(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        return decode(self.encoded(index), channels=self.channels, exif=self.exif)

    def encoded(self, index: int) -> bytes:
        """Returns the bytes of an image."""
        if not self._opened:
            self._opened.append(self._open())
        for source in self._opened[0]:
            if index < len(source):
                found: bytes = source[index][self.image]
                return found
            index -= len(source)
        raise IndexError(index)

    def _open(self) -> list[Any]:
        import tensorflow_datasets as library

        builder = library.builder_from_directory(self.folder)
        return [_examples(builder, name, self.image) for name in self.splits]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": []}
