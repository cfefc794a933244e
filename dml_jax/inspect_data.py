"""Looks at data before they are trained on: `dml inspect --path=FOLDER_OR_CSV`, or `dml inspect --config=NAME`.

Says for each split how many images and classes there are, how large classes and images are, and what is wrong: files
that are missing, empty, no images or cut off; copies and near copies within and across splits, mirrored ones too;
classes of two splits that seem to be one. Every image is decoded; `--headers` reads the headers of files alone, which
is faster and sees neither images that are cut off nor near copies. `--out` writes inspect.json and a page with images
per class, a contact sheet, and what is in two splits.

The command ends with status 1 where files are broken, or an image is in two splits, pixel by pixel.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image

from dml_jax import command_line, config_files, data, run_folder
from dml_jax import config as configs
from dml_jax.console import log, watched
from dml_jax.data.base import SPLITS
from dml_jax.data.datasets import folder
from dml_jax.errors import UserError
from dml_jax.inspection import duplicates, page
from dml_jax.inspection.duplicates import Pair
from dml_jax.inspection.hashes import hashes_of
from dml_jax.training import build

# How many images are opened for their sizes, in even steps.
OPENED = 500


def add_options(parser: command_line.Parser) -> None:
    """Adds the options of this command.

    Args:
      parser: of the command.
    """
    parser.add_argument(
        "--path",
        type=command_line.path,
        help="a folder with a sub-folder for each class, or a CSV file",
    )
    parser.add_config("own_images")
    parser.add_argument(
        "--headers",
        action="store_true",
        help="reads the headers of images and does not decode them",
    )
    parser.add_argument(
        "--near",
        type=int,
        default=duplicates.RADIUS,
        metavar="BITS",
        help="by how many of 64 bits the perceptual hashes of near copies may differ; -1 looks for none; by default "
        f"{duplicates.RADIUS}",
    )
    parser.add_argument(
        "--out",
        type=command_line.path,
        metavar="FOLDER",
        help="where inspect.json and inspect.html are written",
    )
    parser.add_argument(
        "--json", type=command_line.path, metavar="FILE", help="where the numbers are written, too"
    )


def main(options: argparse.Namespace) -> None:
    """Runs the command.

    Args:
      options: those of the command line.

    Raises:
      UserError: no data there.
    """
    config = options.config
    if options.path is not None:
        if not os.path.exists(options.path):
            raise UserError(
                f"--path: there is no {options.path}; a folder with a sub-folder for each class, or a CSV file, is "
                "accepted"
            )
        config = config_files.load("own_images") if config.data.name != "folder" else config
        config.data.path = options.path
    if config.data.name == "folder" and config.data.path is None:
        raise UserError(
            "--path is missing: a folder with a sub-folder for each class, or a CSV file; or --config with data of "
            "another name"
        )
    place = run_folder.writable(options.json, "--json") if options.json else None
    out = run_folder.create(options.out, "--out") if options.out else None
    if not -1 <= options.near <= 64:
        raise UserError(f"--near={options.near}; a whole number from -1 to 64 is accepted")
    splits = splits_of(config)
    pairs: list[Pair] = []
    found = inspected(config, splits, decode=not options.headers, near=options.near, pairs=pairs)
    text = lines(found)
    log("\n".join(text))
    encoded = json.dumps(found, indent=2) + "\n"
    for file in (place, out / "inspect.json" if out else None):
        if file is not None:
            file.write_text(encoded, encoding="utf-8", errors="surrogateescape")
    if out is not None:
        written = page.write(out / "inspect.html", splits, pairs, text)
        log(f"written to {out}: inspect.json, {written.name}")
    broken = sum(len(found["files"][kind]) for kind in ("missing", "empty", "unreadable"))
    leaked = max(
        sum(pair.exact for pair in duplicates.across(pairs)), len(found["files"]["across"])
    )
    if broken or leaked:
        raise UserError(
            f"{broken} images are missing or broken, and {leaked} stand in two classes or splits, as said above"
        )


def splits_of(config: Any) -> dict[str, data.Source]:
    """Returns the splits train, val and test of a configuration's data, of those that there are.

    Args:
      config: `data` and `seed` are used.

    Raises:
      UserError: no split can be loaded.
    """
    splits: dict[str, data.Source] = {}
    problem: UserError | None = None
    for split in SPLITS:
        try:
            splits[split] = build.source(config, split)
        except UserError as error:
            problem = problem or error
    if not splits:
        raise problem or UserError("the data have no split")
    return splits


def inspected(
    config: Any,
    splits: Mapping[str, data.Source] | None = None,
    *,
    decode: bool = True,
    near: int = duplicates.RADIUS,
    pairs: list[Pair] | None = None,
) -> dict[str, Any]:
    """Returns what is known of the splits of a configuration's data.

    Args:
      config: `data` and `seed` are used.
      splits: what `splits_of` returned, where it was called already.
      decode: True decodes every image, and looks for copies.
      near: by how many of 64 bits the hashes of near copies may differ; -1 looks for exact ones alone.
      pairs: gets the copies, where it is given.

    Raises:
      UserError: no split can be loaded.
    """
    splits = splits_of(config) if splits is None else splits
    names = {split: set(source.class_names) for split, source in splits.items()}
    shared = {
        f"{a} and {b}": sorted(names[a] & names[b])
        for i, a in enumerate(splits)
        for b in list(splits)[i + 1 :]
        if names[a] & names[b]
    }
    path = configs.plain(config.data).get("path")
    findings = data.scan(list(splits.values()), threads=os.cpu_count() or 1, watch=_watched)
    copied = _hashed(splits, near, findings, pairs if pairs is not None else []) if decode else {}
    return {
        "splits": {split: _numbers(source) for split, source in splits.items()},
        "shared_classes": shared,
        "findings": findings.lines(),
        "files": dataclasses.asdict(findings),
        "scanned": len({path for source in splits.values() for path, _ in data.paths_of(source)}),
        "decoded": decode,
        **copied,
        "other_files": folder.other_files(path) if config.data.name == "folder" else {},
    }


def _hashed(
    splits: Mapping[str, data.Source], radius: int, findings: data.Findings, pairs: list[Pair]
) -> dict[str, Any]:
    """Decodes all images: adds those that cannot be to the findings and copies to the pairs; returns what they say."""
    hashes = {
        split: hashes_of(source, os.cpu_count() or 1, _counting(len(source), split))
        for split, source in splits.items()
    }
    known = set(findings.broken)
    for split, found in hashes.items():
        for index, why in found.broken.items():
            name = splits[split].name(index)
            if name not in known:
                findings.unreadable.append((name, why))
                known.add(name)
    pairs += duplicates.pairs_of(hashes, radius)
    return {
        "flat": int(sum((h.flat & h.whole).sum() for h in hashes.values())),
        "copies": [
            {
                "one": splits[pair.one[0]].name(pair.one[1]),
                "other": splits[pair.other[0]].name(pair.other[1]),
                "splits": [pair.one[0], pair.other[0]],
                "bits": pair.bits,
                "exact": pair.exact,
                "mirrored": pair.mirrored,
            }
            for pair in pairs
        ],
        "same_classes": [list(each) for each in duplicates.same_classes(splits, pairs)],
    }


def _counting(count: int, split: str) -> Callable[[Iterable[Any]], Iterator[Any]]:
    def passed_on(images: Iterable[Any]) -> Iterator[Any]:
        batches = ({"image": [image]} for image in images)
        for batch in watched(batches, count, f"decoding {split}"):
            yield from batch["image"]

    return passed_on


def _watched(count: int, paths: Iterable[str]) -> Iterator[str]:
    for batch in watched(({"image": [path]} for path in paths), count, "opening images"):
        yield from batch["image"]


def _numbers(source: data.Source) -> dict[str, Any]:
    counts = np.bincount(source.labels[source.labels >= 0], minlength=len(source.class_names))
    found: dict[str, Any] = {"images": len(source), "classes": len(source.class_names)}
    if len(counts):
        found["images_per_class"] = {
            "least": int(counts.min()),
            "median": float(np.median(counts)),
            "most": int(counts.max()),
        }
        found["classes_of_one_image"] = int((counts == 1).sum())
    sizes, modes = [], Counter[str]()
    paths = data.paths_of(source)
    for path, _ in paths[:: max(1, len(paths) // OPENED)]:
        try:
            with Image.open(path) as image:
                sizes.append(image.size)
                modes[f"{image.format} {image.mode}"] += 1
        # What cannot be opened is among the findings.
        except Exception:
            continue
    if sizes:
        wide, high = np.array(sizes).T
        found["width"] = [int(wide.min()), int(np.median(wide)), int(wide.max())]
        found["height"] = [int(high.min()), int(np.median(high)), int(high.max())]
        found["formats"] = dict(modes.most_common())
    return found


def lines(found: dict[str, Any]) -> list[str]:
    """Returns what `inspected` found as text.

    Args:
      found: what it returned.
    """
    text = []
    for split, numbers in found["splits"].items():
        plural = "class" if numbers["classes"] == 1 else "classes"
        images = "1 image" if numbers["images"] == 1 else f"{numbers['images']} images"
        text.append(f"{split}: {images} of {numbers['classes']} {plural}")
        if "images_per_class" in numbers:
            of = numbers["images_per_class"]
            alone = numbers["classes_of_one_image"]
            if numbers["classes"] == 1:
                text.append("  its one class is found whatever a model does: its metrics are all 1")
            single = "1 class" if alone == 1 else f"{alone} classes"
            text.append(
                f"  images per class: {of['least']} to {of['most']}, median {of['median']:g}"
                + f"; {single} of a single image, of which nothing can be retrieved" * (alone > 0)
            )
        if "width" in numbers:
            text.append(
                "  width {} to {}, median {}".format(*np.take(numbers["width"], [0, 2, 1]))
                + "; height {} to {}, median {}".format(*np.take(numbers["height"], [0, 2, 1]))
            )
            text.append(f"  {', '.join(f'{k}: {n}' for k, n in numbers['formats'].items())}")
    for both, names in found["shared_classes"].items():
        text.append(f"note: {len(names)} classes are in {both}, {names[0]!r} among them")
    files = "1 file was" if found["scanned"] == 1 else f"{found['scanned']} files were"
    if not found["scanned"] and found["decoded"]:
        images = sum(numbers["images"] for numbers in found["splits"].values())
        text.append(f"{images} images were decoded")
    elif not found["scanned"]:
        text.append("the images are in no files of their own, and were not looked at")
    elif found["decoded"]:
        text.append(f"{files} looked at and decoded")
    else:
        text.append(f"{files} looked at by the header alone: an image that is cut off was not seen")
    text += [f"note: {line}" for line in found["findings"]]
    text += _copies(found)
    for what, files in found["other_files"].items():
        text.append(f"note: {what}: {files['count']}, such as {files['first']}")
    return text


def _copies(found: dict[str, Any]) -> list[str]:
    """Returns what was found of copies, by splits."""
    if "copies" not in found:
        return []
    text = []
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for pair in found["copies"]:
        what = "exact" if pair["exact"] else "mirrored near" if pair["mirrored"] else "near"
        groups.setdefault((*pair["splits"], what), []).append(pair)
    for (one, other, what), pairs in groups.items():
        where = f"within {one}" if one == other else f"in both {one} and {other}"
        images = len({pair["other"] for pair in pairs})
        text.append(
            f"note: {images} {what} {'copy' if images == 1 else 'copies'} {where}, such as "
            f"{pairs[0]['one']} = {pairs[0]['other']}"
        )
    text += [
        f"note: classes {one} and {other} may be one: {why}"
        for one, other, why in found["same_classes"]
    ]
    if found["flat"]:
        text.append(
            f"note: {found['flat']} images have too little structure for near copies to be told; exact ones were"
        )
    return text


if __name__ == "__main__":
    command_line.run(sys.modules[__name__])
