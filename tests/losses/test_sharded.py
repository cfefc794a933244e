"""References that stay on their devices: the same value and gradient, and whole on no device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dml_jax import losses, sharded
from dml_jax.errors import UserError
from dml_jax.mesh import make_mesh
from tests import draws
from tests.losses.loops import common
from tests.losses.test_laws import (
    CASES,
    assert_same,
    batch,
    evaluate,
    labels_of,
    make,
    references,
    variables,
)

# What reads the vectors of references beside their similarities.
READERS = (
    "angular",
    "manifold",
    "n_pairs",
    "revisiting_angular",
    "revisiting_quadruplet",
    "triplet_margin/swap",
)
PAIRS = [(name, miner) for name, miner in CASES if make(name, miner).pairwise]
REFUSED = "references='sharded'; references='replicated' is accepted"


def graded(name, miner, block, layout="sharded"):
    """Value and gradients as a function, and its arguments."""
    loss, labels = make(name, miner), labels_of(name)
    made = variables(loss)

    def value(x, params):
        more = dict(block=block, key=common.KEY, references=layout) | references(name, x)
        return loss.apply({**made, "params": params}, x, labels, **more)[0].compute()

    return jax.jit(jax.value_and_grad(value, argnums=(0, 1))), made.get("params", {})


def on_devices(name, miner=None, block=4, **how):
    """Value and gradients, in blocks, on two times two devices."""
    with jax.set_mesh(make_mesh(4, fsdp=2)):
        run, params = graded(name, miner, block, **how)
        return run(jnp.asarray(batch()), params)


@pytest.mark.parametrize(("name", "miner"), draws.some(PAIRS, 8, "sharded"))
def test_equals_dense(name, miner):
    draws.tell()
    block = 4 if make(name).takes_block else None
    if name in READERS:
        with pytest.raises(UserError, match=REFUSED):
            on_devices(name, miner, block)
        return
    assert_same(on_devices(name, miner, block), evaluate(name, batch(), miner=miner))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("angular", "the loss or its miner reads the vectors of all references"),
        ("n_pairs", "loss 'n_pairs' looks rows up in the whole batch, which no device has"),
        ("manifold", "loss 'manifold' is on the graph of the whole batch"),
        ("cos_face", "a loss against class weights needs the whole batch on every device"),
    ],
)
def test_what_needs_all_vectors_is_refused(name, reason):
    with pytest.raises(UserError, match=f"{reason}.*{REFUSED}"):
        on_devices(name, block=None)


def test_a_wrong_exchange_would_be_seen(monkeypatch):
    """The negative control: rows of similarities that come in another order belong to other anchors."""
    want = evaluate("multi_similarity", batch())
    assert_same(on_devices("multi_similarity"), want)
    exchange = jax.lax.all_to_all
    monkeypatch.setattr(
        jax.lax, "all_to_all", lambda x, *a, **how: exchange(jnp.roll(x, 1, 0), *a, **how)
    )
    found = on_devices("multi_similarity", block=3)  # not the program of before
    assert abs(found[0] - want[0]) > 1e-3 * abs(want[0])


# A miner of another distance than the loss's, a prepass, and a penalty of the embeddings that compares them.
HELD = {
    "pairs": dict(name="multi_similarity", miner="multi_similarity"),
    "triplets": dict(name="triplet_margin", miner={"name": "batch_hard", "distance": "cosine"}),
    "prepass": dict(name="lifted_structure"),
    "penalty": dict(name="contrastive", regularizer={"name": "regular_face", "of": "embeddings"}),
}


@pytest.mark.parametrize("case", HELD)
def test_no_device_holds_all_references(case):
    """Of 512 embeddings on four devices the program of a device has arrays of 128, but where they are replicated."""
    loss, mesh = losses.get(**HELD[case]), make_mesh(4)
    labels, whole = jnp.arange(512, dtype=jnp.int32) // 4, {}
    with jax.set_mesh(mesh):
        rows = jax.NamedSharding(mesh, jax.P("data"))
        x = jax.ShapeDtypeStruct((512, 24), jnp.float32, sharding=rows)
        for layout in ("sharded", "replicated"):

            def value(x, layout=layout):
                return loss.apply({}, x, labels, block=32, references=layout)[0].compute()

            text = jax.jit(jax.grad(value)).lower(x).compile().as_text()
            whole[layout] = "f32[512,24]" in text or "f32[24,512]" in text
    assert whole == {"sharded": False, "replicated": True}


def test_one_device_has_all():
    loss = losses.get("contrastive")
    x, labels = jnp.asarray(batch()), labels_of("contrastive")
    found = [
        loss.apply({}, x, labels, references=layout)[0].compute()
        for layout in ("sharded", "replicated")
    ]
    assert np.array_equal(*found)
    with pytest.raises(UserError, match="references is 'shard'; accepted: 'replicated' or 'sharde"):
        loss.apply({}, x, labels, references="shard")
    assert not sharded.is_used()
