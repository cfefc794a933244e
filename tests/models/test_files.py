"""Files of weights: formats, folders, checkpoints, and what is saved in the place of weights."""

import io
import json
import pathlib
import pickle
import struct
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from dml_jax import checkpoints
from dml_jax.errors import UserError
from dml_jax.models.files import open_weights
from dml_jax.models.files.arrays import Arrays
from tests.models.weight_files import error_of, read, same

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
BASE = np.arange(24, dtype=np.float32).reshape(4, 6) / 8
ARRAYS = {
    "w": BASE,
    "b": np.arange(3).astype(ml_dtypes.bfloat16),
    "e": np.arange(4).astype(ml_dtypes.float8_e4m3fn).reshape(2, 2),
    "n": np.array(3),
    "z": np.zeros((0, 2), np.float16),
}


def test_arrays_are_read_when_they_are_asked_for():
    asked = []
    arrays = Arrays({"a": lambda: asked.append("a") or np.zeros(1), "b": lambda: 1 / 0})
    assert "a" in arrays and "c" not in arrays and len(arrays) == 2 and [*arrays] == ["a", "b"]
    assert asked == []
    assert arrays["a"].shape == (1,) and asked == ["a"]
    with pytest.raises(KeyError):
        arrays["c"]


def save_shards(folder, arrays, index="model.safetensors.index.json"):
    folder.mkdir(exist_ok=True)
    shards = {}
    for i, name in enumerate(arrays):
        shards[name] = f"model-{i % 2 + 1}-of-2.safetensors"
    for shard in set(shards.values()):
        mine = {k: v for k, v in arrays.items() if shards[k] == shard}
        safetensors.numpy.save_file(mine, folder / shard)
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    return folder


def test_safetensors_npz_shards_and_folders(tmp_path, monkeypatch):
    wrapped = {f"_orig_mod.module.{k}": v for k, v in ARRAYS.items()}
    safetensors.numpy.save_file(wrapped, tmp_path / "wrong.npz")  # the content decides
    found = read(tmp_path / "wrong.npz")
    same({k: found[k] for k in ARRAYS}, ARRAYS)
    safetensors.numpy.save_file({**ARRAYS, "module.x": BASE}, tmp_path / "some")
    assert "module.x" in read(tmp_path / "some")  # not all names have the prefix
    plain = {k: v for k, v in ARRAYS.items() if k not in "be"}  # types of NumPy's own
    np.savez(tmp_path / "w.npz", **plain)
    (tmp_path / "w.npz").rename(tmp_path / "w.safetensors")
    same(read(tmp_path / "w.safetensors"), plain)
    np.savez(tmp_path / "none.npz")
    assert read(tmp_path / "none.npz") == {}

    folder = save_shards(tmp_path / "sharded", ARRAYS)
    same(read(folder), ARRAYS)
    same(read(folder / "model.safetensors.index.json"), ARRAYS)
    monkeypatch.chdir(folder)
    same(read("model.safetensors.index.json"), ARRAYS)
    monkeypatch.setenv("HOME", str(tmp_path))
    same(read("~/sharded"), ARRAYS)
    (folder / "model.safetensors.index.json").rename(folder / "other.safetensors.index.json")
    same(read(folder), ARRAYS)
    safetensors.numpy.save_file({"only": BASE}, folder / "model.safetensors")  # goes first
    assert list(read(folder)) == ["only"]

    one = tmp_path / "one"
    one.mkdir()
    (one / "net.pth").write_bytes((GOLDEN / "weights_tensors_old.pth").read_bytes())
    (one / "config.json").write_text("{}")
    assert len(read(one)) == 23
    (one / "more.pth").write_bytes(b"x")
    assert "several files of weights (more.pth, net.pth)" in error_of(one)
    (tmp_path / "bare").mkdir()
    assert "has no weights" in error_of(tmp_path / "bare")


def test_indices_that_are_wrong(tmp_path):
    index = tmp_path / "m.safetensors.index.json"
    outside = save_shards(tmp_path / "sharded", ARRAYS) / "model-1-of-2.safetensors"
    for content, match in {
        '{"weight_map": {"a": "gone.safetensors"}}': "need gone.safetensors",
        '{"weight_map": {"a": "../sharded/model-1-of-2.safetensors"}}': "no file of its folder",
        json.dumps({"weight_map": {"a": str(outside)}}): "no file of its folder",
        '{"weight_map": {"a": ".."}}': "no file of its folder",
        '{"weight_map": {"a": 1}}': "no dict of names",
        '{"weight_map": {}}': "no dict of names",
        '{"weight": 1}': "no weight_map",
        '{"weight_map": ': "Expecting value",
    }.items():
        index.write_text(content)
        assert match in error_of(index)
    (tmp_path / "s.safetensors").write_bytes(outside.read_bytes())
    index.write_text('{"weight_map": {"absent": "s.safetensors"}}')
    with open_weights(index) as arrays, pytest.raises(UserError, match="has no 'absent'"):
        arrays["absent"]


def test_files_that_are_something_else(tmp_path):
    whole = {
        "zip.pth": (GOLDEN / "weights_tensors_zip.pth").read_bytes(),
        "old.pth": (GOLDEN / "weights_tensors_old.pth").read_bytes(),
    }
    np.savez(tmp_path / "w.npz", w=BASE)
    whole["cut.npz"] = (tmp_path / "w.npz").read_bytes()
    whole["cut.safetensors"] = safetensors.numpy.save(ARRAYS)
    for name, data in whole.items():
        for part in (len(data) // 3, len(data) - 5):
            (tmp_path / name).write_bytes(data[:part])
            assert "are no readable" in error_of(tmp_path / name), (name, part)
    buffer = io.BytesIO()
    np.save(buffer, BASE)
    html = b"\n <!DOCTYPE html><html lang=en><title>Sign in</title>"
    for content, match in {
        b"": "are an empty file",
        html: "a web page, saved in the place of the file",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123\n": "Git LFS",
        b"Not Found\n": 'a text file, which begins with "Not Found"',
        "Größe".encode() * 300: "a text file",
        b"\x1f\x8b\x08": "gzip",
        b"\x89HDF\r\n": "HDF5",
        buffer.getvalue(): "a single array",
        b"\x00\x01\xff" * 40: "of no known kind",
        pickle.dumps({"a": 1}, 2): "not one that torch.save wrote",
        b"PK\x03\x04" + b"x" * 50: "zip file",
        struct.pack("<Q", 1 << 40) + b"{" + b"x" * 50: "no readable file of safetensors",
    }.items():
        (tmp_path / "model.bin").write_bytes(content)
        assert match in error_of(tmp_path / "model.bin"), match
    np.savez(tmp_path / "object.npz", a=BASE, b=np.array([{}], object))
    with open_weights(tmp_path / "object.npz") as arrays:
        assert arrays["a"].shape == (4, 6)
        with pytest.raises(UserError, match="'b': Object arrays cannot be loaded"):
            arrays["b"]
    assert "do not exist" in error_of(tmp_path / "gone.pth")


def test_checkpoints_of_ours(tmp_path):
    def model(shift):
        params = {
            "stem": {"kernel": BASE + shift},
            "block": {"norm": {"scale": np.ones(3, np.float32)}},
        }
        state = {"block": {"norm": {"mean": np.full(3, shift, np.float32)}}}
        head = {"head": {"kernel": BASE}}
        return {"params": {"backbone": params, **head}, "state": {"backbone": state}}

    def expected(shift):
        ones = np.ones(3, np.float32)
        return {
            "block/norm/mean": shift * ones,
            "block/norm/scale": ones,
            "stem/kernel": BASE + shift,
        }

    def check(path, shift):
        found = read(path)
        same({k: found[k] for k in sorted(found)}, expected(np.float32(shift)))

    elsewhere = tmp_path / "elsewhere"
    for run, place in (("run", tmp_path / "run" / "checkpoints"), ("far", elsewhere)):
        (tmp_path / run).mkdir()
        text = json.dumps({"train": {"checkpoints": str(place)}})
        (tmp_path / run / "config.json").write_text(text)
    assert "has no weights" in error_of(tmp_path / "run")
    opened = checkpoints.Checkpoints.open(str(tmp_path / "run" / "checkpoints"))
    whole = model(2)
    state = {
        **{part: {"model": whole[part], "loss": {}} for part in ("params", "state")},
        **{"opt": {}, "key": jax.random.key_data(jax.random.key(0)), "step": np.int32(9)},
    }
    opened.save(9, state, {})
    opened.wait()
    check(tmp_path / "run", 2)
    opened.save_best(10, model(1), {})
    opened.close()
    check(tmp_path / "run", 1)
    for inside, shift in {"": 1, "best": 1, "best/10": 1, "last": 2, "last/9": 2}.items():
        check(tmp_path / "run" / "checkpoints" / inside, shift)
    (tmp_path / "run" / "checkpoints").rename(elsewhere)
    check(tmp_path / "far", 1)
    (elsewhere / "best" / "10" / "model" / "manifest.ocdbt").unlink()
    assert "are no readable checkpoint" in error_of(elsewhere / "best" / "10")


def test_no_torch_is_imported():
    assert "torch" not in sys.modules
