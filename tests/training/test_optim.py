"""The optimizers against steps worked by hand from PyTorch's definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from dml_jax import UserError, models
from dml_jax.training import optim, optimizers, schedules
from dml_jax.training.schedules import RunLength

GROUPS = {
    "backbone": {"match": "model/backbone/.*", "name": "sgd", "lr": 0.1},
    "head": {"match": "model/head/.*", "name": "sgd", "lr": 0.01},
    "loss": {"match": "loss/.*", "name": "sgd", "lr": 1.0},
}
PARAMS = {
    "model": {"backbone": {"a": np.float32(1.0), "b": np.float32(2.0)}, "head": {}},
    "loss": {"weights": np.float32(3.0)},
}


def run(spec, grads, start=1.0, *, total_steps=10, epoch_steps=2):
    group = optim.group("x", {"match": ".*", **spec})
    tx = group.transformation(RunLength(total_steps, epoch_steps))
    p = jnp.float32(start)
    state = tx.init(p)
    out = []
    for g in grads:
        update, state = tx.update(jnp.float32(g), state, p)
        p = optax.apply_updates(p, update)
        out.append(float(p))
    return out


def adam_by_hand(p, grads, lr, wd, coupled):
    m = v = 0.0
    out = []
    for t, g in enumerate(grads, 1):
        if coupled:
            g = g + wd * p
        else:
            p = p * (1 - lr * wd)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        p = p - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)) ** 0.5 + 1e-8)
        out.append(p)
    return out


@pytest.mark.parametrize(("name", "coupled"), [("adam", True), ("adamw", False)])
def test_adam(name, coupled):
    grads = [0.5, -1.0, 2.0]
    spec = {"name": name, "lr": 0.1, "weight_decay": 0.3}
    np.testing.assert_allclose(
        run(spec, grads), adam_by_hand(1.0, grads, 0.1, 0.3, coupled), rtol=1e-5
    )
    wrong = adam_by_hand(1.0, grads, 0.1, 0.3, not coupled)
    assert not np.allclose(run(spec, grads), wrong, rtol=1e-3)


def test_sgd():
    # buf = 1, then .9 + 2 = 2.9: p = 1 - .1 = .9, then .9 - .29 = .61
    assert run({"name": "sgd", "lr": 0.1, "momentum": 0.9}, [1, 2]) == pytest.approx([0.9, 0.61])
    # Nesterov adds .9 buf once more: 1.9, then 2 + .9 * 2.9 = 4.61
    nesterov = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True}
    assert run(nesterov, [1, 2]) == pytest.approx([0.81, 0.349])
    # decay .5: gradient 1 + .5 * 1
    assert run({"name": "sgd", "lr": 0.1, "weight_decay": 0.5}, [1]) == pytest.approx([0.85])


def test_rmsprop():
    # average = .01 * 4, step 2 / .2 = 10; then .99 * .04 + .01 * 1 = .0496, 1 / sqrt(.0496)
    first = 1 - 0.1 * 10
    second = first - 0.1 / 0.0496**0.5
    assert run({"name": "rmsprop", "lr": 0.1}, [2, 1]) == pytest.approx(
        [first, second], rel=1e-4, abs=1e-5
    )
    # The rate is applied after the buffer: a new rate takes hold of the old momentum as well.
    spec = {
        "name": "rmsprop",
        "lr": 0.1,
        "momentum": 0.5,
        "schedule": {"name": "step", "milestones": (1,), "gamma": 0.1},
    }
    second = first - 0.01 * (0.5 * 10 + 1 / 0.0496**0.5)
    assert run(spec, [2, 1], epoch_steps=1) == pytest.approx([first, second], rel=1e-4, abs=1e-5)


def test_schedules():
    def rate(spec, warmup=0):
        spec = {"match": ".*", "name": "sgd", "lr": 2.0, "schedule": spec, "warmup_steps": warmup}
        group = optim.group("x", spec)
        return [float(group.rate(jnp.int32(i), RunLength(4, 2))) for i in range(5)]

    assert rate({"name": "constant"}) == [2] * 5
    assert rate({"name": "cosine"}) == pytest.approx([2, 1 + 0.5**0.5, 1, 1 - 0.5**0.5, 0])
    step = {"name": "step", "milestones": (1, 2), "gamma": 0.5}
    assert rate(step) == pytest.approx([2, 2, 1, 1, 0.5])
    assert rate(step, 4) == pytest.approx([0.5, 1, 0.75, 1, 0.5])
    assert rate({"name": "cosine", "final": 1.0}) == [2] * 5


def test_names():
    assert set(optimizers.available()) == {"adam", "adamw", "rmsprop", "sgd"}
    assert set(schedules.available()) == {"constant", "cosine", "step"}


def test_optimizers_and_schedules_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "my_optim.py").write_text(
        "import optax\n"
        "def plain(scale=1.0):\n    return optax.scale(scale)\n"
        "def halving(every: int = 2):\n    return lambda step, length: 0.5 ** (step // every)\n"
        "def nothing():\n    return None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    spec = {"name": "my_optim:plain", "lr": 0.5, "scale": 3.0}
    spec["schedule"] = {"name": "my_optim:halving", "every": 1}
    # Steps of .5 * 3 * 2, then half as long.
    assert run(spec, [2, 2]) == pytest.approx([1 - 3, 1 - 3 - 1.5])
    # A decay of 0 is none.
    assert run({"name": "my_optim:plain", "lr": 1.0, "weight_decay": 0.0}, [2]) == [-1]
    with pytest.raises(UserError, match="'my_optim:plain': 'weight_decay'"):
        run({"name": "my_optim:plain", "lr": 1.0, "weight_decay": 0.1}, [2])
    # What optax has without a rate of its own.
    assert run({"name": "optax:scale_by_sign", "lr": 0.5}, [2, -3]) == pytest.approx([0.5, 1])
    for change, message in (
        ({"scal": 1}, "optim.x: unknown hyper-parameter of optimizer 'my_optim:plain': 'scal'"),
        ({"name": "my_optim:plan"}, "unknown optimizer of module my_optim: 'plan'; did you mean"),
        (
            {"name": "my_optim:nothing"},
            "optimizer 'my_optim:nothing' returned None; accepted: a func",
        ),
        (
            {"schedule": {"name": "my_optim:nothing"}},
            "optim.x: schedule 'my_optim:nothing' returned None",
        ),
        ({"name": "optax:adam"}, "optimizer 'optax:adam' needs a value for 'learning_rate'"),
    ):
        with pytest.raises(UserError, match=message):
            run({"name": "my_optim:plain", "lr": 1.0, **change}, [])


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("constant", False),
        ("step", False),
        ("cosine", True),
        ("test_optim_length:linear", True),
        ("test_optim_length:inverse", False),
    ],
)
def test_another_length(tmp_path, monkeypatch, name, refused):
    """A run may be made longer or shorter where the rates of the steps they share stay as they are."""
    (tmp_path / "test_optim_length.py").write_text(
        "def linear():\n    return lambda step, length: 1 - step / length.total_steps\n"
        "def inverse():\n    return lambda step, length: 1 / (1 + step)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    schedule = {"name": name, "milestones": (1, 3)} if name == "step" else {"name": name}
    groups = optim.groups_of({**GROUPS, "head": {**GROUPS["head"], "schedule": schedule}})
    for before, now in ((1000, 2000), (2000, 1000)):
        args = groups, RunLength(before, 100), RunLength(now, 100)
        if refused:
            with pytest.raises(UserError, match=r"schedule of optim\.head depends on"):
                optim.check_length(*args)
        else:
            optim.check_length(*args)
    # A frozen group has no rates.
    frozen = {"name": "sgd", "lr": 0.1, "freeze": True, "schedule": {"name": "cosine"}}
    groups = optim.groups_of({"x": {"match": ".*", **frozen}})
    optim.check_length(groups, RunLength(10, 1), RunLength(20, 1))


@pytest.mark.parametrize("kind", [dict, ConfigDict])
def test_groups(kind):
    tx = optim.build(kind(GROUPS), total_steps=1, epoch_steps=1)
    updates, _ = tx.update(jax.tree.map(np.ones_like, PARAMS), tx.init(PARAMS), PARAMS)
    assert updates["model"]["backbone"] == {"a": pytest.approx(-0.1), "b": pytest.approx(-0.1)}
    assert updates["loss"]["weights"] == pytest.approx(-1)


@pytest.mark.parametrize("clip", [None, 0.5, 10.0])
def test_the_gradient_is_clipped_by_its_norm_over_all_groups(clip):
    groups = optim.groups_of({k: {**v, "name": "sgd", "lr": 1.0} for k, v in GROUPS.items()})
    tx = optim.partition(groups, RunLength(1, 1), clip)
    gradient = jax.tree.map(np.ones_like, PARAMS)
    gradient["loss"]["weights"] = gradient["loss"]["weights"] * 3.0
    leaves = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)])
    factor = min(1.0, clip / np.linalg.norm(leaves)) if clip else 1.0
    updates, _ = tx.update(gradient, tx.init(PARAMS), PARAMS)
    assert updates["model"]["backbone"]["a"] == pytest.approx(-factor)
    np.testing.assert_allclose(updates["loss"]["weights"], -3 * factor, rtol=1e-6)


@pytest.mark.parametrize("change", [{"lr": 0}, {"freeze": True}])
def test_frozen_group_does_not_move(change):
    groups = {**GROUPS, "backbone": {**GROUPS["backbone"], **change, "weight_decay": 0.1}}
    tx = optim.build(groups, total_steps=1, epoch_steps=1)
    updates, _ = tx.update(jax.tree.map(np.ones_like, PARAMS), tx.init(PARAMS), PARAMS)
    assert updates["model"]["backbone"] == {"a": 0, "b": 0}
    assert updates["loss"]["weights"] == pytest.approx(-1)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({k: GROUPS[k] for k in ("head", "loss")}, "model/backbone/a is matched by 0 groups"),
        (
            {**GROUPS, "more": {**GROUPS["head"], "match": ".*/b"}},
            r"model/backbone/b is matched by 2 groups of optim \(backbone, more\)",
        ),
        ({**GROUPS, "loss": {**GROUPS["loss"], "name": "adm"}}, "unknown optimizer 'adm'.*'adam'"),
        ({**GROUPS, "loss": {**GROUPS["loss"], "wight_decay": 1}}, "optim.loss.*'weight_decay'"),
        ({**GROUPS, "loss": {**GROUPS["loss"], "lr": None}}, "optim.loss.lr is None"),
        ({**GROUPS, "loss": {"name": "sgd", "lr": 1.0}}, "optim.loss has no match"),
        (
            {**GROUPS, "loss": {**GROUPS["loss"], "momentum": 1.5}},
            "optim.loss: momentum of .* is 1.5",
        ),
        ({**GROUPS, "loss": {**GROUPS["loss"], "warmup_steps": 0.5}}, "optim.loss.warmup_steps is"),
        (
            {**GROUPS, "loss": {**GROUPS["loss"], "lr": -1}},
            "optim.loss.lr is -1; accepted: a number of at least 0",
        ),
        (
            {**GROUPS, "loss": {**GROUPS["loss"], "schedule": {"name": "cos"}}},
            "unknown schedule 'cos'.*'cosine'",
        ),
    ],
)
def test_bad_groups(groups, message):
    with pytest.raises(UserError, match=message):
        optim.build(groups, total_steps=1, epoch_steps=1).init(PARAMS)


LAYERS = {
    f"model/backbone/{part}": i
    for i, part in enumerate(("patch", "block_00/w", "block_01/w", "block_02/w", "norm"))
}


def deep(value=1.0):
    parts = {"patch": value, "norm": value, **{f"block_{i:02}": {"w": value} for i in range(3)}}
    return jax.tree.map(jnp.float32, {"model": {"backbone": parts}, "loss": {"weights": value}})


def moved(steps=1, **spec):
    """How far each parameter of a deep model moves in plain gradient descent at rate 1, with gradients of 1."""
    section = {
        "backbone": {"match": "model/.*", "name": "sgd", "lr": 1.0, **spec},
        "loss": {"match": "loss/.*", "name": "sgd", "lr": 1.0},
    }
    groups = optim.groups_of(section)
    tx = optim.partition(groups, RunLength(10, 10), layers=LAYERS)
    params = deep(0.0)
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(deep(1.0), state, params)
        params = optax.apply_updates(params, updates)
    parts = params["model"]["backbone"]
    found = [parts["patch"], *(parts[f"block_{i:02}"]["w"] for i in range(3)), parts["norm"]]
    assert float(params["loss"]["weights"]) == -steps
    return [-float(x) for x in found]


def test_each_layer_has_the_rate_of_the_next_one_times_the_decay():
    np.testing.assert_allclose(moved(layer_decay=0.5), [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1])


@pytest.mark.parametrize(
    ("last", "expected"),
    [(0, [0, 0, 0, 0, 1]), (2, [0, 0, 1, 1, 1]), (3, [0, 1, 1, 1, 1])],
)
def test_the_last_blocks_alone(last, expected):
    assert moved(last_blocks=last) == expected
    groups = optim.groups_of(
        {"all": {"match": ".*", "name": "sgd", "lr": 1.0, "last_blocks": last}}
    )
    is_trained = optim.trained(groups, LAYERS)
    assert [is_trained(path) for path in LAYERS] == list(map(bool, expected))
    assert is_trained("loss/weights")


def test_frozen_then_full():
    """Before its first step a group stays as it is, and so do its moments; its warm-up begins there."""
    assert moved(steps=3, start_step=3) == [0] * 5
    assert moved(steps=5, start_step=3) == [2] * 5
    assert moved(steps=5, start_step=3, momentum=0.5) == [1 + 1.5] * 5
    assert moved(steps=5, start_step=3, warmup_steps=2) == [0.5 + 1] * 5
    group = optim.group("x", {"match": ".*", "name": "sgd", "lr": 1.0, "start_step": 3})
    assert [float(group.rate(i, RunLength(9, 9))) for i in (0, 2, 3)] == [0, 0, 1]


def test_what_needs_blocks_says_so():
    spec = {"match": ".*", "name": "sgd", "lr": 1.0}
    for more in ({"last_blocks": 1}, {"layer_decay": 0.9}):
        groups = optim.groups_of({"all": {**spec, **more}})
        with pytest.raises(
            UserError, match=r"optim\.all has last_blocks=.* the model has no blocks"
        ):
            optim.partition(groups, RunLength(1, 1))


def test_more_blocks_than_there_are():
    with pytest.raises(UserError, match=r"optim\.backbone\.last_blocks=4; the model has 3 blocks"):
        moved(last_blocks=4)


def test_the_table_of_the_groups():
    spec = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1, "last_blocks": 1, "layer_decay": 0.5}
    section = {
        "backbone": {"match": "model/.*", **spec},
        "loss": {"match": "loss/.*", "name": "sgd", "lr": 0.5, "start_step": 7},
        "none": {"match": "nothing", "name": "sgd", "lr": 0.5},
    }
    assert optim.summary(deep(), optim.groups_of(section), LAYERS)[1:] == [
        ["backbone", "2", "2", "adamw", "0.001, times 0.5 for each layer before the last", "0.1"],
        ["backbone", "3", "3", "frozen", "", ""],
        ["loss", "1", "1", "sgd", "0.5, from step 7 on", "0"],
    ]


def test_layers_of_a_model():
    found = models.get("vit", size="s", image_size=28, embedding_dim=4).layers()
    numbers = {path.split("/")[2]: n for path, n in found.items() if "/backbone/" in path}
    assert [numbers[f"block_{i:02}"] for i in range(12)] == list(range(1, 13))
    assert {numbers[part] for part in ("patch", "position", "cls_token")} == {0}
    assert numbers["norm"] == found["model/head/kernel"] == 13
    small = models.get("convnet", depth=2, image_size=8).layers()
    assert small["model/backbone/stem/kernel"] == 0
    assert small["model/backbone/stage_2_1/kernel"] == 6
