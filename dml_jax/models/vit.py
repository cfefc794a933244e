"""Vision transformer with DINOv2's architecture.

Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR 2024; registers:
Darcet et al., "Vision Transformers Need Registers", ICLR 2024.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from dml_jax import names
from dml_jax.models.base import Family, uniform
from dml_jax.models.convert import import_dinov2

PATCH = 14
GRID = 37  # patches to a side of the 518-pixel images that the position embedding was learned on
# Width, depth, heads.
SIZES = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16), "g": (1536, 40, 24)}

_SMALL = nnx.initializers.truncated_normal(0.02)


def cubic_matrix(
    inputs: int, outputs: int, *, scale: float | None = None, antialias: bool = False
) -> np.ndarray:
    """Bicubic resampling of one axis as a matrix [outputs, inputs], as torch defines it.

    Output o sits at x = (o + 1/2) / scale - 1/2. Without `antialias` the four nearest samples
    (repeated at the border) are weighted by Keys' cubic with a = -3/4; with it, a = -1/2, the
    kernel is stretched by 1 / scale when shrinking, and weights that fall outside are left out
    and the rest rescaled. jax.image.resize has the second only.

    Args:
      inputs, outputs: lengths of the axis before and after.
      scale: output samples to an input sample; None is outputs / inputs.
      antialias: which of the two.
    """
    ratio = inputs / outputs if scale is None else 1 / scale
    at = (np.arange(outputs) + 0.5) * ratio - 0.5
    matrix = np.zeros((outputs, inputs))
    if antialias:
        distance = np.abs(np.arange(inputs)[None] - at[:, None]) / max(ratio, 1)
        matrix = _keys(distance, -0.5)
        return matrix / matrix.sum(1, keepdims=True)
    for tap in range(-1, 3):
        source = np.floor(at).astype(int) + tap
        weight = _keys(np.abs(source - at), -0.75)
        np.add.at(matrix, (np.arange(outputs), source.clip(0, inputs - 1)), weight)
    return matrix


def _keys(x: np.ndarray, a: float) -> np.ndarray:
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


class _Linear(nnx.Linear):
    def __init__(self, inputs: int, outputs: int, *, dtype, rngs):
        super().__init__(inputs, outputs, kernel_init=_SMALL, dtype=dtype, rngs=rngs)


class _Block(nnx.Module):
    """x + s1 * attention(norm(x)), then x + s2 * mlp(norm(x)), s1 and s2 learned per channel."""

    def __init__(self, width, heads, *, swiglu, layer_scale, drop_path, dtype, rngs):
        def norm():
            return nnx.LayerNorm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)

        self.norm1, self.norm2 = norm(), norm()
        self.qkv = _Linear(width, 3 * width, dtype=dtype, rngs=rngs)
        self.out = _Linear(width, width, dtype=dtype, rngs=rngs)
        # SwiGLU keeps two thirds of the hidden size, rounded up to a multiple of eight.
        hidden = -(-int(4 * width * 2 / 3) // 8) * 8 if swiglu else 4 * width
        self.mlp_in = _Linear(width, 2 * hidden if swiglu else hidden, dtype=dtype, rngs=rngs)
        self.mlp_out = _Linear(hidden, width, dtype=dtype, rngs=rngs)
        self.scale1 = nnx.Param(jnp.full(width, layer_scale))
        self.scale2 = nnx.Param(jnp.full(width, layer_scale))
        self.heads = heads
        self.swiglu = swiglu
        self.drop_path = drop_path

    def __call__(self, x: Float[Array, "b t d"], key: Array | None) -> Float[Array, "b t d"]:
        keys = (None, None) if key is None else jax.random.split(key)
        for branch, scale, branch_key in [
            (self._attention, self.scale1, keys[0]),
            (self._mlp, self.scale2, keys[1]),
        ]:
            y = branch(x) * scale[...].astype(x.dtype).reshape(1, 1, -1)
            x = x + self._drop(y, branch_key)
        return x

    def _attention(self, x: Array) -> Array:
        shape = (*x.shape[:2], 3, self.heads, -1)
        q, k, v = jnp.moveaxis(self.qkv(self.norm1(x)).reshape(shape), 2, 0)
        return self.out(jax.nn.dot_product_attention(q, k, v).reshape(x.shape))

    def _mlp(self, x: Array) -> Array:
        y = self.mlp_in(self.norm2(x))
        if self.swiglu:
            gate, up = jnp.split(y, 2, -1)
            return self.mlp_out(jax.nn.silu(gate) * up)
        return self.mlp_out(jax.nn.gelu(y, approximate=False))

    def _drop(self, y: Array, key: Array | None) -> Array:
        """Stochastic depth: a sample's branch is left out with probability `drop_path`."""
        if key is None or self.drop_path == 0:
            return y
        keep = jax.random.bernoulli(key, 1 - self.drop_path, (y.shape[0], 1, 1))
        return jnp.where(keep, y / (1 - self.drop_path), 0)


class VisionTransformer(nnx.Module):
    """Features [B, width]: the class token after the last layer norm.

    The position embedding is learned for a grid of `grid` x `grid` patches and resampled to any
    other. `offset` is added to the wanted number of patches before the scale is worked out: 0
    is the plain definition and that of the transformers library; the DINOv2 repository uses 0.1
    where there are no registers, a shift of under one hundredth of a patch per patch. Models
    with registers resample with antialiasing, the others without, as DINOv2 does.
    """

    channels = 3

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        grid: int = GRID,
        swiglu: bool = False,
        registers: int = 0,
        layer_scale: float = 1e-5,
        drop_path: float = 0.0,
        offset: float = 0.0,
        image_size: int,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        initializer = uniform((PATCH * PATCH * 3) ** -0.5)
        self.patch = nnx.Linear(
            PATCH * PATCH * 3,
            width,
            kernel_init=initializer,
            bias_init=initializer,
            dtype=dtype,
            rngs=rngs,
        )
        tiny = nnx.initializers.normal(1e-6)
        self.cls_token = nnx.Param(tiny(rngs.params(), (1, width)))
        self.position = nnx.Param(_SMALL(rngs.params(), (1 + grid * grid, width)))
        if registers:
            self.registers = nnx.Param(tiny(rngs.params(), (registers, width)))
        self.blocks = tuple(f"block_{i:02d}" for i in range(depth))
        for name in self.blocks:
            block = _Block(
                width,
                heads,
                swiglu=swiglu,
                layer_scale=layer_scale,
                drop_path=drop_path,
                dtype=dtype,
                rngs=rngs,
            )
            setattr(self, name, block)
        self.norm = nnx.LayerNorm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.features = width
        self.stochastic = drop_path > 0
        self.num_registers = registers
        self.grid = grid
        self.offset = offset
        self.dtype = dtype

    def __call__(
        self, x: Float[Array, "b h w 3"], *, train: bool, key: Array | None
    ) -> Float[Array, "b d"]:
        b, n = x.shape[0], x.shape[1] // PATCH
        x = x.reshape(b, n, PATCH, n, PATCH, 3).swapaxes(2, 3).reshape(b, n * n, -1)
        tokens = [self.cls_token[...] + self.position[:1]]
        if self.num_registers:
            tokens.append(self.registers[...])
        extra = jnp.concatenate(tokens).astype(self.dtype)
        x = jnp.concatenate(
            [
                jnp.broadcast_to(extra, (b, *extra.shape)),
                self.patch(x) + self._positions(n).astype(self.dtype)[None],
            ],
            1,
        )
        for i, name in enumerate(self.blocks):
            x = getattr(self, name)(x, None if key is None else jax.random.fold_in(key, i))
        return self.norm(x[:, 0])

    def _positions(self, n: int) -> Float[Array, "n*n d"]:
        """The position embedding of the patches, for n x n of them."""
        table = self.position[1:]
        if n == self.grid:
            return table
        scale = (n + self.offset) / self.grid
        rows = cubic_matrix(self.grid, n, scale=scale, antialias=self.num_registers > 0)
        table = table.reshape(self.grid, self.grid, -1)
        matrix = jnp.asarray(rows, jnp.float32)
        highest = jax.lax.Precision.HIGHEST
        return jnp.einsum("ni,mj,ijd->nmd", matrix, matrix, table, precision=highest).reshape(
            n * n, -1
        )


def vit(
    *,
    size: str = "s",
    registers: int = 0,
    layer_scale: float = 1e-5,
    drop_path: float = 0.0,
    offset: float = 0.0,
    image_size: int,
    dtype: Any,
    rngs: nnx.Rngs,
) -> VisionTransformer:
    """DINOv2's ViT-S/B/L/g with patches of 14 pixels; the last has SwiGLU layers.

    Args:
      size: "s", "b", "l" or "g".
      registers: tokens beside the class token that take no part in the embedding (0 or 4 in
        the published models).
      layer_scale: first value of the residual branches' scales.
      drop_path: probability of leaving a residual branch out in training, the same at all depths.
      offset: see `VisionTransformer`.
    """
    width, depth, heads = names.resolve("vit size", SIZES, size)
    if not isinstance(registers, int) or registers < 0:
        raise ValueError(f"vit registers = {registers!r}: 0 or a positive integer is needed")
    if not 0 <= drop_path < 1:
        raise ValueError(f"vit drop_path = {drop_path!r}: a probability in [0, 1) is needed")
    if image_size % PATCH:
        near = max(PATCH, round(image_size / PATCH) * PATCH)
        raise ValueError(
            f"vit image_size = {image_size}: a multiple of {PATCH} is needed, {near} say"
        )
    return VisionTransformer(
        width=width,
        depth=depth,
        heads=heads,
        swiglu=size == "g",
        registers=registers,
        layer_scale=layer_scale,
        drop_path=drop_path,
        offset=offset,
        image_size=image_size,
        dtype=dtype,
        rngs=rngs,
    )


# Mean and standard deviation of ImageNet.
FAMILY = Family(vit, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), import_dinov2)
