"""Tables of published names: read both ways, and every array that does not fit is named."""

import numpy as np
import pytest

from dml_jax.errors import UserError
from dml_jax.models.published import (
    CONV,
    LINEAR,
    PATCHES,
    POINTWISE,
    ROW,
    SAME,
    Rule,
    Table,
    recognised,
)

TABLE = Table(
    "a source",
    (
        Rule(("q.{}.weight", "k.{}.weight"), "block_{:02}/qk/kernel", LINEAR),
        Rule("conv.weight", "conv/kernel", CONV),
        Rule("patch.weight", "patch/kernel", PATCHES),
        Rule("pos", "position", ROW),
    ),
    {r"head\..*": "of another task"},
)
RNG = np.random.default_rng(0)
FILE = {
    **{
        f"{x}.{i}.weight": RNG.normal(size=(3, 4)).astype(np.float32) for x in "qk" for i in (0, 11)
    },
    "conv.weight": RNG.normal(size=(5, 2, 3, 3)).astype(np.float32),
    "patch.weight": RNG.normal(size=(6, 3, 2, 2)).astype(np.float32),
    "pos": RNG.normal(size=(1, 7, 4)).astype(np.float32),
}
SHAPES = {
    "block_00/qk/kernel": (4, 6),
    "block_11/qk/kernel": (4, 6),
    "conv/kernel": (3, 3, 2, 5),
    "patch/kernel": (12, 6),
    "position": (7, 4),
}
EXPECTED = {path: np.zeros(shape) for path, shape in SHAPES.items()}


def load(file=FILE, expected=EXPECTED):
    return dict(TABLE.load(file, expected, "w.pth"))


def test_there_and_back():
    ours = load({**FILE, "head.fc.weight": np.ones(3)})
    assert {path: a.shape for path, a in ours.items()} == SHAPES
    np.testing.assert_array_equal(ours["block_11/qk/kernel"][:, 3:], FILE["k.11.weight"].T)
    assert ours["conv/kernel"][0, 1, 1, 4] == FILE["conv.weight"][4, 1, 0, 1]
    # Pixels of a patch in rows, channels last.
    assert ours["patch/kernel"][2 * 3 + 1, 5] == FILE["patch.weight"][5, 1, 1, 0]
    back = TABLE.save(ours)
    assert back.keys() == FILE.keys()
    for name, array in back.items():
        np.testing.assert_array_equal(array, FILE[name])


@pytest.mark.parametrize("layout", [SAME, LINEAR, CONV, PATCHES, ROW, POINTWISE])
def test_layouts_are_inverses(layout):
    shape = {LINEAR: (2, 3), ROW: (1, 2), POINTWISE: (5, 3, 1, 1)}.get(layout, (5, 3, 2, 2))
    array = RNG.normal(size=shape)
    np.testing.assert_array_equal(layout.save(layout.load(array)), array)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k.0.weight": None}, "by the names of a source: missing: 'k.0.weight'$"),
        ({"conv.bias": np.zeros(5)}, "not expected: 'conv.bias'$"),
        (
            {"pos": np.zeros((1, 8, 4))},
            r"'pos' has shape \(1, 8, 4\) \(\(8, 4\) in our layout\), not \(7, 4\)",
        ),
        ({"conv.weight": np.zeros(5)}, r"'conv.weight' has shape \(5,\)"),
    ],
)
def test_what_does_not_fit(change, message):
    file = {name: a for name, a in {**FILE, **change}.items() if a is not None}
    with pytest.raises(UserError, match=f"w.pth: .*{message}"):
        load(file)


def test_arrays_are_read_one_at_a_time():
    read = []

    class Lazy(dict):
        def __getitem__(self, name):
            read.append(name)
            return super().__getitem__(name)

    arrays = TABLE.load(Lazy(FILE), EXPECTED, "w.pth")
    assert read == []
    next(arrays)
    assert read == ["conv.weight"]
    next(arrays), next(arrays)
    assert read == ["conv.weight", "patch.weight", "pos"]
    assert next(arrays)[0] == "block_00/qk/kernel"
    assert read[3:] == ["q.0.weight", "k.0.weight"]


STACKED = Table(
    "a scan",
    (
        Rule(("q/kernel", "k/kernel"), "block_{:02}/qk/kernel", LINEAR, stacked=True),
        Rule("norm", "norm/scale"),
    ),
)


def test_layers_along_the_first_axis_of_one_array():
    rng = np.random.default_rng(1)
    file = {x: rng.normal(size=(11, 3, 4)).astype(np.float32) for x in ("q/kernel", "k/kernel")}
    file["norm"] = np.ones(4, np.float32)
    expected = {f"block_{i:02}/qk/kernel": np.zeros((4, 6)) for i in range(11)}
    expected["norm/scale"] = np.zeros(4)
    read = []

    class Lazy(dict):
        def __getitem__(self, name):
            read.append(name)
            return super().__getitem__(name)

    ours = dict(STACKED.load(Lazy(file), expected, "w.npz"))
    assert sorted(read) == ["k/kernel", "norm", "q/kernel"]  # each once
    for i in (0, 2, 10):
        np.testing.assert_array_equal(ours[f"block_{i:02}/qk/kernel"][:, 3:], file["k/kernel"][i].T)
    back = STACKED.save(ours)
    assert back.keys() == file.keys()
    for name, array in file.items():
        np.testing.assert_array_equal(back[name], array)
    file["k/kernel"] = file["k/kernel"][:10]
    with pytest.raises(UserError, match=r"'q/kernel' has shape \(11, 3, 4\), .* are 11 layers"):
        dict(STACKED.load(file, expected, "w.npz"))


def test_names_within_a_prefix_and_heads_beside_them():
    within = TABLE.within("backbone.", {r"dino_head\..*": "is a head of pre-training"})
    heads = {"dino_head.mlp.0.weight": np.ones(3), "backbone.head.weight": np.ones(3)}
    file = {f"backbone.{name}": array for name, array in FILE.items()} | heads
    assert recognised((TABLE, within), file) == within
    assert recognised((TABLE, within), FILE) == TABLE
    loaded = dict(within.load(file, EXPECTED, "w.pth"))
    for path, array in load().items():
        np.testing.assert_array_equal(loaded[path], array)
    assert within.reason("dino_head.mlp.0.weight") == "is a head of pre-training"
    assert within.reason("backbone.head.weight") == "of another task"
    with pytest.raises(UserError, match=r"not expected: 'tail.mlp.0.weight'"):
        within.load({**file, "tail.mlp.0.weight": np.ones(3)}, EXPECTED, "w.pth")


def test_recognised_by_most_of_its_names():
    other = Table("another", (Rule("conv.weight", "conv/kernel", CONV), Rule("x", "y")))
    assert recognised((other, TABLE), FILE).source == "a source"
    assert recognised((other,), ["z"]) is None


def test_a_path_that_files_of_the_source_lack():
    with pytest.raises(UserError, match="norm/scale: files of a source have no such array"):
        TABLE.save({"norm/scale": np.ones(2)})
