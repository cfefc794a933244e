"""Losses made of losses: PML's values over several steps, sharding, padding, and bad input."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dml_jax import distances, losses, miners
from dml_jax.losses import sub_center_outliers
from dml_jax.selection import Selection

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "losses.npz")
MEMORY = sorted({k[7:-6] for k in GOLDEN.files if k.startswith("memory/") and k.endswith("/value")})
VIEWS = sorted({k[6:-6] for k in GOLDEN.files if k.startswith("views/") and k.endswith("/value")})
X, LABELS = GOLDEN["x"], GOLDEN["labels"]


def difference(got, key):
    """The largest error of value and gradient, relative to the largest entry of each."""
    want = [GOLDEN[f"{key}/{part}"] for part in ("value", "gradient")]
    return max(np.abs(g - w).max() / np.abs(w).max() for g, w in zip(got, want, strict=True))


@functools.cache
def mesh(devices):
    return jax.make_mesh(
        (devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )


def steps(loss, batches, labels, block=None):
    """Values, gradients and the last state of a queue that goes through the batches."""
    state, results = loss.init(jax.random.key(0), 8, batches.shape[-1])["state"], []

    @jax.jit
    def step(x, labels, state):
        def value(x):
            mean, new = loss.apply({"state": state}, x, labels, block=block)
            return mean.compute(), new

        return jax.value_and_grad(value, has_aux=True)(x)

    for x, y in zip(batches, labels, strict=True):
        (value, state), gradient = step(jnp.asarray(x), jnp.asarray(y), state)
        results.append((value, gradient))
    return (*map(np.stack, zip(*results, strict=True)), state)


def through_memory(case):
    """Values, gradients and the last state of five batches of 22 through a queue of 50."""
    inner, _, miner = case.partition("/")
    loss = losses.get("cross_batch_memory", loss=inner, memory_size=50, miner=miner or None)
    return steps(loss, GOLDEN["memory/x"], GOLDEN["memory/labels"])


@pytest.mark.parametrize("case", MEMORY)
def test_memory_equals_pml(case, x64):
    """The queue wraps around unevenly."""
    *got, state = through_memory(case)
    assert difference(got, f"memory/{case}") < 1e-10
    assert (state["index"], state["filled"]) == (110 % 50, 50)
    last = GOLDEN["memory/x"].reshape(-1, X.shape[1])[-50:]
    np.testing.assert_array_equal(np.roll(state["memory"], -10, 0), last)


@pytest.mark.parametrize("devices", [2, 8])
def test_the_queue_is_the_same_on_devices(devices):
    loss = losses.get("cross_batch_memory", loss="multi_similarity", memory_size=50)
    x, labels = GOLDEN["memory/x"].astype(np.float32), GOLDEN["memory/labels"].astype(np.int32)
    x, labels = x[:, :16], labels[:, :16]
    want = steps(loss, x, labels)
    with jax.set_mesh(mesh(devices)):
        share = NamedSharding(mesh(devices), P(None, "data"))
        got = steps(loss, *jax.device_put((x, labels), share), block=3)
    new = loss.init(jax.random.key(0), 8, 12)["state"]
    for name, array in want[2].items():
        np.testing.assert_array_equal(got[2][name], array)
        assert (array.shape, array.dtype) == (new[name].shape, new[name].dtype)
    for g, w in zip(got[:2], want[:2], strict=True):
        np.testing.assert_allclose(g, w, rtol=0, atol=1e-5 * np.abs(w).max())


def test_padding_does_not_enter_the_queue():
    loss = losses.get("cross_batch_memory", loss="contrastive", memory_size=25)
    x, keep = X.astype(np.float32), np.arange(22) % 3 != 0
    state = loss.init(jax.random.key(0), 8, 12)
    for _ in range(3):
        padded, after = loss.apply(state, x, LABELS, valid=jnp.asarray(keep))
        dropped, want = loss.apply(state, x[keep], LABELS[keep])
        np.testing.assert_allclose(padded.compute(), dropped.compute(), rtol=1e-5)
        for g, w in zip(jax.tree.leaves(after), jax.tree.leaves(want), strict=True):
            np.testing.assert_array_equal(g, w)
        state = {"state": after}
    assert int(after["filled"]) == 25


def nearest_positive(sims, pos, neg):
    """A miner of easy positives: the nearest of each anchor, and all negatives."""
    first = jnp.argmin(jnp.where(pos > 0, sims, jnp.inf), -1, keepdims=True)
    return Selection(pos & (jnp.arange(sims.shape[1])[None, :] == first), neg)


def test_easy_positives_are_others_not_the_own_copy():
    """With PML the nearest positive in the queue is the own copy, and is then taken out: no loss is left."""
    nearest = miners.from_rows(nearest_positive)
    miner = miners.Miner("nearest", nearest, distances.get("lp"), triplets=False)
    loss = losses.get("cross_batch_memory", loss="contrastive", miner=miner, memory_size=40)
    plain = losses.get("contrastive", miner=miner)
    x = X.astype(np.float32)
    got = loss.apply(loss.init(jax.random.key(0), 8, 12), x, LABELS)[0].compute()
    want = plain.apply({}, x, LABELS)[0].compute()
    assert want > 0.5
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_a_memory_of_a_loss_with_parameters_and_several_losses():
    both = {"name": "multiple", "losses": ["sigmoid", "contrastive"], "weights": [0.1, 1]}
    loss = losses.get("cross_batch_memory", loss=both, memory_size=30)
    variables = loss.init(jax.random.key(0), 8, 12)
    assert set(variables["params"]["0"]) == {"log_scale", "bias"}

    def value(params):
        mean, _ = loss.apply({**variables, "params": params}, X.astype(np.float32), LABELS)
        return mean.compute()

    gradient = jax.grad(value)(variables["params"])
    assert all(g != 0 for g in jax.tree.leaves(gradient))


def graded(loss):
    """Value and gradient on the golden batch."""
    value = lambda x: loss.apply({}, x, LABELS)[0].compute()
    return jax.value_and_grad(value)(jnp.asarray(X))


def of_views(case):
    """Value and gradient of a case of VIEWS."""
    inner, kind = case.split("/")
    return graded(losses.get("self_supervised", loss=inner, symmetric=kind == "symmetric"))


@pytest.mark.parametrize("case", VIEWS)
def test_views_equal_pml(case, x64):
    assert difference(of_views(case), f"views/{case}") < 1e-10


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("devices", [1, 4])
def test_three_views(symmetric, devices):
    """The samples as labels by hand; padding takes a sample out in all its views."""
    loss = losses.get("self_supervised", loss="nt_xent", views=3, symmetric=symmetric)
    x, ids = X[:21].astype(np.float32), np.tile(np.arange(7), 3)
    keep = ids != 2
    plain = losses.get("nt_xent")
    if symmetric:
        want, _ = plain.apply({}, x[keep], ids[keep])
    else:
        first, rest = keep & (np.arange(21) < 7), keep & (np.arange(21) >= 7)
        want, _ = plain.apply(
            {}, x[first], ids[first], ref_embeddings=x[rest], ref_labels=ids[rest]
        )
    with jax.set_mesh(mesh(devices)):
        got, _ = loss.apply({}, x, np.zeros(21, int), valid=jnp.asarray(keep), block=2)
    np.testing.assert_allclose(got.compute(), want.compute(), rtol=1e-5)


def of_several():
    """Value and gradient of two losses, one of them with a miner."""
    both = [{"name": "contrastive", "miner": "multi_similarity"}, "triplet_margin"]
    return graded(losses.get("multiple", losses=both, weights=[1, 0.5]))


def test_multiple_equals_pml(x64):
    assert difference(of_several(), "multiple") < 1e-10


def test_multiple_keeps_parameters_and_stats_apart():
    loss = losses.get("multiple", losses={"a": "cos_face", "b": "soft_triple", "c": "nt_xent"})
    variables = loss.init(jax.random.key(0), 8, 12)
    shapes = {k: v["weights"].shape for k, v in variables["params"].items()}
    assert shapes == {"a": (8, 12), "b": (8, 10, 12)}
    mean, state = loss.apply(variables, X, LABELS)
    assert state == {}
    assert "c/in_play/positives" in mean.stats
    parts = [
        losses.get(spec).apply({"params": variables["params"].get(k, {})}, X, LABELS)[0].compute()
        for k, spec in (("a", "cos_face"), ("b", "soft_triple"), ("c", "nt_xent"))
    ]
    np.testing.assert_allclose(mean.compute(), sum(parts), rtol=1e-5)


def triplet_rows(block):
    weight = block.selection.triplets.weight[:, 0]
    return jnp.ones_like(block.sims[:, 0]), weight


def test_a_kernel_of_a_block_gets_triplets():
    loss = losses.get(
        "generic_pair", rows=triplet_rows, takes="block", miner="batch_hard", reducer="sum"
    )
    pairs = (LABELS[:, None] == LABELS[None, :]).sum(1) > 1
    assert float(loss.apply({}, X, LABELS)[0].compute()) == pairs.sum()


@pytest.mark.parametrize("threshold", [75, 90])
def test_outliers_equal_pml(threshold, x64):
    weights = GOLDEN["centers"][:, :3]
    found = sub_center_outliers(weights, jnp.asarray(X), LABELS, threshold=threshold)
    np.testing.assert_array_equal(np.nonzero(found.outliers)[0], GOLDEN[f"outliers/{threshold}"])
    assert found.dominant[7] == -1
    dominant = weights[np.arange(7), found.dominant[:7]]
    np.testing.assert_array_equal(dominant, GOLDEN["outliers/dominant"])


ONE = {"name": "contrastive", "relation": "matrix"}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: losses.get("multipel", losses=[]), "did you mean 'multiple'"),
        (lambda: losses.get("multiple"), "needs a value for 'losses'"),
        (lambda: losses.get("multiple", losses="nt_xent"), "accepted: a list or a dict"),
        (lambda: losses.get("multiple", losses=[]), "one loss or more"),
        (lambda: losses.get("multiple", losses=["nt_xent"], weights=[1, 2]), "a weight for each"),
        (
            lambda: losses.get("multiple", losses={"a": "nt_xent"}, weights={"b": 1}),
            "accepted: one for each of a",
        ),
        (lambda: losses.get("multiple", losses=["nt_xent", ONE]), "one relation for all"),
        (lambda: losses.get("multiple", losses=["nt_xent"], miner="batch_hard"), "each of its"),
        (lambda: losses.get("self_supervised", loss="cos_face"), "takes references"),
        (
            lambda: losses.get("self_supervised", loss="nt_xent", views=1),
            "a whole number of at least 2",
        ),
        (lambda: losses.get("self_supervised", loss="nt_xent", view=2), "did you mean 'views'"),
        (
            lambda: losses.get("self_supervised", loss="vic_reg"),
            "accepted: symmetric=False, views=2",
        ),
        (
            lambda: losses.get("self_supervised", loss="vic_reg", symmetric=False, views=3),
            "views=3; accepted: symmetric=False, views=2",
        ),
        (lambda: losses.get("cross_batch_memory", loss="vic_reg"), "accepted: a loss on pairs"),
        (lambda: losses.get("cross_batch_memory", loss=ONE), "relation 'label'"),
        (lambda: losses.get("cross_batch_memory", loss="nt_xent", memory_size=0), "of at least 1"),
        (lambda: losses.get("cross_batch_memory", loss=None), "None is not accepted"),
        (lambda: losses.get("cross_batch_memory", loss="nt_xent", reducer="sum"), "inside it"),
        (
            lambda: losses.get(
                "cross_batch_memory",
                loss={"name": "nt_xent", "miner": "batch_hard"},
                miner="batch_hard",
            ),
            "not twice",
        ),
        (lambda: losses.get("generic_pair"), "needs a value for 'rows'"),
        (lambda: losses.get("generic_pair", rows=3), "accepted: a function"),
        (lambda: losses.get("generic_pair", rows=triplet_rows, margin=1), "margin"),
    ],
)
def test_names(make, words):
    with pytest.raises(ValueError, match=words) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "inner",
    ["dynamic_soft_margin", "histogram", "intra_pair_variance", "margin", "nca", "smooth_ap"],
)
def test_a_new_queue_holds_the_batch_alone(inner):
    """At the first step the value, and the state inside, are those of the loss without a queue."""
    inside = losses.get(inner, **({"learn_beta": True} if inner == "margin" else {}))
    loss = losses.get("cross_batch_memory", loss=inside, memory_size=30)
    mean, state = loss.apply(loss.init(jax.random.key(0), 8, 12), X, LABELS, block=5)
    want, after = inside.apply(inside.init(jax.random.key(0), 8, 12), X, LABELS)
    np.testing.assert_allclose(mean.compute(), want.compute(), rtol=1e-5)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5), state.get("loss", {}), after
    )


def test_what_the_losses_inside_cannot_do():
    with pytest.raises(ValueError, match=r"lifted_structure.*accepted: a loss that takes ref"):
        losses.get("cross_batch_memory", loss="lifted_structure")
    loss = losses.get("multiple", losses=["manifold", "nt_xent"])
    with pytest.raises(ValueError, match="no form in blocks"):
        loss.apply(loss.init(jax.random.key(0), 8, 12), X, LABELS, block=5)


def test_batches_that_do_not_fit():
    with pytest.raises(ValueError, match="22 embeddings of 3 views"):
        losses.get("self_supervised", loss="nt_xent", views=3).apply({}, X, LABELS)
    loss = losses.get("cross_batch_memory", loss="nt_xent", memory_size=20)
    variables = loss.init(jax.random.key(0), 8, 12)
    with pytest.raises(ValueError, match="at least the batch of 22"):
        loss.apply(variables, X, LABELS)
    with pytest.raises(ValueError, match="takes no ref_embeddings"):
        loss.apply(variables, X, LABELS, ref_embeddings=X, ref_labels=LABELS)


def test_losses_of_parts_of_the_embedding():
    """Of a model with two heads each has a loss of its own, with class weights of its own width."""
    inside = {"first": "cos_face", "all": "contrastive", "last": {"name": "nt_xent"}}
    loss = losses.get(
        "multiple", losses=inside, weights=[1, 0.5, 2], columns={"first": (0, 5), "last": [5, 12]}
    )
    variables = loss.init(jax.random.key(0), 8, 12)
    assert variables["params"]["first"]["weights"].shape == (8, 5)
    first, all_, last = (losses.get(name) for name in ("cos_face", "contrastive", "nt_xent"))
    own = {"params": variables["params"]["first"]}
    expected = (
        first.apply(own, X[:, :5], LABELS)[0].compute()
        + 0.5 * all_(X, LABELS)
        + 2 * last(X[:, 5:], LABELS)
    )
    found, wrong = (
        made.apply(variables, X, LABELS, block=5)[0].compute()
        for made in (loss, dataclasses.replace(loss, columns=((0, 5), None, (4, 11))))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert abs(wrong - expected) > 1e-3 * abs(expected)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"0": (0, 13)}, r"are \(0, 13\) for '0'; the embeddings have 12"),
        ({"0": (3, 3)}, r"are \(3, 3\) for '0'"),
        ({"0": (3,)}, "accepted: a sequence of 2"),
        ({"1": (0, 3)}, "unknown loss of columns: '1'"),
    ],
)
def test_columns_that_are_not_there(columns, message):
    with pytest.raises(ValueError, match=message):
        losses.get("multiple", losses=["cos_face"], columns=columns).init(jax.random.key(0), 8, 12)
