"""CSV files as people make them: any of three delimiters, any case of the header, UTF-8 or UTF-16 by its mark."""

import csv
import io
import os
import re
from collections.abc import Sequence

from dml_jax.errors import UserError

Row = dict[str, str]
DELIMITERS = (",", ";", "\t")
# What files begin with that are taken for CSV files.
_MAGIC = {
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"\x93NUMPY": "a NumPy array",
    b"PAR1": "a Parquet file",
    b"%PDF": "a PDF document",
    b"\xd0\xcf\x11\xe0": "an Excel workbook",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89PNG": "a PNG image",
}


def read_list(
    path: str | os.PathLike[str], required: Sequence[str], optional: Sequence[str] = ()
) -> tuple[list[Row], list[str]]:
    """Reads the rows of a CSV file whose first line names the columns; returns (rows, columns in lower case).

    The delimiter is a comma, a semicolon or a tab. Spaces around values are left out.

    Args:
      path: of the file.
      required: columns that there must be, with a value in each row.
      optional: columns that there may be, for errors.

    Raises:
      UserError: a file of another kind or encoding, a column that is missing or comes twice, no row, a row with a value
        missing or with more values than columns; the error names the line.

    Example:
      >>> import pathlib, tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = pathlib.Path(folder, "l.csv").write_text("Path; Label\\na.png; bee\\n")
      ...     read_list(f"{folder}/l.csv", ("path", "label"))[0]
      [{'path': 'a.png', 'label': 'bee'}]
    """
    name = os.fspath(path)
    text = _text(name)
    header = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(DELIMITERS, key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        lines = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise UserError(f"{name}, line {reader.line_num}: {error}") from None
    columns = [cell.strip().lower() for cell in lines[0][1]] if lines else []
    missing = [column for column in required if column not in columns]
    if missing:
        plural = "s" * (len(required) > 1)
        others = f"; it may name {', '.join(optional)}, too" if optional else ""
        accepted = f"a CSV file whose first line names the column{plural} {' and '.join(required)} is accepted{others}"
        cells = [row for _, row in lines]
        if len(missing) == len(required) and _begins_with_values(cells):
            raise UserError(
                f"{name} seems to lack the line with the names of its columns: it begins with "
                f"{delimiter.join(cells[0])!r}; {accepted}"
            )
        raise UserError(f"{name} has the columns {', '.join(columns) or '(none)'}; {accepted}")
    twice = next((c for i, c in enumerate(columns) if c and c in columns[:i]), None)
    if twice is not None:
        raise UserError(f"{name} has two columns {twice!r}; one is accepted")
    rows = [_row(name, number, cells, columns, required) for number, cells in lines[1:]]
    if not rows:
        raise UserError(f"{name} has no row below the names of its columns")
    return rows, columns


def _begins_with_values(lines: Sequence[Sequence[str]]) -> bool:
    """Returns True where the first line holds values as the lines below it do, and no names of columns."""
    if not lines:
        return False
    first, *others = lines
    for i, cell in enumerate(cell.strip() for cell in first):
        # A path or a number; or a text that comes again, as the name of a class does.
        if re.search(r"[/\\]|\.(jpe?g|png|webp|bmp|gif|tiff?)$|^[\d.]+$", cell, re.I):
            return True
        if cell and any(i < len(row) and row[i].strip() == cell for row in others):
            return True
    return False


def _text(name: str) -> str:
    with open(name, "rb") as file:
        content = file.read()
    for magic, kind in _MAGIC.items():
        if content.startswith(magic):
            raise UserError(f"{name} is {kind}; a CSV file is accepted")
    if content[257:262] == b"ustar":
        raise UserError(f"{name} is a tar archive; a CSV file is accepted")
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        expected = "UTF-16" if encoding == "utf-16" else "UTF-8"
        raise UserError(
            f"{name}, line {line}: byte 0x{content[error.start]:02x} is no {expected} (it may be Latin-1, as "
            "spreadsheets save it); a CSV file in UTF-8 or UTF-16 is accepted"
        ) from None
    if "\0" in text:
        raise UserError(
            f"{name} is no text: it has zero bytes; a CSV file in UTF-8 or UTF-16 is accepted"
        )
    return text


def _row(
    name: str, number: int, cells: Sequence[str], columns: Sequence[str], required: Sequence[str]
) -> Row:
    values = [cell.strip() for cell in cells]
    surplus = values[len(columns) :]
    if any(surplus):
        raise UserError(
            f"{name}, line {number} has {len(values)} values for {len(columns)} columns, {surplus[0]!r} among the "
            'surplus; a value that holds the delimiter is written in quotes, as in "a,b"'
        )
    row = dict(zip(columns, [*values, *[""] * (len(columns) - len(values))], strict=False))
    lacking = [column for column in required if not row[column]]
    if lacking:
        raise UserError(f"{name}, line {number} lacks a {' and a '.join(lacking)}")
    return row
