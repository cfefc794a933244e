"""Distances and similarities of every anchor to every reference.

`distances.lp(power=2)` is a `Distance`; `distances.get("lp", power=2)` is the same, by name. The functions that end in
`_matrix` are what it calls: pure functions of two arrays of vectors.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dml_jax import names, parameters
from dml_jax.bound import Bound
from dml_jax.linear import linear_call
from dml_jax.parameters import NonNegativeFloat, PositiveFloat, checked

Vectors = Float[Array, "a d"]
Matrix = Float[Array, "a n"]


def normalize(x: Float[Array, "n d"], p: float = 2.0) -> Float[Array, "n d"]:
    """Returns x / ||x||_p row by row; a row whose norm is under 1e-12 becomes zero, with a zero gradient.

    torch's `normalize` divides such a row by 1e-12 instead, so that its gradient is of order 1e12.

    Args:
      x: the vectors.
      p: of the norm.

    >>> normalize(jnp.asarray([[3.0, 4.0], [0.0, 0.0]]))
    Array([[0.6, 0.8],
           [0. , 0. ]], dtype=float32)
    """
    size = jnp.sum(jnp.abs(x) ** p if p != 2 else x * x, axis=-1, keepdims=True)
    some = ~(size <= 1e-12**p)  # NaN stays NaN
    norm = _power(jnp.where(some, size, 1), 1 / p)
    return jnp.where(some, x / norm, 0)


@jax.custom_jvp
def inner_products(a: Float[Array, "a d"], r: Float[Array, "n d"]) -> Float[Array, "a n"]:
    """Returns a r^T at full precision.

    Mining compares these numbers: reduced precision (TF32, bfloat16 passes) flips its choices.

    Example:
      >>> inner_products(jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 4.0]])).tolist()
      [[11.0]]
    """
    return _exact(a, r.T)


_exact = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


@inner_products.defjvp
def _inner_products_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (a, r), (a_dot, r_dot) = primals, tangents
    slope = linear_call(_by_refs, _by_refs_transposed, a, r_dot)
    return inner_products(a, r), _exact(a_dot, r.T) + slope


def _by_refs(a: Array, r_dot: Array) -> Array:
    return _exact(a, r_dot.T)


def _by_refs_transposed(a: Array, cotangent: Array) -> Array:
    # The gradient of the references as (a^T g)^T: XLA's CPU matmul takes two to three times as long for
    # g^T a, whose transposed operand is the large one. The barriers keep XLA from folding one into the other.
    barrier = jax.lax.optimization_barrier
    return barrier(_exact(barrier(a.T), cotangent)).T


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
    """||x||_p ^ power of each row; 0, with a zero gradient, for a zero vector.

    Example:
      >>> norms(jnp.array([[3.0, 4.0]])).tolist()
      [5.0]
    """
    if p == 2:
        return _root(jnp.sum(x * x, axis=-1), p / power, 0.0)
    return _root(jnp.sum(_root(jnp.abs(x), 1 / p, 0.0), axis=-1), p / power, 0.0)


def cosine_matrix(a: Vectors, r: Vectors, *, normalize_embeddings: bool = True) -> Matrix:
    """Returns a.r / (||a|| ||r||); see `cosine`."""
    return (
        inner_products(normalize(a), normalize(r)) if normalize_embeddings else inner_products(a, r)
    )


def lp_matrix(
    a: Vectors,
    r: Vectors,
    *,
    p: float = 2.0,
    power: float = 1.0,
    normalize_embeddings: bool = True,
    eps: float = 0.0,
) -> Matrix:
    """Returns ||a - r + eps||_p ^ power; see `lp`.

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
        size = scale - 2 * inner_products(a, r)
        floor = 2 * jnp.finfo(size.dtype).eps * scale
    else:
        difference = jnp.abs(a[:, None, :] - r[None, :, :])
        size = jnp.sum(_root(difference, 1 / p, 0.0), -1)
        floor = 0.0
    return _root(size, p / power, floor)


def snr_matrix(a: Vectors, r: Vectors, *, normalize_embeddings: bool = True) -> Matrix:
    """Returns Var(a - r) / Var(a); see `snr`."""
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
    noise = scale - 2 * inner_products(a, r) / unit
    some = ~(none | (noise <= 2 * eps * scale))
    return jnp.where(some, noise / jnp.where(some, signal, 1), 0)


@dataclass(frozen=True)
class Distance:
    """A distance or similarity with its hyper-parameters, equal when made equally.

    A distance of one's own is a function of two arrays of vectors:
    `Distance("chebyshev", Bound(chebyshev_matrix), similarity=False)`.

    Attributes:
      name: its name.
      matrix: `matrix(a [a, d], r [n, d]) -> [a, n]`, hashable: a plain function or a `Bound` one.
      similarity: True where larger means closer (PML: `is_inverted`).
      normalized: True where it normalises the vectors first.
      farthest: its largest value; inf where there is none.
    """

    name: str
    matrix: Callable[..., Array]
    similarity: bool
    normalized: bool = False
    farthest: float = math.inf

    def normalized_vectors(self, x: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """Returns the vectors that a similarity multiplies, in float32 or wider.

        They have length 1 (or 0) where the distance normalises, else they are as they were.
        """
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return normalize(x) if self.normalized else x

    @property
    def unit_norm(self) -> float | None:
        """The p of the norm by which the distance normalises all vectors first; None where it does not.

        Who compares blocks of anchors with the same references normalises these once (`of_units`).
        """
        if isinstance(self.matrix, Bound) and self.matrix.keywords.get("normalize_embeddings"):
            p: float = self.matrix.keywords.get("p", 2.0)
            return p
        return None

    def of_units(self, a: Float[Array, "a d"], r: Float[Array, "n d"]) -> Float[Array, "a n"]:
        """Returns the matrix of vectors that were normalised already, each by the norm `unit_norm`."""
        assert isinstance(self.matrix, Bound)
        given = {**self.matrix.keywords, "normalize_embeddings": False}
        found: Array = self.matrix.function(a, r, **given)
        return found

    def __call__(self, a: Float[Array, "a d"], r: Float[Array, "n d"]) -> Float[Array, "a n"]:
        """Returns the matrix [anchors, references], in float32 or wider."""
        dtype = jnp.promote_types(jnp.promote_types(a.dtype, r.dtype), jnp.float32)
        return self.matrix(a.astype(dtype), r.astype(dtype))


@checked("distance")
def cosine(*, normalize_embeddings: bool = True) -> Distance:
    """Makes the cosine similarity a.r / (||a|| ||r||); 0 for a zero vector.

    Args:
      normalize_embeddings: False trusts that the vectors have length 1. PML's default.

    Example:
      >>> cosine()(jnp.asarray([[1.0, 0.0]]), jnp.asarray([[0.0, 2.0], [3.0, 0.0]])).tolist()
      [[0.0, 1.0]]
    """
    matrix = Bound(cosine_matrix, normalize_embeddings=normalize_embeddings)
    return Distance("cosine", matrix, True, normalize_embeddings)


@checked("distance")
def dot_product(*, normalize_embeddings: bool = True) -> Distance:
    """Makes the similarity a.r.

    Args:
      normalize_embeddings: True, which is PML's default, makes it the cosine; False takes the vectors as they are.

    Example:
      >>> dot_product(normalize_embeddings=False)(jnp.ones((1, 2)), jnp.ones((1, 2))).tolist()
      [[2.0]]
    """
    matrix = Bound(cosine_matrix, normalize_embeddings=normalize_embeddings)
    return Distance("dot_product", matrix, True, normalize_embeddings)


@checked("distance")
def lp(
    *,
    p: PositiveFloat = 2.0,
    power: PositiveFloat = 1.0,
    normalize_embeddings: bool = True,
    eps: NonNegativeFloat = 0.0,
) -> Distance:
    """Makes the distance ||a - r + eps||_p ^ power.

    Squared Euclidean distances under their rounding error count as 0 and have a zero gradient, so that duplicates are
    coincident.

    Args:
      p: of the norm, above 0; PML's default.
      power: of the norm, above 0; PML's default.
      normalize_embeddings: True normalises the vectors in the same norm first; PML's default.
      eps: is added to every coordinate of the difference (torch's PairwiseDistance has 1e-6 there).

    Example:
      >>> lp(power=2)(jnp.asarray([[1.0, 0.0]]), jnp.asarray([[0.0, 1.0], [5.0, 0.0]])).tolist()
      [[2.0, 0.0]]
    """
    how = dict(p=p, power=power, normalize_embeddings=normalize_embeddings, eps=eps)
    farthest = 2.0**power if normalize_embeddings else math.inf
    return Distance("lp", Bound(lp_matrix, **how), False, normalize_embeddings, farthest)


@checked("distance")
def snr(*, normalize_embeddings: bool = True) -> Distance:
    """Makes the noise-to-signal ratio Var(a - r) / Var(a) (Yuan et al., CVPR 2019, eq. 4).

    Variances are over the coordinates (unbiased). It is not symmetric: the anchor's variance divides. An
    anchor without variance has distance 0 to everything, with a zero gradient. Variances under their
    rounding error count as 0, so that duplicates are coincident and not noise.

    Args:
      normalize_embeddings: True normalises the vectors first; PML's default.

    Example:
      >>> snr()(jnp.asarray([[1.0, 0.0]]), jnp.asarray([[1.0, 0.0], [0.0, 1.0]])).round(3).tolist()
      [[0.0, 4.0]]
    """
    matrix = Bound(snr_matrix, normalize_embeddings=normalize_embeddings)
    return Distance("snr", matrix, False, normalize_embeddings)


DISTANCES: dict[str, Callable[..., Distance]] = {
    "cosine": cosine,
    "dot_product": dot_product,
    "lp": lp,
    "snr": snr,
}
SIMILARITIES = ("cosine", "dot_product")


def available() -> list[str]:
    """Lists the names that `get` takes.

    Example:
      >>> available()
      ['cosine', 'dot_product', 'lp', 'snr']
    """
    return sorted(DISTANCES)


def get(name: str, **hyper: Any) -> Distance:
    """Returns the distance called `name`.

    Args:
      name: one of `available()`, or "package.module:name" for a function of the user's own that returns a `Distance`.
      **hyper: its hyper-parameters.

    Raises:
      UserError: an unknown name or hyper-parameter, or a value out of range.

    Example:
      >>> get("lp", power=2) == lp(power=2)
      True
    """
    return parameters.make("distance", DISTANCES, Distance, name, hyper)


def build(spec: Any, default: Any = None) -> Distance:
    """Makes a distance from its name, a dict with a name, or itself.

    Args:
      spec: what the user wrote.
      default: what None stands for.

    Example:
      >>> build("cosine") == build({"name": "cosine"}) == cosine()
      True
    """
    return names.build("distance", get, Distance, default if spec is None else spec)
