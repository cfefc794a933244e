"""Penalties on embeddings or class weights that are added to a loss.

`regularizers.lp(weight=0.005)` is a `Regularizer`; `regularizers.get("lp", weight=0.005)` is the same, by name. A
penalty is a function `(x, valid, *, block)` of rows `[n, d]`, of which rows are real, and of how many rows are
compared at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dml_jax import distances, names, parameters, sharded
from dml_jax.blocks import map_anchors
from dml_jax.bound import Bound
from dml_jax.parameters import PositiveFloat, checked

Rows = Float[Array, "n d"]
Valid = Bool[Array, " n"]
Of = Literal["embeddings", "weights"]
# Rows at a time where every row is compared with every other: no [n, n] array of all classes.
BLOCK = 256


def mean(values: Float[Array, " n"], valid: Valid) -> Float[Array, ""]:
    """Returns the mean over the rows that are real; 0 of none."""
    total = jnp.sum(jnp.where(valid, values, 0))
    return total / jnp.maximum(jnp.sum(valid), 1).astype(total.dtype)


def lp_penalty(
    x: Rows, valid: Valid, *, p: float, power: float, block: int | None = None
) -> Float[Array, ""]:
    """Returns mean_i ||x_i||_p ^ power, with a zero gradient at a zero vector."""
    del block
    return mean(distances.norms(x, p, power), valid)


def zero_mean_penalty(x: Rows, valid: Valid, *, block: int | None = None) -> Float[Array, ""]:
    """Returns mean_i |sum_d x_id|."""
    del block
    return mean(jnp.abs(jnp.sum(x, axis=-1)), valid)


def center_invariant_penalty(
    x: Rows, valid: Valid, *, block: int | None = None
) -> Float[Array, ""]:
    """Returns mean_i (||x_i||^2 - mean_j ||x_j||^2)^2 / 4."""
    del block
    size = jnp.sum(x * x, axis=-1)
    return mean((size - mean(size, valid)) ** 2 / 4, valid)


def regular_face_penalty(x: Rows, valid: Valid, *, block: int | None = None) -> Float[Array, ""]:
    """Returns mean_i max_{j != i} cos(x_i, x_j), in blocks of rows, over the devices of the mesh."""

    def closest(
        ids: Array, real: Array, rows: Any, others: Any, broadcast_args: Any
    ) -> tuple[Array, tuple[()]]:
        (x, valid), (y, there) = rows, others
        sims = sharded.matrix(distances.cosine_matrix, x, y)
        other = there[None, :] & (ids[:, None] != jnp.arange(there.shape[0])[None, :])
        some = real & valid & jnp.any(other, axis=-1)
        top = jnp.max(jnp.where(other, sims, -jnp.inf), axis=-1)
        return jnp.sum(jnp.where(some, top, 0)), ()

    total, _ = map_anchors(closest, (x, valid), (sharded.kept(x), valid), block=block or BLOCK)
    return total / jnp.maximum(jnp.sum(valid), 1).astype(total.dtype)


def sparse_centers_penalty(
    x: Float[Array, "c k d"], valid: Any = None, *, block: int | None = None
) -> Float[Array, ""]:
    """Returns sum_c sum_{k<l} sqrt(2 - 2 w_ck.w_cl) / (2 pairs), of unit centers."""
    del valid, block
    classes, centers = x.shape[:2]
    gaps = jax.vmap(lambda own: distances.lp_matrix(own, own))(x)
    pairs = classes * centers * (centers - 1) // 2
    return jnp.sum(jnp.triu(gaps, 1)) / max(2 * pairs, 1)


@dataclass(frozen=True)
class Regularizer:
    """A penalty with its hyper-parameters: `weight` times its value is added to a loss.

    Attributes:
      name: its name.
      penalty: `penalty(x, valid, *, block) -> scalar`, hashable: a plain function or a `Bound` one.
      of: "embeddings" of the batch, or the class "weights" of the loss.
      weight: what its value is multiplied by.
      several_centers: True where `x` is `[num_classes, centers, d]`; otherwise the rows of all classes come as one.
    """

    name: str
    penalty: Callable[..., Array]
    of: str
    weight: float = 1.0
    several_centers: bool = False

    def __call__(
        self,
        x: Float[Array, "*rows d"],
        valid: Valid | None = None,
        *,
        block: int | None = None,
    ) -> Float[Array, ""]:
        """Returns the penalty of the rows that are `valid`, without its weight."""
        if not self.several_centers:
            x = x.reshape(-1, x.shape[-1])
        valid = jnp.ones(x.shape[0], bool) if valid is None else valid
        return self.penalty(x, valid, block=block)


@checked("regularizer")
def lp(
    *, p: PositiveFloat = 2, power: PositiveFloat = 1, weight: float = 1.0, of: Of = "embeddings"
) -> Regularizer:
    """Makes mean_i ||x_i||_p ^ power, with a zero gradient at a zero vector. Same as PML (LpRegularizer).

    Args:
      p: of the norm, above 0; PML's default.
      power: of the norm, above 0; PML's default.
      weight: what the penalty is multiplied by (PML: embedding_reg_weight, weight_reg_weight).
      of: "embeddings" (PML: embedding_regularizer) or "weights" of the classes (weight_regularizer).

    Example:
      >>> float(lp(power=2)(jnp.asarray([[3.0, 4.0], [0.0, 0.0]])))
      12.5
    """
    return Regularizer("lp", Bound(lp_penalty, p=p, power=power), of, weight)


@checked("regularizer")
def zero_mean(*, weight: float = 1.0, of: Of = "embeddings") -> Regularizer:
    """Makes mean_i |sum_d x_id|. Same as PML (ZeroMeanRegularizer).

    Args:
      weight: what the penalty is multiplied by (PML: embedding_reg_weight, weight_reg_weight).
      of: "embeddings" (PML: embedding_regularizer) or "weights" of the classes (weight_regularizer).

    Example:
      >>> float(zero_mean()(jnp.asarray([[1.0, -3.0], [1.0, 1.0]])))
      2.0
    """
    return Regularizer("zero_mean", zero_mean_penalty, of, weight)


@checked("regularizer")
def center_invariant(*, weight: float = 1.0, of: Of = "weights") -> Regularizer:
    """Makes mean_i (||x_i||^2 - mean_j ||x_j||^2)^2 / 4 (Wu et al., center invariant loss, 2017). Same as PML.

    Args:
      weight: what the penalty is multiplied by (PML: embedding_reg_weight, weight_reg_weight).
      of: "embeddings" (PML: embedding_regularizer) or "weights" of the classes (weight_regularizer).

    Example:
      >>> float(center_invariant()(jnp.asarray([[1.0], [2.0]])))
      0.5625
    """
    return Regularizer("center_invariant", center_invariant_penalty, of, weight)


@checked("regularizer")
def regular_face(*, weight: float = 1.0, of: Of = "weights") -> Regularizer:
    """Makes mean_i max_{j != i} cos(x_i, x_j) (Zhao et al., RegularFace, CVPR 2019).

    Evaluated in blocks of rows, over the devices of the mesh: memory O(block x n). A row without another
    counts as 0 (PML: as 1). Otherwise same as PML, up to the gradient at ties (here shared).

    Args:
      weight: what the penalty is multiplied by (PML: embedding_reg_weight, weight_reg_weight).
      of: "embeddings" (PML: embedding_regularizer) or "weights" of the classes (weight_regularizer).

    Example:
      >>> round(float(regular_face()(jnp.asarray([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]]))), 3)
      0.667
    """
    return Regularizer("regular_face", regular_face_penalty, of, weight)


@checked("regularizer")
def sparse_centers(*, weight: float = 1.0, of: Literal["weights"] = "weights") -> Regularizer:
    """Makes half the mean distance of two centers of a class: sum_c sum_{k<l} sqrt(2 - 2 w_ck.w_cl) / (2 pairs).

    Unit centers (the penalty of SoftTriple; Qian et al., ICCV 2019). Memory O(c k^2). Coincident centers have a zero
    gradient (PML: of order 1e19 in float32). 0 with a single center a class. Otherwise same as PML.

    Args:
      weight: what the penalty is multiplied by (PML: weight_reg_weight).
      of: "weights", the centers of a loss that has several a class.

    Example:
      >>> float(sparse_centers()(jnp.asarray([[[1.0, 0.0], [-1.0, 0.0]]])))
      1.0
    """
    return Regularizer("sparse_centers", sparse_centers_penalty, of, weight, True)


REGULARIZERS: dict[str, Callable[..., Regularizer]] = {
    "lp": lp,
    "zero_mean": zero_mean,
    "center_invariant": center_invariant,
    "regular_face": regular_face,
    "sparse_centers": sparse_centers,
}


def available() -> list[str]:
    """Lists the names that `get` takes.

    Example:
      >>> "lp" in available()
      True
    """
    return sorted(REGULARIZERS)


def get(name: str, **hyper: Any) -> Regularizer:
    """Returns the regularizer called `name`, with PML's hyper-parameters and defaults.

    Args:
      name: one of `available()`, or "package.module:name" for a function of the user's own that returns a
        `Regularizer`.
      **hyper: its hyper-parameters, `weight` and `of` among them.

    Raises:
      UserError: an unknown name or hyper-parameter, or an `of` that makes no sense.

    Example:
      >>> get("lp", weight=0.5) == lp(weight=0.5)
      True
    """
    return parameters.make("regularizer", REGULARIZERS, Regularizer, name, hyper)


def build(spec: Any, default: Any = ()) -> tuple[Regularizer, ...]:
    """Makes regularizers from a name, a dict with a name, the object, or a sequence of these.

    Args:
      spec: what the user wrote.
      default: what None stands for.
    """
    spec = default if spec is None else spec
    single = isinstance(spec, (str, Regularizer)) or hasattr(spec, "keys")
    if single or not hasattr(spec, "__iter__"):
        spec = (spec,)
    return tuple(names.build("regularizer", get, Regularizer, one) for one in spec)
