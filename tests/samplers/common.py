"""Every sampler with settings that fit sets of a few classes."""

import numpy as np

from dml_jax import samplers

# A name, or name-variant.
HYPER = {
    "m_per_class": {},
    "m_per_class-cover": {"m": 2, "cover": True},
    "class_random": {},
    "full_random": {},
    "random": {},
    "sequential": {},
    "hierarchical": {"samples_per_class": 2},
    "fixed_set_of_triplets": {"num_triplets": 40},
    "greedy_coreset": {"big_batch": 20},
    "greedy_coreset-softened": {"big_batch": 20, "softened": True, "project": 2},
    "d2_coreset": {"big_batch": 20},
    "fid_batchmatch": {"big_batch": 20},
    "disthist_batchmatch": {"big_batch": 20},
    "hard_classes": {"m": 2, "group": 2},
    "tuples_to_weights": {"miner": "multi_similarity", "block": 8},
    "tuples_to_weights-subset": {"miner": "batch_hard", "subset": 20},
}


def get(name):
    return samplers.get(name.split("-")[0], **HYPER[name])


def batch_of(name):
    return 9 if name.startswith("fixed") else 8


def given(name, labels, dim=5):
    """Parents (classes taken by turns) or embeddings (random) where the sampler needs them."""
    need = get(name).needs
    if need == "parents":
        return {"parents": np.unique(labels, return_inverse=True)[1] % 3}
    if need == "embeddings":
        return {"embeddings": np.random.default_rng(1).normal(size=(len(labels), dim)).astype("f")}
    return {}


def plan_of(name, labels, *, seed, epoch):
    return get(name).plan(labels, batch_of(name), seed=seed, epoch=epoch, **given(name, labels))
