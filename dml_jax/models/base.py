"""A backbone, an optional linear head and L2 normalisation, behind two plain functions."""

import functools
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from dml_jax import distances
from dml_jax.errors import UserError
from dml_jax.models import weights as weight_files

Tree = dict[str, Any]
DType = Literal["float32", "bfloat16"]
WeightsFile = str | os.PathLike[str]


def uniform(bound: float) -> nnx.Initializer:
    """Makes an initializer that draws uniformly in +-bound.

    Args:
      bound: torch.nn.Linear and Conv2d start from 1 / sqrt(fan_in).
    """

    def init(
        key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32, out_sharding: Any = None
    ) -> Array:
        # One axis, because a draw of four compiles twice as long.
        flat = jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound)
        return flat.reshape(shape)

    return init


def unchanged(flat: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """Returns weights as they are: the file names them as the backbone does.

    Args:
      flat: arrays by path.
      source: where they came from, as errors name it.
    """
    return flat


class _Network(nnx.Module):
    """The two parts whose parameters the optimizer groups select by path."""

    def __init__(self, model: "Model", key: Array) -> None:
        backbone_key, head_key = jax.random.split(key)
        self.backbone = model.build(
            image_size=model.image_size,
            dtype=jnp.dtype(model.dtype),
            rngs=nnx.Rngs(backbone_key),
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
        """Returns the structure, the parameters and the state, the last two as plain dicts."""
        parts: Any = nnx.split(self, nnx.Param, ...)
        graphdef, params, state = parts
        return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(state)


@dataclass(frozen=True)
class _Blueprint:
    """What is known of a model without an array of it."""

    graphdef: Any
    params: Tree
    features: int
    channels: int
    stochastic: bool


@functools.lru_cache(maxsize=64)
def _blueprint(model: "Model") -> _Blueprint:
    network = nnx.eval_shape(lambda: _Network(model, jax.random.key(0)))
    graphdef, params, _ = network.split()
    backbone = network.backbone
    stochastic = getattr(backbone, "stochastic", False)
    return _Blueprint(graphdef, params, backbone.features, backbone.channels, stochastic)


@dataclass(frozen=True)
class Model:
    """An embedding model: uint8 images to float32 vectors. It is hashable and holds no array.

    Attributes:
      name: of the model, as errors call it.
      build: `build(*, image_size, dtype, rngs)` returns the backbone, an NNX module that is called as
        `backbone(images, *, train, key)` with scaled images `[B, H, W, C]` and returns features `[B, F]`. Its attribute
        `features` is F, `channels` is C, and `stochastic` is True where it draws at random in training. Parameters are
        `nnx.Param`; any other variable is state. A class or a `dml_jax.bound.Bound`, so that equal models are equal.
      image_size: the side of the (square) images in pixels.
      embedding_dim: the output dimension of the linear head; None leaves the head out.
      normalize: True where every embedding is divided by its Euclidean norm, as `distances.normalize` does it.
      weights: an .npz file that `init` takes the backbone's parameters from; None draws them.
      dtype: what the backbone computes in; parameters, head and embeddings are float32.
      mean: of the images by channel, or one value for all, on the scale from 0 to 1.
      std: likewise the standard deviation.
      read_weights: (arrays by name, where they came from) -> arrays by the paths of the backbone.

    Example:
      >>> from dml_jax import models
      >>> model = models.convnet(width=8, depth=1, embedding_dim=4, image_size=16)
      >>> variables = model.init(jax.random.key(0))
      >>> embeddings, _ = jax.jit(model.apply)(variables, jnp.zeros((2, 16, 16, 1), jnp.uint8))
      >>> embeddings.shape
      (2, 4)
    """

    name: str
    build: Callable[..., Any]
    image_size: int
    embedding_dim: int | None = None
    normalize: bool = True
    weights: WeightsFile | None = None
    dtype: DType = "float32"
    mean: tuple[float, ...] = field(default=(0.5,), repr=False)
    std: tuple[float, ...] = field(default=(0.5,), repr=False)
    read_weights: Callable[[Mapping[str, Any], str], Mapping[str, Any]] = field(
        default=unchanged, repr=False
    )

    @property
    def dim(self) -> int:
        """The length of an embedding."""
        return self.embedding_dim or _blueprint(self).features

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of what `embeddings` returns."""
        return "embedding", "features"

    @property
    def channels(self) -> int:
        """The channels of an image."""
        return _blueprint(self).channels

    def without_weights(self) -> "Model":
        """Returns the same network with parameters that `init` draws: for shapes, and where a checkpoint has them."""
        return replace(self, weights=None)

    def read_backbone(self) -> Tree | None:
        """Reads the backbone's parameters from `weights`, as arrays of the host; None where they are drawn.

        Raises:
          UserError: `weights` that cannot be read or do not fit.
        """
        if self.weights is None:
            return None
        flat = weight_files.read_npz(self.weights)
        return weight_files.unflatten_like(
            self.read_weights(flat, str(self.weights)),
            _blueprint(self).params["backbone"],
            source=f"{self.weights} for {self.name}",
        )

    def init(self, key: Array, backbone: Tree | None = None) -> Tree:
        """Draws the parameters, or takes the backbone's from `weights`.

        Args:
          key: of the draw.
          backbone: its parameters, where they were read already.

        Returns:
          `{"params": {"backbone": tree[, "head": tree]}, "state": tree}` of float32 arrays.

        Raises:
          UserError: `weights` that cannot be read or do not fit.
        """
        loaded = self.read_backbone() if backbone is None else backbone

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
          images: uint8 `[B, image_size, image_size, channels]`, values 0 to 255.
          train: True where stochastic layers are on and running statistics are updated.
          key: for stochastic layers; needed in training where there are any, else unused.

        Returns:
          Embeddings, float32 `[B, dim]`, and the new state.

        Raises:
          UserError: images of another shape or dtype; no key where one is needed.
        """
        embeddings, _, state = self._run(variables, images, train, key)
        return embeddings, state

    def embeddings(
        self, variables: Tree, images: UInt8[Array, "b h w c"]
    ) -> dict[str, Float[Array, "b _"]]:
        """Returns all outputs: `embedding`, what `apply` gives, and `features`, before head and normalisation.

        Args:
          variables: as from `init`.
          images: uint8 `[B, image_size, image_size, channels]`.
        """
        embeddings, features, _ = self._run(variables, images, False, None)
        return {"embedding": embeddings, "features": features}

    def _run(
        self, variables: Tree, images: UInt8[Array, "b h w c"], train: bool, key: Array | None
    ) -> tuple[Float[Array, "b d"], Float[Array, "b f"], Tree]:
        """Returns embeddings, the backbone's features and the new state; arguments are as in `apply`."""
        blueprint = _blueprint(self)
        side, channels = self.image_size, blueprint.channels
        fits = images.ndim == 4 and images.shape[1:] == (side, side, channels)
        if not fits or images.dtype != jnp.uint8:
            got = f"{images.dtype} [{', '.join(map(str, images.shape))}]"
            cure = "data.augment and data.prepare of a config end in its size"
            if images.ndim == 4 and images.shape[3] != channels:
                cure = f"a model of images with {channels} channel{'s' * (channels > 1)}; see data.channels of a config"
            raise UserError(
                f"{self.name} takes images uint8 [B, {side}, {side}, {channels}], got {got}; {cure}"
            )
        if train and blueprint.stochastic and key is None:
            raise UserError(
                f"{self.name} draws at random in training ({self.build}): apply needs a key"
            )
        network = nnx.merge(
            blueprint.graphdef,
            nnx.State(variables["params"]),
            nnx.State(variables.get("state", {})),
            copy=True,
        )
        x = _scale(images, self.mean, self.std, jnp.dtype(self.dtype))
        features = network.backbone(x, train=train, key=key if train else None).astype(jnp.float32)
        x = features
        if self.embedding_dim is not None:
            x = network.head(x)
        if self.normalize:
            x = distances.normalize(x)
        _, _, state = network.split()
        return x, features, state


def _scale(
    images: UInt8[Array, "b h w c"], mean: tuple[float, ...], std: tuple[float, ...], to: DTypeLike
) -> Float[Array, "b h w c"]:
    shift, scale = (jnp.array(v, jnp.float32).reshape(1, 1, 1, -1) * 255 for v in (mean, std))
    return ((images.astype(jnp.float32) - shift) / scale).astype(to)
