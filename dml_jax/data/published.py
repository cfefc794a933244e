"""Data sets as their authors publish them: what they consist of, how their files list it, and the source of a split."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

from dml_jax.data.archives import Files, Folder, open_files, reader_of
from dml_jax.data.base import Images, Source
from dml_jax.errors import UserError


@dataclass(frozen=True, eq=False)
class Listing:
    """The images of a split, none of which was decoded.

    Attributes:
      names: of the image files.
      labels: int64 `[N]`, 0 to C-1.
      class_names: the C names.
      parent_labels: int64 `[N]`, the coarser class of each image, where the set has one.
    """

    names: Sequence[str]
    labels: Int64[np.ndarray, " n"]
    class_names: tuple[str, ...]
    parent_labels: Int64[np.ndarray, " n"] | None = None


@dataclass(frozen=True)
class Count:
    """How much a split holds.

    Attributes:
      images: of it.
      classes: of them.
    """

    images: int
    classes: int


@dataclass(frozen=True)
class Archive:
    """A file that is published.

    Attributes:
      file: its name.
      url: where it is; of a page that asks for something first, the page.
      size: in bytes; None where it is not known.
      checksum: "md5:..." or "sha256:..."; "" where none is known.
      direct: True where the URL is that of the file itself.
    """

    file: str
    url: str
    size: int | None = None
    checksum: str = ""
    direct: bool = True


@dataclass(frozen=True, eq=False)
class Published:
    """A data set.

    Attributes:
      name: as `data.load` calls it.
      title: as its authors call it.
      licence: under which they give it, as far as they say.
      archives: what is published.
      counts: of each split.
      listing: `(files, split, **options) -> Listing`; raises `UserError` where the files are another set's.
      layout: what is accepted as its files, for errors.
    """

    name: str
    title: str
    licence: str
    archives: tuple[Archive, ...]
    counts: Mapping[str, Count]
    listing: Callable[..., Listing]
    layout: str

    def listed(self, files: Files, split: str, *, counts: bool = True, **options: Any) -> Listing:
        """Returns the images of a split, whose number and files were checked.

        Args:
          files: of the set.
          split: of it.
          counts: False to accept any number.
          **options: of `listing`.

        Raises:
          UserError: the files are another set's, others are listed than are published, or listed files are missing.
        """
        found = self.listing(files, split, **options)
        if not len(found.labels):
            raise UserError(f"{self.name}: {files.path} lists no image of split {split!r}")
        want = self.counts[split]
        have = Count(len(found.labels), len(found.class_names))
        if counts and have != want:
            raise UserError(
                f"{self.name}: split {split!r} of {files.path} has {have.images:,} images of {have.classes:,} classes; "
                f"published are {want.images:,} of {want.classes:,}. data.counts=False accepts what is there"
            )
        self._check_present(files, found.names)
        return found

    def _check_present(self, files: Files, names: Sequence[str]) -> None:
        # Of a folder only some: to ask for half a million files takes longer than to train a step.
        looked = names
        if isinstance(files, Folder) and len(names) > 100:
            looked = [names[i] for i in np.linspace(0, len(names) - 1, 100).astype(int)]
        missing = [name for name in looked if not files.exists(name)]
        if missing:
            of = f"{len(missing)} of {len(looked)}" + (
                " that were looked for" if looked is not names else ""
            )
            raise UserError(
                f"{self.name}: {files.path} lacks images that its lists name ({of}), such as {missing[0]}"
            )

    def unknown(self, files: Files) -> UserError:
        """Makes the error for files that are not the set's.

        Args:
          files: what was given.
        """
        return UserError(
            f"{self.name}: {files.path} is not {self.title}: accepted is {self.layout}"
        )


def source(
    published: Published,
    split: str,
    *,
    path: str | os.PathLike[str],
    exif: bool,
    min_side: int | None,
    counts: bool,
    **options: Any,
) -> Source:
    """Returns a split of a published data set, RGB.

    Args:
      published: the set.
      split: of it.
      path: the folder or the archive.
      exif: False to leave images as they lie in their files, as both papers' code does.
      min_side: as in `data.decode`.
      counts: False to accept any number of images.
      **options: of the set's listing.

    Raises:
      UserError: as `Published.listed`.
    """
    files = open_files(path, published.name)
    found = published.listed(files, split, counts=counts, **options)
    read = reader_of(files, found.names, channels=3, exif=exif, min_side=min_side)
    place = f"{files.path}/" if isinstance(files, Folder) else f"{files.path}:"
    return Images(
        labels=found.labels,
        class_names=found.class_names,
        names=[place + name for name in found.names],
        read=read,
        parent_labels=found.parent_labels,
    )
