"""The step: exact under micro-batches and devices, compiled once, and what it reports."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dml_jax import losses, models
from dml_jax.mesh import make_mesh
from dml_jax.training import optim, state
from dml_jax.training.schedules import RunLength
from dml_jax.training.step import make_train_step
from tests.training import standins

B = 24


def batches(n, size=B, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(n):
        labels = np.minimum(rng.integers(0, 9, size), 5).astype(np.int32)
        yield {
            "image": rng.integers(0, 256, (size, 2, 2, 1), dtype=np.uint8),
            "label": labels,
        }


def groups(**spec):
    return {g: {"match": f"{m}.*", **spec} for g, m in [("m", "model/"), ("l", "loss/")]}


def train(steps=10, devices=1, micro_batch=None, spec=None, model=None, key_of=0, loss=None, **how):
    model, loss = model or standins.model(), loss or standins.loss()
    spec = spec or {"name": "sgd", "lr": 0.005, "momentum": 0.9}
    tx = optim.build(groups(**spec), total_steps=steps, epoch_steps=steps)
    mesh = make_mesh(devices)
    metrics = []
    with jax.set_mesh(mesh):
        step = make_train_step(model, loss, tx, micro_batch=micro_batch, **how)
        s = state.replicate(state.init(model, loss, tx, key_of, 6), mesh)
        for batch in batches(steps):
            s, m = step(s, state.shard(batch, mesh))
            metrics.append(m)
        traced = step._cache_size()
    return jax.device_get(s), jax.device_get(metrics), traced


@pytest.fixture(scope="module")
def whole():
    return train()


def close(a, b, rtol=2e-5, atol=1e-6):
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(b))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


@pytest.mark.parametrize(("devices", "micro_batch"), [(1, 6), (1, 24), (4, None), (4, 8), (8, 8)])
def test_exact(whole, devices, micro_batch):
    other, metrics, traced = train(devices=devices, micro_batch=micro_batch)
    assert traced == 1
    close(other["params"], whole[0]["params"])
    close(other["state"], whole[0]["state"], rtol=1e-4)
    close([m["loss"] for m in metrics], [m["loss"] for m in whole[1]])


def test_averaging_the_parts_of_a_batch_would_be_seen(whole):
    """The negative control: the mean loss of micro-batches trains another network."""
    model, loss = standins.model(), standins.loss()
    tx = optim.build(groups(name="sgd", lr=0.005, momentum=0.9), total_steps=1, epoch_steps=1)
    with jax.set_mesh(make_mesh(1)):
        s = state.init(model, loss, tx, 0, 6)
        params, opt = s["params"], s["opt"]

        def local(params, batch):
            out = 0.0
            for part in range(4):
                rows = slice(part * 6, part * 6 + 6)
                e, _ = model.apply(
                    {"params": params["model"], "state": {"seen": 0.0}}, batch["image"][rows]
                )
                mean, _ = loss.apply({"params": params["loss"]}, e, batch["label"][rows])
                out += mean.compute() / 4
            return out

        for batch in batches(10):
            updates, opt = tx.update(jax.grad(local)(params, batch), opt, params)
            params = optax.apply_updates(params, updates)
    with pytest.raises(AssertionError):
        close(params, whole[0]["params"], rtol=1e-2, atol=1e-2)


def test_activation_memory_is_of_a_micro_batch():
    model, loss = standins.model(width=64, depth=16), standins.loss()
    tx = optim.build(groups(name="sgd", lr=0.1), total_steps=1, epoch_steps=1)
    batch = next(batches(1, size=512))
    temp = {}
    with jax.set_mesh(make_mesh(1)):
        s = state.init(model, loss, tx, 0, 6)
        for n in (None, 64, 16):
            step = make_train_step(model, loss, tx, micro_batch=n)
            temp[n] = step.lower(s, batch).compile().memory_analysis().temp_size_in_bytes
    activations = 512 * 64 * 4 * 16
    # What does not depend on the micro-batch: the loss on 512 embeddings and a copy of the gradient.
    assert temp[None] - temp[16] > 0.7 * activations
    assert temp[64] - temp[16] < activations / 5


def test_dropout_draws_the_same_in_both_passes():
    """Finite differences of the forward pass agree with the gradient only if both passes drop alike."""
    model, loss = standins.model(dropout=0.5), standins.loss()
    batch = next(batches(1))
    tx = optim.build(groups(name="sgd", lr=1.0), total_steps=1, epoch_steps=1)
    with jax.set_mesh(make_mesh(1)):
        step = make_train_step(model, loss, tx, micro_batch=6)
        start = jax.device_get(state.init(model, loss, tx, 0, 6))
        after, _ = step(start, batch)
        direction = jax.tree.map(
            lambda a, b: a - b, start["params"], jax.device_get(after)["params"]
        )

        def value(t):
            moved = jax.tree.map(lambda p, d: p + np.float32(t) * d, start["params"], direction)
            return float(step({**start, "params": moved}, batch)[1]["loss"])

        square = sum(float((d**2).sum()) for d in jax.tree.leaves(direction))
        eps = 1e-2 / square**0.5
        slope = (value(eps) - value(-eps)) / (2 * eps)
    assert slope == pytest.approx(square, rel=2e-3)


def test_steps_draw_afresh_and_seeds_differ():
    model = standins.model(dropout=0.5)
    frozen = {"name": "sgd", "lr": 0.0}
    tx = optim.build(groups(**frozen), total_steps=1, epoch_steps=1)
    batch = next(batches(1))
    with jax.set_mesh(make_mesh(1)):
        step = make_train_step(model, standins.loss(), tx)
        s = state.init(model, standins.loss(), tx, 0, 6)
        s, first = step(s, batch)
        s, second = step(s, batch)
    assert first["loss"] != second["loss"]
    assert int(s["step"]) == 2


def test_metrics(whole):
    _, metrics, _ = whole
    first = metrics[0]
    assert first["finite"]
    assert 0 < first["unlike"] < 1
    for name in ("grad_norm", "param_norm", "update_norm"):
        parts = [first[f"{name}/{p}"] for p in ("backbone", "head", "loss")]
        assert first[name] == pytest.approx(np.sqrt(np.sum(np.square(parts))), rel=1e-5)
    # A plain SGD step from a buffer of zeros.
    assert first["update_norm/head"] == pytest.approx(0.005 * first["grad_norm/head"], rel=1e-5)
    assert first["param_norm/loss"] == pytest.approx(2 * 3**0.5)


def test_not_finite_is_reported():
    model, loss = standins.model(), standins.loss(poison=0)
    tx = optim.build(groups(name="adam", lr=0.1), total_steps=1, epoch_steps=1)
    batch = next(batches(1))
    batch["label"][3] = 0
    with jax.set_mesh(make_mesh(1)):
        _, metrics = make_train_step(model, loss, tx)(state.init(model, loss, tx, 0, 6), batch)
    assert not metrics["finite"]


@pytest.mark.parametrize(
    ("micro_batch", "devices", "message"),
    [
        (7, 1, "micro_batch=7 does not divide the batch of 24; accepted: 1, 2, 3, 4, 6, 8, 12, 24"),
        (6, 4, "micro_batch=6 is not a multiple of the 4 devices"),
        (5, 4, "micro_batch=5 does not divide the batch of 24; accepted: 4, 8, 12, 24"),
    ],
)
def test_bad_micro_batch(micro_batch, devices, message):
    with pytest.raises(ValueError, match=message):
        train(steps=1, devices=devices, micro_batch=micro_batch)


def test_devices_must_divide_the_batch():
    with pytest.raises(ValueError, match="24 images in this process and 7 devices"):
        state.shard(next(batches(1)), make_mesh(7))
    with pytest.raises(ValueError, match=r"train\.devices=9; this process has 8"):
        make_mesh(9)


def test_to_host_owns_its_memory():
    x = jnp.arange(4.0)
    assert state.to_host(x).base is None


def test_references_that_stay_on_their_devices():
    how = dict(steps=3, devices=4, block=2, references="sharded")
    want, _, _ = train(steps=3, loss=losses.get("proxy_anchor"))
    found, _, _ = train(loss=losses.get("proxy_anchor"), **how)
    close(found["params"], want["params"])
    with pytest.raises(ValueError, match="references='sharded'; references='replicated' is accept"):
        train(loss=losses.get("cos_face"), **how)


def test_a_queue_in_the_state():
    """Learned scale and bias, and a queue that wraps around: the same on devices and in micro-batches."""
    both = {"name": "multiple", "losses": ["sigmoid", "contrastive"], "weights": [0.1, 1]}
    loss = losses.get("cross_batch_memory", loss=both, memory_size=64)
    # As few as make the queue wrap around: rounding adds up from step to step.
    steps = 64 // B + 1
    want, _, traced = train(steps, loss=loss)
    got, _, traced_sharded = train(steps, devices=4, micro_batch=8, loss=loss)
    assert traced == traced_sharded == 1
    close(got["params"], want["params"])
    close(got["state"], want["state"])
    queue = want["state"]["loss"]
    assert (queue["index"], queue["filled"]) == (steps * B % 64, 64)
    last = np.concatenate([b["label"] for b in batches(steps)])[-64:]
    np.testing.assert_array_equal(np.roll(queue["labels"], -(steps * B % 64)), last)


def deep_step(last_blocks):
    """A step of a convnet of six blocks, (state, program) of the part that is trained."""
    model = models.get("convnet", width=8, depth=2, image_size=16, embedding_dim=4)
    loss = losses.get("multi_similarity")
    spec = {"name": "sgd", "lr": 0.1, "last_blocks": last_blocks}
    section = {"model": {"match": "model/.*", **spec}, "loss": {"match": "loss/.*", **spec}}
    made, layers = optim.groups_of(section), model.layers()
    tx = optim.partition(made, RunLength(1, 1), layers=layers)
    images = np.random.default_rng(0).integers(0, 256, (B, 16, 16, 1), np.uint8)
    batch = {"image": jnp.asarray(images), "label": jnp.arange(B, dtype=jnp.int32) // 3}
    mesh = make_mesh(1)
    with jax.set_mesh(mesh):
        before = state.init(model, loss, tx, 0, 8)
        step = make_train_step(model, loss, tx, trained=optim.trained(made, layers))
        compiled = step.lower(before, batch).compile()
        kept = jax.device_get(before["params"])
        after, metrics = compiled(before, batch)
    return kept, jax.device_get(after["params"]), compiled, metrics


def test_a_frozen_prefix_costs_no_backward_pass():
    found = {n: deep_step(n) for n in (None, 1)}
    work = {n: f[2].cost_analysis()["flops"] for n, f in found.items()}
    memory = {n: f[2].memory_analysis().temp_size_in_bytes for n, f in found.items()}
    # Forward is a third of the whole, and the last block little beside the others.
    assert work[1] < 0.6 * work[None], work
    assert memory[1] < 0.6 * memory[None], memory
    before, after, _, metrics = found[1]
    whole = found[None][1]
    backbone = [f["model"]["backbone"] for f in (before, after, whole)]
    for part in ("stem", "stage_0_0", "stage_2_0"):
        kernels = [b[part]["kernel"] for b in backbone]
        assert np.array_equal(kernels[0], kernels[1]) and not np.array_equal(kernels[0], kernels[2])
    # What is trained moves as it does where all is.
    for part in ("backbone", "head"):
        old, new, expected = (f["model"][part] for f in (before, after, whole))
        kernel = (
            (lambda tree: tree["stage_2_1"]["kernel"])
            if part == "backbone"
            else (lambda t: t["kernel"])
        )
        assert not np.array_equal(kernel(old), kernel(new))
        np.testing.assert_allclose(kernel(new), kernel(expected), rtol=1e-5, atol=1e-7)
    assert float(metrics["grad_norm"]) < float(found[None][3]["grad_norm"])
