"""Errors of a first script with losses: an empty batch, a key that is none, no class, a loss where a miner belongs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dml_jax import UserError, losses, miners


@pytest.mark.parametrize("miner", [None, miners.multi_similarity()])
def test_a_batch_without_samples(miner):
    empty = np.zeros((0, 4), np.float32)
    with pytest.raises(UserError, match=r"embeddings has shape \(0, 4\); a batch of at least one"):
        losses.multi_similarity(miner=miner)(empty, np.zeros(0, int))


@pytest.mark.parametrize(
    "make", [losses.cos_face, losses.proxy_anchor, losses.margin, losses.multi_similarity]
)
def test_what_variables_are_made_from(make):
    key = jax.random.key(0)
    with pytest.raises(UserError, match=r"key is 0; a key such as jax.random.key\(0\) is accepted"):
        make().init(0, num_classes=8, dim=4)
    for wrong in ({"num_classes": 0, "dim": 4}, {"num_classes": 8, "dim": 0}):
        with pytest.raises(UserError, match="is 0; a whole number from 1 on is accepted"):
            make().init(key, **wrong)
    old = make().init(jax.random.PRNGKey(0), num_classes=8, dim=4)
    assert jax.tree.map(jnp.shape, old) == jax.tree.map(jnp.shape, make().init(key, 8, 4))


def test_a_loss_where_a_miner_belongs():
    with pytest.raises(UserError, match="miner is PairLoss 'contrastive'; accepted: a name"):
        losses.contrastive(miner=losses.contrastive())
