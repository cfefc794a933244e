"""The layers of vision transformers, and how a stack of them is run."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from dml_jax.models.backbones.positions import Rotation, rotate
from dml_jax.models.backbones.shared import SMALL, Linear, Remat, drop_path

Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]
Bias = Literal["all", "query_value", "none"]


def quick_gelu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """OpenAI's approximation of GELU, x sigmoid(1.702 x).

    Args:
      x: of any shape.
    """
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": quick_gelu,
}


class QueryKeyValue(nnx.Module):
    """The map to queries, keys and values, side by side.

    `bias` is of all three (`[3 width]`), of queries and values (`[2 width]`), or left out.
    """

    def __init__(self, width: int, *, bias: Bias, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(SMALL(rngs.params(), (width, 3 * width)))
        if bias != "none":
            biased = 3 if bias == "all" else 2
            self.bias = nnx.Param(nnx.initializers.zeros(rngs.params(), (biased * width,)))
        self.biased = bias
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t 3*d"]:
        y = x @ self.kernel[...].astype(self.dtype)
        if self.biased == "none":
            return y
        bias = self.bias[...]
        if self.biased == "query_value":
            query, value = jnp.split(bias, 2)
            bias = jnp.concatenate([query, jnp.zeros_like(query), value])
        return y + bias.astype(self.dtype).reshape(1, 1, -1)


class Block(nnx.Module):
    """A layer: x + s1 * attention(norm(x)), then x + s2 * mlp(norm(x)).

    Args:
      width: the features of a token.
      heads: of the attention.
      hidden: the features between the two maps of the MLP.
      activation: between them; a gated MLP has silu.
      gated: True for SwiGLU, (silu(x A) * x B) C, where A and B lie side by side in `mlp_in`.
      bias: of the map to queries, keys and values.
      layer_scale: the first value of s1 and s2, learned per channel; None: there are none.
      eps: of the layer norms.
      fused_attention: True for cuDNN's attention where JAX runs on GPUs and computes in bfloat16.
      dtype: what is computed in.
      rngs: of the draws.
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        hidden: int,
        activation: Activation = "gelu",
        gated: bool = False,
        bias: Bias = "all",
        layer_scale: float | None = None,
        eps: float = 1e-6,
        fused_attention: bool = False,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        self.norm1 = nnx.LayerNorm(width, epsilon=eps, dtype=dtype, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, epsilon=eps, dtype=dtype, rngs=rngs)
        self.qkv = QueryKeyValue(width, bias=bias, dtype=dtype, rngs=rngs)
        self.out = Linear(width, width, dtype=dtype, rngs=rngs)
        self.mlp_in = Linear(width, 2 * hidden if gated else hidden, dtype=dtype, rngs=rngs)
        self.mlp_out = Linear(hidden, width, dtype=dtype, rngs=rngs)
        if layer_scale is not None:
            self.scale1 = nnx.Param(jnp.full(width, layer_scale))
            self.scale2 = nnx.Param(jnp.full(width, layer_scale))
        self.scaled = layer_scale is not None
        self.heads = heads
        self.gated = gated
        self.activation = activation
        self.fused_attention = fused_attention

    def __call__(
        self,
        x: Float[Array, "b t d"],
        turn: Rotation | None = None,
        key: Array | None = None,
        drop: Float[Array, ""] | float = 0.0,
    ) -> Float[Array, "b t d"]:
        """Runs the layer.

        Args:
          x: tokens.
          turn: a rotary position embedding of all tokens.
          key: of `drop`; None drops nothing.
          drop: the probability of leaving out a branch of a sample.
        """
        keys = (None, None) if key is None else jax.random.split(key)
        x = self._add(x, self._attention(x, turn), "scale1", keys[0], drop)
        return self._add(x, self._mlp(x), "scale2", keys[1], drop)

    def _add(self, x: Array, y: Array, scale: str, key: Array | None, drop: Any) -> Array:
        if self.scaled:
            y = y * getattr(self, scale)[...].astype(x.dtype).reshape(1, 1, -1)
        return x + (y if key is None else drop_path(y, key, drop))

    def _attention(self, x: Array, turn: Rotation | None) -> Array:
        shape = (*x.shape[:2], 3, self.heads, -1)
        q, k, v = jnp.moveaxis(self.qkv(self.norm1(x)).reshape(shape), 2, 0)
        if turn is not None:
            q, k = rotate(q, turn), rotate(k, turn)
        return self.out(attention(q, k, v, fused=self.fused_attention).reshape(x.shape))

    def _mlp(self, x: Array) -> Array:
        y = self.mlp_in(self.norm2(x))
        if self.gated:
            gate, up = jnp.split(y, 2, -1)
            return self.mlp_out(jax.nn.silu(gate) * up)
        return self.mlp_out(ACTIVATIONS[self.activation](y))


def attention(
    q: Float[Array, "b t h d"],
    k: Float[Array, "b s h d"],
    v: Float[Array, "b s h d"],
    *,
    fused: bool,
) -> Float[Array, "b t h d"]:
    """Computes softmax(q k^T / sqrt(d)) v for each head.

    Args:
      q: queries.
      k: keys.
      v: values.
      fused: True for cuDNN's kernel, which keeps no `[t, s]` matrix, where JAX's default backend is a GPU and the
        queries are bfloat16; elsewhere XLA compiles the formula, as without it.
    """
    cudnn = fused and jax.default_backend() == "gpu" and q.dtype == jnp.bfloat16
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn" if cudnn else None)


def run(
    blocks: Sequence[Block],
    x: Float[Array, "b t d"],
    *,
    turn: Rotation | None,
    key: Array | None,
    drops: Sequence[float],
    remat: Remat,
    scan: bool,
) -> Float[Array, "b t d"]:
    """Runs layers of one make, one after the other.

    Args:
      blocks: the layers, whose parameters have equal shapes.
      x: tokens.
      turn: a rotary position embedding of all tokens, for every layer.
      key: of `drops`; None drops nothing.
      drops: the probability of leaving out a branch, of each layer.
      remat: what the backward pass keeps of a layer: "none" for all of it (rematerialises nothing), "block" for its
        input alone, "dots" for the results of its linear maps.
      scan: True for one `lax.scan`, traced and compiled as one layer; the parameters of the layers are stacked for it,
        and so held twice. XLA merges what `remat` computes again with the forward pass on CPUs, but not in a scan.
    """
    graphdef = nnx.split(blocks[0])[0]
    states = [nnx.split(block)[1] for block in blocks]

    def apply(state: Any, x: Array, turn: Rotation | None, key: Array | None, drop: Any) -> Array:
        return nnx.merge(graphdef, state)(x, turn, key, drop)

    if remat != "none":
        # Inside a scan there is nothing that the recomputation could be merged with.
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        apply = jax.checkpoint(
            apply, prevent_cse=not scan, policy=policy if remat == "dots" else None
        )
    if not scan:
        for i, (state, drop) in enumerate(zip(states, drops, strict=True)):
            x = apply(state, x, turn, None if key is None else jax.random.fold_in(key, i), drop)
        return x
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

    def body(x: Array, layer: Any) -> tuple[Array, None]:
        state, i, drop = layer
        return apply(
            state, x, turn, None if key is None else jax.random.fold_in(key, i), drop
        ), None

    numbers = jnp.arange(len(blocks))
    return jax.lax.scan(body, x, (stacked, numbers, jnp.asarray(np.asarray(drops), jnp.float32)))[0]
