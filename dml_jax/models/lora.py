"""Low-rank adaptation: linear maps that stay, beside products of two narrow ones that are trained."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from dml_jax import parameters, trees
from dml_jax.errors import UserError
from dml_jax.models.published import shorten
from dml_jax.parameters import PositiveFloat, PositiveInt

Tree = dict[str, Any]


@dataclass(frozen=True)
class LoRA:
    """Linear maps W + (alpha / rank) A B, of which A `[in, rank]` and B `[rank, out]` are trained.

    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, section 4.1: A is drawn (uniform within
    1 / sqrt(in)), B is 0, so that the model begins as it was.

    Attributes:
      rank: the width between A and B.
      alpha: the factor of their product times rank.
      match: a regular expression of the paths of the backbone's linear maps that are adapted, without "/kernel".
    """

    rank: int
    alpha: float
    match: str

    def paths(self, backbone: Mapping[str, Any]) -> list[str]:
        """Returns the paths of the adapted kernels.

        Args:
          backbone: its parameters or their shapes, a tree.

        Raises:
          UserError: `match` matches no linear map.
        """
        flat = trees.flatten(backbone)
        linear = [
            path for path, x in flat.items() if path.endswith("/kernel") and len(x.shape) == 2
        ]
        found = [p for p in linear if re.fullmatch(self.match, p.removesuffix("/kernel"))]
        if not found:
            known = [path.removesuffix("/kernel") for path in linear]
            raise UserError(
                f"lora.match={self.match!r} matches no linear map of the backbone; it has {shorten(known) or 'none'}"
            )
        return found

    def init(self, key: Array, backbone: Mapping[str, Any]) -> Tree:
        """Draws A and B of every adapted map, as `{path: {"a", "b"}}` nested.

        Args:
          key: of the draw.
          backbone: its parameters or their shapes.
        """
        flat, made = trees.flatten(backbone), {}
        for i, path in enumerate(self.paths(backbone)):
            inputs, outputs = flat[path].shape
            bound, stem = inputs**-0.5, path.removesuffix("/kernel")
            shape = (inputs, self.rank)
            made[f"{stem}/a"] = jax.random.uniform(
                jax.random.fold_in(key, i), shape, jnp.float32, -bound, bound
            )
            made[f"{stem}/b"] = jnp.zeros((self.rank, outputs))
        return trees.unflatten(made)

    def merged(self, backbone: Tree, adapters: Tree) -> Tree:
        """Returns the backbone's parameters with W + (alpha / rank) A B in the place of every adapted W.

        Args:
          backbone: its parameters.
          adapters: what `init` made.
        """
        flat, narrow = trees.flatten(backbone), trees.flatten(adapters)
        for path in self.paths(backbone):
            stem = path.removesuffix("/kernel")
            product = jnp.matmul(narrow[f"{stem}/a"], narrow[f"{stem}/b"], precision="highest")
            flat[path] = flat[path] + product * (self.alpha / self.rank)
        return trees.unflatten(flat)


def get(spec: Any) -> LoRA | None:
    """Makes the adaptation of a model; None for None.

    Args:
      spec: a dict of `rank` (8), `alpha` (16) and `match` (".*": all linear maps), each with its default.

    Raises:
      UserError: another key, or a value out of range.

    Example:
      >>> get({"rank": 4, "match": ".*/qkv"})
      LoRA(rank=4, alpha=16.0, match='.*/qkv')
    """
    if spec is None or isinstance(spec, LoRA):
        return spec

    def lora(*, rank: PositiveInt = 8, alpha: PositiveFloat = 16.0, match: str = ".*") -> None: ...

    return LoRA(**parameters.check_keywords("lora", lora, dict(spec)))
