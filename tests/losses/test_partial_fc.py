"""Losses against a sample of the classes: against a loop, on devices, in blocks, exact at one of one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dml_jax import UserError, losses
from dml_jax.losses.partial_fc import draw
from dml_jax.mesh import make_mesh
from dml_jax.training import optim
from dml_jax.training.schedules import RunLength

CLASSES, DIM = 45, 6
# Unbalanced, with classes of a single image, the last of all, and one twice in a stretch of four.
LABELS = np.array([0, 0, 0, 7, 7, 44, 3, 20, 21, 8, 8, 30])
KEY = jax.random.key(3)
INNER = {
    "cos_face": {"scale": 8.0},
    "normalized_softmax": {},
    "soft_triple": {},
    "p2s_grad": {},
    "proxy_nca": {},
    "sub_center_arc_face": {"scale": 8.0},
}


def data(classes=CLASSES):
    x = np.random.default_rng(0).normal(size=(len(LABELS), DIM)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(LABELS % classes)


def made(name, one_of, classes=CLASSES):
    loss = losses.get("partial_fc", loss={"name": name, **INNER[name]}, one_of=one_of)
    return loss, loss.init(jax.random.key(1), classes, DIM)


@functools.cache
def graded(name, one_of, block=None):
    loss, _ = made(name, one_of)

    def value(weights, x, labels, valid):
        variables = {"params": {"weights": weights}}
        return loss.apply(variables, x, labels, key=KEY, block=block, valid=valid)[0].compute()

    return jax.jit(jax.value_and_grad(value, argnums=(0, 1)))


def run(name, one_of, block=None, devices=None, classes=CLASSES):
    _, variables = made(name, one_of, classes)
    x, labels = data(classes)
    weights, valid = variables["params"]["weights"], jnp.arange(len(labels)) != 4
    if devices is None:
        return graded(name, one_of, block)(weights, x, labels, valid)
    with jax.set_mesh(make_mesh(devices)):
        return graded(name, one_of, block)(weights, x, labels, valid)


def same(a, b, rtol=2e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=rtol * max(np.abs(y).max(), 1e-3))


def classes_of(one_of):
    """The classes of a step: the sample, and those of the batch (of the rows that are valid)."""
    _, variables = made("cos_face", one_of)
    ids, _ = draw(jax.random.fold_in(KEY, 0), variables["params"]["weights"], one_of)
    return sorted({*ids.tolist(), *np.delete(LABELS, 4).tolist()})


def test_equals_a_loop():
    """CosFace written out over the classes of the step."""
    _, variables = made("cos_face", 4)
    chosen = classes_of(4)
    assert len(chosen) < CLASSES / 2
    x, labels = (np.asarray(a, np.float64) for a in data())
    w = np.asarray(variables["params"]["weights"], np.float64)
    x, w = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, w))
    values = []
    for i in np.delete(np.arange(len(labels)), 4):
        logits = [8 * (x[i] @ w[c] - 0.35 * (c == labels[i])) for c in chosen]
        own = logits[chosen.index(int(labels[i]))]
        values.append(np.log(np.exp(logits).sum()) - own)
    got, (by_weights, _) = run("cos_face", 4)
    np.testing.assert_allclose(got, np.mean(values), rtol=1e-5)
    # The negative control: all classes, or the sample without those of the batch, are another number.
    assert abs(float(run("cos_face", 1)[0]) - np.mean(values)) > 0.05
    # Rows that take no part have no gradient, the others have.
    moved = np.flatnonzero(np.abs(by_weights).sum(1))
    assert moved.tolist() == chosen


@pytest.mark.parametrize("name", INNER)
def test_one_of_one_is_the_loss_itself(name):
    x, labels = data()
    loss, variables = made(name, 1)
    want = losses.get(name, **INNER[name]).apply(variables, x, labels)[0].compute()
    assert loss.apply(variables, x, labels)[0].compute() == want


@pytest.mark.parametrize("name", INNER)
@pytest.mark.parametrize(("devices", "block"), [(None, 5), (8, None), (4, 3)])
def test_blocks_and_devices_change_nothing(name, devices, block):
    same(run(name, 4, block, devices), run(name, 4))


@pytest.mark.parametrize("one_of", [2, 3])
def test_shares_that_divide(one_of):
    """48 classes: eight devices draw from their own shares of them, and find what one device finds."""
    same(run("cos_face", one_of, devices=8, classes=48), run("cos_face", one_of, classes=48))


def test_every_class_is_drawn_as_often():
    weights = jnp.zeros((10, 1))
    keys = jax.random.split(jax.random.key(0), 4000)
    ids = jax.vmap(lambda key: draw(key, weights, 4)[0])(keys)
    assert ids.shape == (4000, 3)
    share = np.bincount(np.asarray(ids).ravel(), minlength=10) / 4000
    np.testing.assert_allclose(share, [0.25] * 8 + [0.5] * 2, atol=0.03)


def test_a_label_that_is_no_class():
    loss, variables = made("cos_face", 4)
    x, labels = data()
    labels = labels.at[0].set(CLASSES)
    mean = jax.jit(lambda v, x, y: loss.apply(v, x, y, key=KEY)[0].compute())(variables, x, labels)
    assert np.isnan(mean)


def test_refused():
    with pytest.raises(
        UserError, match="partial_fc' has loss='contrastive'; accepted: a loss against class"
    ):
        losses.get("partial_fc", loss="contrastive")
    loss, variables = made("cos_face", 4)
    with pytest.raises(UserError, match="draws classes, and apply has no key; accepted: key="):
        loss.apply(variables, *data())


def test_moments_of_other_rows_stay():
    """Adam of the rows with a gradient is Adam of these rows alone; the others keep moments and values."""
    group = {"match": ".*", "name": "adam", "lr": 0.1, "weight_decay": 0.5}
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(())}
    length = RunLength(5, 5)
    sparse = optim.partition(optim.groups_of({"all": {**group, "sparse": True}}), length)
    dense = optim.partition(optim.groups_of({"all": group}), length)
    gradients = {"w": jnp.array([[0.0, 0.0], [1.0, 2.0], [0.0, -1.0]]), "b": jnp.ones(())}
    first = jax.tree.map(jnp.ones_like, params)
    found = {}
    for name, tx in (("sparse", sparse), ("dense", dense)):
        state = tx.init(params)
        _, state = tx.update(first, state, params)
        found[name] = tx.update(gradients, state, params), state
    (updates, after), before = found["sparse"]
    (other, after_dense), _ = found["dense"]
    np.testing.assert_array_equal(updates["w"][0], 0)
    np.testing.assert_array_equal(updates["w"][1:], other["w"][1:])
    assert updates["b"] == other["b"] and other["w"][0, 0] != 0
    moments = lambda state: [x for x in jax.tree.leaves(state) if x.shape == (3, 2)]
    assert len(moments(after)) == 2
    for new, old, full in zip(moments(after), moments(before), moments(after_dense), strict=True):
        np.testing.assert_array_equal(new[0], old[0])
        np.testing.assert_array_equal(new[1:], full[1:])
