"""Galleries, curves and tables."""

import csv

import numpy as np
import pytest
from PIL import Image

from dml_jax.report import fonts, format_table, retrieval_gallery, training_curves

GREEN, RED = (20, 117, 58), (179, 32, 31)


def share(path, colour):
    """The share of the picture's dots that have this colour."""
    dots = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return np.mean(np.abs(dots - np.array(colour)[None, None, :]).max(axis=2) < 8)


def grey(i):
    return np.full((10 + i % 3, 12, 1), 40 + i % 100, np.uint8)


LABELS = np.arange(30) % 5
FOUND = np.arange(30)[:, None] + np.array([[5, 10, 1]])


@pytest.fixture
def neighbour_ids():
    return FOUND % 30


def test_gallery_marks_right_and_wrong(tmp_path, neighbour_ids):
    path = retrieval_gallery(grey, LABELS, neighbour_ids, tmp_path / "new" / "gallery.png", rows=2)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        two = picture.size
    # Two neighbours of three are right in every row; frames of the wrong ones are dashed.
    assert share(path, GREEN) > 1.5 * share(path, RED) > 0
    right = retrieval_gallery(grey, LABELS, neighbour_ids[:, :2], tmp_path / "right.png", rows=2)
    assert share(right, RED) == 0 and share(right, GREEN) > 0
    wrong = retrieval_gallery(grey, LABELS, neighbour_ids[:, 2:], tmp_path / "wrong.png", rows=2)
    assert share(wrong, GREEN) == 0 and share(wrong, RED) > 0
    # More rows make a taller picture, not smaller images.
    path = retrieval_gallery(grey, LABELS, neighbour_ids, tmp_path / "4.png", rows=4)
    with Image.open(path) as picture:
        assert picture.size[0] == two[0] and picture.size[1] > 1.7 * two[1]


def test_gallery_draws_queries_by_seed(tmp_path, neighbour_ids):
    def drawn(**options):
        asked = []

        def image(i):
            asked.append(i)
            return np.zeros((4, 4, 3), np.uint8)

        retrieval_gallery(image, LABELS, neighbour_ids, tmp_path / "g.png", rows=3, **options)
        assert all(type(i) is int for i in asked)
        for query, *near in zip(*[iter(asked)] * 4, strict=True):
            assert near == list(neighbour_ids[query])
        return asked[::4]

    assert drawn(seed=1) == drawn(seed=1) != drawn(seed=2)
    assert len(set(drawn(seed=1))) == 3
    assert drawn(queries=[7, 2]) == [7, 2]


def test_letters_that_no_font_has(tmp_path, neighbour_ids, recwarn):
    """The class's number stands there, and no boxes; matplotlib would warn of each glyph."""
    assert fonts.drawable("B\u00e4r \u2713") and not fonts.drawable("\U000e0001")
    names = ["\U000e0001"] * 5
    retrieval_gallery(grey, LABELS, neighbour_ids, tmp_path / "a.png", rows=2, class_names=names)
    numbered = [f"class {i}" for i in range(5)]
    retrieval_gallery(grey, LABELS, neighbour_ids, tmp_path / "b.png", rows=2, class_names=numbered)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


def test_a_picture_that_is_not_there(tmp_path, neighbour_ids):
    retrieval_gallery(lambda i: None, LABELS, neighbour_ids, tmp_path / "g.png", rows=2)
    assert share(tmp_path / "g.png", (235, 235, 235)) > 0.2


def test_gallery_captions(tmp_path, neighbour_ids):
    """Names that look like formulas, and long ones, are only text."""
    names = ["$x^{", "a" * 99, "_", "\\frac", "%"]
    retrieval_gallery(
        grey, LABELS, neighbour_ids[3:5], tmp_path / "g.png", query_ids=[3, 4], class_names=names
    )


@pytest.mark.parametrize(
    "change, message",
    [
        ({"neighbour_ids": np.array([[30]])}, "neighbour_ids run from 30 to 30; accepted: 0 to 29"),
        ({"neighbour_ids": np.array([[-1]])}, "neighbour_ids run from -1"),
        ({"neighbour_ids": np.array([[0.5]])}, "accepted: integers"),
        ({"neighbour_ids": np.zeros((0, 3), int)}, "accepted: integers"),
        ({"query_ids": [1, 2]}, r"query_ids have shape \(2,\); accepted: \(1,\)"),
        ({"queries": [1]}, r"queries=\[1\]; accepted: 0 to 0"),
        ({"queries": []}, "nothing to draw"),
        ({"columns": 0}, "nothing to draw"),
    ],
)
def test_gallery_errors(tmp_path, change, message):
    arguments = {"neighbour_ids": np.array([[1, 2]])} | change
    with pytest.raises(ValueError, match=message):
        retrieval_gallery(grey, LABELS, path=tmp_path / "g.png", **arguments)


def log():
    rows: list[dict] = [{"step": i, "loss": 3 - i / 100} for i in range(120)]
    for epoch in range(1, 4):
        rows.append({"epoch": epoch, "val/map_at_r": epoch / 10, "val/other_thing": 0.5})
    return rows


def test_curves(tmp_path):
    both = training_curves(log(), tmp_path / "new" / "curves.png")
    alone = training_curves(log()[:120], tmp_path / "alone.png")
    sizes = [Image.open(path).size for path in (both, alone)]
    assert sizes[0][0] > 1.5 * sizes[1][0] and sizes[0][1] == sizes[1][1]
    # The second metric's colour is there only with the second panel.
    assert share(both, (213, 94, 0)) > 0 == share(alone, (213, 94, 0))


def test_curves_of_one_epoch(tmp_path):
    """A point is seen, on an axis of shares; R@1 is not drawn where it is P@1."""
    rows = [{"step": 1, "loss": 1.0}, {"step": 1, "epoch": 1, "val/precision_at_1": 1.0}]
    one = training_curves(rows, tmp_path / "one.png")
    assert share(one, (0, 114, 178)) > 0
    rows[1]["val/recall_at_1"] = 1.0
    assert training_curves(rows, tmp_path / "both.png").read_bytes() == one.read_bytes()
    rows[1]["val/recall_at_1"] = 0.5
    assert training_curves(rows, tmp_path / "other.png").read_bytes() != one.read_bytes()


def test_curves_from_csv_equal_those_from_rows(tmp_path):
    rows = log()
    with open(tmp_path / "log.csv", "w", newline="") as file:
        names = ["step", "loss", "epoch", "val/map_at_r", "val/other_thing"]
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    found = [
        training_curves(source, tmp_path / f"{i}.png").read_bytes()
        for i, source in enumerate((rows, tmp_path / "log.csv"))
    ]
    assert found[0] == found[1]


def test_curves_of_a_short_and_broken_run(tmp_path):
    training_curves([{"step": 0, "loss": 1.0}], tmp_path / "one.png")
    rows = [{"step": i, "loss": float("nan") if i % 2 else float("inf")} for i in range(9)]
    with pytest.raises(ValueError, match="no row has both 'step' and 'loss'"):
        training_curves(rows, tmp_path / "none.png")
    training_curves([*rows, {"step": 9, "loss": 2}], tmp_path / "some.png")
    with pytest.raises(ValueError, match="no row has both"):
        training_curves([{"epoch": 1, "val/map_at_r": 0.5}], tmp_path / "none.png")


ROWS = {
    "pixels": {"precision_at_1": 0.25, "map_at_r": float("nan"), "seconds": 3},
    "trained": {"precision_at_1": 0.75, "map_at_r": 0.5},
    "again": {"precision_at_1": 0.750001, "map_at_r": 0.4},
}
METRICS = ("precision_at_1", "map_at_r", "seconds")


def test_text_table():
    assert format_table(ROWS, METRICS).splitlines() == [
        "            P@1   MAP@R  seconds",
        "--------------------------------",
        "pixels   0.2500     nan   3.0000",
        "trained  0.7500  0.5000        -",
        "again    0.7500  0.4000        -",
    ]


def test_markdown_table():
    """The best of each metric is bold, not the longest time."""
    assert format_table(ROWS, METRICS, style="markdown").splitlines() == [
        "|         |        P@1 |      MAP@R | seconds |",
        "| ------- | ---------: | ---------: | ------: |",
        "| pixels  |     0.2500 |        nan |  3.0000 |",
        "| trained | **0.7500** | **0.5000** |       - |",
        "| again   | **0.7500** |     0.4000 |       - |",
    ]
    one = format_table({"only": {"map_at_r": 0.5}}, ["map_at_r"], style="markdown")
    assert "**" not in one


def test_table_errors():
    with pytest.raises(ValueError, match="a table of no rows"):
        format_table({}, METRICS)
    with pytest.raises(ValueError, match="unknown style 'html'"):
        format_table(ROWS, METRICS, style="html")
