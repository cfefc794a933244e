"""Files of torch.save: what is read of both formats, one array at a time, and that nothing in them is executed."""

import gc
import os
import pathlib
import pickle
import re
import struct
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from dml_jax.models.files import open_weights, torch_file
from dml_jax.models.files.pickled import GLOBALS
from tests.models.weight_files import error_of, read, same

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
BASE = np.arange(24, dtype=np.float32).reshape(4, 6) / 8
# What tests/golden/make_weights.py put into weights_tensors_*.pth.
TENSORS = {
    "whole": BASE,
    "transposed": BASE.T,
    "part": BASE[1:, ::2],
    "column": BASE[:, 3],
    "expanded": np.full((3, 4), 2.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.array(7),
    "parameter": np.full((2, 2), 0.5, np.float32),
    "with_attribute": np.full(3, 1.5, np.float32),
    **{
        name: np.arange(3).astype(getattr(ml_dtypes, name, name))
        for name in (
            *("float64", "float32", "float16", "bfloat16", "complex64", "int64", "int32", "int16"),
            *("int8", "uint8", "bool", "float8_e4m3fn", "float8_e5m2", "uint16"),
        )
    },
}
SHAPES = {
    **{"0.weight": (2, 1, 3, 3), "0.bias": (2,), "1.weight": (2,), "1.bias": (2,)},
    **{"1.running_mean": (2,), "1.running_var": (2,), "1.num_batches_tracked": ()},
}


# Pickles and files of torch.save, put together without PyTorch.


def glob(module, name):
    return f"c{module}\n{name}\n".encode()


def storage(key="0", elements=6, kind="FloatStorage", view=b"", module="torch"):
    """The operations that name a storage; the old format has a view of it, or None."""
    head = b"(" + pickle.dumps("storage", 0)[:-1] + glob(module, kind)
    tail = b"".join(pickle.dumps(v, 0)[:-1] for v in (key, "cpu", elements))
    return head + tail + view + b"tQ"


def tensor(shape=(2, 3), strides=(3, 1), offset=0, function="_rebuild_tensor_v2", at=None):
    at = storage() if at is None else at
    numbers = b"".join(pickle.dumps(v, 0)[:-1] for v in (offset, shape, strides))
    rest = (
        b""
        if function == "_rebuild_tensor"
        else b"\x89" + glob("collections", "OrderedDict") + b")R"
    )
    return glob("torch._utils", function) + b"(" + at + numbers + rest + b"tR"


def pickled(**entries):
    """A pickle of a dict of names and operations."""
    items = b"".join(pickle.dumps(k, 2)[2:-1] + v for k, v in entries.items())
    return b"\x80\x02}(" + items + b"u."


DATA = np.arange(6, dtype=np.float32)


def write_zip(path, content, storages=None, folder="archive/", extra=(), compress=0):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{folder}data.pkl", content, compress)
        for key, data in ({"0": DATA} if storages is None else storages).items():
            archive.writestr(f"{folder}data/{key}", data.tobytes(), compress)
        for name, data in extra:
            archive.writestr(name, data)
    return str(path)


def write_old(path, content, storages=None, magic=None):
    storages = {"0": DATA} if storages is None else storages
    with open(path, "wb") as file:
        file.write(magic or pickle.dumps(0x1950A86A20F9469CFC6C, 2))
        for value in (1001, {"little_endian": True}):
            file.write(pickle.dumps(value, 2))
        file.write(content + pickle.dumps([*storages], 2))
        for data in storages.values():
            file.write(struct.pack("<q", data.size) + data.tobytes())
    return str(path)


WRITERS = (write_zip, write_old)


@pytest.mark.parametrize("kind", ["zip", "old"])
def test_torch_files_of_both_formats(kind):
    same(read(GOLDEN / f"weights_tensors_{kind}.pth"), TENSORS)
    with open_weights(GOLDEN / f"weights_training_{kind}.pth") as arrays:
        assert {name: arrays[name].shape for name in arrays} == SHAPES
        assert len(arrays) == 7 and "epoch" not in arrays and "module.0.bias" not in arrays
        # The teacher, not the student, whose values are larger by 1.
        for i, name in enumerate(SHAPES):
            expected = np.arange(arrays[name].size).reshape(SHAPES[name]) + i
            np.testing.assert_array_equal(arrays[name], expected)
    with pytest.raises(ValueError):  # closed
        arrays["0.bias"]


def test_memory_of_one_array(tmp_path):
    big = {f"{i}": np.full(1 << 18, i, np.float32) for i in range(8)}  # 1 MiB each
    at = {k: tensor((1 << 18,), (1,), at=storage(k, 1 << 18)) for k in big}
    write_zip(tmp_path / "zip.pth", pickled(**at), big)
    at = {k: tensor((1 << 18,), (1,), at=storage(k, 1 << 18, view=b"N")) for k in big}
    write_old(tmp_path / "old.pth", pickled(**at), big)
    np.savez(tmp_path / "plain.npz", **big)
    safetensors.numpy.save_file(big, tmp_path / "plain.safetensors")
    for name in ("zip.pth", "old.pth", "plain.npz", "plain.safetensors"):
        gc.collect()
        tracemalloc.start()
        with open_weights(tmp_path / name) as arrays:
            assert sum(float(arrays[k][0]) for k in arrays) == 28, name
            peak = tracemalloc.get_traced_memory()[1]
            assert peak < 3 << 20, (name, peak)
            all_of_them = dict(arrays)  # the control: so much is seen where all are held
            assert tracemalloc.get_traced_memory()[1] > 8 << 20, name
        tracemalloc.stop()
        same(all_of_them, big)  # they outlive the file


def test_files_of_old_versions(tmp_path):
    """Python 2's texts, a parameter that gets its tensor as state, and a view of a storage."""
    old = tensor(function="_rebuild_tensor", at=storage(view=b"N"))
    view = pickle.dumps(("1", 2, 3), 0)[:-1]
    parts = {
        "plain": old,
        "variable": glob("torch.nn.parameter", "Parameter") + b")\x81(" + old + b"N}\x89\x89tb",
        "called": glob("torch.nn.parameter", "Parameter") + b"(" + old + b"\x88tR",
        "view": tensor((3,), (1,), function="_rebuild_tensor", at=storage(view=view)),
        "cuda": tensor(at=storage(view=b"N", module="torch.cuda")),
    }
    items = b"".join(b"U" + bytes([len(k)]) + k.encode() + v for k, v in parts.items())
    content = b"\x80\x02" + glob("collections", "OrderedDict") + b")R(" + items + b"u}b."
    whole = DATA.reshape(2, 3)
    expected = dict(plain=whole, variable=whole, called=whole, view=DATA[2:5], cuda=whole)
    same(read(write_old(tmp_path / "old.pth", content)), expected)


def test_numbers_of_other_byte_order(tmp_path):
    bf = DATA.astype(ml_dtypes.bfloat16)
    content = pickled(a=tensor(), b=tensor(at=storage("1", 6, "BFloat16Storage")))
    swapped = {"0": DATA.byteswap(), "1": bf.view(np.uint16).byteswap()}
    for order in ("big", "little"):
        given = swapped if order == "big" else {"0": DATA, "1": bf}
        path = write_zip(tmp_path / order, content, given, extra=[("archive/byteorder", order)])
        same(read(path), {"a": DATA.reshape(2, 3), "b": bf.reshape(2, 3)})


def test_which_dict_of_tensors():
    t = torch_file.pickled.Tensor(
        torch_file.pickled.Storage("0", "float32", 0, 4), "float32", 0, (), ()
    )
    net, other = {"a": t, "version": 3}, {"z": t}
    found = torch_file.state_dict
    assert found(net) == {"a": t}
    assert found({"state_dict": net, "model": other, "ema": other}) == {"a": t}
    assert found({"student": other, "teacher": net}) == {"a": t}
    assert found({"model": {"state_dict": net}, "center": t}) == {"a": t}
    assert found({"a": t, "extra": other}) == {"a": t}
    assert found({"weights": net, "optimizer": {"state": {0: other}}, "epoch": 1}) == {"a": t}
    for none in ([net], {}, {"epoch": 1, "state_dict": {}}, {0: t}):
        with pytest.raises(ValueError, match="no dict of tensors"):
            found(none)
    with pytest.raises(ValueError, match=r"several dicts of tensors, .*: 'net_a', 'net_b'"):
        found({"net_a": net, "net_b": other})
    endless = {"model": {}}
    endless["model"]["model"] = endless
    with pytest.raises(ValueError, match="no dict of tensors"):
        found(endless)
    endless["model"]["a"] = t  # at the last depth that is looked into, one is taken
    assert found(endless) == {"a": t}


def attacks(marker):
    """Pickles that run something, the name that the error says, and whether it would make the file `marker`."""
    touch = f"open({str(marker)!r}, 'w').close()"

    class Reduce:
        def __init__(self, function, *args):
            self.call = function, args

        def __reduce__(self):
            return self.call

    evaluated = Reduce(eval, touch)
    text = pickle.dumps(touch, 0)[:-1]
    yield "posix.system", pickle.dumps(Reduce(os.system, f"touch {marker}"), 2), True
    yield "builtins.eval", pickle.dumps({"state_dict": {"a": [evaluated]}}, 4), True
    yield "__builtin__.eval", pickle.dumps(evaluated, 2), True
    yield "builtins.exec", pickle.dumps(Reduce(exec, touch), 4), True
    yield "builtins.getattr", pickle.dumps(Reduce(getattr, 1, "real"), 4), False
    yield "builtins.eval", b"(" + text + b"ibuiltins\neval\n.", True  # INST
    yield "builtins.eval", b"(" + glob("builtins", "eval") + text + b"o.", True  # OBJ
    yield "builtins.eval", b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93(" + text + b"tR.", True
    yield "torch.load", glob("torch", "load") + b")R.", False
    yield (
        "torch._utils._rebuild_tensor_v2.function",
        b"\x80\x04\x8c\x0ctorch._utils\x8c\x1b_rebuild_tensor_v2.function\x93.",
        False,
    )
    yield (
        "torchvision.models.resnet.ResNet",
        glob("torchvision.models.resnet", "ResNet") + b")\x81.",
        False,
    )
    # Attributes of what may be called, the registry of copyreg, a table of 64 GiB.
    for full in (
        "collections.OrderedDict",
        *filter(re.compile("torch._.*_rebuild").match, GLOBALS),
    ):
        name = glob(*full.rsplit(".", 1))
        yield "damaged", name + b"}" + text + b"I1\nsb.", False
        yield "damaged", name + b"(N}" + text + b"I1\nstb.", False
    yield "the operation EXT1", b"\x80\x02\x82\x01.", False
    yield "a table of 4294967280 objects", b"\x80\x02Nr\xf0\xff\xff\xff.", False


@pytest.mark.parametrize("write", WRITERS)
def test_nothing_is_executed(tmp_path, write):
    marker = tmp_path / "marker"
    for number, (name, content, harmful) in enumerate(attacks(marker)):
        if harmful:  # the control: pickle itself does run it
            pickle.loads(content)
            assert marker.exists(), name
            marker.unlink()
        bad = content.removesuffix(b".")
        inside = pickled(a=tensor(), b=bad.removeprefix(b"\x80\x02").removeprefix(b"\x80\x04"))
        whole = write(tmp_path / f"{number}.pth", content)
        nested = write(tmp_path / f"{number}_inside.pth", inside)
        # Frames of protocol 4 do not nest.
        for path in [whole] if b"\x95" in content else [whole, nested]:
            text = error_of(path, ask=False)
            assert name in text and ("nothing of them was executed" in text or name == "damaged"), (
                text
            )
            assert not marker.exists(), name
    # Of the old format also in the place of its magic number.
    content = next(content for _, content, _ in attacks(marker))
    path = write_old(tmp_path / "first.pth", pickled(a=tensor()), magic=content)
    assert "posix.system" in error_of(path, ask=False) and not marker.exists()


@pytest.mark.parametrize("write", WRITERS)
def test_tensors_beyond_their_data(tmp_path, write):
    view = b"N" if write is write_old else b""
    whole = storage(view=view)
    same(read(write(tmp_path / "whole", pickled(a=tensor(at=whole)))), {"a": DATA.reshape(2, 3)})
    bad = {
        "beyond the end": [tensor((2, 4), (3, 1), at=whole), tensor(offset=1, at=whole)],
        "more elements": [tensor((1 << 40, 1 << 20), (0, 0), at=whole)],
        "data are not in the file|lists a storage|beyond the": [
            tensor((7,), (1,), at=storage("0", 7, view=view)),
            tensor(at=storage("../../../etc/passwd", view=view)),
        ],
        "whole numbers": [
            tensor((-2, 3), (3, 1), at=whole),
            tensor(offset=-1, at=whole),
            tensor(at=storage("0", -6, view=view)),
            tensor(strides=(3, -1), at=whole),
        ],
        "1 axes with 2": [tensor((6,), (3, 1), at=whole)],
        "without a storage": [tensor(at=b"N")],
        "no storage": [tensor(at=b"(" + pickle.dumps("module", 0)[:-1] + b"NNNNtQ")],
    }
    for match, tensors in bad.items():
        for operations in tensors:
            text = error_of(write(tmp_path / "bad", pickled(a=operations)))
            assert any(m in text for m in match.split("|")), text


def test_zip_files_that_are_no_torch_file(tmp_path):
    good = pickled(a=tensor())
    zeros = {"0": np.zeros(1 << 20, np.float32)}
    bomb = write_zip(tmp_path / "bomb", good, zeros, compress=zipfile.ZIP_DEFLATED)
    assert os.path.getsize(bomb) < 10_000
    cases = {
        "is compressed": bomb,
        "path out of the file": write_zip(tmp_path / "up", good, extra=[("../../x", b"")]),
        "'/x' comes twice or": write_zip(tmp_path / "root", good, extra=[("/x", b"")]),
        "without one NAME/data.pkl": write_zip(tmp_path / "flat", good, folder="a/b/"),
        "TorchScript": write_zip(tmp_path / "jit", good, extra=[("archive/constants.pkl", b"")]),
    }
    with pytest.warns(UserWarning, match="Duplicate name"):
        double = write_zip(tmp_path / "double", good, extra=[("archive/data/0", b"")])
    for match, path in {**cases, "comes twice": double}.items():
        assert match in error_of(path, ask=False)
    # A length that the directory of the file exaggerates.
    path = write_zip(tmp_path / "long", good)
    data = bytearray(pathlib.Path(path).read_bytes())
    at = data.rindex(b"PK\x01\x02") + 20
    data[at : at + 8] = struct.pack("<II", 1 << 30, 1 << 30)
    pathlib.Path(path).write_bytes(data)
    assert "ends beyond the file" in error_of(path, ask=False)
