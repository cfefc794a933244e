"""Every hyper-parameter of every miner, and every argument of a call, with bad values: one line, a `UserError`."""

import inspect
import math
import typing

import jax
import numpy as np
import pytest

from dml_jax import UserError, miners
from tests.miners import table

X = np.random.default_rng(0).normal(size=(6, 4)).astype("f")
LABELS = np.array([0, 0, 1, 1, 2, 2])
BAD = {int: [2.5, "3", True, None, 0], float: ["1", math.nan, True, None, [0.5]]}
RANGED = [
    ("angular", "angle", 0),
    ("angular", "angle", 90),
    ("distance_weighted", "cutoff", -1),
    ("distance_weighted", "cutoff", 0),
    ("distance_weighted", "nonzero_loss_cutoff", -1.4),
    ("distance", "lower_cutoff", 0),
    ("rho_distance", "lower_cutoff", -1),
    ("rho_distance", "p_switch", 1.01),
    ("random_distance", "lower_cutoff", -0.5),
    ("hdc", "filter_percentage", -0.1),
    ("semihard", "margin", -0.1),
    ("parametric", "n_support", 1),
    ("parametric", "support_lim", (1.0, 1.0)),
    ("parametric", "support_lim", (0.1, 0.5, 1.0)),
    ("parametric", "support_lim", 0.5),
    ("batch_easy_hard", "allowed_pos_range", (0.5,)),
    ("batch_easy_hard", "allowed_neg_range", (1, 0)),
    ("batch_easy_hard", "allowed_neg_range", "ab"),
]


def cases():
    for name, factory in miners.MINERS.items():
        for parameter in inspect.signature(factory).parameters.values():
            kind, values = parameter.annotation, []
            if parameter.name == "distance":
                values = ["euclid", 3, {"nom": "lp"}, {"name": "lp", "p": 0}]
                values += [{"name": "lp", "power": 0}, {"name": "lp", "p": -2}]
            elif typing.get_origin(kind) is typing.Literal:
                values = ["hrad", None, 1]
            else:
                bare = kind.__origin__ if typing.get_origin(kind) is typing.Annotated else kind
                values = BAD.get(bare, [3, "ab"])
            for value in values:
                yield name, parameter.name, value
    yield from RANGED


@pytest.mark.parametrize(("name", "parameter", "value"), list(cases()))
def test_bad_hyper_parameters(name, parameter, value):
    with pytest.raises(UserError) as error:
        miners.get(name, **{parameter: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (dict(embeddings=X[:0], labels=LABELS[:0]), r"embeddings have shape \(0, 4\)"),
        (dict(embeddings=X[:, :0]), r"embeddings have shape \(6, 0\)"),
        (dict(embeddings=X[0]), r"embeddings have shape \(4,\); accepted: \[B, D\]"),
        (dict(embeddings="text"), "embeddings are no vectors"),
        (dict(embeddings=[[1.0], [2.0, 3.0]]), "embeddings are no vectors"),
        (dict(labels=LABELS[:5]), r"labels have shape \(5,\)"),
        (dict(labels=LABELS.astype(float)), "accepts integers"),
        (dict(labels=np.zeros((6, 2), int)), r"labels have shape \(6, 2\)"),
        (
            dict(ref_embeddings=X[:, :3], ref_labels=LABELS),
            "ref_embeddings have 3 dimensions, and embeddings have 4",
        ),
        (dict(ref_embeddings=X[:0], ref_labels=LABELS[:0]), "ref_embeddings have shape"),
        (dict(ref_embeddings=X), "ref_labels have shape None"),
        (dict(ref_embeddings=X, ref_labels=LABELS[:3]), r"ref_labels have shape \(3,\)"),
        (dict(block=0), "block is 0"),
        (dict(block=2.5), "block is 2.5"),
        (dict(relation="labels"), "unknown relation 'labels'"),
    ],
)
def test_bad_arguments_of_a_call(args, says):
    for name in ("batch_hard", "random"):
        with pytest.raises(UserError, match=says) as error:
            given = {"embeddings": X, "labels": LABELS, "key": jax.random.key(0)} | args
            miners.get(name)(given.pop("embeddings"), given.pop("labels"), **given)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", miners.available())
def test_miners_are_equal_when_made_equally(name):
    assert miners.get(name) == miners.MINERS[name]()
    assert hash(miners.get(name)) == hash(miners.get(name))
    for full, hyper in table.ALL.items():
        if full.partition("/")[0] == name and hyper:
            assert miners.get(name, **hyper) == miners.get(name, **hyper)
            assert miners.get(name, **hyper) != miners.get("lifted")
