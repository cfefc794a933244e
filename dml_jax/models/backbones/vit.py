"""Vision transformer with DINOv2's architecture.

Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR 2024; registers: Darcet et al.,
"Vision Transformers Need Registers", ICLR 2024.
"""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from dml_jax.bound import Bound
from dml_jax.errors import UserError
from dml_jax.models.base import DType, Model, WeightsFile, uniform
from dml_jax.models.convert import import_dinov2
from dml_jax.parameters import Interval, NonNegativeFloat, NonNegativeInt, PositiveInt, checked

PATCH = 14
GRID = 37  # patches on a side of the 518-pixel images that the position embedding was learned on
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Width, depth, heads.
SIZES = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16), "g": (1536, 40, 24)}

_SMALL = nnx.initializers.truncated_normal(0.02)


def cubic_matrix(
    inputs: int, outputs: int, *, scale: float | None = None, antialias: bool = False
) -> Float[np.ndarray, "outputs inputs"]:
    """Returns the bicubic resampling of an axis, as torch defines it, as a matrix `[outputs, inputs]`.

    Output o sits at x = (o + 1/2) / scale - 1/2. Without `antialias` the four nearest samples (repeated at the border)
    are weighted by Keys' cubic with a = -3/4. With it a is -1/2, the kernel is stretched by 1 / scale when shrinking,
    and weights that fall outside are left out and the rest rescaled. jax.image.resize has the second only.

    Args:
      inputs: the length of the axis before.
      outputs: the length of the axis after.
      scale: output samples to an input sample; None is outputs / inputs.
      antialias: which of the two.

    Example:
      >>> cubic_matrix(4, 2).round(2)
      array([[ 0.5 ,  0.59, -0.09,  0.  ],
             [ 0.  , -0.09,  0.59,  0.5 ]])
    """
    ratio = inputs / outputs if scale is None else 1 / scale
    positions = (np.arange(outputs) + 0.5) * ratio - 0.5
    matrix = np.zeros((outputs, inputs))
    if antialias:
        distance = np.abs(np.arange(inputs)[None] - positions[:, None]) / max(ratio, 1)
        matrix = _keys(distance, -0.5)
        matrix /= matrix.sum(1, keepdims=True)
        return matrix
    for tap in range(-1, 3):
        source = np.floor(positions).astype(int) + tap
        weight = _keys(np.abs(source - positions), -0.75)
        np.add.at(matrix, (np.arange(outputs), source.clip(0, inputs - 1)), weight)
    return matrix


def _keys(x: Float[np.ndarray, "*n"], a: float) -> Float[np.ndarray, "*n"]:
    """Keys' cubic convolution kernel at distances x >= 0."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


class _Linear(nnx.Linear):
    """A linear map whose kernel starts from a truncated normal distribution, as DINOv2's do."""

    def __init__(self, inputs: int, outputs: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        super().__init__(inputs, outputs, kernel_init=_SMALL, dtype=dtype, rngs=rngs)


class _Block(nnx.Module):
    """A layer: x + s1 * attention(norm(x)), then x + s2 * mlp(norm(x)), with s1 and s2 learned per channel."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        swiglu: bool,
        layer_scale: float,
        drop_path: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        def norm() -> nnx.LayerNorm:
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
        """Leaves the branch of a sample out with probability `drop_path` (stochastic depth)."""
        if key is None or self.drop_path == 0:
            return y
        keep = jax.random.bernoulli(key, 1 - self.drop_path, (y.shape[0], 1, 1))
        return jnp.where(keep, y / (1 - self.drop_path), 0)


class VisionTransformer(nnx.Module):
    """The backbone; its features `[B, width]` are the class token after the last layer norm.

    The position embedding is learned for a grid of `grid` x `grid` patches and resampled to any other (see `offset` of
    `vit`). Models with registers resample with antialiasing, the others without, as DINOv2 does.
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
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
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
        features: Array = self.norm(x[:, 0])
        return features

    def _positions(self, n: int) -> Float[Array, "n*n d"]:
        """Returns the position embedding of n x n patches."""
        table: Array = self.position[1:]
        if n == self.grid:
            return table
        scale = (n + self.offset) / self.grid
        rows = cubic_matrix(self.grid, n, scale=scale, antialias=self.num_registers > 0)
        table = table.reshape(self.grid, self.grid, -1)
        matrix = jnp.asarray(rows, jnp.float32)
        highest = jax.lax.Precision.HIGHEST
        resampled: Array = jnp.einsum("ni,mj,ijd->nmd", matrix, matrix, table, precision=highest)
        return resampled.reshape(n * n, -1)


@checked("model")
def vit(
    size: Literal["s", "b", "l", "g"] = "s",
    *,
    registers: NonNegativeInt = 0,
    layer_scale: NonNegativeFloat = 1e-5,
    drop_path: Annotated[float, Interval(0, 1, closed_low=True)] = 0.0,
    offset: NonNegativeFloat = 0.0,
    embedding_dim: PositiveInt | None = None,
    normalize: bool = True,
    weights: WeightsFile | None = None,
    image_size: PositiveInt = 224,
    dtype: DType = "float32",
) -> Model:
    """Makes DINOv2's ViT-S/B/L/g with patches of 14 pixels, for RGB images; the last has SwiGLU layers.

    Its features are the class token after the last layer norm: 384, 768, 1024 or 1536 of them. Images are scaled by the
    mean and the standard deviation of ImageNet. Weights are those that the transformers library publishes
    (`import_dinov2`).

    Args:
      size: "s", "b", "l" or "g".
      registers: the number of tokens beside the class token that take no part in the embedding, from 0 on; published
        models have 0 or 4.
      layer_scale: the first value of the residual branches' learned scales; 1e-5 is DINOv2's.
      drop_path: the probability, below 1, of leaving a residual branch out in training, the same at all depths.
      offset: is added to the number of patches of a side before the scale is worked out by which the position embedding
        is resampled: 0 is the plain definition and that of the transformers library; the DINOv2 repository uses 0.1
        where there are no registers, a shift of under one hundredth of a patch per patch.
      embedding_dim: the output dimension of the linear head; None leaves the backbone's features.
      normalize: True to divide every embedding by its Euclidean norm.
      weights: an .npz file with the backbone's parameters, which `Model.init` reads; None draws them.
      image_size: the side of the (square) images in pixels, a multiple of 14.
      dtype: what the backbone computes in; parameters, head and embeddings are float32.

    Raises:
      UserError: a value out of range.

    Example:
      >>> vit("s", image_size=98, embedding_dim=128).dim
      128
    """
    width, depth, heads = SIZES[size]
    if image_size % PATCH:
        near = max(PATCH, round(image_size / PATCH) * PATCH)
        raise UserError(
            f"image_size of model 'vit' is {image_size}; accepted: a multiple of {PATCH}, such as {near}"
        )
    backbone = Bound(
        VisionTransformer,
        width=width,
        depth=depth,
        heads=heads,
        swiglu=size == "g",
        registers=registers,
        layer_scale=layer_scale,
        drop_path=drop_path,
        offset=offset,
    )
    return Model(
        "vit",
        backbone,
        image_size,
        embedding_dim=embedding_dim,
        normalize=normalize,
        weights=weights,
        dtype=dtype,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        read_weights=import_dinov2,
    )
