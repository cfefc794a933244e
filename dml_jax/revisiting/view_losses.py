"""A loss on two embeddings of the same images, as DiVA has it.

What holds for all of them stands in `dml_jax.revisiting`.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dml_jax import distances
from dml_jax.bound import Bound
from dml_jax.losses.base import (
    Loss,
    RegularizerSpec,
    Variables,
    build_parts,
)
from dml_jax.losses.forms import (
    ViewsLoss,
)
from dml_jax.parameters import (
    NonNegativeFloat,
    PositiveInt,
    checked,
)
from dml_jax.relations import SAME_LABEL


def revisiting_adversarial_separation_views(
    source: Float[Array, "b d"],
    target: Float[Array, "b d"],
    valid: Bool[Array, " b"],
    *,
    weight: float,
    learned: dict[str, dict[str, Array]],
) -> Float[Array, ""]:
    """Returns the adversarial separation of two embeddings; see `revisiting_adversarial_separation`."""

    def reverse(x: Array) -> Array:
        return 2 * jax.lax.stop_gradient(x) - x

    def layer(x: Array, name: str) -> Array:
        kernel, bias = (learned[name][part].astype(x.dtype) for part in ("kernel", "bias"))
        return jnp.matmul(x, kernel, precision="highest") + bias[None, :]

    source, target = (distances.normalize(reverse(x)) for x in (source, target))
    predicted = distances.normalize(layer(jax.nn.relu(layer(source, "hidden")), "output"))
    agreement = jnp.mean(jnp.square(target * predicted), -1)
    total = jnp.sum(jnp.where(valid, agreement, 0))
    return -weight * total / jnp.maximum(jnp.sum(valid), 1).astype(total.dtype)


def _adversarial_separation(
    first: Array, second: Array, valid: Array, params: Any, *, weight: float
) -> Array:
    return revisiting_adversarial_separation_views(
        first, second, valid, weight=weight, learned=params
    )


def _init_perceptron(key: Array, num_classes: int, dim: int, *, width: int) -> Variables:
    """Makes {"params": {"hidden" and "output": {"kernel": [in, out], "bias": [out]}}}, uniform in +-1/sqrt(in)."""
    del num_classes

    def layer(key: Array, rows: int, columns: int) -> dict[str, Array]:
        draw = lambda key, *shape: jax.random.uniform(key, shape, minval=-1, maxval=1)
        first, second = jax.random.split(key)
        scale = 1 / math.sqrt(rows)
        return {
            "kernel": scale * draw(first, rows, columns),
            "bias": scale * draw(second, columns),
        }

    hidden, output = jax.random.split(key)
    return {"params": {"hidden": layer(hidden, dim, width), "output": layer(output, width, dim)}}


@checked("loss")
def revisiting_adversarial_separation(
    weight: NonNegativeFloat = 1500.0,
    proj_dim: PositiveInt = 512,
    *,
    regularizer: RegularizerSpec = None,
) -> Loss:
    """Makes the adversarial separation of two embeddings of the same images (Milbich et al., DiVA, ECCV 2020).

    L = -weight mean_i mean_d ( u(R(t_i))_d u(g(R(s_i)))_d )^2,    u(x) = x / ||x||,    g a two-layer perceptron (ReLU)

    R is the identity with its gradient reversed: g, which is `params` of the loss, learns to predict the target from
    the source, and the embeddings learn to make that impossible. The batch is the source and `ref_embeddings` the
    target; the other direction is another such loss with the two exchanged. The defaults are
    DiVA's (with a learning rate of 1e-5); the ICML 2020 code holds this function, but not the flags that it reads.

    Args:
      weight: of the loss, 0 or more; DiVA's default.
      proj_dim: the width of g; DiVA's default.
      regularizer: a penalty to add, or several (`dml_jax.regularizers`); None: none.

    Raises:
      UserError: at the call, no target of the same shape.

    Example:
      >>> loss = revisiting_adversarial_separation(proj_dim=3)
      >>> variables = loss.init(jax.random.key(0), num_classes=2, dim=2)
      >>> x = jnp.asarray([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
      >>> mean, _ = loss.apply(variables, x, None, ref_embeddings=x[::-1])
      >>> bool(mean.compute() < 0)
      True
    """
    name = "revisiting_adversarial_separation"
    return ViewsLoss(
        name=name,
        relation=SAME_LABEL,
        kernel=Bound(_adversarial_separation, weight=weight),
        init_variables=Bound(_init_perceptron, width=proj_dim),
        regularizers=build_parts(name, regularizer=regularizer).regularizers,
    )
