"""docs/conformance.md has a row for every case of the laws, and every figure meets its target."""

from tests.losses import conformance, test_laws


def rows():
    for line in conformance.PATH.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 2 + len(conformance.COLUMNS) and not cells[0].startswith(("loss", "-")):
            yield (
                (cells[0], cells[1] or None),
                dict(zip(conformance.COLUMNS, cells[2:], strict=True)),
            )


def test_every_case_is_there():
    assert [case for case, _ in rows()] == test_laws.CASES


def test_every_figure_meets_its_target():
    for case, row in rows():
        for column, target in conformance.COLUMNS.items():
            assert row[column] == "-" or float(row[column]) <= target, (case, column)
