"""Heads: from a backbone's features to an embedding, by name."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dml_jax import parameters
from dml_jax.bound import Bound
from dml_jax.errors import UserError
from dml_jax.models.initializers import uniform
from dml_jax.parameters import PositiveInt, checked

Init = Literal["torch", "he"]
HeadSpec = str | Mapping[str, Any] | Bound[Any]


class Linear(nnx.Module):
    """A linear map x W + b."""

    def __init__(self, inputs: int, outputs: int, *, init: Init, rngs: nnx.Rngs) -> None:
        kernel = bias = uniform(inputs**-0.5)
        if init == "he":
            kernel, bias = nnx.initializers.he_normal(), nnx.initializers.zeros
        self.kernel = nnx.Param(kernel(rngs.params(), (inputs, outputs), jnp.float32))
        self.bias = nnx.Param(bias(rngs.params(), (outputs,), jnp.float32))

    def __call__(self, x: Float[Array, "b f"], *, train: bool = False) -> Float[Array, "b d"]:
        return x @ self.kernel[...] + self.bias[...][None]


class MLP(nnx.Module):
    """Linear maps with a normalisation and a GELU after each but the last."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        hidden: int | None,
        layers: int,
        norm: Literal["layer", "batch", "none"],
        init: Init,
        rngs: nnx.Rngs,
    ) -> None:
        widths = [inputs, *[hidden or inputs] * (layers - 1), outputs]
        for i, (before, after) in enumerate(itertools.pairwise(widths)):
            setattr(self, f"layer_{i}", Linear(before, after, init=init, rngs=rngs))
            if i == layers - 1 or norm == "none":
                continue
            made = nnx.LayerNorm if norm == "layer" else nnx.BatchNorm
            setattr(self, f"norm_{i}", made(after, epsilon=1e-5, rngs=rngs))
        self.layers = layers
        self.norm = norm

    def __call__(self, x: Float[Array, "b f"], *, train: bool = False) -> Float[Array, "b d"]:
        for i in range(self.layers):
            x = getattr(self, f"layer_{i}")(x)
            if i == self.layers - 1:
                break
            if self.norm == "layer":
                x = getattr(self, f"norm_{i}")(x)
            elif self.norm == "batch":
                x = getattr(self, f"norm_{i}")(x, use_running_average=not train)
            x = jax.nn.gelu(x)
        return x


@checked("head")
def linear(*, init: Init = "torch") -> Bound[Any]:
    """Makes a linear head, x W + b.

    Args:
      init: "torch", where W and b are uniform within 1 / sqrt(features) (torch.nn.Linear), or "he", where W is normal
        with variance 2 / features and b is 0 (He et al., 2015).

    Example:
      >>> linear(init="he")(8, 2, rngs=nnx.Rngs(0))(jax.numpy.ones((3, 8))).shape
      (3, 2)
    """
    return Bound(Linear, init=init)


@checked("head")
def mlp(
    *,
    hidden: PositiveInt | None = None,
    layers: PositiveInt = 2,
    norm: Literal["layer", "batch", "none"] = "layer",
    init: Init = "torch",
) -> Bound[Any]:
    """Makes a head of linear maps with a normalisation and a GELU after each but the last.

    Args:
      hidden: the width between them; None: that of the features.
      layers: how many linear maps.
      norm: "layer" (LayerNorm), "batch" (BatchNorm, whose running statistics are state) or "none".
      init: of the linear maps, as for `linear`.

    Example:
      >>> mlp(hidden=16)(8, 2, rngs=nnx.Rngs(0))(jax.numpy.ones((3, 8))).shape
      (3, 2)
    """
    return Bound(MLP, hidden=hidden, layers=layers, norm=norm, init=init)


TABLE: dict[str, Callable[..., Bound[Any]]] = {"linear": linear, "mlp": mlp}


def available() -> list[str]:
    """Lists the names that `get` accepts.

    Example:
      >>> available()
      ['linear', 'mlp']
    """
    return sorted(TABLE)


def get(spec: HeadSpec) -> Bound[Any]:
    """Makes a head, which is called as `head(inputs, outputs, rngs=rngs)` and returns an NNX module.

    Args:
      spec: a name, "package.module:name" for a function of your own that returns a `Bound`, or a dict of `name` and
        hyper-parameters.

    Raises:
      UserError: an unknown name or hyper-parameter, or a value out of range.

    Example:
      >>> get({"name": "mlp", "layers": 3}).keywords["layers"]
      3
    """
    if isinstance(spec, Bound):
        return spec
    given = {"name": spec} if isinstance(spec, str) else dict(spec)
    if "name" not in given:
        raise UserError(
            f"head is {spec!r}; accepted: a name, or a dict with name: {', '.join(available())}"
        )
    return parameters.make("head", TABLE, Bound, given.pop("name"), given)


def get_all(specs: Mapping[str, Any]) -> tuple[tuple[str, int, Bound[Any]], ...]:
    """Makes several heads: (name of the embedding, its length, head) of each.

    Args:
      specs: by the name of the embedding a dict of `dim` and what `get` takes; without `name` it is linear.

    Raises:
      UserError: as `get`; no `dim`; a name that is not free.
    """
    made = []
    for name, spec in specs.items():
        given = {"name": "linear", **spec}
        where = f"dim of head {name!r}"
        if "dim" not in given:
            raise UserError(f"heads: {name!r} needs a value for 'dim', the length of its embedding")
        if name in ("embedding", "features") or not name.isidentifier():
            raise UserError(
                f"heads: {name!r} is no name of a head; accepted: an identifier, not 'embedding' or 'features'"
            )
        dim = parameters.check(where, PositiveInt, given.pop("dim"))
        made.append((name, dim, get(given)))
    return tuple(made)
