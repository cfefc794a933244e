"""Packs a data set for fast reading: `dml prepare --dataset=NAME --source=DIR_OR_ARCHIVE --data_dir=DIR`.

Training reads the result by `config.data.path=DIR`. Images are checked, counted and, with --min_side, scaled down once.
The same command goes on where it was stopped. Without --source it says what is published and where; with --download it
fetches that.
"""

import argparse
import contextlib
import inspect
import json
import pathlib
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Any

from tqdm import tqdm

from dml_jax import command_line, data, names, run_folder
from dml_jax.console import log
from dml_jax.data.base import Source
from dml_jax.data.published import Published
from dml_jax.data.published_sets import PUBLISHED
from dml_jax.data.sources import TABLE
from dml_jax.errors import UserError
from dml_jax.preparation import download, extract
from dml_jax.preparation.write import BAD, Options, pack


def add_options(parser: command_line.Parser) -> None:
    """Adds the options of this command.

    Args:
      parser: of the command.
    """
    parser.add_argument(
        "--dataset",
        required=True,
        metavar="NAME[:OPTION=VALUE,...]",
        help=f"the data set ({', '.join(sorted(TABLE))}) and options of it, as in cars196:order=names",
    )
    parser.add_argument(
        "--source", type=command_line.path, metavar="PATH", help="its folder or archive"
    )
    parser.add_argument(
        "--data_dir", type=command_line.path, metavar="FOLDER", help="where the result goes"
    )
    parser.add_argument(
        "--download",
        action="store_true",
        help="fetches what is published to --source, a folder, as far as that needs no consent",
    )
    parser.add_argument(
        "--min_side",
        type=int,
        metavar="PIXELS",
        help="scales images down until their shorter side has so many pixels; by default they stay as they are",
    )
    parser.add_argument(
        "--quality", type=int, default=95, help="of JPEG files that are made; by default 95"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes; by default 2")
    parser.add_argument(
        "--on_error",
        choices=("raise", "skip"),
        default="raise",
        help="what happens where an image cannot be decoded: raise, or skip and list it in bad_images.csv",
    )


def main(options: argparse.Namespace) -> None:
    """Runs the command.

    Args:
      options: those of the command line.
    """
    name, _, text = options.dataset.partition(":")
    names.resolve("data set", TABLE, name)
    given = _given(text)
    published = PUBLISHED.get(name)
    if options.source is None:
        raise UserError(_where(name, published))
    if options.data_dir is None:
        raise UserError("--data_dir is missing: the folder where the result goes")
    for option, low, high in (("min_side", 1, None), ("quality", 1, 100), ("jobs", 1, None)):
        value = getattr(options, option)
        if value is not None and (value < low or (high is not None and value > high)):
            raise UserError(
                f"--{option}={value}; a whole number from {low} on{f' up to {high}' if high else ''} is accepted"
            )
    place = pathlib.Path(options.source)
    if options.download:
        _download(name, published, place)
    if not place.exists():
        raise UserError(f"--source: there is no {place}. {_where(name, published)}")
    folder = run_folder.create(options.data_dir, "--data_dir")
    place = _unpacked(place, published, folder)
    sources = _splits(name, place, given)
    how = Options(options.min_side, options.quality, options.jobs, options.on_error)
    first = next(iter(sources.values()))
    about = {"dataset": name, "options": given, "channels": _channels(first)}
    with _Bar("images") as bar:
        bad = pack(sources, str(place), folder, about, how, bar)
    for split, source in sources.items():
        log(f"{split}: {len(source):,} images of {len(source.class_names):,} classes")
    if bad:
        log(f"{bad:,} images cannot be decoded and are left out: {folder / BAD}")
    log(f"done. Next: --config.data.name={name} --config.data.path={folder}")


def _given(text: str) -> dict[str, Any]:
    """Returns the options of the data set that follow its name."""
    found = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"--dataset: {part!r} has no value; OPTION=VALUE is accepted")
        literal = {"True": "true", "False": "false", "None": "null"}.get(value, value)
        try:
            found[key] = json.loads(literal)
        except json.JSONDecodeError:
            found[key] = value
    return found


def _where(name: str, published: Published | None) -> str:
    """Returns what is published of a data set, and how to get it."""
    if published is None:
        return f"--source is missing: the folder or archive of {name}, as config.data.path takes it"
    lines = []
    for archive in published.archives:
        known = [f"{archive.size:,} bytes"] if archive.size else []
        known += [archive.checksum] if archive.checksum else []
        known += [] if archive.direct else ["from a page that asks for consent"]
        lines.append(
            f"{archive.file} ({', '.join(known) or 'size and checksum unknown'}): {archive.url}"
        )
    return (
        f"{published.title} is published as {'; '.join(lines)}. Licence: {published.licence}. Accepted as --source: a "
        f"folder or archive with {published.layout}; --download fetches what needs no consent to the folder --source"
    )


def _download(name: str, published: Published | None, folder: pathlib.Path) -> None:
    if published is None:
        raise UserError(
            f"--download: {name} is not published at an address that is known; --source=PATH is accepted"
        )
    closed = [a for a in published.archives if not a.direct and not (folder / a.file).exists()]
    if closed:
        raise UserError(
            f"--download: {closed[0].file} comes from a page that asks for consent: {closed[0].url}; accepted: the "
            f"file in {folder}"
        )
    for archive in published.archives:
        with _Bar("bytes") as bar:
            file = download.download(archive, folder, bar)
        log(f"{file} is there")


def _unpacked(
    place: pathlib.Path, published: Published | None, folder: pathlib.Path
) -> pathlib.Path:
    """Returns what can be read: archives are unpacked beside the result, but for one that is not compressed."""
    archives = [place]
    if place.is_dir():
        files = [place / archive.file for archive in published.archives] if published else []
        archives = [file for file in files if file.is_file()]
    if not archives:
        return place
    if len(archives) == 1 and not extract.is_compressed_tar(archives[0]):
        return archives[0]
    with _Bar("bytes") as bar:
        return extract.unpack(archives, folder.with_name(folder.name + "_unpacked"), bar)


def _splits(name: str, place: pathlib.Path, given: Mapping[str, Any]) -> dict[str, Source]:
    """Opens all splits of a data set; of images of one's own those that there are."""
    if "path" not in names.keywords(inspect.unwrap(TABLE[name])):
        raise UserError(
            f"--dataset={name}: its images are no files that could be packed; one of the sets with a path is accepted"
        )
    hint = typing.get_type_hints(inspect.unwrap(TABLE[name])).get("split")
    found, wrong = {}, []
    for split in typing.get_args(hint):
        try:
            found[split] = data.load(name, split, path=str(place), **given)
        except UserError as error:
            if name != "folder":
                raise
            wrong.append(error)
    if not found:
        raise wrong[0]
    return found


def _channels(source: Source) -> int:
    """Returns the channels of a source's images, of the first one that can be decoded."""
    for i in range(len(source)):
        with contextlib.suppress(data.DecodeError):
            return source[i]["image"].shape[-1]
    raise UserError("none of the images can be decoded")


class _Bar:
    """Shows how far something is: a bar on a terminal, elsewhere nothing."""

    def __init__(self, unit: str) -> None:
        self._bar = tqdm(unit=f" {unit}", unit_scale=True, dynamic_ncols=True, disable=None)

    def __enter__(self) -> Callable[[int, int | None], None]:
        return self._show

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def _show(self, done: int, total: int | None) -> None:
        self._bar.total = total
        self._bar.update(done - self._bar.n)


if __name__ == "__main__":
    command_line.run(sys.modules[__name__])
