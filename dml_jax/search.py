"""Searches by image: `python -m dml_jax.search --index=DIR [--k=10] [--html=FILE] IMAGE ...`.

Embeds each image with the model that wrote the folder `--index` (`python -m dml_jax.embed`) and prints what lies
nearest there, by exact search: rank, cosine similarity, class where it is known, path. `--html` shows the results
as a page. A query that is among the indexed images finds itself. `--workdir` says where the run is now, if it was
moved.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from jaxtyping import Float

from dml_jax import command_line, data, evaluation, run_folder
from dml_jax.console import log
from dml_jax.embed import ABOUT, EMBEDDINGS, ITEMS, embedded, for_files
from dml_jax.errors import UserError
from dml_jax.evaluate import restored
from dml_jax.report import page as pages
from dml_jax.training import build
from dml_jax.training import state as states

# What the command line holds, for `command_line.run`.
ACCEPTS: dict[str, Any] = {
    "required": {"index": "a folder that python -m dml_jax.embed wrote"},
    "positional": True,
}


class Stored(NamedTuple):
    """What `python -m dml_jax.embed` wrote."""

    embeddings: Float[np.ndarray, "n d"]
    items: list[dict[str, Any]]
    about: dict[str, Any]


def define_flags() -> None:
    """Defines the options of this command."""
    flags.DEFINE_string("index", None, "The folder of the embeddings.")
    flags.DEFINE_string("workdir", None, "The folder of the run; by default where it was.")
    flags.DEFINE_integer("k", 10, "How many results.")
    flags.DEFINE_string("html", None, "A file for a page of the results.")
    flags.DEFINE_string("backend", "jax", "What searches: jax or faiss.")


def read(folder: str) -> Stored:
    """Reads the embeddings of a folder; raises `UserError` where something is missing, damaged or does not fit."""
    where = pathlib.Path(folder).expanduser()
    for name in (EMBEDDINGS, ITEMS, ABOUT):
        if not (where / name).is_file():
            raise UserError(
                f"there is no {where / name}; a folder that python -m dml_jax.embed wrote is accepted"
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
        _, variables = restored(workdir, str(about["step"]), model)
        # Folders written before models had several embeddings do not say which.
        queries, _ = embedded(config, model, variables, source, about.get("embedding", "embedding"))
        far, found = evaluation.neighbours(
            queries, stored.embeddings, options.k, distance="cosine", backend=options.backend
        )
    log(answers(stored, 1 - far, found, paths))
    if options.html:
        page = write_results(options.html, stored, 1 - far, found, source, model.channels)
        log(f"\nwritten: {page}")


def main(*paths: str) -> None:
    if not paths:
        raise UserError("no image to search for; the paths of one or more image files are accepted")
    search(flags.FLAGS, paths)


if __name__ == "__main__":
    define_flags()
    command_line.run(main, **ACCEPTS)
