"""A sampler of the user's own, by "package.module:name"."""

import numpy as np
import pytest

from dml_jax import UserError, samplers
from dml_jax.parameters import PositiveInt
from tests.samplers.test_samplers import LABELS


@samplers.custom
def strided(inputs: samplers.PlanInputs, *, stride: PositiveInt = 2):
    """Images `stride` apart, batches in random order."""
    places = np.arange(inputs.steps * inputs.batch_size) * stride % inputs.images
    return inputs.generator().permutation(places.reshape(inputs.steps, inputs.batch_size))


@samplers.custom
def short(inputs: samplers.PlanInputs):
    """One batch too few."""
    return np.zeros((inputs.steps - 1, inputs.batch_size), int)


@samplers.custom
def beyond(inputs: samplers.PlanInputs):
    """An image that there is not."""
    return np.full((inputs.steps, inputs.batch_size), inputs.images)


def not_decorated(inputs):
    return inputs


NOT_A_FUNCTION = 3


def test_by_name_and_by_call():
    sampler = samplers.get("tests.samplers.test_custom:strided", stride=3, length=16)
    assert sampler == strided(stride=3, length=16)
    plan = sampler.plan(LABELS, 8, seed=0, epoch=0)
    assert plan.dtype == np.int32
    rows = np.arange(16).reshape(2, 8) * 3 % 26
    assert sorted(plan.tolist()) == sorted(rows.tolist())
    orders = {tuple(sampler.plan(LABELS, 8, seed=0, epoch=e)[:, 0].tolist()) for e in range(9)}
    assert len(orders) == 2


@pytest.mark.parametrize(
    ("name", "hyper", "says"),
    [
        (
            "strided",
            {"stride": 0},
            "stride of sampler .*strided' is 0; accepted: a whole number of at least 1",
        ),
        ("strided", {"strid": 1}, "unknown hyper-parameter .*; did you mean 'stride'"),
        ("strided", {"length": "8"}, "length of sampler .*strided' is '8'"),
        ("stried", {}, "unknown sampler of module tests.samplers.test_custom.* 'strided'"),
        ("not_decorated", {}, "needs a value for 'inputs'"),
        ("NOT_A_FUNCTION", {}, "accepted: a function that returns a Sampler"),
        ("np.zeros", {"shape": 3}, "returned array.*accepted: a function that returns a Sampler"),
    ],
)
def test_what_is_no_sampler(name, hyper, says):
    with pytest.raises(UserError, match=says):
        samplers.get(f"tests.samplers.test_custom:{name}", **hyper)


def test_what_is_no_plan():
    with pytest.raises(UserError, match=r"'short' planned int64 of shape \(2, 8\); .*\[3, 8\]"):
        short().plan(LABELS, 8, seed=0, epoch=0)
    with pytest.raises(UserError, match="'beyond' planned images 26 to 26; accepted: 0 to 25"):
        beyond().plan(LABELS, 8, seed=0, epoch=0)
    with pytest.raises(UserError, match=r"returned .*accepted: a function that returns a Sampler"):
        samplers.get("collections:Counter")
