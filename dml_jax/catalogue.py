"""What a configuration can name: the library's losses, miners, samplers, ... with their hyper-parameters."""

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dml_jax import distances, losses, miners, models, names, reducers, regularizers, relations
from dml_jax import samplers as sampler_names
from dml_jax.data import augment, sources
from dml_jax.docstrings import entries
from dml_jax.evaluation.metrics.table import METRICS
from dml_jax.training import optimizers, schedules

Factory = Callable[..., Any]


@dataclass(frozen=True)
class Kind:
    """A kind of thing that is made from a name and hyper-parameters.

    Attributes:
      name: in the singular, as errors call it.
      plural: in the plural, as `dml list` calls it.
      table: the library's factories by name.
      without: parameters of the factories that are no hyper-parameters.
    """

    name: str
    plural: str
    table: Mapping[str, Factory]
    without: tuple[str, ...] = ()

    def factory(self, name: str) -> Factory:
        """Returns the factory of a name, of the library or "package.module:name".

        Args:
          name: the name.

        Raises:
          UserError: there is none, with near misses.
        """
        found: Factory = names.resolve(self.name, self.table, name)
        return found


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("loss", "losses", losses.LOSSES),
        Kind("miner", "miners", miners.MINERS),
        Kind("sampler", "samplers", sampler_names.SAMPLERS),
        Kind("model", "models", models.TABLE),
        Kind("data", "datasets", sources.TABLE, without=("split",)),
        Kind("augmentation", "augmentations", augment.TABLE),
        Kind("distance", "distances", distances.DISTANCES),
        Kind("reducer", "reducers", reducers.REDUCERS),
        Kind("regularizer", "regularizers", regularizers.REGULARIZERS),
        Kind("relation", "relations", relations.RELATIONS),
        Kind("optimizer", "optimizers", optimizers.OPTIMIZERS),
        Kind("schedule", "schedules", schedules.SCHEDULES),
        Kind("metric", "metrics", METRICS),
    )
}


@dataclass(frozen=True)
class Hyper:
    """A hyper-parameter.

    Attributes:
      annotation: its type with its range.
      default: its default; `inspect.Parameter.empty` where there is none.
      meaning: what the docstring says of it.
    """

    annotation: Any
    default: Any
    meaning: str


def hyper_parameters(kind: Kind, name: str) -> tuple[dict[str, Hyper], bool]:
    """Returns the hyper-parameters of what a name stands for, and whether it takes others as well.

    Args:
      kind: what the name is one of.
      name: the name, of the library or "package.module:name".

    Raises:
      UserError: an unknown name.

    >>> found, _ = hyper_parameters(KINDS["loss"], "contrastive")
    >>> found["neg_margin"].default, found["neg_margin"].annotation.__name__
    (1.0, 'float')
    """
    factory = kind.factory(name)
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # no function, which is an error where it is called
        return {}, True
    # Of a class, the annotations of the arguments are those of its __init__.
    function: Any = factory
    if isinstance(factory, type):
        function = factory.__init__  # type: ignore[misc]
    if isinstance(function, functools.partial):
        function = function.func
    hints = typing.get_type_hints(function, include_extras=True)
    meanings = entries(factory if isinstance(factory, type) else function)
    found = {
        p.name: Hyper(hints.get(p.name, Any), p.default, meanings.get(p.name, ""))
        for p in signature.parameters.values()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in kind.without
    }
    others = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    return found, others
