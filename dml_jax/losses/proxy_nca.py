"""Proxy-NCA and Proxy-NCA++: a softmax of distances to a proxy of each class."""

import jax.numpy as jnp

from dml_jax.losses.base import (
    DistanceSpec,
    Loss,
    MinerSpec,
    ReducerSpec,
    RegularizerSpec,
    RelationSpec,
    build_parts,
)
from dml_jax.losses.class_weights import Cosines, Target, normal_weights, small_weights
from dml_jax.losses.forms import against_classes, from_logits
from dml_jax.parameters import PositiveFloat, checked


def proxy_nca_logits(
    sims: Cosines, target: Target, *, softmax_scale: float, similarity: bool
) -> Cosines:
    """Returns the logits of Proxy-NCA; see `proxy_nca`."""
    del target
    return softmax_scale * jnp.where(similarity, sims, -sims)


@checked("loss")
def proxy_nca(
    softmax_scale: PositiveFloat = 1.0,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes Proxy-NCA with the own class in the denominator: logits -softmax_scale d^2(x, w_c).

    Movshovitz-Attias et al., ICCV 2017, up to the denominator, which there leaves the own class out (the loss
    "revisiting_proxy_nca" does). As a log-softmax: no sample is lost. Differs from PML in
    this: PML drops the samples whose probability underflows to 0, the hardest ones, from the mean. A
    miner makes a sample weigh by its number of pairs as an anchor, as in PML. Proxies are `params["weights"]`, drawn
    from N(0, 1). Similarities are not negated.

    Args:
      softmax_scale: above 0; PML's default.
      miner: weighs the samples by how often it chose them (`dml_jax.miners`); None: alike.
      distance: by default {"name": "lp", "power": 2}, squared Euclidean between normalised vectors, as in PML
        (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: a scale of 0 or less.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> variables = {"params": {"weights": jnp.eye(2)}}
      >>> mean, _ = proxy_nca().apply(variables, x, [0, 0, 1, 1])
      >>> round(float(mean.compute()), 3)
      0.206
    """
    parts = build_parts(
        "proxy_nca",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        with_classes=True,
        default_distance={"name": "lp", "power": 2},
        centers=1,
    )
    kernel = from_logits(
        proxy_nca_logits, softmax_scale=softmax_scale, similarity=parts.distance.similarity
    )
    return against_classes(
        "proxy_nca", parts, kernel, init_weights=normal_weights, weigh_partners=False
    )


def proxy_nca_pp_logits(
    sims: Cosines, target: Target, *, temperature: float, similarity: bool
) -> Cosines:
    """Returns the logits of Proxy-NCA++; see `proxy_nca_pp`."""
    del target
    return jnp.where(similarity, sims, -sims) / temperature


@checked("loss")
def proxy_nca_pp(
    temperature: PositiveFloat = 1 / 9,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
) -> Loss:
    """Makes Proxy-NCA++: logits -d^2(x, w_c) / temperature (Teh, DeVries, Taylor, ECCV 2020).

    The own class is in the denominator, and the temperature
    1/9 and the first proxies, drawn from N(0, 1/64), are those of the authors' code. The paper also uses
    global max pooling, layer norm and a larger learning rate for the proxies. PML has no such loss.

    Args:
      temperature: above 0; the default of the authors' code.
      miner: weighs the samples by how often it chose them (`dml_jax.miners`); None: alike.
      distance: by default {"name": "lp", "power": 2}, squared Euclidean between normalised vectors
        (`dml_jax.distances`).
      reducer: makes one number of the values (`dml_jax.reducers`); by default "mean".
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.
      relation: what makes two samples positives (`dml_jax.relations`); by default equal labels.

    Raises:
      UserError: a temperature of 0 or less.

    Example:
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> variables = {"params": {"weights": jnp.eye(2)}}
      >>> mean, _ = proxy_nca_pp().apply(variables, x, [0, 0, 1, 1])
      >>> round(float(mean.compute()), 3)
      0.007
    """
    parts = build_parts(
        "proxy_nca_pp",
        miner=miner,
        distance=distance,
        reducer=reducer,
        regularizer=regularizer,
        relation=relation,
        with_classes=True,
        default_distance={"name": "lp", "power": 2},
        centers=1,
    )
    kernel = from_logits(
        proxy_nca_pp_logits, temperature=temperature, similarity=parts.distance.similarity
    )
    return against_classes("proxy_nca_pp", parts, kernel, init_weights=small_weights)
