"""docs/conformance.md has a row for every loss and kind of miner, and every figure meets its target.

A few figures, drawn anew in every run, are measured again (`make conformance`: all).
"""

import pytest

from tests import draws
from tests.losses import conformance, table, test_laws
from tests.losses.conformance import CASES, COLUMNS

TEXT = conformance.PATH.read_text()
ROWS = conformance.read(TEXT)
DRAWN = [
    (column, *case)
    for column, about in COLUMNS.items()
    for case in draws.some([c for c in CASES if not about.reason(*c)], 1, column)
]


@pytest.mark.parametrize(("column", "name", "miner"), DRAWN)
def test_a_figure_is_what_is_measured(column, name, miner):
    draws.tell()
    fresh = conformance.measure((name, miner), [column])[column]
    assert float(fresh) <= COLUMNS[column].target
    assert conformance.agree(column, ROWS[name, miner][column], fresh), fresh


def test_another_figure_does_not_agree():
    """Figures of another size, and one where there is a reason for none; not those that round otherwise."""
    for column, about in COLUMNS.items():
        case = next(c for c in CASES if not about.reason(*c))
        figure = ROWS[case][column]
        assert conformance.agree(column, figure, figure)
        assert conformance.agree(column, figure, f"{2 * float(figure):.1e}")
        wrong = f"{100 * about.rounding + 100 * float(figure):.1e}"
        assert not conformance.agree(column, figure, wrong)
        assert not conformance.agree(column, wrong, figure)
        assert not conformance.agree(column, "-", figure)


def test_a_wrong_loss_does_not_agree(monkeypatch):
    """Temperature 0.0701 for PML's 0.07."""
    make = conformance.test_golden.evaluate
    wrong = lambda key: make(key, temperature=0.0701)
    monkeypatch.setattr(conformance.test_golden, "evaluate", wrong)
    fresh = conformance.measure(("nt_xent", None), ["PML 2.9"])["PML 2.9"]
    assert not conformance.agree("PML 2.9", ROWS["nt_xent", None]["PML 2.9"], fresh)


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
