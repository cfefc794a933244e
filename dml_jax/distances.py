"""Distances and similarities of every anchor to every reference."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dml_jax import names


def normalize(x: Float[Array, "n d"], p: float = 2.0) -> Float[Array, "n d"]:
    """x / ||x||_p row by row; a row whose norm is under 1e-12 becomes zero, with a zero gradient.

    (torch's `normalize` divides such a row by 1e-12, so that its gradient is of order 1e12.)
    """
    size = jnp.sum(jnp.abs(x) ** p if p != 2 else x * x, axis=-1, keepdims=True)
    some = ~(size <= 1e-12**p)  # NaN stays NaN
    norm = _power(jnp.where(some, size, 1), 1 / p)
    return jnp.where(some, x / norm, 0)


@jax.custom_vjp
def _gram(a: Float[Array, "a d"], r: Float[Array, "n d"]) -> Float[Array, "a n"]:
    """a r^T. Mining compares these numbers: reduced precision (TF32, bfloat16 passes) flips choices."""
    return jnp.matmul(a, r.T, precision=jax.lax.Precision.HIGHEST)


def _gram_fwd(a, r):
    return _gram(a, r), (a, r)


def _gram_bwd(saved, cotangent):
    a, r = saved
    exact = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    # The gradient of the references as (a^T g)^T: XLA's CPU matmul takes two to three times as long for
    # g^T a, whose transposed operand is the large one. The barriers keep XLA from folding one into the other.
    barrier = jax.lax.optimization_barrier
    return exact(cotangent, r), barrier(exact(barrier(a.T), cotangent)).T


_gram.defvjp(_gram_fwd, _gram_bwd)


def _power(x: Array, exponent: float) -> Array:
    """x^exponent; the derivative of a square root takes no call of pow, which costs 50 of them."""
    if exponent == 1:
        return x
    return jnp.sqrt(x) if exponent == 0.5 else x**exponent


def _root(size: Array, p: float, floor: Array | float) -> Array:
    """size^(1/p), where what is at most `floor` is 0 with a zero gradient."""
    some = ~(size <= floor)
    return jnp.where(some, _power(jnp.where(some, size, 1), 1 / p), 0)


def norms(x: Float[Array, "n d"], p: float = 2.0, power: float = 1.0) -> Float[Array, " n"]:
    """||x||_p ^ power of each row; 0, with a zero gradient, for a zero vector."""
    if p == 2:
        return _root(jnp.sum(x * x, axis=-1), p / power, 0.0)
    return _root(jnp.sum(_root(jnp.abs(x), 1 / p, 0.0), axis=-1), p / power, 0.0)


def cosine(a, r, *, normalize_embeddings: bool = True):
    """a.r / (||a|| ||r||); 0 for a zero vector. `normalize_embeddings=False` trusts unit vectors."""
    return _gram(normalize(a), normalize(r)) if normalize_embeddings else _gram(a, r)


def dot_product(a, r, *, normalize_embeddings: bool = True):
    """a.r, of normalised vectors unless told otherwise (PML's default, and so ours)."""
    return cosine(a, r, normalize_embeddings=normalize_embeddings)


def lp(
    a,
    r,
    *,
    p: float = 2.0,
    power: float = 1.0,
    normalize_embeddings: bool = True,
    eps: float = 0.0,
):
    """||a - r + eps||_p ^ power, of vectors normalised in the same norm unless told otherwise.

    `eps` is added to every coordinate of the difference (torch's PairwiseDistance has 1e-6 there).
    p = 2 comes from the Gram matrix, ||a||^2 + ||r||^2 - 2 a.r, whose rounding error is of the order
    of eps (||a||^2 + ||r||^2): squared distances under that count as 0 and have a zero gradient, so
    that duplicates are coincident and not noise. Other p go over the coordinates.
    """
    if normalize_embeddings:
        a, r = normalize(a, p), normalize(r, p)
    r = r - eps
    floor: Array | float
    if p == 2:
        scale = jnp.sum(a * a, -1)[:, None] + jnp.sum(r * r, -1)[None, :]
        size = scale - 2 * _gram(a, r)
        floor = 2 * jnp.finfo(size.dtype).eps * scale
    else:
        difference = jnp.abs(a[:, None, :] - r[None, :, :])
        size = jnp.sum(_root(difference, 1 / p, 0.0), -1)
        floor = 0.0
    return _root(size, p / power, floor)


def snr(a, r, *, normalize_embeddings: bool = True):
    """Var(a - r) / Var(a), the noise-to-signal ratio (Yuan et al., CVPR 2019, eq. 4).

    Variances are over the coordinates (unbiased). Not symmetric: the anchor's variance divides. An
    anchor without variance has distance 0 to everything, with a zero gradient. Variances under their
    rounding error count as 0, so that duplicates are coincident and not noise.
    """
    if normalize_embeddings:
        a, r = normalize(a), normalize(r)
    eps = jnp.finfo(a.dtype).eps
    size = jnp.sum(a * a, -1)[:, None]
    a = a - jnp.mean(a, -1, keepdims=True)
    r = r - jnp.mean(r, -1, keepdims=True)
    signal = jnp.sum(a * a, -1)[:, None]
    none = signal <= (8 * eps) ** 2 * size
    # A constant unit of length for each anchor, which cancels: the square of its variance, which is in the
    # derivative, may be beyond the smallest or the largest float.
    unit = jax.lax.stop_gradient(jnp.sqrt(jnp.where(none, 1, signal)))
    a = a / unit
    signal = jnp.sum(a * a, -1)[:, None]
    scale = signal + jnp.sum(r * r, -1)[None, :] / unit / unit
    noise = scale - 2 * _gram(a, r) / unit
    some = ~(none | (noise <= 2 * eps * scale))
    return jnp.where(some, noise / jnp.where(some, signal, 1), 0)


@dataclass(frozen=True)
class Distance:
    """A named distance with its hyper-parameters.

    Attributes:
      similarity: whether larger means closer (PML: `is_inverted`).
    """

    name: str
    similarity: bool
    hyper: tuple[tuple[str, Any], ...] = ()

    @property
    def normalized(self) -> bool:
        """Whether the vectors are normalised first."""
        return bool(dict(self.hyper).get("normalize_embeddings", True))

    @property
    def farthest(self) -> float:
        """The largest value of an lp distance of normalised vectors, 2^power; inf for others."""
        bounded = self.name == "lp" and self.normalized
        return 2.0 ** dict(self.hyper).get("power", 1.0) if bounded else math.inf

    def units(self, x: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """The vectors that a similarity multiplies, in float32 or wider: of length 1 (or 0) where it normalises."""
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return normalize(x) if self.normalized else x

    def __call__(self, a: Float[Array, "a d"], r: Float[Array, "n d"]) -> Float[Array, "a n"]:
        """The matrix [anchors, references], in float32 or wider."""
        dtype = jnp.promote_types(jnp.promote_types(a.dtype, r.dtype), jnp.float32)
        return DISTANCES[self.name](a.astype(dtype), r.astype(dtype), **dict(self.hyper))


DISTANCES: dict[str, Callable[..., Array]] = {
    "cosine": cosine,
    "dot_product": dot_product,
    "lp": lp,
    "snr": snr,
}
SIMILARITIES = ("cosine", "dot_product")


def available() -> list[str]:
    """The names that `get` takes."""
    return sorted(DISTANCES)


def get(name: str, **hyper: Any) -> Distance:
    """The distance called `name`; ValueError for an unknown name or hyper-parameter."""
    function = names.resolve("distance", DISTANCES, name)
    names.check_hyper(f"distance {name!r}", names.keywords(function), hyper)
    return Distance(name, name in SIMILARITIES, tuple(sorted(hyper.items())))
