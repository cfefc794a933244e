"""docs/cross_table.md: it has all losses and miners, and a few of its cells are as it says."""

import pytest

from dml_jax import miners
from tests.losses import cross


def test_the_table_is_whole():
    rows = cross.read(cross.PATH.read_text())
    assert sorted(rows) == cross.names()
    for name, cells in rows.items():
        assert len(cells) == len(miners.available()), name
        assert all(cell in ("-", "batch only") or float(cell) <= 1e-5 for cell in cells), name


@pytest.mark.parametrize(
    ("name", "miner"),
    [("margin", "angular"), ("multi_similarity", "hdc"), ("proxy_anchor", "distance_weighted")],
)
def test_a_few_cells(name, miner):
    assert float(cross.measure(name, miner)) <= 1e-5


def test_a_loss_without_a_miner():
    assert cross.measure("vic_reg", "hdc") == "-"
