"""Packs the images of a data set into shards, in several processes, and writes the index when all are there."""

import json
import multiprocessing
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from dml_jax import csv_files
from dml_jax.data.base import Source
from dml_jax.data.identity import relative_name
from dml_jax.data.prepared import ABOUT, ENDS, NAMES, shard_name
from dml_jax.errors import UserError
from dml_jax.preparation.encode import encode
from dml_jax.preparation.originals import Original, original_of

# Images of a shard.
SHARD = 4096
PLAN, BAD = "plan.json", "bad_images.csv"


@dataclass(frozen=True)
class Options:
    """What is done to the images.

    Attributes:
      min_side: of the shorter side; None keeps them as they are.
      quality: of JPEG files that are made.
      jobs: processes.
      on_error: "raise" to end at an image that cannot be decoded, "skip" to leave it out of the splits.
    """

    min_side: int | None
    quality: int
    jobs: int
    on_error: str


def pack(
    sources: Mapping[str, Source],
    root: str,
    folder: pathlib.Path,
    about: Mapping[str, Any],
    options: Options,
    progress: Callable[[int, int], None],
) -> int:
    """Writes a data set, or what is missing of one that was begun; returns how many images could not be decoded.

    An image that is in several splits is written once.

    Args:
      sources: the splits.
      root: where their images are, which is left out of their names.
      folder: where it goes.
      about: what it is, for `about.json`.
      options: what is done to the images.
      progress: is called with the images that are written, and all.

    Raises:
      UserError: the folder holds another data set, or an image cannot be decoded.
    """
    rows, originals, names = _merged(sources, root)
    plan = {
        **about,
        "images": len(names),
        "min_side": options.min_side,
        "quality": options.quality,
        "shard": SHARD,
    }
    _claim(folder, plan)
    if (folder / ABOUT).exists():
        return len(csv_files.read_rows(folder / BAD))
    count = -(-len(names) // SHARD)
    jobs = [
        _Job(folder, i, count, tuple(originals[i * SHARD : (i + 1) * SHARD]), options)
        for i in range(count)
    ]
    done = 0
    progress(0, len(names))
    # Fresh interpreters: this one may have threads, JAX's for one, which a fork would cut off.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        waiting = {pool.submit(_write_shard, job): job for job in jobs}
        try:
            for finished in as_completed(waiting):
                finished.result()
                done += len(waiting[finished].originals)
                progress(done, len(names))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    bad = {row: why for job in jobs for row, why in _read_bad(job).items()}
    _write_index(folder, plan, sources, rows, names, bad)
    return len(bad)


def _merged(
    sources: Mapping[str, Source], root: str
) -> tuple[dict[str, np.ndarray], list[Original], list[str]]:
    """Returns the rows of each split, and of every row where its image is and what it is called."""
    row_of: dict[str, int] = {}
    rows: dict[str, np.ndarray] = {}
    originals: list[Original] = []
    for split, source in sources.items():
        found = np.empty(len(source), np.int64)
        for i in range(len(source)):
            name = relative_name(source.name(i), root)
            row = row_of.setdefault(name, len(row_of))
            if row == len(originals):
                originals.append(original_of(source, i))
            found[i] = row
        rows[split] = found
    return rows, originals, list(row_of)


def _claim(folder: pathlib.Path, plan: Mapping[str, Any]) -> None:
    """Makes the folder that of this data set; raises `UserError` where it is another's."""
    file = folder / PLAN
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        now = json.loads(json.dumps(plan))
        keys = dict.fromkeys((*before, *now))
        differ = [
            f"{k}: {before.get(k)!r} there, {now.get(k)!r} now"
            for k in keys
            if before.get(k) != now.get(k)
        ]
        if differ:
            raise UserError(
                f"--data_dir: {folder} holds another data set ({'; '.join(differ)}); accepted: another folder"
            )
        return
    if any(folder.iterdir()):
        raise UserError(
            f"--data_dir: {folder} holds other files; accepted: an empty folder, or one that was begun by this command"
        )
    _write_text(file, json.dumps(plan, indent=2))


@dataclass(frozen=True)
class _Job:
    folder: pathlib.Path
    number: int
    shards: int
    originals: tuple[Original, ...]
    options: Options

    @property
    def file(self) -> pathlib.Path:
        return self.folder / shard_name(self.number, self.shards)

    @property
    def bad(self) -> pathlib.Path:
        return self.file.with_suffix(".bad.json")


def _write_shard(job: _Job) -> None:
    """Writes a shard under another name, and renames it when it is whole."""
    if job.file.exists():
        return
    beside, bad = job.file.with_suffix(".part"), {}
    # Images are compressed; each by itself, so that any one can be read alone.
    writer = ArrayRecordWriter(str(beside), "group_size:1,uncompressed")
    for i, original in enumerate(job.originals):
        try:
            record = encode(original.read(), job.options.min_side, job.options.quality)
        # Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error and more on damaged files.
        except Exception as error:
            if job.options.on_error == "raise":
                raise UserError(
                    f"{original.name} cannot be decoded: {error}; --on_error=skip leaves such images out and lists them"
                ) from None
            record, bad[job.number * SHARD + i] = b"", str(error)
        writer.write(record)
    writer.close()
    _write_text(job.bad, json.dumps(bad))
    os.replace(beside, job.file)


def _read_bad(job: _Job) -> dict[int, str]:
    return {int(row): why for row, why in json.loads(job.bad.read_text(encoding="utf-8")).items()}


def _write_index(
    folder: pathlib.Path,
    plan: Mapping[str, Any],
    sources: Mapping[str, Source],
    rows: Mapping[str, np.ndarray],
    names: Sequence[str],
    bad: Mapping[int, str],
) -> None:
    encoded = [name.encode("utf-8", "surrogateescape") for name in names]
    _save(folder / NAMES, np.frombuffer(b"".join(encoded), np.uint8))
    _save(folder / ENDS, np.cumsum([len(name) for name in encoded], dtype=np.int64))
    lost = np.isin(np.arange(len(names)), list(bad))
    splits = {}
    for split, source in sources.items():
        kept = ~lost[rows[split]]
        arrays = {"rows": rows[split][kept], "labels": np.asarray(source.labels)[kept]}
        if source.parent_labels is not None:
            arrays["parents"] = np.asarray(source.parent_labels)[kept]
        if source.label_sets is not None:
            arrays["label_sets"] = np.asarray(source.label_sets)[kept]
        file = folder / f"split_{split}.npz"
        beside = file.with_suffix(".part")
        with beside.open("wb") as opened:
            np.savez(opened, **arrays)
        os.replace(beside, file)
        _write_text(folder / f"classes_{split}.json", json.dumps(list(source.class_names)))
        splits[split] = {"images": int(kept.sum()), "classes": len(source.class_names)}
    listed = [{"image": names[row], "why": why} for row, why in sorted(bad.items())]
    csv_files.write_rows(folder / BAD, ["image", "why"], listed)
    count = -(-len(names) // SHARD)
    shards = [min(SHARD, len(names) - i * SHARD) for i in range(count)]
    # Last: a folder without it is not whole.
    _write_text(folder / ABOUT, json.dumps({**plan, "splits": splits, "shards": shards}, indent=2))
    # What processes that were killed have left, too.
    for file in (*folder.glob("*.bad.json"), *folder.glob("*.part")):
        file.unlink()


def _save(file: pathlib.Path, array: np.ndarray) -> None:
    beside = file.with_suffix(".part")
    with beside.open("wb") as opened:
        np.save(opened, array)
    os.replace(beside, file)


def _write_text(file: pathlib.Path, text: str) -> None:
    beside = file.with_suffix(".part")
    beside.write_text(text + "\n", encoding="utf-8")
    os.replace(beside, file)
