"""Plans that are made while training runs, and the storage of embeddings that they are made from."""

import pickle
import threading

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dml_jax import config_files, evaluation, samplers
from dml_jax.mesh import make_mesh
from dml_jax.training import build, loop, score
from dml_jax.training import state as states
from dml_jax.training.planning import AsyncPlan
from dml_jax.training.step import write_rows
from tests.training.commands import CONFIG, losses, pictures

STEPS = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("data") / "pictures")


def config_of(data, sampler, epochs=1, **fields):
    config = config_files.load(f"{CONFIG}:sampler={sampler},steps={STEPS},epochs={epochs}")
    config.data.path = str(data)
    config.train.devices = 1
    config.evaluation.splits = ()
    config.train.monitor = ""
    with config.unlocked():
        for name, value in fields.items():
            config.sampler[name] = value
    return config


def trained(config, workdir):
    """(storage, plan, losses) at the end of a run."""
    loop.train(config, str(workdir))
    step = config.train.epochs * STEPS
    found = ocp.StandardCheckpointer().restore(
        workdir / "checkpoints" / "last" / str(step) / "rest"
    )
    return found["storage"], found["plan"], losses(workdir)


def embedded(config, workdir=None):
    """The training images as the untrained network embeds them."""
    source, model = build.source(config, "train"), build.model(config.model)
    with jax.set_mesh(make_mesh(1)):
        variables = model.init(jax.random.split(jax.random.key(config.seed), 3)[0])
        return evaluation.embed(score.embedder(model), variables, score.batches_of(config, source))


@pytest.mark.parametrize(
    ("name", "hyper"),
    [
        ("greedy_coreset", {}),
        ("hard_classes", {"m": 2, "refresh": 0}),
        ("tuples_to_weights", {"miner": {"name": "multi_similarity"}, "refresh": 0}),
    ],
)
def test_the_first_epoch_is_planned_from_the_untrained_network(data, tmp_path, name, hyper):
    config = config_of(data, name, updates=False, **hyper)
    storage, plan, _ = trained(config, tmp_path)
    embeddings, labels, _ = embedded(config)
    np.testing.assert_array_equal(storage, embeddings)
    expected = samplers.get(name, length=8 * STEPS, updates=False, **hyper).plan(
        labels, 8, seed=0, epoch=0, embeddings=storage
    )
    np.testing.assert_array_equal(plan, expected)


def test_steps_update_the_storage(data, tmp_path):
    config = config_of(data, "greedy_coreset", epochs=2)
    storage, plan, curve = trained(config, tmp_path / "a")
    before, labels, _ = embedded(config)
    seen = np.any(storage != before, axis=1)
    first = samplers.get("greedy_coreset", length=8 * STEPS).plan(
        labels, 8, seed=0, epoch=0, embeddings=before
    )
    np.testing.assert_array_equal(np.flatnonzero(seen), np.union1d(first, plan))
    # However many threads plan and load, it is the same run.
    config.data.threads = 3
    again = trained(config, tmp_path / "b")
    np.testing.assert_array_equal(again[0], storage)
    assert again[2] == curve


def test_a_refresh_embeds_all_images(data, tmp_path):
    config = config_of(data, "greedy_coreset", epochs=2, updates=False, refresh=1)
    storage, plan, _ = trained(config, tmp_path)
    before, labels, _ = embedded(config)
    assert (storage != before).any(1).all()
    expected = samplers.get("greedy_coreset", length=8 * STEPS).plan(
        labels, 8, seed=0, epoch=1, embeddings=storage
    )
    np.testing.assert_array_equal(plan, expected)


def test_write_rows():
    storage = np.arange(12.0, dtype=np.float32).reshape(6, 2)
    ids = np.array([4, 1, 4, 4, 0, 1, 2, 4], np.int32)
    embeddings = -np.arange(16.0, dtype=np.float32).reshape(8, 2)
    expected = storage.copy()
    for i, e in zip(ids, embeddings, strict=True):  # of several for one row the last stays
        expected[i] = e
    np.testing.assert_array_equal(jax.jit(write_rows)(storage, ids, embeddings), expected)
    mesh = make_mesh(8)
    rows = NamedSharding(mesh, PartitionSpec("data"))
    with jax.set_mesh(mesh):
        arrays = states.replicate(storage, mesh), *jax.device_put((ids, embeddings), rows)
        np.testing.assert_array_equal(jax.jit(write_rows)(*arrays), expected)
    half = write_rows(jnp.array(storage), jnp.array(ids), jnp.array(embeddings, jnp.bfloat16))
    assert half.dtype == np.float32


def test_ahead_is_the_plan_whoever_made_it():
    plan = np.random.default_rng(0).integers(0, 99, (50, 4))
    made_by = set()

    def rows():
        def row(step):
            made_by.add(threading.get_ident())
            return plan[step]

        return row

    plan_ahead = AsyncPlan(rows, plan.shape, threads=3)
    assert plan_ahead.shape == (50, 4) and len(plan_ahead) == 50
    np.testing.assert_array_equal(plan_ahead[49], plan[49])
    assert plan_ahead[3].dtype == np.int32
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(plan_ahead)), plan)
    assert threading.get_ident() not in made_by


def test_ahead_trains_on_what_is_planned_already():
    go_on = threading.Event()

    def row(step):
        if step == 2:
            go_on.wait(60)
        return np.full(4, step)

    plan_ahead = AsyncPlan(lambda: row, (4, 4), threads=1)
    assert plan_ahead[1][0] == 1  # while step 2 is not planned yet
    go_on.set()
    np.testing.assert_array_equal(plan_ahead.whole()[:, 0], range(4))


def test_ahead_can_be_given_up_and_reports_errors():
    begun, go_on = threading.Event(), threading.Event()
    planned = []

    def row(step):
        planned.append(step)
        begun.set()
        go_on.wait(60)
        return np.zeros(4)

    plan_ahead = AsyncPlan(lambda: row, (1000, 4), threads=1)
    begun.wait(60)
    plan_ahead.close()
    go_on.set()
    plan_ahead[0]
    assert len(planned) <= 2

    def broken(step):
        raise ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing"):
        AsyncPlan(lambda: broken, (2, 4), threads=1)[1]


def test_mining_in_a_thread_sees_no_mesh():
    seen = []

    def rows():
        seen.append(jax.sharding.get_abstract_mesh().empty)
        return lambda step: np.zeros(4)

    with jax.set_mesh(make_mesh(8)):
        assert not jax.sharding.get_abstract_mesh().empty
        AsyncPlan(rows, (1, 4), threads=1).whole()
    assert seen == [True]


def test_an_image_that_cannot_be_decoded(data, tmp_path):
    """It is stored as the mean of the others, and the run goes on."""
    broken = pictures(tmp_path / "pictures")
    bad = broken / "class03" / "1.png"
    bad.write_bytes(bad.read_bytes()[:40])
    config = config_of(broken, "greedy_coreset", updates=False)
    config.data.on_error = "skip"
    storage, _, _ = trained(config, tmp_path / "run")
    assert np.isfinite(storage).all()
    embeddings, _, ids = embedded(config)
    left = np.setdiff1d(np.arange(len(storage)), ids)
    if len(left):  # class03 is a training class
        np.testing.assert_allclose(storage[left], embeddings.mean(0)[None], rtol=1e-5)
        np.testing.assert_array_equal(storage[ids], embeddings)
    assert len(left) == 1
