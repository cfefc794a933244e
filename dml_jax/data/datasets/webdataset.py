"""Shards of WebDataset: tar files in which the files of a sample share their name up to the first dot."""

import glob
import json
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from dml_jax.data.archives import Tar
from dml_jax.data.base import Images, Source, integer_labels
from dml_jax.data.decoding import decode
from dml_jax.data.fractions import share_of
from dml_jax.errors import UserError
from dml_jax.parameters import Fraction, NonNegativeInt, checked

IMAGES = ("jpg", "jpeg", "png", "webp")


@checked("data set")
def webdataset(
    split: Literal["train", "val", "test", "all"],
    *,
    path: str,
    label: str = "cls",
    fractions: tuple[Fraction, Fraction, Fraction] = (0.5, 0.1, 0.4),
    seed: NonNegativeInt = 0,
    channels: Literal[1, 3] = 3,
    exif: bool = True,
) -> Source:
    """Reads WebDataset shards at random: their tables of members are read once, images when they are asked for.

    A sample is `KEY.jpg` (or .jpeg, .png, .webp) beside `KEY.cls`, `KEY.txt` or `KEY.json`. Classes are divided by
    `fractions`; shards of a published split are named by their path alone, with split "all".

    Args:
      split: "train", "val" or "test"; "all" are these three together.
      path: a folder, a file, or a pattern as in "shard-{000000..000009}.tar" or "train-*.tar".
      label: where the class is: the extension of a file that is it ("cls", "txt"), or "json:FIELD".
      fractions: the shares of the classes for train, val and test, with sum 1.
      seed: of that division.
      channels: 3 (RGB) or 1 (grey).
      exif: False to leave images as they lie in their files.

    Raises:
      UserError: no such shards, a compressed one, or samples without image or class.

    Example:
      >>> webdataset("train", path="nowhere-{00..03}.tar")
      Traceback (most recent call last):
      dml_jax.errors.UserError: webdataset: there is no nowhere-00.tar; ...
    """
    shards = [Tar(file) for file in _files(os.path.expanduser(path))]
    extension, _, key = label.partition(":")
    places, labels, ids = [], [], []
    for number, shard in enumerate(shards):
        samples: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for name in shard.members:
            folder, _, file = name.rpartition("/")
            stem, _, kind = file.partition(".")
            samples[f"{folder}/{stem}" if folder else stem][kind.lower()] = name
        for sample, files in samples.items():
            picture = next((files[kind] for kind in IMAGES if kind in files), None)
            if picture is None or extension not in files:
                lacks = "image" if picture is None else f".{extension}"
                raise UserError(
                    f"webdataset: sample {sample} of {shard.path} has no {lacks}: it has {', '.join(sorted(files))}"
                )
            places.append((number, picture))
            labels.append(
                _label(shard.read(files[extension]), key, f"{shard.path}:{files[extension]}")
            )
            ids.append(f"{shard.path}:{picture}")
    are_numbers = all(re.fullmatch(r"-?\d+", value) for value in labels)
    numbers, classes = integer_labels([int(v) if are_numbers else v for v in labels])
    read = ShardReader(tuple(shards), places, channels, exif)
    whole = Images(numbers, tuple(map(str, classes)), ids, read)
    return whole if split == "all" else share_of(whole, split, fractions, seed, "webdataset", path)


def _files(path: str) -> list[str]:
    span = re.search(r"\{(\d+)\.\.(\d+)\}", path)
    if span:
        first, last = span.groups()
        numbers = range(int(first), int(last) + 1)
        found = [path.replace(span[0], f"{n:0{len(first)}d}") for n in numbers]
    elif os.path.isdir(path):
        found = sorted(glob.glob(os.path.join(glob.escape(path), "*.tar")))
    else:
        found = sorted(glob.glob(path)) or [path]
    missing = next((file for file in found if not os.path.isfile(file)), None)
    if missing or not found:
        raise UserError(
            f"webdataset: there is no {missing or os.path.join(path, '*.tar')}; accepted: a folder with .tar files, "
            "one of them, or a pattern such as shard-{000000..000009}.tar"
        )
    return found


def _label(content: bytes, key: str, name: str) -> str:
    text = content.decode().strip()
    if not key:
        return text
    fields: dict[str, Any] = json.loads(text)
    if key not in fields:
        raise UserError(
            f"webdataset: {name} has no field {key!r}: it has {', '.join(sorted(fields))}"
        )
    return str(fields[key])


@dataclass(frozen=True, eq=False)
class ShardReader:
    """Reads images of several tar files.

    Attributes:
      shards: the files.
      places: of each image, the number of its shard and its name there.
      channels: 1 (grey) or 3 (RGB).
      exif: as in `decode`.
    """

    shards: tuple[Tar, ...]
    places: Sequence[tuple[int, str]]
    channels: int
    exif: bool

    def __call__(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        return decode(self.encoded(index), channels=self.channels, exif=self.exif)

    def encoded(self, index: int) -> bytes:
        """Returns the bytes of an image."""
        shard, name = self.places[index]
        return self.shards[shard].read(name)
