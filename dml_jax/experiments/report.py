"""Reports a study: `dml report --workdir=DIR` writes tables, figures and one page to DIR/report.

Tables are Markdown, LaTeX and CSV; figures PNG and PDF; report.html is one page without network in which runs are
compared. A star is where fewer seeds are in than were asked for.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence

from dml_jax import command_line, csv_files, run_folder
from dml_jax.console import log
from dml_jax.errors import UserError
from dml_jax.experiments import figures, tables
from dml_jax.experiments.groups import Group, groups_of
from dml_jax.experiments.page import page
from dml_jax.experiments.results import load_results
from dml_jax.experiments.run import STUDY
from dml_jax.experiments.study import Study, group_name, load_study


def add_options(parser: command_line.Parser) -> None:
    """Adds the options of this command.

    Args:
      parser: of the command.
    """
    parser.add_workdir("the folder of the study")
    parser.add_argument(
        "--study",
        metavar="NAME|FILE.py[:ARGUMENTS]",
        help="the study; by default the one that ran there",
    )
    parser.add_argument(
        "--out",
        type=command_line.path,
        metavar="FOLDER",
        help="where the report goes; by default WORKDIR/report",
    )


def main(options: argparse.Namespace) -> None:
    """Runs the command.

    Args:
      options: those of the command line.
    """
    workdir = pathlib.Path(options.workdir)
    spec = options.study
    if spec is None:
        file = workdir / STUDY
        if not file.is_file():
            raise UserError(
                f"there is no {file}; accepted: the folder of a study, or --study=FILE.py with it"
            )
        spec = json.loads(file.read_text(encoding="utf-8"))["spec"]
    out = run_folder.create(options.out or workdir / "report", "--out")
    log(write(load_study(spec), workdir, out))
    log(f"written to {out}: report.html, report.md, tables (.md, .tex, .csv), figures (.png, .pdf)")


def write(study: Study, workdir: pathlib.Path, out: pathlib.Path) -> str:
    """Writes the report of a study; returns a sentence on what is in it.

    Args:
      study: what was to be run.
      workdir: its folder.
      out: where the report goes.

    Raises:
      UserError: no study has run there, or groups have the same place in a table or figure.
    """
    groups = groups_of(study, load_results(workdir))
    done, asked = sum(len(g.results) for g in groups), len(study.cells)
    missing = [
        f"{g.name} ({g.asked - len(g.results)} of {g.asked})"
        for g in groups
        if len(g.results) < g.asked
    ]
    said = f"{done} of {asked} cells are finished."
    if missing:
        said += f" Missing: {'; '.join(missing[:20])}{' and others' if len(missing) > 20 else ''}."
    parts = []
    for table in study.tables:
        found = tables.filled(table, groups, study.published)
        text = tables.as_markdown(found)
        parts.append((table.title or table.name, text))
        (out / f"{table.name}.md").write_text(text + "\n", encoding="utf-8")
        (out / f"{table.name}.tex").write_text(tables.as_latex(found) + "\n", encoding="utf-8")
        rows = tables.as_rows(found)
        csv_files.write_rows(out / f"{table.name}.csv", list(rows[0]) if rows else [], rows)
    if study.reference is not None:
        parts += _differences(study, groups)
    pictures = [file for figure in study.figures for file in figures.draw(figure, groups, out)]
    shown = [file for file in pictures if file.suffix == ".png"]
    lines = [f"# {study.title}", study.text, said]
    lines += [part for heading, table in parts for part in (f"## {heading}", table)]
    lines += [f"![{file.stem}]({file.name})" for file in shown]
    (out / "report.md").write_text("\n\n".join(filter(None, lines)) + "\n", encoding="utf-8")
    note = " ".join(filter(None, (study.text, said)))
    (out / "report.html").write_text(
        page(study.title, note, groups, parts, shown), encoding="utf-8"
    )
    return said


def _differences(study: Study, groups: Sequence[Group]) -> list[tuple[str, str]]:
    name = group_name(study.reference or {})
    found = [group for group in groups if group.name == name]
    if not found:
        raise UserError(
            f"study {study.title!r} compares with {name!r}, which is none of its groups, such as {groups[0].name!r}"
        )
    names = list(dict.fromkeys(metric for table in study.tables for metric in table.metrics))
    heading = f"Above {name}, in pairs of seeds, with 95 % intervals"
    return [(heading, tables.differences(groups, found[0], names))]


if __name__ == "__main__":
    command_line.run(sys.modules[__name__])
