"""What mkdocs does to the pages: the tables of docs/losses.md become the catalogue, a section for each loss."""

import pathlib
import re
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import formulas

DOCS = pathlib.Path(__file__).resolve().parents[1]
CELL = re.compile(r"(?<!\\)\|")
RESULT = re.compile(r"\(\.\./benchmarks/results/(\w+)\.md\)")
ROW = re.compile(r"^\| `(\w+)` \|")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    if page.file.src_uri == "losses.md":
        return catalogue(markdown)
    # In the repository a result is read where its script left it; on the site there is a page of it.
    return RESULT.sub(r"(benchmarks_\1.md)", markdown)


def catalogue(markdown: str) -> str:
    """Turns each row of the tables into a section: formula, picture, and the other columns."""
    lines: list[str] = []
    header: list[str] = []
    for line in markdown.splitlines():
        if line.startswith("| loss |"):
            header = cells(line)
        elif header and line.startswith("|---"):
            continue
        elif header and ROW.match(line):
            lines += section(dict(zip(header, cells(line), strict=True)))
        else:
            header = []
            lines.append(line)
    return "\n".join(lines)


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in CELL.split(row)[1:-1]]


def section(row: dict[str, str]) -> list[str]:
    name = row["loss"].strip("`")
    hyper = [default.split("=")[0] for default in re.findall("`([^`]*)`", row["defaults"])]
    lines = [f"### `{name}` {{#{name}}}", ""]
    lines += [f"**Formula:** {formula(row['formula'], hyper)}", ""]
    lines += ['<div class="loss" markdown>', ""]
    if (DOCS / "assets" / "losses" / f"{name}.svg").exists():
        alt = f"The value of {name} against the similarity of a pair"
        lines += ['<div class="loss-picture" markdown>', ""]
        lines += [f"![{alt}](assets/losses/{name}.svg)", "", "</div>", ""]
    for column, title in (
        ("paper", "Paper"),
        ("defaults", "Hyper-parameters"),
        ("distance", "Distance"),
        ("reducer", "Reducer"),
        ("cost", "Cost"),
        ("needs", "Needs"),
    ):
        if row.get(column, "") not in ("", "-"):
            lines += [f"- {title}: {row[column]}"]
    lines += [f"- [Reference][dml_jax.losses.{name}]", "", "</div>", ""]
    return lines


def formula(cell: str, hyper: list[str]) -> str:
    """The formulas of a cell as MathML; what is English stays."""

    def drawn(match: re.Match[str]) -> str:
        try:
            return formulas.mathml(match.group(1), hyper)
        except formulas.NotAFormulaError:
            return match.group()

    return re.sub("`([^`]*)`", drawn, cell)
