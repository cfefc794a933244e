"""docs/conformance.md has a row for every loss and kind of miner, and every figure meets its target."""

import pytest

from tests.losses import conformance, table, test_laws
from tests.losses.conformance import CASES, COLUMNS

TEXT = conformance.PATH.read_text()
ROWS = conformance.read(TEXT)


def test_every_case_is_there():
    assert list(ROWS) == CASES
    assert {name for name, _ in CASES} == {*table.LOSSES, *table.APART}
    # The laws run on one of each kind of miner and not on every combination; those are among the rows.
    assert set(test_laws.CASES) <= set(CASES)


@pytest.mark.parametrize("column", COLUMNS)
def test_every_figure_meets_its_target(column):
    for case, row in ROWS.items():
        if COLUMNS[column].reason(*case):
            assert row[column] == "-", (case, column)
        else:
            assert float(row[column]) <= COLUMNS[column].target, (case, column)


def test_the_page_is_what_its_figures_make():
    assert conformance.page(ROWS) == TEXT


def test_a_figure_without_reason_or_beyond_its_target_fails():
    line = next(x for x in TEXT.splitlines() if x.startswith("| nt_xent |  |"))
    figure = line.split(" | ")[2]
    wrong = conformance.read(TEXT.replace(line, line.replace(figure, "1.0e-03", 1)))
    assert float(wrong["nt_xent", None]["PML 2.9"]) > COLUMNS["PML 2.9"].target
    assert COLUMNS["PML 2.9"].reason("nt_xent", None) is None
    assert COLUMNS["PML 2.9"].reason("pnp", "batch_hard") and COLUMNS["PML 2.9"].reason(
        "roadmap", None
    )
    assert COLUMNS["PML 2.9"].reason("pnp", None) is None
