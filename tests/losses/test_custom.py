"""Losses of the user's own: passed, decorated, and by name in a config."""

import inspect
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from dml_jax import UserError, losses
from tests.losses import table, test_laws

X, LABELS = test_laws.batch(), table.LABELS
PAIRS = (LABELS[:, None] == LABELS[None, :]) & ~np.eye(22, dtype=bool)
FILE = """
    import jax.numpy as jnp
    from dml_jax import losses

    @losses.pair_loss(distance="cosine")
    def pull_and_push(sims, pos, neg, *, margin: float = 0.5):
        values = jnp.where(pos > 0, 1 - sims, jnp.maximum(sims - margin, 0))
        return values, pos + neg
"""


def spread(
    sims, pos, neg, *, low=0.1, high=9.0, similarity="mine", farthest=1.0, own=2.0, keys=3.0
):
    """Keywords that the library's own kernels have uses for."""
    assert similarity == "mine" and (farthest, own, keys) == (1.0, 2.0, 3.0)
    return jnp.clip(sims, low, high), pos


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "losses_of_mine.py").write_text(textwrap.dedent(FILE))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "losses_of_mine"
    sys.modules.pop("losses_of_mine", None)


def test_no_keyword_is_filled_in_by_its_name():
    """`low` of a kernel was once the reducer's -inf, `similarity` the distance's, ..."""
    d = losses.generic_pair(spread, reducer="sum", low=1.3)
    want = losses.generic_pair(spread, reducer="sum")
    got, plain = (float(loss(X, LABELS)) for loss in (d, want))
    sims = np.asarray(d.distance(jnp.asarray(X), jnp.asarray(X)))[PAIRS]
    np.testing.assert_allclose(got, np.clip(sims, 1.3, 9).sum(), rtol=1e-5)
    np.testing.assert_allclose(plain, np.clip(sims, 0.1, 9).sum(), rtol=1e-5)
    assert got > plain + 1


def test_a_kernel_of_a_block_sees_triplets():
    def rows(block):
        weight = block.selection.triplets.weight[:, 0]
        return jnp.ones_like(weight), weight

    loss = losses.generic_pair(rows, takes="block", miner="batch_hard", reducer="sum")
    assert float(loss(X, LABELS)) == PAIRS.any(1).sum()


def test_by_name_in_a_config(module):
    spec = ConfigDict({"name": f"{module}:pull_and_push", "margin": 0.2})
    loss = losses.get(**spec, miner="multi_similarity")
    assert loss == losses.get(f"{module}:pull_and_push", margin=0.2, miner="multi_similarity")
    parameters = inspect.signature(sys.modules[module].pull_and_push).parameters
    assert list(parameters)[:2] == ["margin", "miner"]
    graded = jax.value_and_grad(lambda x, block: loss(x, LABELS, block=block))
    want = graded(X, None)
    test_laws.assert_same(graded(X, 5), want)
    with jax.set_mesh(test_laws.mesh(4)):
        test_laws.assert_same(graded(X, 2), want)
    # In the place of any loss: inside another one, and a part given as a ConfigDict.
    inside = losses.multiple([spec, ConfigDict({"name": "nt_xent", "distance": {"name": "lp"}})])
    assert np.isfinite(inside(X, LABELS))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda m: losses.get(f"{m}:pull_and_pus"), "did you mean 'pull_and_push'"),
        (lambda m: losses.get(f"{m}:jnp"), "accepted: a function that returns a Loss"),
        (lambda m: losses.get(f"{m}:pull_and_push", margn=1), "did you mean 'margin'"),
        (lambda m: losses.get(f"{m}:pull_and_push", margin="a"), "accepted: a number"),
        (lambda m: losses.get("no_such_module:loss"), "there is no module"),
        (lambda m: losses.generic_pair(spread, low=np.ones(2)), "accepted: a value that can be"),
        (lambda m: losses.generic_pair(spread, takes="rows"), "accepted: 'pairs' or 'block'"),
    ],
)
def test_errors(make, words, module):
    with pytest.raises(UserError, match=words) as error:
        make(module)
    assert "\n" not in str(error.value)
