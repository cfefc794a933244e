"""Losses without a form by pairs: of two views of a batch, and of the graph of a whole batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from dml_jax import sharded
from dml_jax.distances import Distance
from dml_jax.errors import UserError
from dml_jax.losses.base import (
    Loss,
    References,
    State,
    Variables,
    add_regularizers,
    with_classes,
)
from dml_jax.mean import Mean
from dml_jax.pairwise import Samples
from dml_jax.regularizers import Regularizer


@dataclass(frozen=True, kw_only=True)
class ViewsLoss(Loss):
    """A loss that compares two views of a batch, row by row.

    The references are the second view. Labels are not read. It needs no blocks: its memory is that of the
    embeddings, and sums over the batch are shared out by the compiler.

    Attributes:
      kernel: `kernel(first, second, valid, params) -> scalar`; `params` is None for a loss without parameters.
      init_variables: `init_variables(key, num_classes, dim) -> variables`; None for a loss without.
      regularizers: penalties that are added.
    """

    kernel: Callable[[Array, Array, Array, Any], Array]
    init_variables: Callable[[Array, int, int], Variables] | None = None
    regularizers: tuple[Regularizer, ...] = ()
    reads_labels: bool = False
    needs_positives: bool = False
    paired_references: bool = True

    def _init(self, key: Array, num_classes: int, dim: int) -> Variables:
        """Makes the variables; {} for a loss without."""
        return {} if self.init_variables is None else self.init_variables(key, num_classes, dim)

    def step(
        self,
        variables: Variables,
        anchors: Samples,
        refs: References | None,
        key: Array | None,
        block: int | None,
    ) -> tuple[Mean, State]:
        """Computes the loss with its regularizers."""
        embeddings, _, valid = anchors
        if refs is None or refs.vectors.shape != embeddings.shape:
            shape = None if refs is None else refs.vectors.shape
            raise UserError(
                f"loss {self.name!r} has ref_embeddings of shape {shape}; accepted: {embeddings.shape}, "
                "the second view of the batch"
            )
        valid = valid & refs.valid
        value = self.kernel(embeddings, refs.vectors, valid, variables.get("params"))
        mean = Mean(value, jnp.ones_like(value))
        return add_regularizers(mean, self.regularizers, variables, anchors, block), {}


@dataclass(frozen=True, kw_only=True)
class GraphLoss(Loss):
    """A loss on the graph of the whole batch and some proxies.

    It has no form by rows, so that blocks are refused and every device does the whole of it.

    Attributes:
      kernel: `kernel(sims, labels, valid) -> scalar`; `sims` are the similarities of samples and proxies, in that
        order, to one another.
      num_proxies: how many there are.
      distance: of samples and proxies.
      regularizers: penalties that are added.
    """

    kernel: Callable[[Array, Array, Array], Array]
    num_proxies: int
    distance: Distance
    regularizers: tuple[Regularizer, ...] = ()
    takes_references: bool = False
    reads_classes: bool = True
    label_values: str = "numbers, whose remainders name the proxies"
    takes_block: bool = False
    needs_positives: bool = False

    def _init(self, key: Array, num_classes: int, dim: int) -> Variables:
        """Makes {"params": {"weights": [num_proxies, dim]}}, from N(0, 1)."""
        del num_classes
        return {"params": {"weights": jax.random.normal(key, (self.num_proxies, dim))}}

    def step(
        self,
        variables: Variables,
        anchors: Samples,
        refs: References | None,
        key: Array | None,
        block: int | None,
    ) -> tuple[Mean, State]:
        """Computes the loss with its regularizers."""
        sharded.refuse(
            f"loss {self.name!r} is on the graph of the whole batch, which no device has"
        )
        _, anchors, _ = with_classes(self.relation, anchors, refs)
        embeddings, labels, valid = anchors
        proxies = variables["params"]["weights"].astype(embeddings.dtype)
        points = jnp.concatenate([embeddings, proxies])
        value = self.kernel(self.distance(points, points), labels, valid)
        mean = Mean(value, jnp.any(valid).astype(value.dtype))
        return add_regularizers(mean, self.regularizers, variables, anchors, block), {}
