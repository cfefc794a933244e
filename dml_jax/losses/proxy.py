"""Losses against proxies whose sums run over the batch: the proxies are the anchors.

With a row per class and the batch as references, a sum over the samples of a class is a row sum, and
the pairwise driver does the rest (its devices own classes, its blocks are blocks of classes).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from dml_jax.bound import Bound
from dml_jax.losses.base import (
    DistanceSpec,
    Loss,
    MinerSpec,
    ReducerSpec,
    RegularizerSpec,
    RelationSpec,
    build_parts,
)
from dml_jax.losses.forms import ProxyLoss
from dml_jax.losses.kernels import Mask, Sims, log_one_plus_sum_exp
from dml_jax.pairwise import Block
from dml_jax.parameters import PositiveFloat, checked

Terms = dict[str, tuple[Float[Array, " c"], Float[Array, " c"], Shaped[Array, " c"]]]


def proxy_anchor_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    margin: float,
    alpha: float,
    similarity: bool,
) -> Terms:
    """Returns both terms of each class; see `proxy_anchor`.

    Rows of `sims` are proxies, columns the batch. `pos` and `neg` may hold sample weights w, which act as
    w - 1 in the exponent. Each term is (values, weights, divisor).
    """
    sign = 1.0 if similarity else -1.0
    shift = pos.astype(sims.dtype) + neg.astype(sims.dtype) - 1
    positive = log_one_plus_sum_exp(-alpha * sign * (sims - margin) + shift, pos > 0)
    negative = log_one_plus_sum_exp(alpha * sign * (sims + margin) + shift, neg > 0)
    ones = jnp.ones_like(positive)
    return {
        "positive": (positive, ones, jnp.any(pos > 0, -1)),
        "negative": (negative, ones, ones),
    }


def _proxy_anchor(block: Block, *, margin: float, alpha: float, similarity: bool) -> Terms:
    pos, neg = block.selection.pos, block.selection.neg
    how: dict[str, Any] = dict(margin=margin, alpha=alpha, similarity=similarity)
    return proxy_anchor_rows(block.sims, pos, neg, **how)


@checked("loss")
def proxy_anchor(
    margin: float = 0.1,
    alpha: PositiveFloat = 32.0,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes the proxy-anchor loss of each class c (Kim et al., CVPR 2020, eq. 4).

    positive: log(1 + sum_{y = c} e^{-alpha (s - margin)})    over the classes that occur in the batch
    negative: log(1 + sum_{y != c} e^{alpha (s + margin)})    over all classes

    The default reducer divides by the number of classes in the batch and of all classes. Sample weights w of a miner
    act as w - 1 in the exponent (PML's rule; a weight of 0 takes the sample out, where PML leaves it in with
    e^-1). With distances the exponents are alpha (d - margin) and -alpha (d + margin), as in PML. Proxies are
    `params["weights"]`. A label that is no class makes the loss NaN inside of `jax.jit`.

    Args:
      margin: the paper's and PML's default.
      alpha: the scale, above 0; the paper's and PML's default.
      miner: weighs the samples by how often it chose them (`dml_jax.miners`); None: alike.
      distance: by default "cosine", as in PML (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "divisor", as in PML.
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: a hyper-parameter out of range.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> variables = {"params": {"weights": jnp.eye(2)}}
      >>> mean, _ = proxy_anchor(alpha=4).apply(variables, x, [0, 0, 1, 1])
      >>> round(float(mean.compute()), 3)
      2.038
    """
    parts = build_parts(
        "proxy_anchor",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        default_reducer="divisor",
        with_classes=True,
        centers=1,
    )
    how: dict[str, Any] = dict(margin=margin, alpha=alpha, similarity=parts.distance.similarity)
    return ProxyLoss(
        name="proxy_anchor",
        kernel=Bound(_proxy_anchor, **how),
        init_weights=fan_out_proxies,
        **parts._asdict(),
    )


def fan_out_proxies(key: Array, num_classes: int, dim: int) -> Float[Array, "c d"]:
    """Draws proxies from N(0, 2 / num_classes), as PML and the paper's code initialise them."""
    return jax.random.normal(key, (num_classes, dim)) * jnp.sqrt(2.0 / num_classes)
