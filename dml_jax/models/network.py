"""The NNX module of a model: backbone, pooling and head, and what is known of it without an array."""

import functools
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dml_jax import distances
from dml_jax.errors import UserError
from dml_jax.models.pooling import POOLINGS, GeM

if TYPE_CHECKING:
    from dml_jax.models.base import Model

Tree = dict[str, Any]


class Heads(nnx.Module):
    """Several heads by name; what they make is one vector, in which each has its columns."""

    def __init__(self, model: "Model", inputs: int, rngs: nnx.Rngs) -> None:
        for name, dim, head in model.heads:
            setattr(self, name, head(inputs, dim, rngs=rngs))


class Network(nnx.Module):
    """The parts whose parameters the optimizer's groups select by path."""

    def __init__(self, model: "Model", key: Array) -> None:
        backbone_key, head_key = jax.random.split(key)
        self.backbone = model.build(
            image_size=model.image_size,
            dtype=jnp.dtype(model.dtype),
            rngs=nnx.Rngs(backbone_key),
        )
        self.pooled, features = pooled(model, self.backbone)
        if self.pooled == "gem":
            self.pooling = GeM()
        if model.heads:
            self.head = Heads(model, features, nnx.Rngs(head_key))
        elif model.embedding_dim is not None:
            self.head = model.head(features, model.embedding_dim, rngs=nnx.Rngs(head_key))
        self.features = features

    def split(self) -> tuple[Any, Tree, Tree]:
        """Returns the structure, the parameters and the state, the last two as plain dicts."""
        parts: Any = nnx.split(self, nnx.Param, ...)
        graphdef, params, state = parts
        return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(state)

    def embed(
        self, model: "Model", x: Float[Array, "b h w c"], train: bool, key: Array | None
    ) -> dict[str, Float[Array, "b _"]]:
        """Returns all outputs of scaled images by name: `embedding`, `features`, and each of several heads."""
        found = self.backbone(x, train=train, key=key if train else None)
        if self.pooled == "gem":
            features = self.pooling(found)
        else:
            features = POOLINGS[self.pooled][0](found) if self.pooled else found
        features = features.astype(jnp.float32)
        normalize = distances.normalize if model.normalize else lambda x: x
        outputs = {
            name: normalize(getattr(self.head, name)(features, train=train))
            for name, _, _ in model.heads
        }
        if outputs:
            embedding = normalize(jnp.concatenate(list(outputs.values()), 1))
        elif model.embedding_dim is not None:
            embedding = normalize(self.head(features, train=train))
        else:
            embedding = normalize(features)
        return {"embedding": embedding, **outputs, "features": features}


def pooled(model: "Model", backbone: Any) -> tuple[str | None, int]:
    """Returns the pooling of a backbone (None for one that returns features) and how many features it makes.

    Args:
      model: what is asked for.
      backbone: its NNX module.

    Raises:
      UserError: a pooling that the backbone does not allow.
    """
    own: Any = getattr(backbone, "pooling", None)
    asked: str = model.pooling or own
    if own is None:
        if model.pooling is not None:
            raise UserError(
                f"pooling of model {model.name!r} is {model.pooling!r}; its backbone pools by itself: None is accepted"
            )
        return None, backbone.features
    width = getattr(backbone, "token_features", None)
    if asked == "gem":
        return asked, backbone.features
    _, reads_token, reads_parts = POOLINGS[asked]
    if reads_token and width is None:
        accepted = ", ".join([*(n for n, (_, t, _) in POOLINGS.items() if not t), "gem"])
        raise UserError(
            f"pooling of model {model.name!r} is {asked!r}; it has no token: {accepted} are accepted"
        )
    return asked, (width or 0) * reads_token + backbone.features * reads_parts


@dataclass(frozen=True)
class Blueprint:
    """What is known of a model without an array of it.

    Attributes:
      graphdef: the structure of its NNX module.
      params: the shapes of its parameters.
      state: the shapes of its state.
      features: how many features an image has before the head.
      channels: of an image.
      stochastic: whether it draws at random in training.
      stem: the parts of the backbone before its first block.
    """

    graphdef: Any
    params: Tree
    state: Tree
    features: int
    channels: int
    stochastic: bool
    stem: tuple[str, ...]


@functools.lru_cache(maxsize=64)
def blueprint(model: "Model") -> Blueprint:
    """Returns what is known of a model without an array of it.

    Args:
      model: the model.
    """
    network = nnx.eval_shape(lambda: Network(model, jax.random.key(0)))
    graphdef, params, state = network.split()
    backbone = network.backbone
    stochastic = getattr(backbone, "stochastic", False)
    stem = getattr(backbone, "stem_parts", ("stem",))
    return Blueprint(graphdef, params, state, network.features, backbone.channels, stochastic, stem)


def layer_numbers(paths: Iterable[str], stem: Collection[str]) -> dict[str, int]:
    """Returns the layers of parameters by "model/" and their path; see `Model.layers`.

    Args:
      paths: of all parameters of a model.
      stem: the parts of the backbone before its first block.

    Example:
      >>> layer_numbers(["backbone/stem/kernel", "backbone/block_0/bias", "head/kernel"], ["stem"])
      {'model/backbone/stem/kernel': 0, 'model/backbone/block_0/bias': 1, 'model/head/kernel': 2}
    """
    block_of: dict[str, tuple[Any, ...] | None] = {}
    for path in paths:
        first, *names = path.split("/")
        is_block = first == "backbone" and names[0] not in stem and re.search(r"\d", names[0])
        parts = names[: 1 + names[1].startswith("block")] if is_block else []
        block_of[path] = tuple(_natural(name) for name in parts) or None
    blocks = sorted({block for block in block_of.values() if block is not None})
    if not blocks:
        return {}
    numbers = {block: i for i, block in enumerate(blocks, 1)}
    layers = {}
    for path, block in block_of.items():
        in_stem = path.startswith(tuple(f"backbone/{part}" for part in stem))
        layers[f"model/{path}"] = numbers[block] if block else 0 if in_stem else len(blocks) + 1
    return layers


def _natural(name: str) -> tuple[tuple[int, str], ...]:
    """A key that sorts numbers in names by their value."""
    return tuple(
        (int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)
    )
