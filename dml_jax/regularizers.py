"""Penalties on embeddings or class weights that are added to a loss.

A regularizer sees rows `[n, d]` and which of them are real. Class weights of several centers a class come as
`[num_classes, centers, d]`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dml_jax import distances, names, pairwise

Rows = Float[Array, "n d"]
Valid = Bool[Array, " n"]
OF = ("embeddings", "weights")
# Rows at a time where every row is compared with every other: no [n, n] array of all classes.
BLOCK = 256


def mean(values: Float[Array, " n"], valid: Valid) -> Float[Array, ""]:
    """The mean over the rows that are real; 0 of none."""
    total = jnp.sum(jnp.where(valid, values, 0))
    return total / jnp.maximum(jnp.sum(valid), 1).astype(total.dtype)


def lp(x: Rows, valid: Valid, *, p: float = 2, power: float = 1) -> Float[Array, ""]:
    """mean_i ||x_i||_p ^ power, with a zero gradient at a zero vector. Same as PML."""
    return mean(distances.norms(x, p, power), valid)


def zero_mean(x: Rows, valid: Valid) -> Float[Array, ""]:
    """mean_i |sum_d x_id|. Same as PML."""
    return mean(jnp.abs(jnp.sum(x, axis=-1)), valid)


def center_invariant(x: Rows, valid: Valid) -> Float[Array, ""]:
    """mean_i (||x_i||^2 - mean_j ||x_j||^2)^2 / 4 (Wu et al., center invariant loss, 2017). Same as PML."""
    size = jnp.sum(x * x, axis=-1)
    return mean((size - mean(size, valid)) ** 2 / 4, valid)


def regular_face(x: Rows, valid: Valid, *, block: int | None = None) -> Float[Array, ""]:
    """mean_i max_{j != i} cos(x_i, x_j) (Zhao et al., RegularFace, CVPR 2019).

    Evaluated in blocks of rows, over the devices of the mesh: memory O(block x n). A row without another
    counts as 0 (PML: as 1). Otherwise same as PML, up to the gradient at ties (here shared).
    """

    def closest(ids, real, rows, others, everywhere):
        (x, valid), (y, there) = rows, others
        sims = distances.cosine(x, y)
        other = there[None, :] & (ids[:, None] != jnp.arange(y.shape[0])[None, :])
        some = real & valid & jnp.any(other, axis=-1)
        top = jnp.max(jnp.where(other, sims, -jnp.inf), axis=-1)
        return jnp.sum(jnp.where(some, top, 0)), ()

    total, _ = pairwise.map_anchors(closest, (x, valid), (x, valid), block=block or BLOCK)
    return total / jnp.maximum(jnp.sum(valid), 1).astype(total.dtype)


def sparse_centers(x: Float[Array, "c k d"], valid: None = None) -> Float[Array, ""]:
    """Half the mean distance of two centers of a class: sum_c sum_{k<l} sqrt(2 - 2 w_ck.w_cl) / (2 pairs).

    Unit centers (the penalty of SoftTriple; Qian et al., ICCV 2019). Memory O(c k^2). Coincident centers have a zero
    gradient (PML: of order 1e19 in float32). 0 with a single center a class. Otherwise same as PML.
    """
    del valid
    classes, centers = x.shape[:2]
    gaps = jax.vmap(lambda own: distances.lp(own, own))(x)
    pairs = classes * centers * (centers - 1) // 2
    return jnp.sum(jnp.triu(gaps, 1)) / max(2 * pairs, 1)


@dataclass(frozen=True)
class Regularizer:
    """A named penalty: `weight` times its value is added to a loss.

    Attributes:
      of: "embeddings" of the batch, or the class "weights" of the loss.
    """

    name: str
    of: str
    weight: float
    hyper: tuple[tuple[str, Any], ...] = ()

    def __call__(
        self,
        x: Float[Array, "*rows d"],
        valid: Valid | None = None,
        *,
        block: int | None = None,
    ) -> Float[Array, ""]:
        """The penalty of the rows that are `valid`, without its weight."""
        function = REGULARIZERS[self.name][0]
        if self.name == "sparse_centers":
            return function(x)
        x = x.reshape(-1, x.shape[-1])
        valid = jnp.ones(x.shape[0], bool) if valid is None else valid
        given = {"block": block} if "block" in names.keywords(function) else {}
        return function(x, valid, **dict(self.hyper), **given)


# name: (function, what it is of by default, what it may be of)
REGULARIZERS: dict[str, tuple[Callable[..., Array], str, tuple[str, ...]]] = {
    "lp": (lp, "embeddings", OF),
    "zero_mean": (zero_mean, "embeddings", OF),
    "center_invariant": (center_invariant, "weights", OF),
    "regular_face": (regular_face, "weights", OF),
    "sparse_centers": (sparse_centers, "weights", ("weights",)),
}


def available() -> list[str]:
    """The names that `get` takes."""
    return sorted(REGULARIZERS)


def get(name: str, *, weight: float = 1.0, of: str | None = None, **hyper: Any) -> Regularizer:
    """The regularizer called `name`, with PML's hyper-parameters and defaults.

    Args:
      weight: what its value is multiplied by (PML: embedding_reg_weight, weight_reg_weight).
      of: "embeddings" (PML: embedding_regularizer) or "weights" (weight_regularizer); by default
        "embeddings" for lp and zero_mean, "weights" for those that were made for class weights.

    Raises ValueError for an unknown name or hyper-parameter, or an `of` that makes no sense.
    """
    function, default, accepted = names.resolve("regularizer", REGULARIZERS, name)
    names.check_hyper(f"regularizer {name!r}", names.keywords(function, without=("block",)), hyper)
    of = default if of is None else of
    if of not in accepted:
        raise ValueError(
            f"regularizer {name!r} is of {of!r}; accepted: {', '.join(map(repr, accepted))}"
        )
    return Regularizer(name, of, float(weight), tuple(sorted(hyper.items())))


def build(spec: Any) -> tuple[Regularizer, ...]:
    """Regularizers from a name, a dict with a name, the object, a sequence of these, or None."""
    if spec is None:
        return ()
    if isinstance(spec, (str, Mapping, Regularizer)) or not hasattr(spec, "__iter__"):
        spec = (spec,)
    return tuple(names.build("regularizer", get, Regularizer, one) for one in spec)
