"""One offline HTML page of a study: its runs in a table to sort and filter, their curves, its tables and figures."""

import base64
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from dml_jax.experiments.groups import Group
from dml_jax.experiments.results import Result

TEMPLATE = pathlib.Path(__file__).with_name("page.html")


def page(
    heading: str,
    note: str,
    groups: Sequence[Group],
    parts: Sequence[tuple[str, str]],
    figures: Sequence[pathlib.Path],
) -> str:
    """Returns the page.

    Args:
      heading: the study's title.
      note: what is missing, and what a reader has to know.
      groups: of the study.
      parts: (heading, table as Markdown) of each table.
      figures: PNG files, which are put into the page.
    """
    runs = [_run(group, result) for group in groups for result in group.results]
    content = {
        "heading": heading,
        "note": note,
        "runs": runs,
        "tables": [{"heading": head, "rows": _cells(text)} for head, text in parts],
        "figures": [
            {"name": file.stem, "picture": base64.b64encode(file.read_bytes()).decode()}
            for file in figures
        ],
    }
    # "<" would end the script; JSON has another way to write it.
    data = json.dumps(content).replace("<", "\\u003c")
    return TEMPLATE.read_text(encoding="utf-8").replace("__CONTENT__", data)


def _run(group: Group, result: Result) -> dict[str, Any]:
    rows = result.epochs
    names = dict.fromkeys(name for row in rows for name in row if "/" in name)
    return {
        "group": group.name,
        "seed": result.seed,
        "factors": {k: str(v) for k, v in group.factors.items()},
        "final": dict(result.final),
        "seconds": result.about.get("seconds"),
        "curves": {
            name: [[row["epoch"], row[name]] for row in rows if name in row and "epoch" in row]
            for name in names
            if name.partition("/")[0] in ("train", "val", "test")
        },
    }


def _cells(table: str) -> list[list[str]]:
    lines = [line.strip().strip("|").split("|") for line in table.splitlines()]
    return [[cell.strip() for cell in line] for i, line in enumerate(lines) if i != 1]
