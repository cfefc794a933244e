"""Tables of results, for the terminal and for a README."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dml_jax import names
from dml_jax.errors import UserError
from dml_jax.evaluation.metrics import table as known

STYLES = ("text", "markdown")


def format_table(
    rows: Mapping[str, Mapping[str, Any]], metrics: Sequence[str], *, style: str = "text"
) -> str:
    """Formats a table with a line per row and a column per metric, four decimals, aligned in both styles.

    Metrics that the library knows are headed by their short titles, others by the names given; R@1 is left out where it
    repeats P@1 (`without_repeats`). What
    a row lacks is a dash; what is not one number is three dots. `text` is for the terminal; `markdown` prints the
    best value of each metric that the library knows in bold where there are rows to compare (all that are
    equal as printed).

    Args:
      rows: values by metric, by the name of the row.
      metrics: the columns, in order.
      style: `text` or `markdown`.

    Raises:
      UserError: no rows, or an unknown style.

    >>> print(format_table({"mine": {"recall_at_1": 0.5}}, ["recall_at_1", "map_at_r"]))
             R@1  MAP@R
    -------------------
    mine  0.5000      -
    """
    names.resolve("style", dict.fromkeys(STYLES), style)
    if not rows:
        raise UserError("a table of no rows; accepted: at least one")
    metrics = without_repeats(metrics, rows)
    head = ["", *(title(metric) for metric in metrics)]
    body = [[name, *(cell(row.get(m)) for m in metrics)] for name, row in rows.items()]
    if style == "markdown":
        head[0] = " "
        for column, metric in enumerate(metrics, start=1):
            better = _better(metric)
            if len(body) == 1 or not better:
                continue
            numbers = [line[column] for line in body if line[column] not in ("-", "nan", "...")]
            numbers.sort(key=float, reverse=better == "high")
            best = numbers[0] if numbers else None
            for line in body:
                line[column] = f"**{best}**" if line[column] == best else line[column]
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    # At least three: a Markdown column's rule is "---" or longer.
    widths = [max(3, width) for width in widths]

    def aligned(line: Sequence[str]) -> list[str]:
        return [line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]

    if style == "text":
        lines = ["  ".join(aligned(line)) for line in [head, *body]]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(
        f"| {' | '.join(line)} |" for line in [aligned(head), rule, *map(aligned, body)]
    )


def without_repeats(metrics: Sequence[str], rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns the metrics without R@1 where P@1 is among them and is the same number.

    Args:
      metrics: names, which may begin with that of a split.
      rows: values by metric, by the name of the row.

    >>> without_repeats(["precision_at_1", "recall_at_1"], {"mine": {"precision_at_1": 0.5, "recall_at_1": 0.5}})
    ['precision_at_1']
    """

    def repeats(metric: str) -> bool:
        begin = metric.removesuffix("recall_at_1")
        other = f"{begin}precision_at_1"
        return (
            metric != begin
            and other in metrics
            and all(row.get(metric) == row.get(other) for row in rows.values())
        )

    return [metric for metric in metrics if not repeats(metric)]


def title(metric: str) -> str:
    """Returns the short title of a metric that the library knows, else its name.

    >>> title("recall_at_4"), title("loss")
    ('R@4', 'loss')
    """
    try:
        return known.get(metric).title
    except UserError:
        return metric


def is_of_pairs(metric: str) -> bool:
    """Returns True for a metric of verification.

    >>> is_of_pairs("eer"), is_of_pairs("recall_at_1"), is_of_pairs("loss")
    (True, False, False)
    """
    try:
        return known.get(metric).kind == "pairs"
    except UserError:
        return False


def _better(metric: str) -> str:
    try:
        return known.get(metric).better
    except UserError:
        return ""


def cell(value: Any) -> str:
    """Returns a value as tables print it.

    >>> cell(0.25), cell(None), cell([1, 2])
    ('0.2500', '-', '...')
    """
    if value is None:
        return "-"
    if np.ndim(value) or isinstance(value, Mapping):
        return "..."
    return "nan" if math.isnan(value) else f"{value:.4f}"
