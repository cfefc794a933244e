"""Looks at data before they are trained on: `dml inspect --path=FOLDER_OR_CSV`, or `dml inspect --config=NAME`.

Says for each split how many images and classes there are, how large classes and images are, and what is wrong with the
files: missing, empty, no images or cut off, copies within a class, across classes and across splits. Every image is
decoded; `--headers` reads their headers alone, which is faster and does not see images that are cut off. `--json`
writes what was found to a file, with the paths of all files of which a line names the first.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from dml_jax import command_line, config_files, data, run_folder
from dml_jax import config as configs
from dml_jax.console import log, watched
from dml_jax.data.base import SPLITS
from dml_jax.data.datasets import folder
from dml_jax.errors import UserError
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
    found = inspected(config, decode=not options.headers)
    log("\n".join(lines(found)))
    if place is not None:
        place.write_text(
            json.dumps(found, indent=2) + "\n", encoding="utf-8", errors="surrogateescape"
        )


def inspected(config: Any, *, decode: bool = True) -> dict[str, Any]:
    """Returns what is known of the splits of a configuration's data.

    Args:
      config: `data` and `seed` are used.
      decode: True decodes every image.

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
    names = {split: set(source.class_names) for split, source in splits.items()}
    shared = {
        f"{a} and {b}": sorted(names[a] & names[b])
        for i, a in enumerate(splits)
        for b in list(splits)[i + 1 :]
        if names[a] & names[b]
    }
    path = configs.plain(config.data).get("path")
    findings = data.scan(
        list(splits.values()), decode=decode, threads=os.cpu_count() or 1, watch=_watched
    )
    return {
        "splits": {split: _numbers(source) for split, source in splits.items()},
        "shared_classes": shared,
        "findings": findings.lines(),
        "files": dataclasses.asdict(findings),
        "scanned": len({path for source in splits.values() for path, _ in data.paths_of(source)}),
        "decoded": decode,
        "other_files": folder.other_files(path) if config.data.name == "folder" else {},
    }


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
    if not found["scanned"]:
        text.append("the images are in no files of their own, and were not looked at")
    elif found["decoded"]:
        text.append(f"{files} looked at and decoded")
    else:
        text.append(f"{files} looked at by the header alone: an image that is cut off was not seen")
    text += [f"note: {line}" for line in found["findings"]]
    for what, files in found["other_files"].items():
        text.append(f"note: {what}: {files['count']}, such as {files['first']}")
    return text


if __name__ == "__main__":
    command_line.run(sys.modules[__name__])
