"""The samplers on the label lists of real sets, where they are at hand."""

import os
import pathlib
import time

import numpy as np
import pytest

from dml_jax import samplers
from tests.samplers.common import HYPER, get

ROOT = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data"
SPLITS = pathlib.Path(os.environ.get("DML_JAX_TEST_DATA", ROOT)) / "splits"
# images, classes
SETS = {"sop": (59_551, 11_318), "cub": (5_864, 100), "cars": (8_054, 98)}
PLAIN = sorted({n.split("-")[0] for n in HYPER if get(n).needs != "embeddings"})


def read(name):
    """(labels, parents) of the training half."""
    path = {
        "sop": "sop/Ebay_train.txt",
        "cub": "cub200_2011/image_class_labels.txt",
        "cars": "cars196/train_8054.txt",
    }[name]
    if not (SPLITS / path).exists():
        pytest.skip(f"no label list of {name}")
    if name == "sop":
        return tuple(np.loadtxt(SPLITS / path, int, skiprows=1, usecols=(1, 2)).T)
    labels = np.loadtxt(SPLITS / path, int, usecols=1)
    if name == "cub":
        labels = labels[labels <= 100]
    return labels, labels % 7


@pytest.fixture(scope="module", params=SETS)
def real(request):
    labels, parents = read(request.param)
    assert (len(labels), len(np.unique(labels))) == SETS[request.param]
    return request.param, labels, parents


@pytest.mark.parametrize("name", PLAIN)
def test_an_epoch_takes_less_than_two_seconds(real, name):
    _, labels, parents = real
    batch = 111 if name == "fixed_set_of_triplets" else 112
    how = {"seed": 0, "epoch": 1} | ({"parents": parents} if name == "hierarchical" else {})
    start = time.process_time()
    plan = samplers.get(name).plan(labels, batch, **how)
    assert time.process_time() - start < 2  # at most 0.05 s here, 0.1 s with cover
    images = 30_000 if name == "fixed_set_of_triplets" else len(labels)
    assert plan.shape == (images // batch, batch)


def test_m_per_class(real):
    _, labels, _ = real
    plan = samplers.get("m_per_class", m=4).plan(labels, 112, seed=0, epoch=0)
    groups = labels[plan].reshape(-1, 28, 4)
    assert (groups == groups[:, :, :1]).all()
    assert all(len(np.unique(row)) == 28 for row in groups)


@pytest.mark.parametrize("m", [1, 2, 4])
def test_cover(real, m):
    _, labels, _ = real
    start = time.process_time()
    plan = samplers.get("m_per_class", m=m, cover=True).plan(labels, 56, seed=0, epoch=0)
    assert time.process_time() - start < 2
    assert len(np.unique(plan)) == len(labels)
    groups = labels[plan].reshape(len(plan), -1, m)
    assert (groups == groups[:, :, :1]).all()
    assert all(len(np.unique(row)) == 56 // m for row in groups)


def test_class_random_repeats_classes_as_expected(real):
    name, labels, _ = real
    plan = samplers.get("class_random", m=2).plan(labels, 112, seed=0, epoch=0)
    count, groups = SETS[name][1], 56
    different = np.array([len(np.unique(row)) for row in labels[plan[:, ::2]]])
    expected = count * (1 - (1 - 1 / count) ** groups)
    if name == "cub":
        assert expected == pytest.approx(43.0, abs=0.05)  # as published
    assert abs(different.mean() - expected) < 5 * max(different.std(), 0.1) / len(plan) ** 0.5
    # The share of positives that are the same image: 1 / size, on average over classes.
    _, sizes = np.unique(labels, return_counts=True)
    same = (plan[:, ::2] == plan[:, 1::2]).mean()
    assert same == pytest.approx((1 / sizes).mean(), rel=0.3 if name != "sop" else 0.03)


def test_hierarchical_keeps_to_its_parents(real):
    _, labels, parents = real
    plan = samplers.get("hierarchical").plan(labels, 112, seed=0, epoch=0, parents=parents)
    halves = parents[plan].reshape(-1, 2, 56)
    assert (halves == halves[:, :, :1]).all() and (halves[:, 0, 0] != halves[:, 1, 0]).all()


def test_storage_samplers_plan_a_real_set(real):
    _, labels, _ = real
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(labels.max() + 1, 16)).astype("f")
    embeddings = centres[labels] + 0.5 * rng.normal(size=(len(labels), 16)).astype("f")
    few = {"length": 112 * 4}
    for sampler in ("greedy_coreset", "d2_coreset", "fid_batchmatch", "disthist_batchmatch"):
        plan = samplers.get(sampler, **few).plan(
            labels, 112, seed=0, epoch=0, embeddings=embeddings
        )
        assert (labels[plan[:, ::2]] == labels[plan[:, 1::2]]).all()
    start = time.process_time()
    plan = samplers.get("hard_classes").plan(labels, 112, seed=0, epoch=0, embeddings=embeddings)
    assert time.process_time() - start < 10  # 1.2 s of SOP
    assert all(len(np.unique(row)) == 28 for row in labels[plan])
