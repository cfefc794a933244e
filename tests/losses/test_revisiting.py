"""Losses as the ICML 2020 system has them, against its own code in float64 (tests/golden/make_revisiting.py)."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from dml_jax import losses, miners, selection
from dml_jax.revisiting import triplet_losses
from tests.losses import table
from tests.losses.loops import common

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "revisiting.npz")
KEYS = sorted(k.removesuffix("/value") for k in GOLDEN.files if k.endswith("/value"))
ADVERSARIAL = "revisiting_adversarial_separation"
RAW = {"normalize_embeddings": False}
VARIANTS = {
    "contrastive/icml": dict(distance={"name": "lp", "eps": 1e-6}, reducer="mean"),
    "triplet_margin/icml": dict(distance={"name": "lp", "power": 2}, reducer="mean", margin=0.2),
    "revisiting_margin/parity": dict(parity=True),
    "revisiting_margin/nu": dict(nu=0.01),
    "revisiting_arc_face/parity": dict(parity=True),
    "revisiting_arc_face/released": dict(parity=True, margin=0.0),
    "revisiting_soft_triple/parity": dict(parity=True),
    "revisiting_quadruplet/parity": dict(parity=True),
    "revisiting_histogram/nbins11": dict(nbins=11),
    "revisiting_histogram/nbins21": dict(nbins=21),
    "revisiting_histogram/parity11": dict(nbins=11, parity=True),
    "revisiting_histogram/parity21": dict(nbins=21, parity=True),
    "revisiting_n_pair/bninception": dict(
        temperature=16.0, regularizer={"name": "lp", "weight": 0.00125}
    ),
    ADVERSARIAL: dict(proj_dim=16),
}
SCALES = {"revisiting_angular": 0.5, "revisiting_angular/clipped": 2.0}
LEARNED = {"revisiting_margin": "beta", "revisiting_soft_triple": "weights"}
EVERY = miners.get("triplet_margin", margin=1e9)  # pairs weigh by how many triplets hold them


def parameters(name):
    """What `init` would make, from the golden file."""
    family = name.partition("/")[0]
    if family == ADVERSARIAL:
        w1, b1, w2, b2 = (jnp.asarray(GOLDEN[f"network/{p}"]) for p in ("w1", "b1", "w2", "b2"))
        hidden, output = {"kernel": w1.T, "bias": b1}, {"kernel": w2.T, "bias": b2}
        return {"params": {"hidden": hidden, "output": output}}
    if family == "revisiting_margin":
        return {"params": {"beta": jnp.asarray(GOLDEN["beta"])}}
    array = "centers" if family == "revisiting_soft_triple" else "weights"
    return {"params": {"weights": jnp.asarray(GOLDEN[array])}}


def give(monkeypatch, drawn):
    """Makes every anchor draw what was recorded."""
    for module in (selection, triplet_losses):
        monkeypatch.setattr(module, "draw", lambda keys, mask: jnp.asarray(drawn)[:, None])
    jax.clear_caches()


def evaluate(key, **changes):
    """(value, gradients of embeddings, of references and of parameters) of a golden case."""
    name, mined = key.rpartition("/")[::2]
    spec = VARIANTS.get(name, {}) | changes
    if mined != "none":
        spec["miner"] = mined
    elif name == "contrastive/icml":
        spec["miner"] = EVERY
    loss = losses.get(name.partition("/")[0], **spec)
    rows = GOLDEN.get(f"{key}/rows", slice(None))
    labels, scale = GOLDEN["labels"][rows], SCALES.get(name, 1.0)

    def value(x, refs, variables):
        others = dict(ref_embeddings=refs) if name == ADVERSARIAL else {}
        more = dict(key=jax.random.key(0)) | others
        return loss.apply(variables, scale * x, labels, **more)[0].compute()

    arrays = jnp.asarray(GOLDEN["x"][rows]), jnp.asarray(GOLDEN["refs"]), parameters(name)
    graded = jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2)))
    result, (x, refs, variables) = graded(*arrays)
    learned = variables["params"]
    got = {"value": result, "gradient": x, "refs": refs}
    if name == ADVERSARIAL:
        hidden, output = learned["hidden"], learned["output"]
        got |= {"w1": hidden["kernel"].T, "b1": hidden["bias"]}
        return got | {"w2": output["kernel"].T, "b2": output["bias"]}
    return got | {"learned": next(iter(learned.values()))}


def error(got, key, part):
    want = GOLDEN[f"{key}/{part}"]
    return np.abs(np.asarray(got[part]) - want).max() / max(np.abs(want).max(), 1e-6)


def largest_error(key, **changes):
    """The largest error of the value and of all gradients that are recorded."""
    got = evaluate(key, **changes)
    assert got["value"].dtype == jnp.float64
    return max(error(got, key, part) for part in got if f"{key}/{part}" in GOLDEN)


def drawn(key):
    """What each anchor drew in a golden case; None where nothing was drawn."""
    return GOLDEN.get(f"{key}/drawn")


@pytest.mark.parametrize("key", KEYS)
def test_value_and_gradient(key, x64, monkeypatch):
    if drawn(key) is not None:
        give(monkeypatch, drawn(key))
    assert largest_error(key) < 1e-10


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("revisiting_margin/none", dict(parity=True)),
        ("revisiting_margin/nu/none", dict(nu=0.0)),
        ("revisiting_arc_face/none", dict(parity=True)),
        ("revisiting_arc_face/parity/none", dict(margin=0.0)),
        ("revisiting_soft_triple/none", dict(parity=True)),
        ("revisiting_soft_triple/none", dict(reg_weight=0.19)),
        ("revisiting_histogram/nbins11/none", dict(parity=True)),
        ("revisiting_histogram/parity21/none", dict(parity=False)),
        ("revisiting_multi_similarity/none", dict(epsilon=0.2)),
        ("revisiting_angular/clipped/none", dict(clip=1e9)),
        ("contrastive/icml/batch_hard", dict(reducer="avg_non_zero")),
    ],
)
def test_a_wrong_formula_fails(key, changes, x64, monkeypatch):
    """The batch tells each form of a loss from its nearest relatives."""
    if drawn(key) is not None:
        give(monkeypatch, drawn(key))
    assert error(evaluate(key, **changes), key, "value") > 1e-4


LABELS = jnp.asarray(table.LABELS)


def batch(seed=0):
    return np.random.default_rng(seed).normal(size=(22, table.DIM)).astype(np.float32)


def mesh(devices):
    return jax.make_mesh(
        (devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )


@pytest.mark.parametrize("name", sorted(table.DRAWN))
def test_padding_of_losses_that_draw(name):
    """Samples that are not there are not drawn, and the others draw among the rest."""
    keep = np.arange(22) % 5 != 2
    x = jnp.where(keep[:, None], batch(), 7.0)
    loss = losses.get(name)
    value = lambda x: loss.apply({}, x, LABELS, valid=keep, key=common.KEY)[0].compute()
    got, slope = jax.jit(jax.value_and_grad(value))(x)
    there = batch()[keep].astype(float)
    want = table.DRAWN[name](there, table.LABELS[keep], None, np.flatnonzero(keep))
    np.testing.assert_allclose(got, want, rtol=2e-5)
    assert not np.asarray(slope)[~keep].any()


PARITY = dict(parity=True, miner="batch_hard")
OTHER_KEY = jax.random.key(6)


@pytest.mark.parametrize("name", sorted(table.DRAWN))
def test_draws_depend_on_key_and_anchor_alone(name):
    loss = losses.get(name, **(PARITY if name == "revisiting_quadruplet" else {}))

    @functools.partial(jax.jit, static_argnames="block")
    def graded(x, key, block=None):
        value = lambda x: loss.apply({}, x, LABELS, key=key, block=block)[0].compute()
        return jax.value_and_grad(value)(x)

    want = graded(batch(), common.KEY)
    assert graded(batch(), OTHER_KEY)[0] != want[0]
    same = lambda got: jax.tree.map(
        lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-6), got, want
    )
    with jax.set_mesh(mesh(4)):
        same(graded(batch(), common.KEY, block=2))
    with pytest.raises(ValueError, match="at random and needs a key"):
        graded(batch(), None)


def test_every_allowed_sample_is_drawn():
    """Positives of a class of 6, and fourths outside of two classes, over many keys: alike often."""
    same = LABELS[:, None] == LABELS[None, :]
    pos, neg = same & ~jnp.eye(22, dtype=bool), ~same
    keys = jax.random.split(jax.random.key(3), 4000)
    at = lambda mask: jnp.broadcast_to(
        mask[1], (4000, 22)
    )  # anchor 1, of class 0, and all its draws
    chosen = np.asarray(selection.draw_positive(at(pos), at(neg), keys).pos).mean(0)
    np.testing.assert_allclose(chosen, np.asarray(pos[1]) / 5, atol=0.03)

    def which(one, refs):  # in the place of distances: the position that is looked up
        return jnp.broadcast_to(jnp.argmax(one, -1)[:, None], one.shape) + 0.0 * refs[:, 0][None]

    far, exists = triplet_losses.fourth_distances(at(neg), which, batch(), LABELS, keys)
    assert np.asarray(exists)[:, np.asarray(neg[1])].all()
    for n in (2, 8):  # of a class of 5, and alone in its class
        share = np.bincount(np.asarray(far[:, n], int), minlength=22) / 4000
        allowed = (table.LABELS != 0) & (table.LABELS[n] != table.LABELS)
        np.testing.assert_allclose(share, allowed / allowed.sum(), atol=0.03)


def test_the_positive_is_the_miner_s():
    """What the loss draws without a miner is what n_pair draws by the same key."""
    x = batch()
    for name in ("revisiting_n_pair", "revisiting_angular"):
        got, want, other = (
            losses.get(name, miner=miner).apply({}, x, LABELS, key=key)[0].compute()
            for miner, key in [(None, common.KEY), ("n_pair", common.KEY), ("n_pair", OTHER_KEY)]
        )
        assert got == want != other


def test_classes_of_a_hierarchy():
    """A fourth class is one of the level that makes the triplets."""
    tree = jnp.stack([LABELS // 2, LABELS], 1)
    value = lambda labels, **how: (
        losses.get("revisiting_quadruplet", **how)
        .apply({}, batch(), labels, key=common.KEY)[0]
        .compute()
    )
    relation = {"name": "hierarchy", "level": 0}
    np.testing.assert_array_equal(value(tree, relation=relation), value(LABELS // 2))
    assert value(LABELS // 2) != value(LABELS)


def test_two_classes_have_no_fourth():
    loss, labels = losses.get("revisiting_quadruplet"), jnp.arange(22) % 2
    got = loss.apply({}, batch(), labels, key=common.KEY)[0].compute()
    want = losses.get("triplet_margin", margin=0.2, reducer="mean")
    np.testing.assert_allclose(got, want.apply({}, batch(), labels)[0].compute(), rtol=1e-6)


def test_a_fourth_is_drawn_among_references():
    """Two classes in the batch, a third among the references alone."""
    x, refs = batch(), batch(1)
    others = dict(ref_embeddings=refs, ref_labels=LABELS % 3, key=common.KEY)
    loss = losses.get("revisiting_quadruplet", alpha1=-9.0)
    near = losses.get("revisiting_quadruplet", alpha1=-9.0, alpha2=0.3)
    labels = jnp.arange(22) % 2
    value = lambda loss: float(loss.apply({}, x, labels, **others)[0].compute())
    assert 0.05 < value(near) - value(loss) <= 0.1


@pytest.mark.parametrize("block", [None, 1])
def test_a_chunk_of_the_own_class_alone(block):
    """Proxy-NCA in chunks of one class: the sum over the others is empty in one of them."""
    loss = losses.get("revisiting_proxy_nca")
    variables = loss.init(jax.random.key(0), 7, table.DIM)
    graded = jax.value_and_grad(
        lambda x, v, b: loss.apply(v, x, LABELS, block=b)[0].compute(), argnums=(0, 1)
    )
    got, want = (graded(batch(), variables, b) for b in (block, 3))
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-6), got, want)


def test_a_single_class_and_a_single_center():
    nca = losses.get("revisiting_proxy_nca")
    variables, labels = nca.init(jax.random.key(0), 1, table.DIM), jnp.zeros(22, int)
    weights = np.asarray(variables["params"]["weights"])
    got = nca.apply(variables, batch(), labels)[0].compute()
    want = 9 * np.mean(2 - 2 * common.cosines(batch(), weights))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for parity in (True, False):
        loss = losses.get("revisiting_soft_triple", centers_per_class=1, parity=parity)
        variables = loss.init(jax.random.key(0), 7, table.DIM)
        values = [
            x.apply(variables, batch(), LABELS)[0].compute()
            for x in (
                loss,
                losses.get(loss.name, centers_per_class=1, parity=parity, reg_weight=9.0),
            )
        ]
        assert values[0] == values[1]


def test_where_parameters_start():
    init = lambda name: losses.get(name).init(jax.random.key(0), 400, 64)["params"]
    assert (init("revisiting_margin")["beta"] == np.float32(1.2)).all()
    np.testing.assert_allclose(init("revisiting_proxy_nca")["weights"].std(), 1 / 8, rtol=0.02)
    for name in ("revisiting_softmax", "revisiting_arc_face"):
        weights = np.abs(init(name)["weights"])
        assert 0.99 / 8 < weights.max() <= 1 / 8
    assert init("revisiting_soft_triple")["weights"].shape == (400, 2, 64)
    network = init(ADVERSARIAL)
    assert network["hidden"]["kernel"].shape == (64, 512)
    assert 0.99 / 512**0.5 < np.abs(network["output"]["kernel"]).max() <= 512**-0.5


def test_the_penalty_can_be_left_out():
    x, only = 3 * batch()[:1], LABELS[:1]
    value = lambda loss: loss.apply({}, x, only, key=common.KEY)[0].compute()
    for name in ("revisiting_n_pair", "revisiting_angular"):
        np.testing.assert_allclose(value(losses.get(name)), 0.005 * np.linalg.norm(x), rtol=1e-6)
        assert value(losses.get(name, regularizer=())) == 0


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (dict(name="revisiting_quadruplet", parity=True), "a miner that lists one triplet"),
        (dict(name="revisiting_quadruplet", relation="matrix"), "takes relation 'hierarchy' or"),
        (
            dict(name="revisiting_histogram", nbins=1),
            "nbins of loss .* is 1; accepted: a whole number of at least 2",
        ),
        (dict(name="revisiting_margin", distance="cosine"), "accepted: lp"),
        (dict(name="revisiting_snr", parity=True), "unknown hyper-parameter"),
        (dict(name=ADVERSARIAL, miner="batch_hard"), "no use for a miner"),
    ],
)
def test_errors(spec, words):
    with pytest.raises(ValueError, match=words) as problem:
        losses.get(**spec).apply({}, batch(), LABELS, key=common.KEY)
    assert "\n" not in str(problem.value)


def test_parity_of_quadruplet_takes_no_references():
    loss = losses.get("revisiting_quadruplet", **PARITY)
    with pytest.raises(ValueError, match="accepted: no ref_embeddings"):
        loss.apply({}, batch(), LABELS, key=common.KEY, ref_embeddings=batch(), ref_labels=LABELS)
