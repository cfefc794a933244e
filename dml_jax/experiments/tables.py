"""Tables of a study: mean and standard deviation over seeds, as Markdown, LaTeX and CSV."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dml_jax.errors import UserError
from dml_jax.evaluation import metrics
from dml_jax.experiments.groups import Group, by_values
from dml_jax.experiments.statistics import Summary, paired
from dml_jax.experiments.study import Published, Table, group_name


@dataclass(frozen=True)
class Filled:
    """A table with its numbers.

    Attributes:
      table: what it is.
      rows: the values of the factor in the rows.
      columns: the value of the factor in the columns ("" for none) and the name of the number.
      cells: a summary by row and column; None where there is no such group.
      published: what a paper reports, by row and column.
    """

    table: Table
    rows: Sequence[Any]
    columns: Sequence[tuple[Any, str]]
    cells: dict[tuple[Any, tuple[Any, str]], Summary | None]
    published: dict[tuple[Any, tuple[Any, str]], Published]

    @property
    def shown(self) -> list[tuple[tuple[Any, str], bool]]:
        """The columns as they are printed, each with whether it is the published one."""
        reported = {column for _, column in self.published}
        return [
            (column, is_published)
            for column in self.columns
            for is_published in ((False, True) if column in reported else (False,))
        ]


def filled(table: Table, groups: Sequence[Group], published: Sequence[Published] = ()) -> Filled:
    """Fills a table.

    Args:
      table: what it is.
      groups: of the study.
      published: numbers of papers.

    Raises:
      UserError: two groups have the same place in it.
    """
    kept = [group for group in groups if group.matches(table.where)]
    found = by_values(kept, f"table {table.name!r}", table.rows, table.columns)
    rows = list(dict.fromkeys(key[0] for key in found))
    across = list(dict.fromkeys(key[1] for key in found)) if table.columns else [""]
    columns = [(value, name) for value in across for name in table.metrics]
    by_group = {(group_name(p.factors), p.value): p for p in published}
    cells, reported = {}, {}
    for row in rows:
        for column in columns:
            group = found.get((row, column[0]) if table.columns else (row,))
            cells[row, column] = None if group is None else group.summary(column[1])
            if group is not None and (group.name, column[1]) in by_group:
                reported[row, column] = by_group[group.name, column[1]]
    return Filled(table, rows, columns, cells, reported)


def title(name: str) -> str:
    """Returns a value's name as tables head it.

    Args:
      name: as `results.value` reads it.

    >>> title("best test/recall_at_1"), title("test/map_at_r"), title("epoch of best test/recall_at_1")
    ('R@1 (best epoch)', 'MAP@R', 'epoch of best R@1')
    """
    if name.startswith("epoch of best "):
        return f"epoch of best {title(name.removeprefix('epoch of best '))}"
    if name.startswith("best "):
        return f"{title(name.removeprefix('best '))} (best epoch)"
    if " at best " in name:
        what, _, best = name.partition(" at best ")
        return f"{title(what)} at the best {title(best)}"
    split, _, metric = name.rpartition("/")
    try:
        called = metrics.get(metric).title
    except UserError:
        called = metric
    return called if split in ("test", "") else f"{called}, {split}"


def as_markdown(found: Filled) -> str:
    """Returns the table with four decimals; a star is where fewer seeds are in than were asked for.

    Args:
      found: the table.
    """
    head = [found.table.rows, *(_head(*shown) for shown in found.shown)]
    lines = [_row(head), "|" + "---|" + "---:|" * len(found.shown)]
    for row in found.rows:
        cells = [
            _reported(found.published.get((row, c)))
            if is_published
            else _text(found.cells[row, c], c[1])
            for c, is_published in found.shown
        ]
        lines.append(_row([str(row), *cells]))
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _head(column: tuple[Any, str], is_published: bool) -> str:
    text = f"{column[0]} {title(column[1])}" if column[0] != "" else title(column[1])
    return f"{text}, published" if is_published else text


def _reported(number: Published | None) -> str:
    if number is None:
        return ""
    return f"{number.mean:.4f}{_spread(number.deviation, 4, '±')}"


def _spread(deviation: float, digits: int, sign: str) -> str:
    """Returns what follows a mean; nothing for one seed, or where a paper gives none."""
    return "" if math.isnan(deviation) else f" {sign} {deviation:.{digits}f}"


def _text(summary: Summary | None, name: str) -> str:
    if summary is None:
        return ""
    if not summary.by_seed:
        return "-"
    digits = 1 if name.startswith("epoch of") else 4
    spread = _spread(summary.deviation, digits, "±")
    return f"{summary.mean:.{digits}f}{spread}{'*' if summary.lacking else ''}"


def as_latex(found: Filled) -> str:
    """Returns the table as the papers print it: shares in percent with two decimals, the best of a column in bold.

    Args:
      found: the table.
    """
    best = {c: _best(found, c) for c in found.columns}
    head = " & ".join([_escaped(found.table.rows), *(_escaped(_head(*s)) for s in found.shown)])
    lines = [
        rf"\begin{{tabular}}{{l{'r' * len(found.shown)}}}",
        r"\toprule",
        head + r" \\",
        r"\midrule",
    ]
    for row in found.rows:
        cells = [
            _latex_reported(found.published.get((row, c)))
            if is_published
            else _latex(found.cells[row, c], c[1], row in best[c])
            for c, is_published in found.shown
        ]
        lines.append(" & ".join([_escaped(str(row)), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _best(found: Filled, column: tuple[Any, str]) -> list[Any]:
    """Returns the rows whose mean is the best of a column; none where it is not known what is better."""
    name = column[1].removeprefix("best ")
    try:
        better = metrics.get(name.rpartition("/")[2]).better
    except UserError:
        return []
    means = {row: s.mean for row in found.rows if (s := found.cells[row, column]) and s.by_seed}
    if better not in ("high", "low") or len(means) < 2:
        return []
    top = max(means.values()) if better == "high" else min(means.values())
    return [row for row, mean in means.items() if mean == top]


def _latex(summary: Summary | None, name: str, is_best: bool) -> str:
    if summary is None or not summary.by_seed:
        return "--"
    if name.startswith("epoch of"):
        return f"{summary.mean:.0f}"
    share = all(0 <= value <= 1 for value in summary.by_seed.values())
    scale = 100 if share else 1
    mean = f"{scale * summary.mean:.2f}"
    mean = rf"\mathbf{{{mean}}}" if is_best else mean
    spread = _spread(scale * summary.deviation, 2, r"\pm")
    return f"${mean}{spread}$" + ("*" if summary.lacking else "")


def _latex_reported(number: Published | None) -> str:
    if number is None:
        return "--"
    scale = 100 if 0 <= number.mean <= 1 else 1
    spread = _spread(scale * number.deviation, 2, r"\pm")
    return f"${scale * number.mean:.2f}{spread}$"


def _escaped(text: str) -> str:
    for sign in "&%#_":
        text = text.replace(sign, "\\" + sign)
    return text


def as_rows(found: Filled) -> list[dict[str, Any]]:
    """Returns a row for each cell of the table, for a CSV file.

    Args:
      found: the table.
    """
    reported = found.published
    return [
        {
            found.table.rows: row,
            **({found.table.columns: column[0]} if found.table.columns else {}),
            "value": column[1],
            "mean": summary.mean,
            "standard_deviation": summary.deviation,
            "seeds": len(summary.by_seed),
            "lacking": summary.lacking,
            "published": reported[row, column].mean if (row, column) in reported else "",
            "published_deviation": reported[row, column].deviation
            if (row, column) in reported
            else "",
        }
        for row in found.rows
        for column in found.columns
        if (summary := found.cells[row, column]) is not None
    ]


def differences(groups: Sequence[Group], reference: Group, names: Sequence[str]) -> str:
    """Returns a Markdown table of how much each group is above the reference, in pairs of seeds.

    Args:
      groups: of the study.
      reference: one of them.
      names: of the values.
    """
    lines = [_row(["group", *map(title, names), "pairs"]), "|---|" + "---:|" * (len(names) + 1)]
    for group in groups:
        if group.name == reference.name:
            continue
        cells, pairs = [], 0
        for name in names:
            apart = paired(group.summary(name), reference.summary(name))
            pairs = max(pairs, apart.pairs)
            half = "" if math.isnan(apart.half) else f" ± {apart.half:.4f}"
            cells.append("-" if math.isnan(apart.mean) else f"{apart.mean:+.4f}{half}")
        lines.append(_row([group.name, *cells, str(pairs)]))
    return "\n".join(lines)
