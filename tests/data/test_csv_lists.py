"""CSV files as people make them: what is read, and what is refused in one line."""

import io
import zipfile

import pytest

from dml_jax import UserError
from dml_jax.data.csv_lists import read_list

WANT = [{"path": "a.png", "label": "bee"}, {"path": "b, c.png", "label": "cat"}]
PLAIN = 'path,label\na.png,bee\n"b, c.png",cat\n'


@pytest.mark.parametrize(
    "content",
    [
        PLAIN.encode(),
        PLAIN.encode("utf-8-sig"),
        PLAIN.encode("utf-16"),
        PLAIN.replace("\n", "\r\n").encode(),
        b'Path, Label\na.png, bee\n"b, c.png", cat\n',
        b"path;label\na.png;bee\nb, c.png;cat\n",
        b"PATH\tLABEL\na.png\tbee\nb, c.png\tcat\n",
        b'\npath,label,\na.png,bee,\n\n"b, c.png",cat,\n',
    ],
)
def test_what_is_read(tmp_path, content):
    (tmp_path / "list.csv").write_bytes(content)
    rows, columns = read_list(tmp_path / "list.csv", ("path", "label"))
    assert [{k: row[k] for k in ("path", "label")} for row in rows] == WANT
    assert [c for c in columns if c] == ["path", "label"]


def archive():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        opened.writestr("a.csv", PLAIN)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (archive(), "is a zip archive; a CSV file is accepted"),
        ("path,label\na.png,Bär\n".encode("latin-1"), "line 2: byte 0xe4 is no UTF-8 .*Latin-1"),
        (b"path,label\na\0b,c\n", "is no text: it has zero bytes"),
        (b"path,class\na,b\n", "has the columns path, class; .* the columns path and label"),
        (b"a.png,bee\nb.png,ant\n", "lack the line .* begins with 'a.png,bee'; .* path and label"),
        (b"x,bee\ny,ant\nz,bee\n", "seems to lack the line .* begins with 'x,bee'"),
        (b"image,class\na.png,bee\nb.png,bee\n", "has the columns image, class; .* path and label"),
        (b"", r"has the columns \(none\)"),
        (b"path,label\n", "has no row below"),
        (b"path,label,label\na,b,c\n", "has two columns 'label'"),
        (b"path,label\na.png,bee,wasp\n", "line 2 has 3 values for 2 columns, 'wasp' among the surplus"),
        (b"path,label\n\na.png,\n", "line 3 lacks a label"),
        (b'path,label\n"a.png,bee\n', "line 2|line 3"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path, content, message):
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_list(tmp_path / "list.csv", ("path", "label"))
    assert "\n" not in str(error.value) and "list.csv" in str(error.value)
