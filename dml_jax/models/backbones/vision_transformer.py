"""The vision transformer behind all of its makes: DINOv2, DINOv3, the plain ViT, CLIP and SigLIP."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from dml_jax.errors import UserError
from dml_jax.models.backbones.positions import Rotation, resample, rotation
from dml_jax.models.backbones.shared import SMALL, Linear, Remat
from dml_jax.models.backbones.transformer import (
    ACTIVATIONS,
    Activation,
    Block,
    QueryKeyValue,
    attention,
    run,
)
from dml_jax.models.initializers import uniform
from dml_jax.models.pooling import Parts


class AttentionPool(nnx.Module):
    """SigLIP's pooling: a learned query attends to all patches; then x + mlp(norm(x)).

    `qkv` has the maps of the query, of keys and of values side by side, as a layer's.
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        hidden: int,
        activation: Activation,
        eps: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        self.probe = nnx.Param(SMALL(rngs.params(), (1, width)))
        self.qkv = QueryKeyValue(width, bias="all", dtype=dtype, rngs=rngs)
        self.out = Linear(width, width, dtype=dtype, rngs=rngs)
        self.norm = nnx.LayerNorm(width, epsilon=eps, dtype=dtype, rngs=rngs)
        self.mlp_in = Linear(width, hidden, dtype=dtype, rngs=rngs)
        self.mlp_out = Linear(hidden, width, dtype=dtype, rngs=rngs)
        self.heads = heads
        self.activation = activation
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b d"]:
        b, n, width = x.shape
        kernel, bias = (a[...].astype(self.dtype) for a in (self.qkv.kernel, self.qkv.bias))
        probe = self.probe[...].astype(self.dtype)
        query = probe @ kernel[:, :width] + bias[None, :width]
        pair = x @ kernel[:, width:] + bias[None, None, width:]
        k, v = jnp.moveaxis(pair.reshape(b, n, 2, self.heads, -1), 2, 0)
        q = jnp.broadcast_to(query.reshape(1, 1, self.heads, -1), (b, 1, *k.shape[2:]))
        y = self.out(attention(q, k, v, fused=False).reshape(b, width))
        return y + self.mlp_out(ACTIVATIONS[self.activation](self.mlp_in(self.norm(y))))


class VisionTransformer(nnx.Module):
    """The backbone: patches after the last layer norm, and the class token after it (or what is pooled by attention).

    Args:
      width: the features of a token.
      depth: the number of layers.
      heads: of the attention.
      hidden: the features between the two maps of an MLP.
      patch: the side of a patch in pixels.
      grid: patches on a side of the images that the learned position embedding is for, which is resampled to others;
        None for a rotary one (see `rotation`) of the layers' queries and keys.
      class_token: True where there is one; False for a pooling by attention in its place.
      registers: tokens beside the class token that take no part in the embedding.
      antialias: of the resampling (`cubic_matrix`).
      offset: of the resampling (`resample`).
      rescale: r, where positions of the rotary embedding are multiplied in training by a number drawn
        log-uniformly from [1 / r, r], one for each call; None leaves them as they are.
      patch_bias: True where the map of the patches has a bias.
      norm_pre: True where a layer norm comes before the layers.
      projection: the features of the token after a last linear map; None leaves that out.
      token_std: the standard deviation that class token and registers are drawn with.
      drop_path: the probability of leaving out a residual branch in training.
      drop_path_grows: True where it grows from 0 in the first layer to `drop_path` in the last; else all are the same.
      activation, gated, bias, layer_scale, eps, fused_attention: of the layers (`Block`).
      remat: as for `transformer.run`.
      scan: likewise.
      image_size: not used; images may be of any height and width that are multiples of `patch`.
      dtype: what is computed in.
      rngs: of the draws.
    """

    channels = 3
    pooling = "token"
    stem_parts = ("patch", "cls_token", "position", "registers", "norm_pre")

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        patch: int,
        grid: int | None = None,
        class_token: bool = True,
        registers: int = 0,
        antialias: bool = False,
        offset: float = 0.0,
        rescale: float | None = None,
        patch_bias: bool = True,
        norm_pre: bool = False,
        projection: int | None = None,
        token_std: float = 1e-6,
        drop_path: float = 0.0,
        drop_path_grows: bool = False,
        activation: Activation = "gelu",
        eps: float = 1e-6,
        remat: Remat = "none",
        scan: bool = False,
        image_size: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        **block: Any,
    ) -> None:
        pixels = patch * patch * 3
        initializer = uniform(pixels**-0.5)
        self.patch = nnx.Linear(
            pixels,
            width,
            use_bias=patch_bias,
            kernel_init=initializer,
            bias_init=initializer,
            dtype=dtype,
            rngs=rngs,
        )
        token = nnx.initializers.normal(token_std)
        if class_token:
            self.cls_token = nnx.Param(token(rngs.params(), (1, width)))
        if grid is not None:
            self.position = nnx.Param(SMALL(rngs.params(), (class_token + grid * grid, width)))
        if registers:
            self.registers = nnx.Param(token(rngs.params(), (registers, width)))
        if norm_pre:
            self.norm_pre = nnx.LayerNorm(width, epsilon=eps, dtype=dtype, rngs=rngs)
        self.blocks = tuple(f"block_{i:02d}" for i in range(depth))
        shape: dict[str, Any] = {
            "width": width,
            "heads": heads,
            "hidden": hidden,
            "activation": activation,
            "eps": eps,
        }
        for name in self.blocks:
            setattr(self, name, Block(**shape, **block, dtype=dtype, rngs=rngs))
        self.norm = nnx.LayerNorm(width, epsilon=eps, dtype=dtype, rngs=rngs)
        if not class_token:
            self.attention_pool = AttentionPool(**shape, dtype=dtype, rngs=rngs)
        if projection is not None:
            self.projection = Linear(width, projection, bias=False, dtype=dtype, rngs=rngs)
        self.features = width
        self.token_features = projection or width
        self.stochastic = drop_path > 0 or rescale is not None
        rates = np.linspace(0, drop_path, depth) if drop_path_grows else np.full(depth, drop_path)
        self.drops = tuple(rates.tolist())
        self.side = patch
        self.grid = grid
        self.prefix = class_token + registers
        self.num_registers = registers
        self.class_token = class_token
        self.antialias = antialias
        self.offset = offset
        self.rescale = rescale
        self.turned = width // heads
        self.remat: Remat = remat
        self.scan = scan
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b h w 3"], *, train: bool, key: Array | None) -> Parts:
        b, rows, columns = x.shape[0], x.shape[1] // self.side, x.shape[2] // self.side
        x = x.reshape(b, rows, self.side, columns, self.side, 3).swapaxes(2, 3)
        x = self.patch(x.reshape(b, rows * columns, -1))
        if self.grid is not None:
            table = self.position[int(self.class_token) :]
            place = resample(table, rows, columns, offset=self.offset, antialias=self.antialias)
            x = x + place.astype(self.dtype)[None]
        if self.prefix:
            first = self._tokens().astype(self.dtype)
            x = jnp.concatenate([jnp.broadcast_to(first, (b, *first.shape)), x], 1)
        if hasattr(self, "norm_pre"):
            x = self.norm_pre(x)
        x = run(
            [getattr(self, name) for name in self.blocks],
            x,
            turn=self._rotation(rows, columns, key),
            key=key if self.drops[-1] else None,
            drops=self.drops,
            remat=self.remat,
            scan=self.scan,
        )
        # Apart, so that nothing is computed of patches that no pooling reads.
        parts = self.norm(x[:, self.prefix :])
        token = self.norm(x[:, 0]) if self.class_token else self.attention_pool(parts)
        return Parts(parts, self.projection(token) if hasattr(self, "projection") else token)

    def _tokens(self) -> Float[Array, "p d"]:
        """The class token in its place, and the registers, which have none."""
        token = self.cls_token[...]
        if self.grid is not None:
            token = token + self.position[:1]
        return jnp.concatenate([token, self.registers[...]]) if self.num_registers else token

    def _rotation(self, rows: int, columns: int, key: Array | None) -> Rotation | None:
        """The rotary position embedding of all tokens, where there is one."""
        if self.grid is not None:
            return None
        stretch: Any = 1.0
        if self.rescale is not None and key is not None:
            limit = math.log(self.rescale)
            draw = jax.random.fold_in(key, len(self.blocks))
            stretch = jnp.exp(jax.random.uniform(draw, (), minval=-limit, maxval=limit))
        return rotation(rows, columns, self.turned, prefix=self.prefix, stretch=stretch)


def check_image_size(name: str, image_size: int, patch: int, field: str = "image_size") -> None:
    """Checks that images consist of whole patches.

    Args:
      name: of the model, for the error.
      image_size: the side of an image in pixels.
      patch: that of a patch.
      field: the parameter of the model, for the error.

    Raises:
      UserError: they do not.
    """
    if image_size % patch:
        near = max(patch, round(image_size / patch) * patch)
        raise UserError(
            f"{field} of model {name!r} is {image_size}; accepted: a multiple of {patch}, such as {near}"
        )
