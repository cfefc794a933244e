"""Checkpoints: what goes in comes out, and errors say what differs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dml_jax import UserError, checkpoints

STATE = {
    "params": {
        "model": {"backbone": {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, "head": {}},
        "loss": {"weights": np.float32([[1, 2]])},
    },
    "state": {"model": {"empty": np.zeros((0, 4), np.float32)}, "loss": {}},
    "opt": (({"m": np.float32(3)},), ()),
    "key": np.array([7, 8], np.uint32),
    "step": np.array(5, np.int32),
}
MODEL = {k: STATE[k]["model"] for k in ("params", "state")}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("run"))
    kept = checkpoints.Checkpoints.open(checkpoints.folder_of(folder))
    assert kept.restore(STATE) is None and kept.latest() is None
    for step in (3, 4, 5):
        kept.save(step, {**STATE, "step": np.array(step, np.int32)}, {"at": step, "list": [1, 2]})
    kept.save_best(3, MODEL, {})
    kept.save_best(4, MODEL, {})
    kept.close()
    return folder


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def test_round_trip(workdir):
    kept = checkpoints.Checkpoints.open(checkpoints.folder_of(workdir))
    template = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, STATE))
    state, meta = kept.restore(template)
    same(state, STATE)
    assert meta == {"at": 5, "list": [1, 2]}
    kept.save(5, jax.tree.map(np.zeros_like, STATE), {})  # there already
    kept.close()
    kind, number, model = checkpoints.restore_model(workdir, "5", MODEL)
    same(model, MODEL)
    assert (kind, number) == ("last", 5)


def test_what_is_kept(workdir):
    assert checkpoints.find(workdir) == [("best", 4), ("last", 5), ("last", 4)]
    assert checkpoints.find(workdir, "last") == [("last", 5), ("last", 4)]
    assert checkpoints.find(workdir, "5") == [("last", 5)]
    with pytest.raises(ValueError, match="'3'; accepted: 4, 5, best, last"):
        checkpoints.find(workdir, "3")
    with pytest.raises(ValueError, match="no checkpoint in /nowhere"):
        checkpoints.find("/nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w": np.zeros((2, 4), np.float32)}, r"params/backbone/w is \(2, 3\) there and \(2, 4\)"),
        ({"v": np.zeros(1)}, r"params/backbone/v is absent there and \(1,\) in the config"),
        ({}, r"params/backbone/w is \(2, 3\) there and absent in the config"),
    ],
)
def test_another_architecture(workdir, change, message):
    other = {"params": {"backbone": change, "head": {}}, "state": MODEL["state"]}
    with pytest.raises(ValueError, match=message) as error:
        checkpoints.restore_model(workdir, "best", other)
    assert "\n" not in str(error.value)


def test_half_written_checkpoints_do_not_count(tmp_path):
    kept = checkpoints.Checkpoints.open(checkpoints.folder_of(tmp_path))
    kept.save(1, STATE, {})
    kept.close()
    # What a run that is killed while it writes leaves behind.
    (tmp_path / "checkpoints" / "last" / "2.orbax-checkpoint-tmp" / "model").mkdir(parents=True)
    kept = checkpoints.Checkpoints.open(checkpoints.folder_of(tmp_path))
    assert kept.latest().endswith("/1")
    same(kept.restore(STATE)[0], STATE)
    kept.save(2, STATE, {})
    kept.close()
    assert checkpoints.find(str(tmp_path), "last")[0] == ("last", 2)


def cut_off(folder):
    """Cuts off every file of arrays."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.stat().st_size and "/d/" in str(p)]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_the_one_before_a_damaged_checkpoint_is_used(tmp_path, capsys):
    kept = checkpoints.Checkpoints.open(checkpoints.folder_of(tmp_path))
    other = jax.tree.map(lambda x: x + np.ones((), x.dtype), STATE)
    kept.save(1, STATE, {"at": 1})
    kept.save(2, other, {"at": 2})
    kept.save_best(2, other, {})
    kept.close()
    last = tmp_path / "checkpoints" / "last"
    cut_off(last / "2")
    cut_off(tmp_path / "checkpoints" / "best" / "2")
    kind, number, model = checkpoints.restore_model(str(tmp_path), "best", MODEL)
    assert (kind, number) == ("last", 1)
    same(model, MODEL)
    assert "best/2 cannot be read" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"best/2 cannot be read .*; another --step is accepted"):
        checkpoints.restore_model(str(tmp_path), "2", MODEL)

    kept = checkpoints.Checkpoints.open(checkpoints.folder_of(tmp_path))
    state, meta = kept.restore(STATE)
    same(state, STATE)
    assert meta == {"at": 1} and kept.latest().endswith("/1")
    assert "last/2 cannot be read" in capsys.readouterr().out
    # Nothing is lost, and step 2 is saved anew.
    assert (tmp_path / "checkpoints" / "damaged" / "2").is_dir()
    kept.save(2, other, {"at": 2})
    kept.wait()
    same(kept.restore(STATE)[0], other)
    for step in ("1", "2"):
        (last / step / "meta" / "metadata").write_text("{")
    with pytest.raises(UserError, match=r"none of the checkpoints 2, 1 of .* can be read"):
        kept.restore(STATE)
    kept.close()
