"""A model: a backbone, a pooling, heads and L2 normalisation, behind two plain functions."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from dml_jax import trees
from dml_jax.errors import UserError
from dml_jax.models import heads as head_specs
from dml_jax.models import lora as adaptation
from dml_jax.models.files import checkpoint, open_weights
from dml_jax.models.network import Network, blueprint, layer_numbers
from dml_jax.models.pooling import Pooling
from dml_jax.models.published import Rule, Table, recognised, shorten

Tree = dict[str, Any]
DType = Literal["float32", "bfloat16"]
WeightsFile = str | os.PathLike[str]


@dataclass(frozen=True)
class Model:
    """An embedding model: uint8 images to float32 vectors. It is hashable and holds no array.

    Attributes:
      name: of the model, as errors call it.
      build: `build(*, image_size, dtype, rngs)` returns the backbone, an NNX module that is called as
        `backbone(images, *, train, key)` with scaled images `[B, H, W, C]` and returns features `[B, F]`, or `Parts`
        for a pooling. Its attribute `features` is F (of parts, their length), `channels` is C, and `stochastic` is True
        where it draws at random in training; one that returns `Parts` has `pooling`, the name of its own one, and
        `token_features`, the length of its token or None. Parameters are `nnx.Param`; any other variable is state. A
        class or a `dml_jax.bound.Bound`, so that equal models are equal.
      image_size: the side of the (square) images in pixels.
      embedding_dim: the output dimension of the head; None leaves the head out.
      normalize: True where every embedding is divided by its Euclidean norm, as `distances.normalize` does it.
      weights: a file that `init` takes the backbone from (see `dml_jax.models.files`); None draws it.
      dtype: what the backbone computes in; parameters, head and embeddings are float32.
      mean: of the images by channel, or one value for all, on the scale from 0 to 1.
      std: likewise the standard deviation.
      bgr: whether the backbone takes blue first; images come with red first, mean and std are in its order.
      sources: how published files name the backbone's arrays; files by its own paths are always read.
      pooling: of the backbone's parts, by name (`dml_jax.models.pooling`); None: the backbone's own.
      head: a name or a dict of name and hyper-parameters (`dml_jax.models.heads`).
      heads: in place of embedding_dim and head, several embeddings of the same features: by name a dict of `dim`
        and what `head` takes. The embedding is all of them in a row, each normalised.
      lora: the low-rank adaptation of the backbone's linear maps, a dict (`dml_jax.models.lora`); None: none.

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
    bgr: bool = False
    sources: tuple[Table, ...] = field(default=(), repr=False)
    pooling: Pooling | None = None
    head: Any = "linear"
    heads: Any = ()
    lora: Any = None

    def __post_init__(self) -> None:
        """Makes the heads of what names them.

        Raises:
          UserError: an unknown head; several heads beside the one of embedding_dim.
        """
        object.__setattr__(self, "head", head_specs.get(self.head or "linear"))
        if not isinstance(self.heads, tuple):
            object.__setattr__(self, "heads", head_specs.get_all(self.heads or {}))
        object.__setattr__(self, "lora", adaptation.get(self.lora))
        if self.heads and self.embedding_dim is not None:
            raise UserError(
                f"model {self.name!r} has heads and embedding_dim={self.embedding_dim}; one of the two is accepted"
            )

    @property
    def dim(self) -> int:
        """The length of an embedding."""
        if self.heads:
            return sum(dim for _, dim, _ in self.heads)
        return self.embedding_dim or blueprint(self).features

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of what `embeddings` returns."""
        return "embedding", *(name for name, _, _ in self.heads), "features"

    @property
    def channels(self) -> int:
        """The channels of an image."""
        return blueprint(self).channels

    def layers(self) -> dict[str, int]:
        """Returns in which layer each parameter is, by its path in the state, "model/backbone/...".

        Layer 0 is before the first block (the backbone's attribute `stem_parts` names what is there), each block is the
        next one, and the last one is what follows them: the last normalisation, pooling and heads. Empty for a backbone
        without blocks. A block is a part with a number in its name, or a part of it whose name begins with "block".
        """
        known = blueprint(self)
        return layer_numbers(trees.flatten(known.params), known.stem)

    def without_weights(self) -> "Model":
        """Returns the same network with parameters that `init` draws: for shapes, and where a checkpoint has them."""
        return replace(self, weights=None)

    def read_backbone(self, shardings: Tree | None = None) -> Tree | None:
        """Reads the backbone from `weights`, one array after the other; None where it is drawn.

        Args:
          shardings: of its arrays, as `{"params", "state"}`, on which each is put when it is read; None: they stay on
            the host.

        Returns:
          `{"params": tree, "state": tree}` of the backbone.

        Raises:
          UserError: `weights` that cannot be read or do not fit.
        """
        if self.weights is None:
            return None
        shapes = {
            part: trees.flatten(getattr(blueprint(self), part).get("backbone", {}))
            for part in ("params", "state")
        }
        expected = shapes["params"] | shapes["state"]
        found: dict[str, dict[str, Any]] = {"params": {}, "state": {}}
        source = f"{self.weights} for {self.name}"
        ours = Table("dml_jax", tuple(Rule(path, path) for path in expected))
        with open_weights(self.weights) as file:
            table = recognised((*self.sources, ours), file)
            if table is None:
                other = checkpoint.model_of(self.weights)
                if other not in (None, self.name):
                    raise UserError(
                        f"weights {os.fspath(self.weights)!r} are of a run of model {other!r}; those of a run of model "
                        f"{self.name!r}, or a published file of it, are accepted"
                    )
                known = ", ".join(table.source for table in (*self.sources, ours))
                raise UserError(f"{source}: no file of {known}: it has {shorten(file)}")
            for path, array in table.load(file, expected, source):
                part = "params" if path in shapes["params"] else "state"
                at = None if shardings is None else trees.flatten(shardings[part])[path]
                found[part][path] = array if at is None else jax.device_put(array, at)
        return {part: trees.unflatten(arrays) for part, arrays in found.items()}

    def init(self, key: Array, backbone: Tree | None = None) -> Tree:
        """Draws the variables, or takes the backbone's from `weights`.

        Args:
          key: of the draw.
          backbone: what `read_backbone` returned, where it was read already.

        Returns:
          `{"params": {"backbone": tree[, "head": tree]}, "state": tree}` of float32 arrays.

        Raises:
          UserError: `weights` that cannot be read or do not fit.
        """
        loaded = self.read_backbone() if backbone is None else backbone

        def draw(key: Array) -> tuple[Tree, Tree]:
            _, params, state = Network(self, key).split()
            if loaded is not None:  # not returned, so never computed either
                params.pop("backbone", None)
                state.pop("backbone", None)
            return params, state

        params, state = jax.jit(draw)(key)
        if loaded is not None:
            params["backbone"] = jax.tree.map(jnp.asarray, loaded["params"])
            if loaded["state"]:
                state["backbone"] = jax.tree.map(jnp.asarray, loaded["state"])
        if self.lora is not None:
            drawn = jax.random.fold_in(key, 1)
            params["lora"] = self.lora.init(drawn, blueprint(self).params["backbone"])
        return {"params": params, "state": state}

    def adapted(self) -> list[str]:
        """Returns the paths of the backbone's kernels that `lora` adapts."""
        return [] if self.lora is None else self.lora.paths(blueprint(self).params["backbone"])

    def merged(self, variables: Tree) -> tuple["Model", Tree]:
        """Returns the same model without low-rank adaptation, and its variables, with what that has learned in them.

        Args:
          variables: as from `init`.
        """
        params = dict(variables["params"])
        if self.lora is None:
            return self, variables
        params["backbone"] = self.lora.merged(params["backbone"], params.pop("lora"))
        return replace(self, lora=None), {**variables, "params": params}

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
        outputs, state = self._run(variables, images, train, key)
        return outputs["embedding"], state

    def embeddings(
        self, variables: Tree, images: UInt8[Array, "b h w c"]
    ) -> dict[str, Float[Array, "b _"]]:
        """Returns all `outputs`: `embedding`, what `apply` gives, that of each of several heads by its name, and
        `features`, before heads and normalisation.

        Args:
          variables: as from `init`.
          images: uint8 `[B, image_size, image_size, channels]`.
        """
        return self._run(variables, images, False, None)[0]

    def _run(
        self, variables: Tree, images: UInt8[Array, "b h w c"], train: bool, key: Array | None
    ) -> tuple[dict[str, Float[Array, "b _"]], Tree]:
        """Returns all outputs by name and the new state; arguments are as in `apply`."""
        known = blueprint(self)
        side, channels = self.image_size, known.channels
        fits = images.ndim == 4 and images.shape[1:] == (side, side, channels)
        if not fits or images.dtype != jnp.uint8:
            got = f"{images.dtype} [{', '.join(map(str, images.shape))}]"
            cure = "data.augment and data.prepare of a config end in its size"
            if images.ndim == 4 and images.shape[3] != channels:
                cure = f"a model of images with {channels} channel{'s' * (channels > 1)}; see data.channels of a config"
            raise UserError(
                f"{self.name} takes images uint8 [B, {side}, {side}, {channels}], got {got}; {cure}"
            )
        if train and known.stochastic and key is None:
            raise UserError(
                f"{self.name} draws at random in training ({self.build}): apply needs a key"
            )
        _, variables = self.merged(variables)
        network = nnx.merge(
            known.graphdef,
            nnx.State(variables["params"]),
            nnx.State(variables.get("state", {})),
            copy=True,
        )
        images = images[..., ::-1] if self.bgr else images
        x = _scale(images, self.mean, self.std, jnp.dtype(self.dtype))
        outputs = network.embed(self, x, train, key)
        _, _, state = network.split()
        return outputs, state


def _scale(
    images: UInt8[Array, "b h w c"], mean: tuple[float, ...], std: tuple[float, ...], to: DTypeLike
) -> Float[Array, "b h w c"]:
    shift, scale = (jnp.array(v, jnp.float32).reshape(1, 1, 1, -1) * 255 for v in (mean, std))
    return ((images.astype(jnp.float32) - shift) / scale).astype(to)
