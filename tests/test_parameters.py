"""One check of all hyper-parameters: types, ranges, choices, names."""

from typing import Any, Literal

import numpy as np
import pytest

from dml_jax import UserError, losses
from dml_jax.parameters import Fraction, PositiveFloat, PositiveInt, check, checked


@checked("thing")
def make(
    size: PositiveInt,
    rate: PositiveFloat | None = None,
    kind: Literal["near", "far"] = "near",
    *,
    share: Fraction = 0.5,
    flag: bool = False,
    steps: tuple[int, ...] = (),
    ends: tuple[float, float] = (0.0, 1.0),
    anything: Any = None,
):
    return size, rate, kind, share, flag, steps, ends, anything


def test_values_are_passed_on_as_python_s():
    got = make(np.int64(3), np.float32(0.5), share=1, steps=[1, 2], ends=np.array([2.0, 3]))
    assert got == (3, 0.5, "near", 1, False, (1, 2), (2.0, 3.0), None)
    assert type(got[0]) is int and type(got[1]) is float
    assert make.__name__ == "make" and make(1)[1] is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(size=0), "size of thing 'make' is 0; accepted: a whole number of at least 1"),
        (dict(size=2.5), "accepted: a whole number"),
        (dict(size=True), "is True; accepted: a whole number"),
        (dict(size="3"), "is '3'; accepted: a whole number"),
        (dict(size=1, rate=0), "accepted: a number above 0 or None"),
        (dict(size=1, rate=float("nan")), "is nan; accepted: a number"),
        (dict(size=1, kind="nea"), "'near'"),
        (dict(size=1, share=1.5), "of at least 0 and of at most 1"),
        (dict(size=1, flag=1), "accepted: True or False"),
        (dict(size=1, steps=[1.5]), "accepted: a sequence, each a whole number"),
        (dict(size=1, steps=3), "accepted: a sequence"),
        (dict(size=1, ends=[1]), "accepted: a sequence of 2, each "),
        (dict(), "needs a value for 'size'"),
        (dict(size=1, shar=0.2), "did you mean 'share'"),
    ],
)
def test_errors_say_what_is_accepted(given, words):
    with pytest.raises(UserError, match=words) as error:
        make(**given)
    assert "\n" not in str(error.value)


def test_too_many_by_position():
    with pytest.raises(UserError, match="accepted by position: size, rate, kind, the rest by name"):
        make(1, 2.0, "near", 0.5)


def test_one_value():
    assert check("k of loss 'x'", tuple[PositiveInt, ...], [1, 2]) == (1, 2)
    with pytest.raises(UserError, match="k of loss 'x' is"):
        check("k of loss 'x'", tuple[PositiveInt, ...], [0])


# Every loss's hyper-parameters are checked by their annotations: values that no parameter of any loss accepts.
@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("contrastive", dict(pos_margin="0")),
        ("nt_xent", dict(temperature=0)),
        ("nt_xent", dict(temperature=-0.1)),
        ("sup_con", dict(temperature=None)),
        ("histogram", dict(n_bins=0)),
        ("histogram", dict(delta=-0.02)),
        ("fast_ap", dict(num_bins=0)),
        ("dynamic_soft_margin", dict(num_bins=0)),
        ("dynamic_soft_margin", dict(min_val=0)),
        ("soft_triple", dict(centers_per_class=0)),
        ("sub_center_arc_face", dict(sub_centers=2.5)),
        ("arc_face", dict(margin="wide")),
        ("cos_face", dict(scale=0)),
        ("sphere_face", dict(margin=2.5)),
        ("recall_at_k", dict(k=())),
        ("recall_at_k", dict(k=(1, 2), k_temperature=(1.0,))),
        ("recall_at_k", dict(k=3)),
        ("manifold", dict(K=0)),
        ("manifold", dict(alpha=1.5)),
        ("pnp", dict(anneal=0)),
        ("smooth_ap", dict(temperature=float("nan"))),
        ("triplet_margin", dict(swap="yes")),
        ("triplet_margin", dict(triplets_per_anchor=0)),
        ("vic_reg", dict(eps=-1.0)),
        ("revisiting_histogram", dict(nbins=1)),
        ("revisiting_soft_triple", dict(reg_weight=-1)),
        ("cross_batch_memory", dict(loss="contrastive", memory_size=2.5)),
        ("self_supervised", dict(loss="nt_xent", views=2.5)),
        ("multiple", dict(losses=["nt_xent"], weights=["1"])),
        ("contrastive", dict(reducer={"name": "class_weighted", "weights": "ab"})),
        ("contrastive", dict(regularizer={"name": "lp", "weight": "1"})),
        ("contrastive", dict(distance={"name": "lp", "p": 0})),
        ("contrastive", dict(relation={"name": "overlap", "threshold": 0})),
    ],
)
def test_bad_values_of_losses(name, given):
    with pytest.raises(UserError, match=r"accepted|needs") as error:
        losses.get(name, **given)
    assert "\n" not in str(error.value)
