"""Searches by image: `dml search --index=DIR [--k=10] [--html=FILE] IMAGE ...`.

Embeds each image with the model that made the folder `--index` (`dml embed`) and prints what lies
nearest there, by exact search: rank, cosine similarity, class where it is known, path. `--html` shows the results
as a page. A query that is among the indexed images finds itself. The model is the one that is stored with the
index, or with `--workdir` that of a run.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from dml_jax import command_line, data, inference, run_folder
from dml_jax.console import log
from dml_jax.errors import UserError
from dml_jax.inference import MODEL, Encoder, Found, Index
from dml_jax.report import page as pages


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
    parser.add_workdir(
        "a run whose model is used; by default the one with the index", required=False
    )
    parser.add_argument("--k", type=int, default=10, help="how many results (10)")
    parser.add_argument(
        "--html", type=command_line.path, metavar="FILE", help="a file for a page of the results"
    )
    parser.add_argument(
        "--backend", default="jax", help="what searches: jax (the default) or faiss"
    )


def model_of(index: Index, folder: str, workdir: str | None) -> Encoder:
    """Returns the model that made an index: the one that is stored with it, or that of its run.

    Args:
      index: the index.
      folder: where it is.
      workdir: where the run is now; None: the model stored with the index, or the run where it was.

    Raises:
      UserError: neither is there.
    """
    stored = pathlib.Path(folder) / MODEL
    if workdir is None and stored.is_file():
        return inference.load(stored)
    about = index.about
    # Folders written before models had several embeddings do not say which.
    embedding = about.get("embedding", "embedding")
    return inference.load(workdir or about["workdir"], str(about["step"]), embedding=embedding)


def answers(found: Found, queries: Sequence[str]) -> str:
    """Formats a table for each query."""
    parts = []
    for query, near, items in zip(queries, found.similarities, found.items, strict=True):
        lines = [("", "similarity", "class", "image")]
        for rank, (value, item) in enumerate(zip(near, items, strict=True), start=1):
            place = str(item.get("path", item["name"]))
            lines.append((str(rank), f"{value:.4f}", item.get("class", "-"), place))
        widths = [max(len(line[i]) for line in lines) for i in range(3)]
        parts.append(query)
        parts += [
            f"{a:>{widths[0]}}  {b:>{widths[1]}}  {c:<{widths[2]}}  {d}" for a, b, c, d in lines
        ]
        parts.append("")
    return "\n".join(parts).rstrip()


def write_results(
    path: str, index: Index, found: Found, source: data.Source, channels: int
) -> pathlib.Path:
    """Writes the results as a page; images that are not files are named, not shown."""
    first = len(index)
    shown: dict[int, pages.Item] = {}
    for i, (near, rows) in enumerate(zip(found.similarities, found.rows, strict=True)):
        neighbours = list(zip(rows.tolist(), near.tolist(), strict=True))
        shown[first + i] = pages.Item(source.name(i), neighbours=neighbours)
    for row in np.unique(found.rows).tolist():
        item = index.items[row]
        shown[row] = pages.Item(item.get("path", item["name"]), item.get("class", ""))

    def image(key: int) -> np.ndarray | None:
        if key >= first:
            return source[key - first]["image"]
        place = index.items[key].get("path")
        if place is None or not pathlib.Path(place).is_file():
            return None
        return data.files([place], channels=channels)[0]["image"]

    queries = range(first, first + len(source))
    note = f"The {found.rows.shape[1]} nearest of {first} images, by cosine similarity."
    return pages.write_page(
        path,
        title="Search by image",
        lead=f"Searched among {index.about['of']}. Click a query to see its results alone.",
        galleries=[pages.Gallery("Queries", note, queries)],
        items=shown,
        pictures=pages.thumbnails(shown, image),
        unit="similarity",
    )


def readable(paths: Sequence[str], channels: int) -> list[str]:
    """Returns the paths of the images that can be decoded, and says which of the others cannot, and why.

    Args:
      paths: of the images.
      channels: that the model takes.

    Raises:
      UserError: none can be decoded.
    """
    bad: dict[str, str] = {}
    for path in paths:
        try:
            _ = data.files([path], channels=channels)[0]
        except data.DecodeError as error:
            bad[path] = f"{path} ({error.__cause__})"
        except UserError:
            bad[path] = f"{path} (it is not a file)"
    named = f"{len(bad)} of {len(paths)} images could not be decoded: {', '.join(bad.values())}"
    if len(bad) == len(paths):
        raise UserError(f"{named}; the paths of image files are accepted")
    if bad:
        log(named)
    return [path for path in paths if path not in bad]


def search(options: argparse.Namespace, paths: Sequence[str]) -> None:
    """Answers the queries of the command line."""
    index = Index.load(options.index)
    if options.html:
        run_folder.writable(options.html, "--html")
    model = model_of(index, options.index, options.workdir)
    paths = readable(paths, model.channels)
    queries = model.encode(list(paths), progress=True)
    found = index.search(queries, options.k, backend=options.backend)
    log(answers(found, paths))
    if options.html:
        source = data.files(paths, channels=model.channels)
        page = write_results(options.html, index, found, source, model.channels)
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
