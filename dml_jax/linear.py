"""Linear functions with a transpose of their own.

Reverse mode runs the transpose of what forward mode runs. Where XLA compiles a much slower program for the transpose
that JAX derives, or where there is none (a loop of dynamic length), `jax.custom_vjp` gives another; but then forward
mode is lost, and with it `jax.jvp`, `jax.jacfwd` and `jax.hessian`. A `jax.custom_jvp` rule that ends in
`linear_call` has both.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Tree = Any


def linear_call(
    fun: Callable[[Tree, Tree], Tree],
    transpose: Callable[[Tree, Tree], Tree],
    residuals: Tree,
    linear: Tree,
) -> Tree:
    """Returns `fun(residuals, linear)`, whose transpose by `linear` is `transpose(residuals, cotangent)`.

    Unlike `jax.custom_derivatives.linear_call` it can be differentiated by the residuals, and `jax.vmap` applies.

    Args:
      fun: linear in its second argument; neither function may hold arrays of its own.
      transpose: gives a tree like `linear` from one like the result of `fun`.
      residuals: a tree of arrays.
      linear: a tree of float arrays.

    >>> twice = lambda x: linear_call(lambda r, x: r * x, lambda r, ct: r * ct, 2.0, x)
    >>> float(jax.grad(twice)(3.0)), float(jax.jvp(twice, (3.0,), (1.0,))[1])
    (2.0, 2.0)
    """
    flat_residuals, residual_tree = jax.tree.flatten(residuals)
    flat_linear: list[Any]
    linear_tree: Any
    flat_linear, linear_tree = jax.tree.flatten(linear)
    out_tree: Any = jax.tree.structure(jax.eval_shape(fun, residuals, linear))
    count = len(flat_residuals)

    def flat(residuals: list[Any], linear: list[Any]) -> list[Any]:
        return jax.tree.leaves(
            fun(jax.tree.unflatten(residual_tree, residuals), linear_tree.unflatten(linear))
        )

    def flat_transpose(residuals: list[Any], cotangents: list[Any]) -> list[Any]:
        found = transpose(
            jax.tree.unflatten(residual_tree, residuals), out_tree.unflatten(cotangents)
        )
        return jax.tree.leaves(found)

    out = _linear_p.bind(
        *flat_residuals, *flat_linear, fun=flat, transpose=flat_transpose, count=count
    )
    return out_tree.unflatten(out)


_linear_p: Any = Primitive("dml_jax_linear_call")
_linear_p.multiple_results = True


def _call(*args: Any, fun: Any, transpose: Any, count: int) -> list[Any]:
    del transpose
    return fun(list(args[:count]), list(args[count:]))


def _abstract(*args: Any, fun: Any, transpose: Any, count: int) -> list[Any]:
    del transpose
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in args]
    out = jax.eval_shape(lambda *x: fun(list(x[:count]), list(x[count:])), *shapes)
    return [jax.core.ShapedArray(o.shape, o.dtype) for o in out]


def _jvp(primals: Any, tangents: Any, *, fun: Any, transpose: Any, count: int) -> Any:
    bound = partial(_linear_p.bind, fun=fun, transpose=transpose, count=count)
    out = bound(*primals)
    residuals, linear = primals[:count], primals[count:]
    of_residuals, of_linear = tangents[:count], tangents[count:]
    parts = []
    if any(type(t) is not ad.Zero for t in of_linear):
        parts.append(bound(*residuals, *(ad.instantiate_zeros(t) for t in of_linear)))
    moving = [i for i, t in enumerate(of_residuals) if type(t) is not ad.Zero]
    if moving:

        def of_moving(*values: Any) -> list[Any]:
            changed = list(residuals)
            for i, value in zip(moving, values, strict=True):
                changed[i] = value
            return fun(changed, list(linear))

        slopes = [of_residuals[i] for i in moving]
        parts.append(jax.jvp(of_moving, [residuals[i] for i in moving], slopes)[1])
    if not parts:
        zero: Any = ad.Zero
        return out, [zero.from_primal_value(o) for o in out]
    return out, parts[0] if len(parts) == 1 else list(map(jnp.add, *parts))


def _transpose(cotangents: Any, *args: Any, fun: Any, transpose: Any, count: int) -> list[Any]:
    del fun
    given = [ad.instantiate_zeros(ct) for ct in cotangents]
    return [None] * count + list(transpose(list(args[:count]), given))


def _batch(args: Any, dims: Any, *, fun: Any, transpose: Any, count: int) -> Any:
    args = [x if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(args, dims, strict=True)]
    axes = [None if d is None else 0 for d in dims]
    # Every linear argument is mapped: the transpose of a shared one would have to add up.
    sizes = [x.shape[0] for x, axis in zip(args, axes, strict=True) if axis == 0]
    for i in range(count, len(args)):
        if axes[i] is None:
            args[i] = jnp.broadcast_to(args[i], (sizes[0], *args[i].shape))
    in_axes = (axes[:count], 0)
    out = _linear_p.bind(
        *args,
        fun=jax.vmap(fun, in_axes),
        transpose=jax.vmap(transpose, in_axes),
        count=count,
    )
    return out, [0] * len(out)


_linear_p.def_impl(_call)
_linear_p.def_abstract_eval(_abstract)
ad.primitive_jvps[_linear_p] = _jvp
ad.primitive_transposes[_linear_p] = _transpose
batching.primitive_batchers[_linear_p] = _batch
mlir.register_lowering(_linear_p, mlir.lower_fun(_call, multiple_results=True))
