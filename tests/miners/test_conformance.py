"""docs/conformance_miners.md has all miners, and two of its rows, drawn anew in every run, are what is measured
(`make conformance`: all)."""

import pytest

from tests import draws
from tests.miners import conformance, table

ROWS = conformance.read(conformance.PATH.read_text())
NAMES = sorted(table.ALL)


def test_every_miner_is_there_and_agrees_with_itself():
    assert list(ROWS) == NAMES
    assert all(cells[1:] == ["0"] * 4 for cells in ROWS.values())


@pytest.mark.parametrize("name", draws.some(NAMES, 2, "miners"))
def test_a_row_is_what_is_measured(name):
    draws.tell()
    assert conformance.measure(name) == ROWS[name]


def test_another_miner_is_another_row(monkeypatch):
    """The margins of a variant in the place of the defaults: other pairs, and not those of PML."""
    wide = table.ALL["pair_margin/wide"]
    monkeypatch.setitem(table.ALL, "pair_margin", wide)
    assert conformance.against_pml("pair_margin") != ROWS["pair_margin"][0]
