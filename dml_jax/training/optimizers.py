"""Optimizers without a learning rate, which is applied after them.

Every optimizer follows the definition and the defaults of its PyTorch namesake, so that published settings carry over:
a function of its hyper-parameters that returns an `optax.GradientTransformation`. "optax:scale_by_lion" and its likes
are optimizers in this sense, too.
"""

from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax

from dml_jax.parameters import Interval, NonNegativeFloat, checked, make

Decay = Annotated[float, Interval(0, 1, closed_low=True)]


@checked("optimizer")
def adam(
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegativeFloat = 1e-8,
    weight_decay: NonNegativeFloat = 0.0,
) -> optax.GradientTransformation:
    """Makes Adam as `torch.optim.Adam` has it (Kingma and Ba, ICLR 2015), without the learning rate.

        g <- g + weight_decay p;  m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2
        step = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)

    Weight decay is coupled: an L2 term in the gradient that the moments see.

    Args:
      b1: decay of the mean of gradients, at least 0 and below 1; the default is the paper's.
      b2: decay of the mean of squared gradients, likewise.
      eps: added to the root, from 0 on; the default is the paper's.
      weight_decay: factor of the parameters in the gradient, from 0 on; torch's default is none.

    Raises:
      UserError: a value out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = adam()
      >>> step, _ = optimizer.update(jnp.array([2.0, -3.0]), optimizer.init(jnp.zeros(2)), jnp.zeros(2))
      >>> print(", ".join(f"{float(x):.3f}" for x in step))
      1.000, -1.000
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.scale_by_adam(b1=b1, b2=b2, eps=eps)
    )


@checked("optimizer")
def adamw(
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegativeFloat = 1e-8,
    weight_decay: NonNegativeFloat = 0.01,
) -> optax.GradientTransformation:
    """Makes AdamW as `torch.optim.AdamW` has it (Loshchilov and Hutter, ICLR 2019), without the learning rate.

        step = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + weight_decay p

    Weight decay is decoupled: learning rate times weight_decay times the parameter, beside the step of Adam.

    Args:
      b1: decay of the mean of gradients, at least 0 and below 1; the default is torch's.
      b2: decay of the mean of squared gradients, likewise.
      eps: added to the root, from 0 on; the default is torch's.
      weight_decay: factor of the parameters beside the step, from 0 on; the default is torch's.

    Raises:
      UserError: a value out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer, p = adamw(weight_decay=0.5), jnp.array([4.0])
      >>> step, _ = optimizer.update(jnp.array([2.0]), optimizer.init(p), p)
      >>> print(f"{float(step[0]):.3f}")
      3.000
    """
    return optax.chain(
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps), optax.add_decayed_weights(weight_decay)
    )


@checked("optimizer")
def sgd(
    momentum: Decay = 0.0, nesterov: bool = False, weight_decay: NonNegativeFloat = 0.0
) -> optax.GradientTransformation:
    """Makes stochastic gradient descent as `torch.optim.SGD` has it without dampening, without the learning rate.

        g <- g + weight_decay p;  buffer <- momentum buffer + g
        step = g + momentum buffer  with nesterov, else  buffer

    The buffer holds gradients and the rate is applied after it: a new rate takes hold of the old momentum, too.

    Args:
      momentum: decay of the buffer, at least 0 and below 1; torch's default is none.
      nesterov: True to look ahead.
      weight_decay: factor of the parameters in the gradient, from 0 on; torch's default is none.

    Raises:
      UserError: a value out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer, p = sgd(momentum=0.5), jnp.zeros(1)
      >>> step, state = optimizer.update(jnp.array([2.0]), optimizer.init(p), p)
      >>> optimizer.update(jnp.array([1.0]), state, p)[0].tolist()
      [2.0]
    """
    trace = optax.trace(momentum, nesterov=nesterov) if momentum else optax.identity()
    return optax.chain(optax.add_decayed_weights(weight_decay), trace)


@checked("optimizer")
def rmsprop(
    alpha: Decay = 0.99,
    eps: NonNegativeFloat = 1e-8,
    momentum: Decay = 0.0,
    weight_decay: NonNegativeFloat = 0.0,
) -> optax.GradientTransformation:
    """Makes RMSprop as `torch.optim.RMSprop` has it, not centred, without the learning rate.

        g <- g + weight_decay p;  v <- alpha v + (1 - alpha) g^2
        buffer <- momentum buffer + g / (sqrt(v) + eps);  step = buffer

    eps stands outside of the root, and the rate is applied after the buffer.

    Args:
      alpha: decay of the mean of squared gradients, at least 0 and below 1; the default is torch's.
      eps: added to the root, from 0 on; the default is torch's.
      momentum: decay of the buffer, at least 0 and below 1; torch's default is none.
      weight_decay: factor of the parameters in the gradient, from 0 on; torch's default is none.

    Raises:
      UserError: a value out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer, p = rmsprop(alpha=0.75), jnp.zeros(1)
      >>> step, _ = optimizer.update(jnp.array([3.0]), optimizer.init(p), p)
      >>> print(f"{float(step[0]):.3f}")
      2.000
    """
    trace = optax.trace(momentum) if momentum else optax.identity()
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_rms(decay=alpha, eps=eps, eps_in_sqrt=False),
        trace,
    )


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": adam,
    "adamw": adamw,
    "rmsprop": rmsprop,
    "sgd": sgd,
}


def get(name: str, **hyper: Any) -> optax.GradientTransformation:
    """Returns the optimizer of that name.

    Args:
      name: a key of `OPTIMIZERS`, or "package.module:name" for one of one's own.
      **hyper: its hyper-parameters.

    Raises:
      UserError: an unknown name, or hyper-parameters that it does not take.

    Example:
      >>> optimizer = get("sgd", momentum=0.9)
    """
    return make("optimizer", OPTIMIZERS, optax.GradientTransformation, name, hyper)


def available() -> tuple[str, ...]:
    """Returns the names of the optimizers.

    Example:
      >>> available()
      ('adam', 'adamw', 'rmsprop', 'sgd')
    """
    return tuple(OPTIMIZERS)


def by_rows(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns the optimizer for arrays of which a step has the gradient of some rows alone, such as sampled classes.

    A row without any gradient stays as it is, and so do its moments: it neither decays nor moves on by momentum. What
    is counted for all rows (the steps of Adam's bias correction) goes on. As `torch.optim.SparseAdam`.

    Args:
      optimizer: of all rows.

    Example:
      >>> import jax.numpy as jnp
      >>> tx, p = by_rows(sgd(momentum=0.5)), jnp.zeros((2, 1))
      >>> _, state = tx.update(jnp.ones((2, 1)), tx.init(p), p)
      >>> updates, _ = tx.update(jnp.array([[1.0], [0.0]]), state, p)
      >>> updates.tolist()
      [[1.5], [0.0]]
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def with_gradient(g: jax.Array) -> jax.Array:
            return jnp.any(g != 0, axis=tuple(range(1, g.ndim)), keepdims=True) | (g.ndim == 0)

        rows = jax.tree.map(with_gradient, updates)
        moved, new = optimizer.update(updates, state, params)
        moved = jax.tree.map(lambda u, r: jnp.where(r, u, 0), moved, rows)
        # Of the state what belongs to a parameter; the rest, such as a count, is taken as it is.
        moments = optax.tree.map_params(
            optimizer, lambda _, r: r, new, rows, transform_non_params=lambda _: jnp.bool_(True)
        )
        kept = jax.tree.map(lambda n, old, r: jnp.where(r, n, old), new, state, moments)
        return moved, kept

    return optax.GradientTransformation(optimizer.init, update)
