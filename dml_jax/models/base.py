"""A backbone, an optional linear head and L2 normalisation, behind two plain functions."""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from dml_jax.models import weights as weight_files

Tree = dict[str, Any]


def l2_normalize(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """x / ||x||_2 along the last axis; a zero vector gives zeros and a zero gradient."""
    squares = jnp.sum(x * x, -1, keepdims=True)
    some = squares > 0
    return x * jnp.where(some, jax.lax.rsqrt(jnp.where(some, squares, 1)), 0)


def uniform(bound: float) -> nnx.Initializer:
    """Uniform in +-bound; 1 / sqrt(fan_in) is what torch.nn.Linear and Conv2d start from."""

    def init(key: Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> Array:
        # One axis, because a draw of four compiles twice as long.
        flat = jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound)
        return flat.reshape(shape)

    return init


@dataclass(frozen=True)
class Family:
    """What is fixed for all models of one architecture.

    Attributes:
      build: `build(*, image_size, dtype, rngs, **hyper) -> backbone`, an NNX module that is called
        as `backbone(images, *, train, key)` with scaled images [B, H, W, C] and returns features
        [B, F]; `backbone.features` is F, `backbone.channels` is C, and `backbone.stochastic` says
        whether it draws at random in training. Parameters are `nnx.Param`; any other variable
        is state.
      image_size: the side of the images where the user gives none.
      mean, std: per channel, or one value for all, on the scale 0..1.
      read: weights as they are named in a file to weights as the backbone names them.
    """

    build: Callable[..., Any]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    read: Callable[[Mapping[str, Any], str], Mapping[str, Any]] = lambda flat, source: flat


class _Network(nnx.Module):
    """The two parts whose parameters the optimizer groups select by path."""

    def __init__(self, model: "Model", key: Array):
        backbone_key, head_key = jax.random.split(key)
        self.backbone = model.family.build(
            image_size=model.image_size,
            dtype=jnp.dtype(model.dtype),
            rngs=nnx.Rngs(backbone_key),
            **dict(model.hyper),
        )
        if model.embedding_dim is not None:
            initializer = uniform(self.backbone.features**-0.5)
            self.head = nnx.Linear(
                self.backbone.features,
                model.embedding_dim,
                kernel_init=initializer,
                bias_init=initializer,
                rngs=nnx.Rngs(head_key),
            )

    def split(self) -> tuple[Any, Tree, Tree]:
        parts: Any = nnx.split(self, nnx.Param, ...)
        graphdef, params, state = parts
        return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(state)


@dataclass(frozen=True)
class _Blueprint:
    graphdef: Any
    params: Tree
    features: int
    channels: int
    stochastic: bool


@functools.lru_cache(maxsize=64)
def _blueprint(model: "Model") -> _Blueprint:
    """The module's structure and shapes, with no array made."""
    network = nnx.eval_shape(lambda: _Network(model, jax.random.key(0)))
    graphdef, params, _ = network.split()
    backbone = network.backbone
    return _Blueprint(graphdef, params, backbone.features, backbone.channels, backbone.stochastic)


@dataclass(frozen=True)
class Model:
    """An embedding model: uint8 images to float32 vectors. Made by `dml_jax.models.get`.

    Attributes:
      name: what errors call it.
      family: the architecture.
      image_size: side of the (square) images, in pixels.
      hyper: its hyper-parameters, as sorted pairs.
      embedding_dim: output dimension of the linear head; None leaves the head out.
      normalize: divide every embedding by its Euclidean norm.
      weights: a file that `init` takes the backbone's parameters from; None draws them.
      dtype: what the backbone computes in; parameters, head and embeddings are float32.
    """

    name: str
    family: Family = field(repr=False)
    image_size: int
    hyper: tuple[tuple[str, Any], ...] = ()
    embedding_dim: int | None = None
    normalize: bool = True
    weights: str | None = None
    dtype: str = "float32"

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self.embedding_dim or _blueprint(self).features

    @property
    def outputs(self) -> tuple[str, ...]:
        """What `embeddings` gives."""
        return "embedding", "features"

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return _blueprint(self).channels

    def init(self, key: Array) -> Tree:
        """`{"params": {"backbone": tree[, "head": tree]}, "state": tree}` of float32 arrays.

        Raises ValueError where `weights` cannot be read or does not fit.
        """
        loaded = None
        if self.weights is not None:
            flat = weight_files.read(self.weights)
            loaded = weight_files.nest(
                self.family.read(flat, self.weights),
                _blueprint(self).params["backbone"],
                source=f"{self.weights} for {self.name}",
            )

        def draw(key: Array) -> tuple[Tree, Tree]:
            _, params, state = _Network(self, key).split()
            if loaded is not None:  # not returned, so never computed either
                del params["backbone"]
            return params, state

        params, state = jax.jit(draw)(key)
        if loaded is not None:
            params["backbone"] = jax.tree.map(jnp.asarray, loaded)
        return {"params": params, "state": state}

    def apply(
        self,
        variables: Tree,
        images: UInt8[Array, "b h w c"],
        *,
        train: bool = False,
        key: Array | None = None,
    ) -> tuple[Float[Array, "b d"], Tree]:
        """Embeds images.

        Args:
          variables: as from `init`; `"state"` may be missing where it is empty.
          images: uint8 [B, image_size, image_size, channels], values 0..255.
          train: whether stochastic layers are on and running statistics are updated.
          key: for stochastic layers; needed in training where there are any, else unused.

        Returns:
          Embeddings, float32 [B, dim], and the new state.

        Raises:
          ValueError: images of another shape or dtype; no key where one is needed.
        """
        embeddings, _, state = self._run(variables, images, train, key)
        return embeddings, state

    def embeddings(
        self, variables: Tree, images: UInt8[Array, "b h w c"]
    ) -> dict[str, Float[Array, "b _"]]:
        """`embedding`, what `apply` gives, and `features`, the backbone's, before head and normalisation."""
        embeddings, features, _ = self._run(variables, images, False, None)
        return {"embedding": embeddings, "features": features}

    def _run(
        self, variables: Tree, images: UInt8[Array, "b h w c"], train: bool, key: Array | None
    ) -> tuple[Float[Array, "b d"], Float[Array, "b f"], Tree]:
        """(embeddings, the backbone's features, the new state); arguments and errors as in `apply`."""
        plan = _blueprint(self)
        side = self.image_size
        accepted = (side, side, plan.channels)
        if images.ndim != 4 or images.shape[1:] != accepted or images.dtype != jnp.uint8:
            got = f"{images.dtype} [{', '.join(map(str, images.shape))}]"
            raise ValueError(
                f"{self.name} takes images uint8 [B, {side}, {side}, {plan.channels}], got {got}"
            )
        if train and plan.stochastic and key is None:
            raise ValueError(
                f"{self.name} draws at random in training ({dict(self.hyper)}): apply needs a key"
            )
        network = nnx.merge(
            plan.graphdef,
            nnx.State(variables["params"]),
            nnx.State(variables.get("state", {})),
            copy=True,
        )
        x = _scale(images, self.family.mean, self.family.std, jnp.dtype(self.dtype))
        features = network.backbone(x, train=train, key=key if train else None).astype(jnp.float32)
        x = features
        if self.embedding_dim is not None:
            x = network.head(x)
        if self.normalize:
            x = l2_normalize(x)
        _, _, state = network.split()
        return x, features, state


def _scale(
    images: UInt8[Array, "b h w c"], mean: tuple[float, ...], std: tuple[float, ...], to: DTypeLike
) -> Float[Array, "b h w c"]:
    shift, scale = (jnp.array(v, jnp.float32).reshape(1, 1, 1, -1) * 255 for v in (mean, std))
    return ((images.astype(jnp.float32) - shift) / scale).astype(to)
