"""Embeddings of any origin: what is read, and what is refused in one line."""

import sys

import numpy as np
import pytest

from dml_jax import UserError, evaluate
from dml_jax import config as configs
from dml_jax.stored_embeddings import read


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("e.npy", np.arange(6.0).reshape(3, 2))
    np.save("l.npy", np.array([10, 9, 10]))
    return tmp_path


def test_what_is_read(folder):
    found = read("e.npy", "l.npy")
    assert found.embeddings.dtype == np.float32 and found.embeddings.tolist() == [
        [0, 1],
        [2, 3],
        [4, 5],
    ]
    # Whole numbers are in the order of numbers.
    assert found.labels.tolist() == [1, 0, 1] and found.class_names == ("09", "10")
    assert found.paths is None
    np.savez("e.npz", x=np.eye(3)[:, :2].astype(np.float16))
    (folder / "sub").mkdir()
    (folder / "sub" / "l.csv").write_text("Path;Label\na.png;bee\nb.png;ant\n/c.png;bee\n")
    found = read("e.npz", "sub/l.csv")
    assert found.class_names == ("ant", "bee") and found.labels.tolist() == [1, 0, 1]
    assert found.paths == ("sub/a.png", "sub/b.png", "/c.png")
    np.save("t.npy", np.array(["x", "y", "x"]))
    assert read("e.npy", "t.npy").class_names == ("x", "y")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.arange(3.0), r"float64\[3\]; numbers \[n, d\] are accepted"),
        (np.array([[1.0, np.nan], [1.0, 2.0], [np.inf, 0.0]]), "row 0 and 1 more with values that are not"),
        (np.array([["a", "b"]]), r"<U1\[1, 2\]; numbers"),
        (np.array([[None]]), "is no file of NumPy arrays"),
        (np.zeros((2, 2)), "has 2 rows and l.npy 3"),
    ],
)  # fmt: skip
def test_embeddings_that_are_refused(content, message):
    np.save("bad.npy", content, allow_pickle=True)
    with pytest.raises(UserError, match=message) as error:
        read("bad.npy", "l.npy")
    assert "\n" not in str(error.value)


def test_files_that_are_refused(folder, monkeypatch):
    np.save("real.npy", np.zeros(3))
    np.savez("two.npz", a=np.zeros((3, 2)), b=np.zeros((3, 2)))
    (folder / "cut.npy").write_bytes((folder / "e.npy").read_bytes()[:60])
    (folder / "e.txt").write_text("")
    (folder / "e.parquet").write_text("")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    for embeddings, labels, message in (
        ("none.npy", "l.npy", "there is no file none.npy"),
        ("e.txt", "l.npy", "e.txt ends in '.txt'; .npy, .npz, .parquet are accepted"),
        ("e", "l.npy", "e has no ending; .npy, .npz, .parquet are accepted"),
        ("two.npz", "l.npy", "two.npz has the arrays a, b; one called embeddings"),
        ("cut.npy", "l.npy", "cut.npy is no file of NumPy arrays"),
        ("e.parquet", "l.npy", "needs the package pyarrow"),
        ("e.npy", "real.npy", r"real.npy holds an array float64\[3\]; whole numbers or texts"),
        ("e.npy", "e.npy", "whole numbers or texts"),
    ):
        with pytest.raises(UserError, match=message) as error:
            read(embeddings, labels)
        assert "\n" not in str(error.value)


def test_the_same_evaluation_again_takes_the_same_folder(tmp_path):
    place = tmp_path / "e_evaluation"
    settings = {"embeddings": "e.npy", "evaluation": configs.to_dict(configs.new())["evaluation"]}
    evaluate.write({"e": {"map_at_r": 0.5}}, place, settings=settings)
    assert evaluate.free_folder(place, settings) == place
    other = {**settings, "embeddings": "f.npy"}
    assert evaluate.free_folder(place, other) == tmp_path / "e_evaluation-2"
