"""The state in shares: which arrays are split, that nothing is whole that should not be, and that no value changes."""

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from dml_jax import UserError, losses, models
from dml_jax.checkpoints import Checkpoints
from dml_jax.mesh import make_mesh
from dml_jax.training import optim, sharding, state
from dml_jax.training.schedules import RunLength
from dml_jax.training.step import make_train_step

CLASSES, B = 16, 16
MODEL = models.convnet(width=8, depth=1, embedding_dim=8, image_size=8)
LOSS = losses.get("cos_face", margin=0.2, scale=16.0)
RULE = sharding.Rule(above=64)
# By name, (devices, fsdp, replicas).
MESHES = {
    "1": (1, 1, 1),
    "8": (8, 1, 1),
    "4x2": (8, 2, 1),
    "2x4": (8, 4, 1),
    "2x2x2": (8, 2, 2),
}


def mesh_of(name):
    devices, fsdp, replicas = MESHES[name]
    return make_mesh(devices, fsdp=fsdp, replicas=replicas)


def optimizer():
    return optax.adam(1e-2)


def made(mesh, rule=RULE, ema=True):
    def init(backbone):
        return state.init(MODEL, LOSS, optimizer(), 0, CLASSES, 48, backbone, ema=ema)

    at = sharding.of_state(jax.eval_shape(init, None), mesh, rule)
    return state.make(init, MODEL, at), at


def batches(steps):
    rng = np.random.default_rng(0)
    for _ in range(steps):
        yield {
            "image": rng.integers(0, 256, (B, 8, 8, 1), dtype=np.uint8),
            # Unbalanced, with classes of a single image.
            "label": np.minimum(rng.integers(0, 20, B), CLASSES - 1).astype(np.int32),
            "id": rng.permutation(48)[:B].astype(np.int32),
        }


def trained(name, steps=3, micro_batch=None):
    mesh = mesh_of(name)
    with jax.set_mesh(mesh):
        s, at = made(mesh)
        step = make_train_step(
            MODEL, LOSS, optimizer(), ema=0.9, shardings=at, micro_batch=micro_batch
        )
        curve = []
        for batch in batches(steps):
            s, metrics = step(s, state.shard(batch, mesh))
            curve.append(float(metrics["loss"]))
        assert step._cache_size() == 1
    return s, curve, at


@pytest.fixture(scope="module")
def one():
    return trained("1")


@pytest.mark.parametrize(
    ("name", "micro_batch"),
    [("8", None), ("4x2", None), ("2x4", None), ("2x2x2", None), ("4x2", 8)],
)
def test_the_curve_of_one_device(one, name, micro_batch):
    s, curve, at = trained(name, micro_batch=micro_batch)
    np.testing.assert_allclose(curve, one[1], rtol=1e-5)
    # Adam divides by the root of tiny moments: rounding of gradients near 0 shows.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), s, one[0])
    assert jax.tree.map(lambda x: x.sharding, s) == at


@pytest.mark.parametrize(("name", "micro_batch"), [("8", None), ("2x4", None), ("4x2", 8)])
def test_a_sample_of_the_classes(name, micro_batch):
    """partial_fc and sparse moments, weights sharded by class: the curve and the state of one device."""
    loss = losses.get("partial_fc", loss={"name": "cos_face", "scale": 16.0}, one_of=2)
    group = {"match": ".*", "name": "adam", "lr": 1e-2}
    groups = {
        "all": {**group, "match": "model/.*"},
        "loss": {**group, "match": "loss/.*", "sparse": True},
    }
    tx = optim.partition(optim.groups_of(groups), RunLength(9, 9))

    def curve(name, micro_batch):
        mesh, values = mesh_of(name), []
        init = lambda backbone: state.init(MODEL, loss, tx, 0, CLASSES, 0, backbone)
        with jax.set_mesh(mesh):
            at = sharding.of_state(jax.eval_shape(init, None), mesh, RULE)
            s = state.make(init, MODEL, at)
            step = make_train_step(MODEL, loss, tx, shardings=at, micro_batch=micro_batch)
            for batch in batches(3):
                del batch["id"]
                s, metrics = step(s, state.shard(batch, mesh))
                values.append(float(metrics["loss"]))
        return values, s

    (want, of_one), (got, s) = curve("1", None), curve(name, micro_batch)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), s, of_one)
    assert share(s["params"]["loss"]["weights"]) == 1 / 8


def share(x):
    return x.addressable_shards[0].data.size / x.size


@pytest.mark.parametrize(("name", "part"), [("4x2", 1 / 2), ("2x4", 1 / 4)])
def test_what_the_rule_splits_is_nowhere_whole(name, part):
    """Read from the shardings of the compiled step's inputs and outputs, and of the state as it is made."""
    mesh = mesh_of(name)
    with jax.set_mesh(mesh):
        s, at = made(mesh)
        step = make_train_step(MODEL, LOSS, optimizer(), ema=0.9, shardings=at)
        batch = state.shard(next(batches(1)), mesh)
        compiled = step.lower(s, batch).compile()
    inputs = compiled.input_shardings[0][0]
    outputs = compiled.output_shardings[0]
    kernel = lambda tree: tree["params"]["model"]["head"]["kernel"]
    shapes = {"init": s, "inputs": inputs, "outputs": outputs}
    for where, tree in shapes.items():
        for leaf, x in zip(jax.tree.leaves(tree), jax.tree.leaves(s), strict=True):
            there = leaf.sharding if where == "init" else leaf
            size = np.prod(there.shard_shape(x.shape), dtype=int)
            splits = x.size >= RULE.above and any(n % mesh.shape["fsdp"] == 0 for n in x.shape)
            assert size <= x.size * part if splits else size == x.size, (where, x.shape)
    assert share(kernel(s)) == part
    # The moments and the average lie as the parameter does; class weights by class over all devices.
    assert share(s["opt"][0].mu["model"]["head"]["kernel"]) == part
    assert share(s["ema"]["params"]["model"]["head"]["kernel"]) == part
    assert share(s["storage"]) == part
    for weights in (s["params"], s["opt"][0].nu):
        assert weights["loss"]["weights"].sharding.spec == P(("data", "fsdp"))


def test_one_copy_by_default():
    mesh = make_mesh(8)
    with jax.set_mesh(mesh):
        s, _ = made(mesh, sharding.Rule())
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(s))


def test_axes_that_are_chosen():
    mesh = mesh_of("4x2")
    rule = sharding.Rule(64, (("model/head/kernel", None), ("model/backbone/.*/kernel", 3)))
    with jax.set_mesh(mesh):
        s, _ = made(mesh, rule)
    params = s["params"]["model"]
    assert params["head"]["kernel"].sharding.spec == P()
    assert s["opt"][0].mu["model"]["head"]["kernel"].sharding.spec == P()
    kernels = [x for x in jax.tree.leaves(params["backbone"]) if x.ndim == 4]
    assert {k.sharding.spec for k in kernels} == {P(None, None, None, ("fsdp",))}
    with pytest.raises(UserError, match=r"\('model/head/kernel', 7\), but model/head/kernel is"):
        made(mesh, sharding.Rule(64, (("model/head/kernel", 7),)))


def test_devices_that_cannot_be_divided():
    with pytest.raises(UserError, match=r"train\.fsdp=3 and train\.replicas=1 do not divide 8"):
        make_mesh(8, fsdp=3)


@pytest.mark.parametrize("there", ["1", "8", "4x2", "2x4"])
def test_a_checkpoint_goes_to_every_other_mesh(tmp_path, there):
    s, _, _ = trained(there, steps=1)
    kept = Checkpoints.open(str(tmp_path))
    kept.save(1, state.snapshot(s), {})
    kept.wait()
    for here in ("1", "8", "4x2", "2x4"):
        mesh = mesh_of(here)
        with jax.set_mesh(mesh):
            fresh, at = made(mesh)
            template = jax.tree.map(
                lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), fresh, at
            )
            found, _ = kept.restore(template)
        assert jax.tree.map(lambda x: x.sharding, found) == at
        jax.tree.map(np.testing.assert_array_equal, found, s)
    kept.close()
