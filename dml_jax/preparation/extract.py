"""Archives, unpacked without trust: nothing leaves the folder, links and devices are refused, sizes are limited."""

import os
import pathlib
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import IO

from dml_jax.errors import UserError

Progress = Callable[[int, int | None], None]
# Images hardly shrink: what an archive of them unpacks to is nowhere near this many times its size.
EXPANSION = 20
SPARE = 1 << 30
MEMBERS = 5_000_000


def is_compressed_tar(path: pathlib.Path) -> bool:
    """Returns True for a tar file that is compressed by gzip, bzip2 or xz.

    Args:
      path: of a file.
    """
    with path.open("rb") as file:
        head = file.read(6)
    return head[:2] == b"\x1f\x8b" or head[:3] == b"BZh" or head == b"\xfd7zXZ\x00"


def unpack(
    archives: Sequence[pathlib.Path], folder: pathlib.Path, progress: Progress
) -> pathlib.Path:
    """Unpacks archives to one folder, if it is not there yet, and returns the folder.

    Args:
      archives: zip and tar files, compressed or not.
      folder: where they go. Half of it is never there: they are unpacked beside it, and it is renamed at the end.
      progress: is called with the bytes that were read of the archives, and their size.

    Raises:
      UserError: an archive is cut off or damaged, has members that would lie outside of the folder, are links or
        devices, or unpacks to more than an archive of images does.
    """
    if folder.exists():
        return folder
    beside = folder.with_name(folder.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    total, before = sum(archive.stat().st_size for archive in archives), 0
    try:
        for archive in archives:
            _unpack(archive, beside, lambda done: progress(before + done, total))  # noqa: B023
            before += archive.stat().st_size
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    os.replace(beside, folder)
    return folder


# The name of a member, its size, and what opens it; None for a folder.
_Member = tuple[str, int, Callable[[], IO[bytes] | None]]


def _unpack(archive: pathlib.Path, folder: pathlib.Path, progress: Callable[[int], None]) -> None:
    limit, written, count = EXPANSION * archive.stat().st_size + SPARE, 0, 0
    members = _of_zip if zipfile.is_zipfile(archive) else _of_tar
    root = folder.resolve()
    try:
        for name, size, opened in members(archive, progress):
            count, written = count + 1, written + size
            if written > limit or count > MEMBERS:
                raise UserError(
                    f"{archive} unpacks to more than {limit:,} bytes or {MEMBERS:,} files, which no archive of images "
                    "does: it is not unpacked"
                )
            place = (root / name).resolve()
            if name.startswith("/") or not place.is_relative_to(root):
                raise UserError(
                    f"{archive} holds {name!r}, which would lie outside of its folder: it is not unpacked"
                )
            place.parent.mkdir(parents=True, exist_ok=True)
            source = opened()
            if source is None:
                place.mkdir(exist_ok=True)
                continue
            with source, place.open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise _damaged(archive, error) from None
    except OSError as error:
        # Those of the disk have a number; those of the decompression have none.
        if error.errno is not None:
            raise
        raise _damaged(archive, error) from None


def _damaged(archive: pathlib.Path, error: Exception) -> UserError:
    return UserError(f"{archive} is cut off or damaged ({error}); a whole archive is accepted")


def _of_tar(archive: pathlib.Path, progress: Callable[[int], None]) -> Iterator[_Member]:
    with archive.open("rb") as raw, tarfile.open(fileobj=raw, mode="r|*") as tar:
        for member in tar:
            if not (member.isfile() or member.isdir()):
                raise _link(archive, member.name)
            yield member.name, member.size, lambda m=member: tar.extractfile(m)  # type: ignore[misc]
            progress(raw.tell())


def _of_zip(archive: pathlib.Path, progress: Callable[[int], None]) -> Iterator[_Member]:
    done = 0
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            if stat.S_ISLNK(member.external_attr >> 16):
                raise _link(archive, member.filename)
            read = lambda m=member: None if m.is_dir() else opened.open(m)
            yield member.filename, member.file_size, read
            done += member.compress_size
            progress(done)


def _link(archive: pathlib.Path, name: str) -> UserError:
    return UserError(
        f"{archive} holds {name!r}, which is a link or a device; files and folders are accepted"
    )
