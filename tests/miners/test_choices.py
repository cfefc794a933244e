"""Miners that draw nothing: PyTorch Metric Learning's choice (tests/golden/make_miners.py), hand-worked cases,
and the same choice in blocks and on devices."""

import functools
import math
import pathlib
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dml_jax import UserError, distances, losses, miners, selection
from dml_jax.miners import counting
from tests import draws
from tests.losses import test_laws
from tests.miners import table

GOLDEN = np.load(pathlib.Path(__file__).resolve().parents[1] / "golden" / "miners.npz")
KINDS = ("batch", "one class", "no positives", "references")


def make(name):
    return miners.get(name.partition("/")[0], **table.ALL[name])


def arrays(kind, dtype=np.float64):
    """Embeddings, labels, and keywords for references."""
    found = [GOLDEN[f"{kind}:{i}"] for i in range(4 if kind == "references" else 2)]
    x, labels, *refs = (jnp.asarray(a, dtype if a.dtype.kind == "f" else jnp.int32) for a in found)
    return x, labels, dict(zip(("ref_embeddings", "ref_labels"), refs, strict=False))


def chosen(name, kind, **more):
    """Rows of triplets, or of positive and of negative pairs."""
    x, labels, refs = arrays(kind)
    indices = make(name)(x, labels, **refs, **more).indices()
    if len(indices) == 3:
        return {"": np.stack(indices, 1)}
    return {"/pos": np.stack(indices[:2], 1), "/neg": np.stack(indices[2:], 1)}


def golden(name, kind, side):
    """PML's rows; where it names more references than there are, those that there are."""
    rows = GOLDEN[f"{kind}:{name}{side}"]
    if name.startswith("embeddings") and kind == "references":
        return rows[rows[:, 2] < len(GOLDEN["references:3"])]
    return rows


def test_the_table_has_every_miner():
    names = {name.partition("/")[0] for name in table.ALL}
    assert names == set(miners.available())


@pytest.mark.parametrize("name", [n for n in table.EXACT if not n.startswith("hdc")])
def test_chooses_as_pml(name, x64):
    for kind in KINDS:
        for side, rows in chosen(name, kind).items():
            want = golden(name, kind, side)
            np.testing.assert_array_equal(rows, want, err_msg=f"{kind} {side}")
            assert len(rows) or kind != "batch"


@pytest.mark.parametrize("name", [n for n in table.EXACT if n.startswith("hdc")])
def test_hdc_chooses_as_many_and_as_hard_as_pml(name, x64):
    """Of equally hard pairs PML takes any, so that pairs at the cut itself may differ."""
    for kind in KINDS:
        x, _, refs = arrays(kind)
        d = np.asarray(make(name).distance(x, refs.get("ref_embeddings", x)))
        for side, rows in chosen(name, kind).items():
            want = golden(name, kind, side)
            assert len(rows) == len(want)
            got, wanted = (np.sort(d[tuple(r.T.astype(int))]) for r in (rows, want))
            np.testing.assert_allclose(got, wanted, atol=1e-9)
            differ = {tuple(r) for r in rows} ^ {tuple(r) for r in want}
            if differ:
                assert np.ptp([d[pair] for pair in differ]) < 1e-9


def test_hdc_takes_the_first_of_equally_hard_pairs():
    """Four coincident samples of one class and a far one: 20 pairs, of which the farthest 8 are the hardest."""
    x = np.eye(3, dtype=np.float32)[[0, 0, 0, 0, 1]]
    keep = lambda share: make_hdc(share)(x, jnp.zeros(5, jnp.int32), block=2).selection.pos
    far = np.zeros((5, 5), bool)
    far[4, :4] = far[:4, 4] = True
    np.testing.assert_array_equal(keep(0.4), far)
    far[0, 1:4] = True  # ties in the order of rows
    far[1, 0] = True
    np.testing.assert_array_equal(keep(0.6), far)
    far[4, :] = far[:, :4] = False
    far[3, 4] = False
    np.testing.assert_array_equal(keep(0.15), far)
    assert not np.any(keep(0)) and np.sum(keep(1)) == 20


def make_hdc(share):
    return miners.get("hdc", filter_percentage=share)


@pytest.mark.parametrize("share", ["0.1", "0.3", "1/3", "0.5", "0.007", "1"])
def test_a_share_of_a_count_in_integers(share):
    """Floats would give 4 for 0.1 of 30 and lose the last digits of large counts."""
    exact = Fraction(share)
    counts = [0, 30, 16_773_121, 4_294_967_295]
    got = counting._share(float(exact), jnp.asarray(counts, jnp.uint32))
    assert got.tolist() == [math.ceil(exact * count) for count in counts]


def test_angles_by_hand():
    """Anchor and positive at +-30 degrees: d_ap = 1, the centre at 0.866; a negative at 0 degrees sees them under
    atan(0.5 / 0.134) = 75 degrees, one at 90 under atan(0.5 / 1.323) = 20.7, one at 180 under 15 degrees."""
    degrees = np.radians([30, -30, 0, 90, 180])
    x = jnp.stack([jnp.cos(degrees), jnp.sin(degrees)], 1).astype(jnp.float32)
    labels = jnp.asarray([0, 0, 1, 2, 3])
    count = lambda angle: len(miners.get("angular", angle=angle)(5 * x, labels).indices()[0])
    assert [count(a) for a in (14.9, 15.1, 20.6, 20.8, 74.9, 75.1)] == [6, 4, 4, 2, 2, 0]


def test_triplets_of_coincident_vectors_have_no_angle():
    x = jnp.ones((4, 3))
    assert len(miners.get("angular")(x, jnp.asarray([0, 0, 1, 1])).indices()[0]) == 0


def rounded_matrix(a, r):
    """Euclidean distances whose rounding depends on the place in the block."""
    return distances.lp()(a, r) * (1 + 3e-7 * (jnp.arange(len(a)) % 3)[:, None])


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_hdc_does_not_depend_on_rounding(share):
    """Of (i, j) and (j, i) the first is taken, though their distances are rounded unlike, and others in each block."""
    x, labels, _ = arrays("batch", np.float32)
    by_place = distances.Distance("rounded", rounded_matrix, similarity=False)
    rounded = miners.get("hdc", filter_percentage=share, distance=by_place)
    got, want = rounded(x, labels, block=5).selection, make_hdc(share)(x, labels).selection
    for g, w in zip(got.pairs(), want.pairs(), strict=True):
        np.testing.assert_array_equal(g, w)
        assert np.sum(w)


CASES = [
    "angular",
    "batch_easy_hard/easy-semihard",
    "batch_easy_hard/all_ranges",
    "embeddings_already_packaged_as_triplets",
    "hdc",
    "hdc/third",
    "pair_margin/wide",
    "multi_similarity",
    "batch_hard",
    "triplet_margin/all",
    *table.DRAWN,
]
# With references, too: choices by the whole batch, by position, by draws.
MORE = ["hdc", "embeddings_already_packaged_as_triplets", *table.DRAWN]


@pytest.mark.parametrize("name", draws.some(CASES, 8, "blocks and devices"))
def test_blocks_and_devices_choose_alike(name):
    """24 anchors and 15 references in blocks that divide nothing, and on 4 and 8 devices."""
    draws.tell()
    miner, key = make(name), jax.random.key(5)
    for kind in ("batch", "references") if name in MORE else ("batch",):
        x, labels, refs = arrays(kind, np.float32)
        want = miner(x, labels, key=key, **refs).selection
        assert np.sum(want.pairs()[0]) and np.sum(want.pairs()[1])
        for block, devices in [(5, 1), (2, 4), (None, 8)]:
            with jax.set_mesh(test_laws.mesh(devices)):
                got = miner(x, labels, key=key, block=block, **refs).selection
            for g, w in zip(got.pairs(), want.pairs(), strict=True):
                np.testing.assert_array_equal(g, w)


@pytest.mark.parametrize(
    ("name", "loss_names"),
    [
        ("angular", ["contrastive", "triplet_margin", "margin", "cos_face"]),
        ("hdc", ["contrastive", "nca"]),
        ("distance_weighted", ["margin", "angular"]),
        ("uniform_histogram", ["nt_xent", "triplet_margin"]),
    ],
)
def test_losses_are_the_same_dense_and_on_devices(name, loss_names):
    """Each new kind of choice, in losses that read pairs, triplets and weights of samples."""
    x, labels, key = test_laws.batch(), test_laws.LABELS, jax.random.key(0)
    for loss_name in loss_names:
        loss = losses.get(loss_name, miner=make(name))
        made = loss.init(jax.random.key(1), 11, 8)

        @functools.partial(jax.jit, static_argnums=1)
        def graded(x, block, loss=loss, made=made):
            value = lambda x: loss.apply(made, x, labels, key=key, block=block)[0].compute()
            return jax.value_and_grad(value)(x)

        want = graded(x, None)
        assert float(want[0]) > 0
        with jax.set_mesh(test_laws.mesh(8)):
            test_laws.assert_same(graded(x, 2), want)


@pytest.mark.parametrize("kind", ["all", "hard", "semihard", "easy"])
def test_sorting_counts_the_same_pairs(kind, monkeypatch):
    """The other evaluation of an interval's pairs, which rows of many positives take."""
    x, labels, _ = arrays("batch", np.float32)
    found = miners.get("triplet_margin", type_of_triplets=kind)(x, labels).selection
    want = found.pairs()
    monkeypatch.setattr(selection, "STREAM_LIMIT", 0)
    for g, w in zip(found.pairs(), want, strict=True):
        assert np.sum(w) > 10
        np.testing.assert_array_equal(g, w)


@pytest.mark.parametrize("name", ["angular", "triplet_margin", "batch_hard", "hdc"])
def test_the_share_of_triplets_in_play(name):
    x, labels, _ = arrays("batch", np.float32)
    same = np.asarray(labels)[:, None] == np.asarray(labels)[None, :]
    total = ((same.sum(1) - 1) * (~same).sum(1)).sum()
    miner = miners.get(name)
    indices = miner(x, labels).indices()
    if len(indices) == 3:
        want = len(indices[0])
    else:
        positives, negatives = (np.bincount(indices[i], minlength=len(same)) for i in (0, 2))
        want = (positives * negatives).sum()
    stats = losses.get("triplet_margin", miner=miner).apply({}, x, labels)[0].stats
    np.testing.assert_allclose(stats["in_play/triplets"], want / total, rtol=1e-6)
    assert 0 < want < total


@pytest.mark.parametrize(
    ("make_miner", "message"),
    [
        (
            lambda: miners.get("angular", angle=90),
            "angle of miner 'angular' is 90; accepted: a number above 0 and below 90",
        ),
        (lambda: miners.get("angular", distance="cosine"), "accepted: 'lp' as it is"),
        (
            lambda: miners.get("distance_weighted", distance={"name": "lp", "p": 1}),
            "accepted: 'lp' as it is",
        ),
        (
            lambda: miners.get("batch_easy_hard", pos_strategy="semihard"),
            "accepted: 'semihard' for one of them",
        ),
        (
            lambda: miners.get("batch_easy_hard", allowed_pos_range=[2, 1]),
            r"allowed_pos_range .* is \(2, 1\); accepted: \(low, high\), or None",
        ),
        (
            lambda: miners.get("batch_easy_hard", neg_strategy="medium"),
            "neg_strategy .* is 'medium'; accepted: 'hard' or",
        ),
        (
            lambda: miners.get("hdc", filter_percentage=1.5),
            "is 1.5; accepted: a number of at least 0 and of at most 1",
        ),
        (
            lambda: miners.get("uniform_histogram", num_bins=0),
            "num_bins of miner 'uniform_histogram' is 0; accepted: a whole number of at least 1",
        ),
    ],
)
def test_bad_settings(make_miner, message):
    with pytest.raises(UserError, match=message):
        make_miner()


def test_an_easy_positive_in_a_memory_is_another_sample():
    """In PML's memory the nearest positive is the anchor's own copy, which is then taken out: no loss is left."""
    x, labels, _ = arrays("batch", np.float32)
    miner = miners.get("batch_easy_hard", pos_strategy="easy", neg_strategy="hard")
    memory = losses.get("cross_batch_memory", loss="contrastive", miner=miner, memory_size=30)
    got = memory.apply(memory.init(jax.random.key(0), 9, x.shape[1]), x, labels)[0]
    want = losses.get("contrastive", miner=miner).apply({}, x, labels)[0]
    assert want.compute() > 0.1
    np.testing.assert_allclose(got.compute(), want.compute(), rtol=1e-5)


def test_an_empty_choice_weighs_all_samples_0():
    """PML weighs all of them 1 then."""
    x, labels, _ = arrays("batch", np.float32)
    loss = losses.get("cos_face", miner={"name": "pair_margin", "pos_margin": 3, "neg_margin": -1})
    value = loss.apply(loss.init(jax.random.key(0), 9, x.shape[1]), x, labels)[0].compute()
    assert float(value) == 0
