"""Every hyper-parameter of every sampler, and every argument of a plan, with bad values: one line, a `UserError`."""

import inspect
import math
import typing

import numpy as np
import pytest

from dml_jax import UserError, samplers
from tests.samplers.common import HYPER, batch_of, get, given
from tests.samplers.test_samplers import LABELS

# Values that no parameter of this type takes, whatever its range.
BAD = {
    int: [2.5, "3", True, math.nan, [1, 2], -1],
    float: ["1", math.nan, True, [0.5], -1.0],
    bool: [1, "yes", None],
}
BASE = {name.split("-")[0]: hyper for name, hyper in reversed(HYPER.items())}


def bare(annotation):
    """(the type without its range, whether None is accepted)."""
    args = typing.get_args(annotation)
    if type(None) in args:
        return bare(next(a for a in args if a is not type(None)))[0], True
    return (args[0] if typing.get_origin(annotation) is typing.Annotated else annotation), False


def cases():
    for name, factory in samplers.SAMPLERS.items():
        for parameter in inspect.signature(factory).parameters.values():
            kind, optional = bare(parameter.annotation)
            values = BAD.get(kind, [None, 3, "batch_hrad", {"nom": "batch_hard"}, 2.5])
            if kind in (int, float) and not optional:
                values = [*values, None]
            for value in values:
                yield name, parameter.name, value


@pytest.mark.parametrize(("name", "parameter", "value"), list(cases()))
def test_bad_hyper_parameters(name, parameter, value):
    with pytest.raises(UserError) as error:
        samplers.get(name, **BASE[name] | {parameter: value})
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


def test_every_hyper_parameter_has_a_type():
    """So that none is left out of the check, nor of this test."""
    for name, factory in samplers.SAMPLERS.items():
        for parameter in inspect.signature(factory).parameters.values():
            assert bare(parameter.annotation)[0] in BAD or (name, parameter.name) == (
                "tuples_to_weights",
                "miner",
            )


ARGUMENTS = [
    *[("batch_size", value) for value in (2.5, "8", None, True, 0, -8, [8], math.nan)],
    *[("seed", value) for value in (-1, 1.5, "0", None, True)],
    *[("epoch", value) for value in (-1, 1.5, "0", None, True)],
    ("labels", np.zeros((26, 2), int)),
    ("labels", np.zeros(26)),
    ("labels", ["a"] * 26),
    ("labels", [[1], [2, 3]]),
    ("labels", []),
    ("labels", None),
    ("labels", 5),
]


@pytest.mark.parametrize("name", HYPER)
def test_bad_arguments_of_a_plan(name):
    good = {"labels": LABELS, "batch_size": batch_of(name), "seed": 0, "epoch": 0}
    more = given(name, LABELS)
    sampler = get(name)
    needed: list[tuple[str, object]] = []
    if "parents" in more:
        needed = [("parents", v) for v in (None, 3, np.zeros((26, 2), int), np.zeros(26), [0, 1])]
    if "embeddings" in more:
        nan = np.where(np.arange(26) == 3, np.nan, 1.0)[:, None]
        needed = [("embeddings", v) for v in (None, 3, np.zeros(26), [["a"]] * 26, nan)]
    for argument, value in [*ARGUMENTS, *needed]:
        with pytest.raises(UserError) as error:
            sampler.plan(**good | more | {argument: value})
        assert "\n" not in str(error.value), (argument, value)
        if argument in ("labels", "batch_size"):
            with pytest.raises(UserError):
                sampler.steps(
                    **{k: (good | {argument: value})[k] for k in ("labels", "batch_size")}
                )


@pytest.mark.parametrize("name", HYPER)
def test_lists_are_taken(name):
    more = {k: v.tolist() for k, v in given(name, LABELS).items()}
    how = {"seed": 0, "epoch": 0}
    sampler, batch = get(name), batch_of(name)
    want = sampler.plan(LABELS, batch, **how, **given(name, LABELS))
    np.testing.assert_array_equal(
        sampler.plan(LABELS.tolist(), np.int64(batch), **how, **more), want
    )


def test_samplers_are_equal_when_made_equally():
    for name in HYPER:
        assert get(name) == get(name) and hash(get(name)) == hash(get(name))
    assert samplers.m_per_class(2) != samplers.m_per_class(3)
    assert samplers.get("m_per_class", m=2, length=8) == samplers.m_per_class(2, length=8)
