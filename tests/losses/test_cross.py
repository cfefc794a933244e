"""docs/cross_table.md has all losses and miners, and a few of its cells, some of them drawn anew in every run, are
measured again (`make conformance`: all)."""

import pytest

from dml_jax import miners
from tests import draws
from tests.losses import cross

FIXED = [
    ("margin", "angular"),
    ("multi_similarity", "hdc"),
    ("proxy_anchor", "distance_weighted"),
    ("vic_reg", "hdc"),
]
DRAWN = draws.some(((n, m) for n in cross.names() for m in miners.available()), 2, "cross")


def test_the_table_is_whole():
    rows = cross.read(cross.PATH.read_text())
    assert sorted(rows) == cross.names()
    for name, cells in rows.items():
        assert len(cells) == len(miners.available()), name
        assert all(cell in ("-", "batch only") or float(cell) <= 1e-5 for cell in cells), name


def same(page, fresh):
    """A number stands for one within the target, a word for itself."""
    words = ("-", "batch only", "not finite")
    if page in words or fresh in words:
        return page == fresh
    return float(fresh) <= 1e-5


@pytest.mark.parametrize(("name", "miner"), FIXED + [c for c in DRAWN if c not in FIXED])
def test_cells_are_what_is_measured(name, miner):
    draws.tell()
    row = cross.read(cross.PATH.read_text())[name]
    assert same(row[miners.available().index(miner)], cross.measure(name, miner))


def test_another_cell_is_not_the_same():
    assert same("-", "-") and same("2e-07", "0")
    for fresh in ("-", "not finite", "2e-05", "batch only"):
        assert not same("2e-07", fresh)
    assert not same("-", "0") and not same("batch only", "-")
