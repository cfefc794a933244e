"""The step of each family of models lowers for GPUs and TPUs, on a machine that has neither."""

import jax
import pytest
from jax import export

from dml_jax import losses, models
from dml_jax.mesh import make_mesh
from dml_jax.training import optim, sharding, state
from dml_jax.training.schedules import RunLength
from dml_jax.training.step import make_train_step
from tests.losses.test_lowering import PLATFORMS, refused

# Of every family the smallest that has all its parts.
FAMILIES = {
    "bn_inception": {"image_size": 64},
    "clip": {"image_size": 32},
    "convnet": {"width": 8, "depth": 1, "image_size": 8},
    "convnext": {"image_size": 32},
    "dinov3": {"image_size": 32},
    "googlenet": {"image_size": 64},
    "mobilenet_v2": {"image_size": 32},
    "plain_vit": {"size": "ti", "image_size": 32},
    "resnet": {"size": 18, "image_size": 32},
    "siglip": {"image_size": 32},
    "vit": {"size": "s", "image_size": 28, "drop_path": 0.1},
}
BATCH = 8


def test_every_family_is_here():
    assert sorted(FAMILIES) == models.available()


def program(model, loss, **options):
    """The text of a step on two devices that share the state, with whatever a run can add to it."""
    tx = optim.partition(
        optim.groups_of({"all": {"match": ".*", "name": "adamw", "lr": 1e-3}}),
        RunLength(10, 10),
        clip=1.0,
    )
    mesh = make_mesh(2, fsdp=2)
    with jax.set_mesh(mesh):
        init = lambda: state.init(model, loss, tx, 0, 6, ema=True)
        shapes = jax.eval_shape(init)
        at = sharding.of_state(shapes, mesh, sharding.Rule())
        at["first_bad"] = jax.tree.map(lambda x: x.sharding, state.watch(mesh)["first_bad"])
        shapes |= jax.eval_shape(lambda: state.watch(mesh))
        given = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, at
        )
        rows = jax.NamedSharding(mesh, jax.P("fsdp"))
        size = model.image_size
        batch = {
            "image": jax.ShapeDtypeStruct(
                (BATCH, size, size, model.channels), "uint8", sharding=rows
            ),
            "label": jax.ShapeDtypeStruct((BATCH,), "int32", sharding=rows),
        }
        step = make_train_step(model, loss, tx, ema=0.9, shardings=at, **options)
        exported = export.export(step, platforms=PLATFORMS)(given, batch)
    assert exported.platforms == PLATFORMS and exported.nr_devices == 2
    return exported.mlir_module()


@pytest.mark.parametrize("name", FAMILIES)
def test_step(name):
    model = models.get(name, embedding_dim=4, **FAMILIES[name])
    assert not refused(program(model, losses.get("multi_similarity", miner="multi_similarity")))


def test_step_in_micro_batches_against_class_weights():
    model = models.get("convnet", embedding_dim=4, dtype="bfloat16", **FAMILIES["convnet"])
    text = program(model, losses.get("cos_face"), micro_batch=4, block=2)
    assert not refused(text) and "bf16" in text
