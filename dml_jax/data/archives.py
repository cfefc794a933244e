"""Files of a data set where they lie: in a folder, a zip or a tar, read by name from any number of threads at once."""

import os
import struct
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8

from dml_jax.data.base import FileReader, Reader, existing_path
from dml_jax.data.decoding import decode
from dml_jax.errors import UserError


class Files(Protocol):
    """Files by name. It can be pickled.

    Attributes:
      path: of the folder or the archive.
    """

    @property
    def path(self) -> str: ...

    def names(self) -> Sequence[str]:
        """Returns the names of all files, with "/" between folders, in order."""
        ...

    def exists(self, name: str) -> bool:
        """Returns True where there is a file of this name."""
        ...

    def read(self, name: str) -> bytes:
        """Returns the bytes of a file; raises OSError where there is none or it is cut off."""
        ...

    def folders(self) -> Sequence[str]:
        """Returns the names of the folders that are not in another one, with "/" at their ends."""
        ...


@dataclass(frozen=True, eq=False)
class Folder:
    """The files below a folder.

    Attributes:
      path: of the folder.
    """

    path: str

    def names(self) -> Sequence[str]:
        found = []
        for folder, _, inside in os.walk(self.path, followlinks=True):
            start = os.path.relpath(folder, self.path).replace(os.sep, "/")
            found += [name if start == "." else f"{start}/{name}" for name in inside]
        return sorted(found)

    def exists(self, name: str) -> bool:
        return os.path.isfile(self.place(name))

    def read(self, name: str) -> bytes:
        with open(self.place(name), "rb") as file:
            return file.read()

    def folders(self) -> Sequence[str]:
        return sorted(entry.name + "/" for entry in os.scandir(self.path) if entry.is_dir())

    def place(self, name: str) -> str:
        """Returns the path of a file."""
        return os.path.join(self.path, name)


class _Archive:
    """An archive with a table of its members: where each begins, and what has to be known to read it."""

    def __init__(self, path: str, members: Mapping[str, tuple[int, ...]]) -> None:
        self.path, self.members = path, members
        self._handle: int | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        # Neither the open file nor the lock can travel to another process.
        return {"path": self.path, "members": self.members}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path, self.members = state["path"], state["members"]
        self._handle, self._lock = None, threading.Lock()

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        if handle is not None:
            os.close(handle)

    def names(self) -> Sequence[str]:
        return sorted(self.members)

    def exists(self, name: str) -> bool:
        return name in self.members

    def folders(self) -> Sequence[str]:
        return sorted({name.partition("/")[0] + "/" for name in self.members if "/" in name})

    def _member(self, name: str) -> tuple[int, ...]:
        if name not in self.members:
            raise OSError(f"{self.path} holds no {name}")
        return self.members[name]

    def _bytes(self, offset: int, size: int, name: str) -> bytes:
        with self._lock:
            if self._handle is None:
                self._handle = os.open(self.path, os.O_RDONLY)
        # pread has no file position to share, so that readers need no lock.
        data = os.pread(self._handle, size, offset)
        if len(data) != size:
            raise OSError(f"{self.path} ends within {name}")
        return data


class Tar(_Archive):
    """The members of an uncompressed tar file.

    Args:
      path: of the file.

    Raises:
      UserError: a file that is not such a tar.
    """

    def __init__(self, path: str) -> None:
        try:
            with tarfile.open(path, "r:") as tar:
                members = {
                    m.name.removeprefix("./"): (m.offset_data, m.size) for m in tar if m.isfile()
                }
        except tarfile.TarError as error:
            raise UserError(
                f"{path} cannot be read as an uncompressed tar file ({error}); unpack it and give the folder instead"
            ) from error
        super().__init__(path, members)

    def read(self, name: str) -> bytes:
        offset, size = self._member(name)
        return self._bytes(offset, size, name)


class Zip(_Archive):
    """The members of a zip file, stored or deflated.

    Args:
      path: of the file.

    Raises:
      UserError: a file that is no zip, or has members that are compressed in another way.
    """

    def __init__(self, path: str) -> None:
        try:
            with zipfile.ZipFile(path) as archive:
                found = [m for m in archive.infolist() if not m.is_dir()]
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(
                f"{path} cannot be read as a zip file ({error}); accepted: a whole zip file, or the folder in it"
            ) from error
        other = [
            m for m in found if m.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        ]
        if other or any(m.flag_bits & 1 for m in found):
            raise UserError(
                f"{path} has members that are encrypted or compressed in another way than deflate; unpack it and give "
                "the folder instead"
            )
        members = {m.filename: (m.header_offset, m.compress_size, m.compress_type) for m in found}
        super().__init__(path, members)

    def read(self, name: str) -> bytes:
        offset, size, method = self._member(name)
        # The name and the extra field of a member's own header may have other lengths than those of the table.
        lengths = struct.unpack("<HH", self._bytes(offset + 26, 4, name))
        data = self._bytes(offset + 30 + sum(lengths), size, name)
        if method == zipfile.ZIP_STORED:
            return data
        try:
            return zlib.decompress(data, -zlib.MAX_WBITS)
        except zlib.error as error:
            raise OSError(f"{name} in {self.path} is damaged: {error}") from error


def open_files(path: str | os.PathLike[str], owner: str) -> Files:
    """Opens a folder, a zip file or an uncompressed tar file.

    Args:
      path: of it.
      owner: the data set, as errors name it.

    Raises:
      UserError: nothing is there, or it is none of these.
    """
    place = existing_path(path, owner)
    if os.path.isdir(place):
        return Folder(place)
    if zipfile.is_zipfile(place):
        return Zip(place)
    with open(place, "rb") as file:
        head = file.read(262)
    if head[257:262] == b"ustar":
        return Tar(place)
    if head[:2] == b"\x1f\x8b" or head[:3] == b"BZh" or head[:6] == b"\xfd7zXZ\x00":
        raise UserError(
            f"{owner}: {place} is a compressed tar file, whose images cannot be read one by one; unpack it and give "
            f"the folder, or `dml prepare --dataset={owner} --source={place}` makes what can be read"
        )
    raise UserError(f"{owner}: {place} is no folder, zip or tar file; one of these is accepted")


def root_of(files: Files, *markers: str) -> str | None:
    """Returns the folder, with "/" at its end or "" for the top, in which all these files are; None for none.

    The top and the folders in it are looked at: archives have their content in one folder, or not.

    Args:
      files: of a data set.
      *markers: names of files, as they are below the folder.
    """
    for root in ("", *files.folders()):
        if all(files.exists(root + marker) for marker in markers):
            return root
    return None


@dataclass(frozen=True, eq=False)
class MemberReader:
    """Reads images that are members of an archive.

    Attributes:
      files: the archive.
      members: the names of the images in it.
      channels: 1 (grey) or 3 (RGB).
      exif: as in `decode`.
      min_side: as in `decode`.
    """

    files: Files
    members: Sequence[str]
    channels: int
    exif: bool = True
    min_side: int | None = None

    def __call__(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        encoded = self.files.read(self.members[index])
        return decode(encoded, channels=self.channels, exif=self.exif, min_side=self.min_side)


def reader_of(
    files: Files,
    names: Sequence[str],
    *,
    channels: int,
    exif: bool = True,
    min_side: int | None = None,
) -> Reader:
    """Returns what reads these images.

    Args:
      files: where they are.
      names: of the images.
      channels: 1 (grey) or 3 (RGB).
      exif: as in `decode`.
      min_side: as in `decode`.
    """
    if isinstance(files, Folder):
        paths = [files.place(name) for name in names]
        return FileReader(paths, channels, min_side=min_side, exif=exif)
    return MemberReader(files, names, channels, exif, min_side)
