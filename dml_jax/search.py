"""Searches by image: `dml search --index=DIR [--k=10] [--html=FILE] IMAGE ...`.

Embeds each image with the model that wrote the folder `--index` (`dml embed`) and prints what lies
nearest there, by exact search: rank, cosine similarity, class where it is known, path. `--html` shows the results
as a page. A query that is among the indexed images finds itself. `--workdir` says where the run is now, if it was
moved.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from dml_jax import command_line, data, evaluation, run_folder
from dml_jax.console import log
from dml_jax.embed import ABOUT, EMBEDDINGS, ITEMS, embedded, for_files
from dml_jax.errors import UserError
from dml_jax.evaluate import restored
from dml_jax.report import page as pages
from dml_jax.training import build
from dml_jax.training import state as states


class Stored(NamedTuple):
    """What `dml embed` wrote."""

    embeddings: Float[np.ndarray, "n d"]
    items: list[dict[str, Any]]
    about: dict[str, Any]


def add_options(parser: command_line.Parser) -> None:
    """Adds the options of this command.

    Args:
      parser: of the command.
    """
    parser.add_argument("images", nargs="*", type=command_line.path, help="what is searched for")
    parser.add_argument(
        "--index",
        type=command_line.path,
        required=True,
        metavar="FOLDER",
        help="a folder that dml embed wrote",
    )
    parser.add_workdir("the folder of the run; by default where it was", required=False)
    parser.add_argument("--k", type=int, default=10, help="how many results (10)")
    parser.add_argument(
        "--html", type=command_line.path, metavar="FILE", help="a file for a page of the results"
    )
    parser.add_argument(
        "--backend", default="jax", help="what searches: jax (the default) or faiss"
    )


def read(folder: str) -> Stored:
    """Reads the embeddings of a folder; raises `UserError` where something is missing, damaged or does not fit."""
    where = pathlib.Path(folder)
    for name in (EMBEDDINGS, ITEMS, ABOUT):
        if not (where / name).is_file():
            raise UserError(
                f"there is no {where / name}; a folder that dml embed wrote is accepted"
            )
    try:
        embeddings = np.load(where / EMBEDDINGS)
        lines = (where / ITEMS).read_text(encoding="utf-8").splitlines()
        items = [json.loads(line) for line in lines]
        about = json.loads((where / ABOUT).read_text(encoding="utf-8"))
    except (ValueError, EOFError) as error:
        raise UserError(f"{where} is damaged ({error}); embed again") from None
    if len(items) != len(embeddings):
        raise UserError(
            f"{where} has {len(embeddings)} embeddings and {len(items)} lines of items; embed again"
        )
    return Stored(embeddings, items, about)


def answers(
    stored: Stored,
    similarities: Float[np.ndarray, "q k"],
    found: np.ndarray,
    queries: Sequence[str],
) -> str:
    """Formats a table for each query."""
    parts = []
    for query, near, rows in zip(queries, similarities, found, strict=True):
        lines = [("", "similarity", "class", "image")]
        for rank, (value, row) in enumerate(zip(near, rows, strict=True), start=1):
            item = stored.items[row]
            place = item.get("path", item["name"])
            lines.append((str(rank), f"{value:.4f}", item.get("class", "-"), place))
        widths = [max(len(line[i]) for line in lines) for i in range(3)]
        parts.append(query)
        parts += [
            f"{a:>{widths[0]}}  {b:>{widths[1]}}  {c:<{widths[2]}}  {d}" for a, b, c, d in lines
        ]
        parts.append("")
    return "\n".join(parts).rstrip()


def write_results(
    path: str,
    stored: Stored,
    similarities: Float[np.ndarray, "q k"],
    found: np.ndarray,
    source: data.Source,
    channels: int,
) -> pathlib.Path:
    """Writes the results as a page; images that are not files are named, not shown."""
    first = len(stored.items)
    shown: dict[int, pages.Item] = {}
    for i, (near, rows) in enumerate(zip(similarities, found, strict=True)):
        neighbours = list(zip(rows.tolist(), near.tolist(), strict=True))
        shown[first + i] = pages.Item(source.name(i), neighbours=neighbours)
    for row in np.unique(found).tolist():
        item = stored.items[row]
        shown[row] = pages.Item(item.get("path", item["name"]), item.get("class", ""))

    def image(key: int) -> np.ndarray | None:
        if key >= first:
            return source[key - first]["image"]
        place = stored.items[key].get("path")
        if place is None or not pathlib.Path(place).is_file():
            return None
        return data.files([place], channels=channels)[0]["image"]

    queries = range(first, first + len(source))
    note = f"The {found.shape[1]} nearest of {first} images, by cosine similarity."
    return pages.write_page(
        path,
        title="Search by image",
        lead=f"Searched among {stored.about['of']}. Click a query to see its results alone.",
        galleries=[pages.Gallery("Queries", note, queries)],
        items=shown,
        pictures=pages.thumbnails(shown, image),
        unit="similarity",
    )


def search(options: Any, paths: Sequence[str]) -> None:
    """Answers the queries of the command line."""
    stored = read(options.index)
    if options.html:
        run_folder.create(pathlib.Path(options.html).parent, "--html")
    about: Mapping[str, Any] = stored.about
    workdir = options.workdir or about["workdir"]
    run = run_folder.read_config(workdir)
    model = build.model(run.model)
    source = data.files(paths, channels=model.channels)
    config = for_files(run, model, len(source))
    with config.unlocked():
        # A query that cannot be read has no answer.
        config.data.on_error = "raise"
    with jax.set_mesh(states.make_mesh(config.train.devices)):
        *_, variables = restored(workdir, str(about["step"]), model)
        # Folders written before models had several embeddings do not say which.
        queries, _ = embedded(config, model, variables, source, about.get("embedding", "embedding"))
        far, found = evaluation.neighbours(
            queries, stored.embeddings, options.k, distance="cosine", backend=options.backend
        )
    log(answers(stored, 1 - far, found, paths))
    if options.html:
        page = write_results(options.html, stored, 1 - far, found, source, model.channels)
        log(f"\nwritten: {page}")


def main(options: argparse.Namespace) -> None:
    """Runs the command.

    Args:
      options: those of the command line.
    """
    if not options.images:
        raise UserError("no image to search for; the paths of one or more image files are accepted")
    search(options, options.images)


if __name__ == "__main__":
    command_line.run(sys.modules[__name__])
