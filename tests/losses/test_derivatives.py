"""Forward mode, second derivatives and batches of batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dml_jax.linear import linear_call
from tests.losses import table, test_laws
from tests.losses.loops import common

X, LABELS = jnp.asarray(test_laws.batch()), table.LABELS
# One of each way to a value: hinges, sorted rows and streams, lookups, histograms, a prepass, chosen pairs, classes.
FORMS = (
    "angular",
    "contrastive",
    "cos_face",
    "fast_ap",
    "histogram",
    "lifted_structure",
    "n_pairs",
    "nt_xent",
    "proxy_anchor",
    "smooth_ap",
    "triplet_margin",
    "triplet_margin/swap",
    "vic_reg",
)


def function(name, labels=LABELS, **how):
    loss = test_laws.make(name)
    variables = test_laws.variables(loss)

    def value(x):
        more = how | test_laws.references(name, x)
        return loss.apply(variables, x, labels, key=common.KEY, **more)[0].compute()

    return value


@pytest.mark.parametrize(
    ("name", "block"), [(name, 5) for name in FORMS] + [("contrastive", None), ("cos_face", None)]
)
def test_forward_mode_agrees_with_reverse(name, block):
    value = function(name, block=block)
    direction = jnp.asarray(np.random.default_rng(1).normal(size=X.shape), jnp.float32)
    got, slope = jax.jit(lambda x, v: jax.jvp(value, (x,), (v,)))(X, direction)
    want, gradient = jax.jit(jax.value_and_grad(value))(X)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    scale = float(jnp.sum(jnp.abs(gradient * direction)))
    np.testing.assert_allclose(slope, jnp.sum(gradient * direction), atol=1e-5 * scale)


@pytest.mark.parametrize("name", ["nt_xent", "smooth_ap", "triplet_margin", "fast_ap", "angular"])
def test_second_derivatives(name, x64):
    """The Hessian, forward over reverse, against differences of the gradient."""
    x = jnp.asarray(np.random.default_rng(2).normal(size=(6, 3)))
    value = function(name, labels=np.array([0, 0, 1, 1, 0, 1]))
    hessian = jax.jit(jax.hessian(value))(x)
    direction = jnp.asarray(np.random.default_rng(3).normal(size=x.shape))
    gradient, step = jax.jit(jax.grad(value)), 1e-6
    ahead, behind = gradient(x + step * direction), gradient(x - step * direction)
    got = jnp.einsum("ijkl,kl->ij", hessian, direction)
    want = (ahead - behind) / (2 * step)
    np.testing.assert_allclose(got, want, atol=1e-5 * float(jnp.abs(want).max()))


@pytest.mark.parametrize("name", ["contrastive", "smooth_ap", "triplet_margin", "fast_ap"])
def test_batches_of_batches(name):
    """vmap of the value and of the gradient, and the gradient of a vmap: as one batch after the other."""
    loss, batches = test_laws.make(name), jnp.stack([X, 2 * X[::-1], X[:, ::-1]])
    labels = jnp.stack([LABELS, LABELS[::-1], jnp.roll(LABELS, 3)])
    graded = jax.jit(jax.value_and_grad(lambda x, y: loss(x, y)))
    want = [graded(x, y) for x, y in zip(batches, labels, strict=True)]
    values, gradients = jax.jit(jax.vmap(graded))(batches, labels)
    total = jax.jit(jax.grad(lambda xs: jnp.sum(jax.vmap(lambda x, y: loss(x, y))(xs, labels))))
    outer = total(batches)
    for i, (value, gradient) in enumerate(want):
        np.testing.assert_allclose(values[i], value, rtol=1e-5)
        for found in (gradients[i], outer[i]):
            np.testing.assert_allclose(found, gradient, atol=1e-5 * float(jnp.abs(gradient).max()))


def test_a_linear_call_has_all_derivatives():
    """By linear and residual arguments, both modes, mapped over either."""

    def product(r, x):
        fun = lambda r, x: {"y": r @ x}
        return linear_call(fun, lambda r, ct: r.T @ ct["y"], r, x)["y"]

    rng = np.random.default_rng(0)
    r, x = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((3, 4), (4, 2)))
    of = lambda f: lambda r, x: jnp.sum(jnp.tanh(f(r, x)))
    for derive in (
        lambda f: jax.grad(f, 1),
        lambda f: jax.jacfwd(f, (0, 1)),
        lambda f: jax.hessian(f, 1),
        lambda f: jax.jacrev(jax.jacrev(f, 1), 1),
        lambda f: jax.jacfwd(jax.jacfwd(f, 1), 0),
        lambda f: lambda r, x: jax.vmap(jax.grad(f, 1), (None, 0))(r, jnp.stack([x, -x])),
        lambda f: jax.grad(lambda r, x: jnp.sum(jax.vmap(f, (0, None))(jnp.stack([r, -r]), x)), 1),
    ):
        got, want = (derive(of(f))(r, x) for f in (product, lambda r, x: r @ x))
        jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, atol=1e-5), got, want)
