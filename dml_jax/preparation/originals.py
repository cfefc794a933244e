"""Where the bytes of a source's images are, small enough to be sent to another process by the thousand."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

from dml_jax.data.archives import Files, MemberReader, open_files
from dml_jax.data.base import BytesReader, FileReader, Images, Source, Subset
from dml_jax.errors import UserError


@runtime_checkable
class Packed(Protocol):
    """A reader of images out of files of many, which sends them undecoded, too. Each process opens the files anew."""

    def encoded(self, index: int, /) -> bytes:
        """Returns the bytes of an image."""
        ...


@dataclass(frozen=True)
class Original:
    """The bytes of one image.

    Attributes:
      name: of the image, for errors.
      place: the path of its file, or of the archive that it is in.
      member: its name in the archive; "" for a file of its own.
      content: its bytes, where they are in memory already.
      packed: what reads it out of a file of many images, and its place there.
    """

    name: str
    place: str
    member: str = ""
    content: bytes | None = None
    packed: tuple[Packed, int] | None = None

    def read(self) -> bytes:
        """Returns the bytes; raises OSError where they are not there."""
        if self.content is not None:
            return self.content
        if self.packed is not None:
            return self.packed[0].encoded(self.packed[1])
        if self.member:
            return _opened(self.place).read(self.member)
        with open(self.place, "rb") as file:
            return file.read()


@lru_cache(maxsize=4)
def _opened(path: str) -> Files:
    """An archive, whose table of members is read once in each process."""
    return open_files(path, "prepare")


def original_of(source: Source, index: int) -> Original:
    """Returns where the bytes of an image are.

    Args:
      source: a data set's split, or a part of one.
      index: of the image.

    Raises:
      UserError: a source whose images are no files.
    """
    if isinstance(source, Subset):
        return original_of(source.source, int(source.rows[index]))
    if isinstance(source, Images):
        name = source.name(index)
        read = source.read
        if isinstance(read, FileReader):
            return Original(name, read.paths[index])
        if isinstance(read, MemberReader):
            return Original(name, read.files.path, read.members[index])
        if isinstance(read, BytesReader):
            return Original(name, "", content=read.encoded[index])
        if isinstance(read, Packed):
            return Original(name, "", packed=(read, index))
    raise UserError(
        "the images of this data set are no files that could be packed; one of the sets that read files is accepted"
    )
