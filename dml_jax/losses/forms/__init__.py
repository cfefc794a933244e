"""The forms that losses have: on pairs, sums over all pairs, class weights, proxies, two views, a graph.

A factory gives its form functions (`init_variables`, `prepare`, `kernel`, `update`); no form is derived from. The
functions are plain ones of a module, or `Bound` with hyper-parameters, so that losses made equally are equal.
"""

from dataclasses import replace
from typing import Any

from dml_jax.losses.base import Loss
from dml_jax.losses.forms.classes import (
    ClassChunk,
    ClassLoss,
    LearnsClasses,
    ProxyLoss,
    against_classes,
    from_logits,
)
from dml_jax.losses.forms.pairs import (
    BlockKernel,
    PairLoss,
    SumsLoss,
    from_rows,
    on_pairs,
    partner_sims,
    prepass,
)
from dml_jax.losses.forms.whole import GraphLoss, ViewsLoss
from dml_jax.mining import Miner

__all__ = [
    "BlockKernel",
    "ClassChunk",
    "ClassLoss",
    "GraphLoss",
    "LearnsClasses",
    "PairLoss",
    "ProxyLoss",
    "SumsLoss",
    "ViewsLoss",
    "against_classes",
    "from_logits",
    "from_rows",
    "has_class_weights",
    "on_pairs",
    "partner_sims",
    "prepass",
    "with_miner",
]


def has_class_weights(loss: Loss) -> bool:
    """Returns True for a loss that learns vectors, `params["weights"]`."""
    return isinstance(loss, (ClassLoss, ProxyLoss, GraphLoss))


def with_miner(loss: Any, miner: Miner) -> Loss | None:
    """Returns the loss with this miner; None where it has one already, or takes none."""
    if not isinstance(loss, (PairLoss, SumsLoss, ClassLoss, ProxyLoss)) or loss.miner is not None:
        return None
    return replace(loss, miner=miner)
