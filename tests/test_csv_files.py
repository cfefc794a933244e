"""CSV files: what is written comes back, and a file is whole or as it was."""

import os

import pytest

from dml_jax import csv_files

ROWS = [{"name": "a,b", "value": 1.5}, {"name": 'say "x"\nand go', "more": "é"}, {}]
COLUMNS = ("name", "value", "more")


def test_what_is_written_comes_back(tmp_path):
    path = tmp_path / "table.csv"
    csv_files.write_rows(path, COLUMNS, ROWS)
    want = [{c: str(row.get(c, "")) for c in COLUMNS} for row in ROWS]
    assert csv_files.read_rows(path) == want
    raw = path.read_bytes()
    assert raw.startswith(b"name,value,more\n") and b"\r" not in raw
    csv_files.write_rows(str(path), COLUMNS, [])
    assert csv_files.read_rows(path) == []
    assert path.read_text() == "name,value,more\n"


def test_no_cell_is_a_formula(tmp_path):
    """Numbers stay what they are, as texts too: a table that is read is written again."""
    cells = ["=1+1", "+a", "-a", "@a", "\t=1", "a=1", "-0.5", "+3", "", -0.5]
    csv_files.write_rows(tmp_path / "t.csv", ["c", "d"], ({"c": c, "d": 0} for c in cells))
    found = [row["c"] for row in csv_files.read_rows(tmp_path / "t.csv")]
    assert found == ["'=1+1", "'+a", "'-a", "'@a", "'\t=1", "a=1", "-0.5", "+3", "", "-0.5"]


def test_a_file_is_whole_or_as_it_was(tmp_path, monkeypatch):
    """An error on the way, and a reader in between."""
    path = tmp_path / "table.csv"
    csv_files.write_rows(path, COLUMNS, ROWS)
    before = path.read_bytes()

    def some():
        yield ROWS[0]
        assert path.read_bytes() == before  # a reader sees the old table
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        csv_files.write_rows(path, COLUMNS, some())
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="not in fieldnames"):
        csv_files.write_rows(path, ("name",), ROWS)  # a value without a column is not dropped
    assert path.read_bytes() == before
    renamed = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: renamed.append((a, b)) or replace(a, b))
    csv_files.write_rows(path, COLUMNS, ROWS[:1])
    assert len(renamed) == 1 and renamed[0][1] == path
    assert os.listdir(tmp_path) == ["table.csv"]
