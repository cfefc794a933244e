"""Losses against proxies whose sums run over the batch: the proxies are the anchors.

With a row per class and the batch as references, a sum over the samples of a class is a row sum, and
the pairwise driver does the rest (its devices own classes, its blocks are blocks of classes).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from dml_jax.losses.pair import Mask, Sims, log_one_plus_sum_exp

Terms = dict[str, tuple[Float[Array, " c"], Float[Array, " c"], Shaped[Array, " c"]]]


def proxy_anchor_rows(
    sims: Sims,
    pos: Mask,
    neg: Mask,
    *,
    margin: float = 0.1,
    alpha: float = 32.0,
    similarity: bool = True,
) -> Terms:
    """Proxy-anchor loss of each class c (Kim et al., CVPR 2020, eq. 4).

    positive: log(1 + sum_{y = c} e^{-alpha (s - margin)})    over the classes that occur in the batch
    negative: log(1 + sum_{y != c} e^{alpha (s + margin)})    over all classes

    Rows of `sims` are proxies, columns the batch. `pos` and `neg` may hold sample weights w, which act as
    w - 1 in the exponent (PML's rule; a weight of 0 takes the sample out, where PML leaves it in with
    e^-1). Each term is (values, weights, divisor); the default reducer divides by the divisors, the
    number of classes in the batch and of all classes. With distances (`similarity=False`) the exponents
    are alpha (d - margin) and -alpha (d + margin), as in PML.
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


def fan_out_proxies(key: Array, num_classes: int, dim: int) -> Float[Array, "c d"]:
    """Proxies drawn from N(0, 2 / num_classes), as PML and the paper's code initialise them."""
    return jax.random.normal(key, (num_classes, dim)) * jnp.sqrt(2.0 / num_classes)
