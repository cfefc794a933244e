"""Files from the network: gone on with where a download was cut off, checked, and never half there under their name."""

import hashlib
import os
import pathlib
import urllib.error
import urllib.request
from collections.abc import Callable

from dml_jax.data.published import Archive
from dml_jax.errors import UserError

CHUNK = 1 << 20
# Seconds without a byte.
TIMEOUT = 60


def download(
    archive: Archive, folder: pathlib.Path, progress: Callable[[int, int | None], None]
) -> pathlib.Path:
    """Downloads a file, if it is not there yet, and returns its path.

    What has arrived lies beside it as FILE.part; where that is, the rest is asked for.

    Args:
      archive: what is published.
      folder: where it goes.
      progress: is called with the bytes that are there, and with how many there will be where that is known.

    Raises:
      UserError: it cannot be had, or is not what is published.
    """
    place = folder / archive.file
    if place.exists():
        check(archive, place)
        return place
    folder.mkdir(parents=True, exist_ok=True)
    part = place.with_name(place.name + ".part")
    _fetch(archive, part, progress)
    check(archive, part)
    os.replace(part, place)
    return place


def _fetch(
    archive: Archive, part: pathlib.Path, progress: Callable[[int, int | None], None]
) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(
        archive.url, headers={"Range": f"bytes={have}-"} if have else {}
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            # 200: the server begins again, whatever was asked for.
            goes_on = answer.status == 206
            have = have if goes_on else 0
            length = answer.headers.get("Content-Length")
            total = have + int(length) if length else None
            with part.open("ab" if goes_on else "wb") as file:
                while chunk := answer.read(CHUNK):
                    file.write(chunk)
                    have += len(chunk)
                    progress(have, total)
    except urllib.error.HTTPError as error:
        # 416: nothing is left to be sent.
        if error.code == 416 and have:
            return
        raise UserError(
            f"{archive.url} cannot be downloaded: {error.code} {error.reason}"
        ) from None
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"{archive.url} cannot be downloaded: {reason}; {have:,} bytes are in {part}, and the same command goes on "
            f"from there. A file from elsewhere is accepted as {part.with_suffix('')}"
        ) from None
    if total is not None and have < total:
        raise UserError(
            f"{archive.url} ended after {have:,} of {total:,} bytes; the same command goes on from there"
        )


def check(archive: Archive, file: pathlib.Path) -> None:
    """Checks the size and the checksum of a file, as far as they are known.

    Args:
      archive: what is published.
      file: what is there.

    Raises:
      UserError: it is something else.
    """
    size = file.stat().st_size
    if archive.size is not None and size != archive.size:
        raise UserError(
            f"{file} has {size:,} bytes and not the {archive.size:,} that are published; a whole "
            f"{archive.file} is accepted"
        )
    if not archive.checksum:
        return
    kind, _, want = archive.checksum.partition(":")
    with file.open("rb") as opened:
        have = hashlib.file_digest(opened, kind).hexdigest()
    if have != want:
        raise UserError(
            f"{file} has the {kind} sum {have} and not {want}, which is published: it is damaged or another file; "
            "remove it and begin again"
        )
