"""What is wrong with the files of a source: missing, empty, no images, doubled; without decoding them."""

import hashlib
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from PIL import Image, UnidentifiedImageError

from dml_jax.data.base import FileReader, Images, Source, Subset

# In a line.
_SHOWN = 3
# Files that wait for a thread.
_AT_A_TIME = 1024


@dataclass
class Findings:
    """What a scan found.

    Attributes:
      missing: paths where no file is.
      empty: files of no bytes.
      unreadable: files that cannot be decoded, and why.
      doubled: groups of paths of one class of a split that hold the same bytes.
      across: groups of paths that hold the same bytes and are of two or more classes, or splits.
    """

    missing: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    doubled: list[list[str]] = field(default_factory=list)
    across: list[list[str]] = field(default_factory=list)

    @property
    def broken(self) -> list[str]:
        """The paths of all files that cannot be decoded."""
        return [*self.missing, *self.empty, *(path for path, _ in self.unreadable)]

    def lines(self) -> list[str]:
        """Returns a line for each kind of finding."""
        found = []
        if self.missing:
            found.append(f"{_files(len(self.missing))} missing: {_some(self.missing)}")
        if self.empty:
            found.append(f"{_files(len(self.empty))} empty: {_some(self.empty)}")
        if self.unreadable:
            named = [f"{path} ({why})" for path, why in self.unreadable]
            count = len(self.unreadable)
            what = "1 file cannot" if count == 1 else f"{count} files cannot"
            found.append(f"{what} be decoded: {_some(named)}")
        if self.doubled:
            copies = sum(len(group) - 1 for group in self.doubled)
            pairs = [" = ".join(group[:2]) for group in self.doubled]
            found.append(f"{_files(copies)} copied within a class: {_some(pairs)}")
        if self.across:
            pairs = [" = ".join(group[:2]) for group in self.across]
            count = len(self.across)
            what = "1 image stands" if count == 1 else f"{count} images stand"
            found.append(f"{what} in two classes or splits: {_some(pairs)}")
        return found


def _files(count: int) -> str:
    return f"{count} file is" if count == 1 else f"{count} files are"


def _some(found: Sequence[str]) -> str:
    return ", ".join(found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")


def paths_of(source: Source) -> list[tuple[str, str]]:
    """Returns the path and the class of each image that is a file; nothing for sources of other kinds.

    Args:
      source: the images.

    Example:
      >>> from dml_jax.data import glyphs
      >>> paths_of(glyphs("test", size=8, classes=1))  # drawn, and in no file
      []
    """
    if isinstance(source, Subset):
        inside = paths_of(source.source)
        if not inside:
            return []
        names = [source.class_names[label] for label in source.labels.tolist()]
        return [
            (inside[row][0], name) for row, name in zip(source.rows.tolist(), names, strict=True)
        ]
    if isinstance(source, Images) and isinstance(source.read, FileReader):
        labels = source.labels.tolist()
        names = [source.class_names[label] if label >= 0 else "" for label in labels]
        return list(zip(source.read.paths, names, strict=True))
    return []


def sizes(paths: Iterable[str], findings: Findings) -> dict[int, list[str]]:
    """Asks for the size of each file; returns the files by size, without missing and empty ones.

    Args:
      paths: of the files.
      findings: missing and empty files are added to it.

    Example:
      >>> findings = Findings()
      >>> sizes(["nowhere.png"], findings), findings.missing
      ({}, ['nowhere.png'])
    """
    by_size: defaultdict[int, list[str]] = defaultdict(list)
    for path in paths:
        try:
            size = os.stat(path).st_size
        except OSError:
            findings.missing.append(path)
            continue
        if size:
            by_size[size].append(path)
        else:
            findings.empty.append(path)
    return dict(by_size)


def scan(
    sources: Sequence[Source],
    ends: Callable[[], bool] = lambda: False,
    *,
    decode: bool = False,
    threads: int = 1,
    watch: Callable[[int, Iterable[str]], Iterable[str]] = lambda count, paths: paths,
) -> Findings:
    """Scans the files of splits: headers of all, or their pixels, and the bytes of those of equal size.

    Args:
      sources: the splits; one that is not made of files has no findings.
      ends: asked between two files; True ends the scan early.
      decode: True decodes the images as training does, which finds those that are cut off and takes much longer.
      threads: that open files.
      watch: (how many files there are, their paths) -> the paths, as they are opened; for whoever shows how far it is.

    Example:
      >>> import numpy as np, tempfile
      >>> from dml_jax.data import files
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = open(f"{folder}/a.png", "w").close()
      ...     found = scan([files([f"{folder}/a.png"], channels=1)])
      >>> len(found.empty)
      1
    """
    findings = Findings()
    # A file that stands in two splits by its path is one file: a gallery may hold the queries.
    owners: dict[str, tuple[int, str]] = {}
    for split, source in enumerate(sources):
        for path, kind in paths_of(source):
            owners.setdefault(path, (split, kind))
    by_size = sizes(owners, findings)
    there = [path for paths in by_size.values() for path in paths]
    with ThreadPoolExecutor(threads) as pool:

        def problems() -> Iterator[str | None]:
            # An executor takes all that it is given at once: of millions of files too much.
            for start in range(0, len(there), _AT_A_TIME):
                some = there[start : start + _AT_A_TIME]
                yield from pool.map(lambda path: None if ends() else _problem(path, decode), some)

        for path, problem in zip(watch(len(there), there), problems(), strict=True):
            if problem is not None:
                findings.unreadable.append((path, problem))
    if ends():
        return findings
    no_images = {path for path, _ in findings.unreadable}
    for paths in by_size.values():
        by_hash: defaultdict[str, list[str]] = defaultdict(list)
        for path in paths if len(paths) > 1 else ():
            if ends():
                return findings
            if path in no_images:
                continue
            with open(path, "rb") as file:
                by_hash[hashlib.file_digest(file, "sha256").hexdigest()].append(path)
        for group in by_hash.values():
            if len({owners[path] for path in group}) > 1:
                findings.across.append(group)
            elif len(group) > 1:
                findings.doubled.append(group)
    return findings


def _problem(path: str, decode: bool) -> str | None:
    """Returns why a file is no image; None where it is one."""
    try:
        if decode:
            FileReader([path], channels=3)(0)
        else:
            with Image.open(path):
                pass
    # As in decoding, Pillow raises errors of many kinds.
    except Exception as error:
        unidentified = isinstance(error, UnidentifiedImageError)
        return "it is not an image that Pillow reads" if unidentified else str(error)
    return None


class BackgroundScan:
    """A scan in a thread, for one that may take longer than somebody who wants to train would wait.

    Args:
      sources: returns the splits; it is called in the thread, since to list the files of a folder may take long, too.
      report: is called with the findings when the scan is complete.
    """

    def __init__(
        self, sources: Callable[[], Sequence[Source]], report: Callable[[Findings], None]
    ) -> None:
        self._sources, self._report = sources, report
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        findings = scan(self._sources(), self._stop.is_set)
        if not self._stop.is_set():
            self._report(findings)

    def wait(self, seconds: float) -> None:
        """Returns when the scan is over, or after some seconds."""
        self._thread.join(seconds)

    def close(self) -> None:
        """Ends the scan."""
        self._stop.set()
        self._thread.join()
