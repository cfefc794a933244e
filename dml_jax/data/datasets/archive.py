"""Folders of classes in a zip or tar file."""

import os
import tarfile
from typing import Literal

import numpy as np

from dml_jax.data.archives import Files, open_files, reader_of
from dml_jax.data.base import (
    SPLITS,
    BytesReader,
    Images,
    Reader,
    Source,
    existing_path,
    integer_labels,
)
from dml_jax.data.datasets.folder import EXTENSIONS
from dml_jax.data.fractions import share_of
from dml_jax.errors import UserError
from dml_jax.parameters import Fraction, NonNegativeInt, PositiveFloat, checked

GIB = 2**30


@checked("data set")
def archive(
    split: Literal["train", "val", "test", "all"],
    *,
    path: str | os.PathLike[str],
    fractions: tuple[Fraction, Fraction, Fraction] = (0.5, 0.1, 0.4),
    seed: NonNegativeInt = 0,
    memory: PositiveFloat = 2.0,
    channels: Literal[1, 3] = 3,
    exif: bool = True,
) -> Source:
    """Reads what `folder` reads, a sub-folder for each class, from a zip or tar file without unpacking it.

    Members of zip and uncompressed tar files are read in place. A compressed tar file has no places: its images are
    held in memory, as files. One folder around all is passed over; in it, folders train, val and test are splits with
    classes of their own, else the classes are divided by `fractions`.

    Args:
      split: "train", "val" or "test"; "all" are these three together.
      path: the file.
      fractions: the shares of the classes for train, val and test, with sum 1.
      seed: of that division.
      memory: GiB that images of a compressed tar file may take.
      channels: 3 (RGB) or 1 (grey).
      exif: False to leave images as they lie in their files.

    Raises:
      UserError: nothing at `path`, no images in it, a split that is not there, or more than `memory` allows.

    Example:
      >>> archive("train", path="nowhere.zip")
      Traceback (most recent call last):
      dml_jax.errors.UserError: archive: path='nowhere.zip' does not exist ...
    """
    place = existing_path(path, "archive")
    held = _held(place, memory) if _is_compressed_tar(place) else None
    files: Files | None = None if held is not None else open_files(place, "archive")
    every = sorted(held) if held is not None else list(files.names()) if files else []
    images = [name for name in every if _is_image(name)]
    tops = {name.partition("/")[0] for name in images}
    inside = len(tops) == 1 and all(name.count("/") > 1 for name in images)
    parts = {name: name.split("/")[inside:] for name in images}
    present = [s for s in SPLITS if any(len(p) > 2 and p[0] == s for p in parts.values())]
    depth = 1 if present else 0
    kept = {
        n: p for n, p in parts.items() if len(p) > depth + 1 and (not present or p[0] in present)
    }
    if present and split != "all":
        kept = {name: part for name, part in kept.items() if part[0] == split}
    if not kept:
        there = (
            f"it has splits {', '.join(present)}"
            if present
            else "a folder for each class is accepted"
        )
        raise UserError(
            f"archive: {place} has no images of split {split!r} in folders of classes; {there}"
        )
    members = list(kept)
    labels, classes = integer_labels(kept[name][depth] for name in members)
    read: Reader
    if held is not None:
        read = BytesReader([held[name] for name in members], channels, exif=exif)
    else:
        assert files is not None
        read = reader_of(files, members, channels=channels, exif=exif)
    whole = Images(
        np.asarray(labels), tuple(classes), [f"{place}:{name}" for name in members], read
    )
    if present or split == "all":
        return whole
    return share_of(whole, split, fractions, seed, "archive", place)


def _is_image(name: str) -> bool:
    hidden = "/." in f"/{name}" or "__MACOSX" in name
    return name.lower().endswith(EXTENSIONS) and not hidden


def _is_compressed_tar(path: str) -> bool:
    with open(path, "rb") as file:
        head = file.read(6)
    return head[:2] == b"\x1f\x8b" or head[:3] == b"BZh" or head == b"\xfd7zXZ\x00"


def _held(path: str, memory: float) -> dict[str, bytes]:
    """Returns the images of a compressed tar file by name."""
    found: dict[str, bytes] = {}
    size = 0
    try:
        with tarfile.open(path, "r|*") as tar:
            for member in tar:
                if not member.isfile() or not member.name.lower().endswith(EXTENSIONS):
                    continue
                size += member.size
                if size > memory * GIB:
                    raise UserError(
                        f"archive: the images of {path} take more than memory={memory} GiB; a larger memory is "
                        f"accepted, or `dml prepare --dataset=folder --source={path}`, which unpacks it"
                    )
                opened = tar.extractfile(member)
                if opened is not None:
                    found[member.name.removeprefix("./")] = opened.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(
            f"archive: {path} is cut off or damaged ({error}); a whole archive is accepted"
        ) from None
    return found
