"""Double loops of the losses on pairs, triplets and tuples."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from tests.losses.loops.common import cosines, distance, each_anchor, mean, non_zero


def contrastive(x, y, w):
    d = distance(x)
    return non_zero(d[a, j] for a, p, _ in each_anchor(y) for j in p) + non_zero(
        1 - d[a, j] for a, _, n in each_anchor(y) for j in n
    )


def triplet_margin(x, y, w):
    d = distance(x)
    return non_zero(d[a, i] - d[a, j] + 0.05 for a, p, n in each_anchor(y) for i in p for j in n)


def multi_similarity(x, y, w):
    s = cosines(x, x)

    def row(a, p, n):
        pull = math.log(1 + sum(math.exp(-2 * (s[a, j] - 0.5)) for j in p)) / 2 if p else 0
        push = math.log(1 + sum(math.exp(50 * (s[a, j] - 0.5)) for j in n)) / 50 if n else 0
        return pull + push

    return mean(row(*r) for r in each_anchor(y))


def nt_xent(x, y, w):
    s = np.exp(cosines(x, x) / 0.07)
    return mean(
        -math.log(s[a, i] / (s[a, i] + sum(s[a, j] for j in n)))
        for a, p, n in each_anchor(y)
        for i in p
    )


def sup_con(x, y, w):
    s = np.exp(cosines(x, x) / 0.1)
    rows = [
        mean(-math.log(s[a, i] / sum(s[a, j] for j in p + n)) for i in p)
        for a, p, n in each_anchor(y)
    ]
    return non_zero(rows)


def threshold_consistent_margin(x, y, w):
    s = cosines(x, x)
    pull = [0.9 - s[a, j] for a, p, _ in each_anchor(y) for j in p if s[a, j] <= 0.9]
    push = [s[a, j] - 0.5 for a, _, n in each_anchor(y) for j in n if s[a, j] >= 0.5]
    return mean(pull) + mean(push)


def circle(x, y, w):
    s = cosines(x, x)

    def row(a, p, n):
        if not p or not n:
            return 0
        pull = sum(math.exp(-80 * max(1.4 - s[a, j], 0) * (s[a, j] - 0.6)) for j in p)
        push = sum(math.exp(80 * max(s[a, j] + 0.4, 0) * (s[a, j] - 0.4)) for j in n)
        return math.log(1 + pull * push)

    return non_zero(row(*r) for r in each_anchor(y))


def generalized_lifted_structure(x, y, w):
    d = distance(x)

    def row(a, p, n):
        pull = math.log(sum(math.exp(d[a, j]) for j in p)) if p else 0
        push = math.log(sum(math.exp(1 - d[a, j]) for j in n)) if n else 0
        return max(pull + push, 0)

    return mean(row(*r) for r in each_anchor(y))


def lifted_structure(x, y, w):
    d = distance(x)
    rows = list(each_anchor(y))

    def pair(a, i):
        reach = sum(math.exp(1 - d[k, j]) for k in (a, i) for j in rows[k][2])
        return max(math.log(reach) + d[a, i], 0) ** 2 / 2

    return mean(pair(a, i) for a, p, _ in rows for i in p)


def signal_to_noise_ratio_contrastive(x, y, w):
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    ratio = lambda a, j: np.var(x[a] - x[j]) / np.var(x[a])
    return non_zero(ratio(a, j) for a, p, _ in each_anchor(y) for j in p) + non_zero(
        1 - ratio(a, j) for a, _, n in each_anchor(y) for j in n
    )


def tuplet_margin(x, y, w):
    s = cosines(x, x)

    def pair(a, i, n):
        target = math.cos(math.acos(s[a, i]) - math.radians(5.73))
        return math.log(1 + sum(math.exp(64 * (s[a, j] - target)) for j in n))

    return mean(pair(a, i, n) for a, p, n in each_anchor(y) for i in p)


def intra_pair_variance(x, y, w):
    s = cosines(x, x)
    pull = [s[a, j] for a, p, _ in each_anchor(y) for j in p]
    push = [s[a, j] for a, _, n in each_anchor(y) for j in n]
    return mean(max(0.9 * mean(pull) - v, 0) ** 2 for v in pull) + mean(
        max(v - 1.2 * mean(push), 0) ** 2 for v in push
    )


def instance(x, y, w):
    s = cosines(x, x)
    return mean(
        math.log(1 + sum(math.exp(8 * (s[a, j] - 1)) for j in n)) for a, _, n in each_anchor(y)
    )


def nca(x, y, w):
    near = np.exp(2 * cosines(x, x) - 2)
    return mean(
        -math.log(sum(near[a, j] for j in p) / sum(near[a, j] for j in p + n))
        for a, p, n in each_anchor(y)
        if p
    )


def n_pairs(x, y, w):
    s = np.exp(cosines(x, x))
    members = [np.flatnonzero(y == c) for c in set(y.tolist())]
    pairs = [m[:2] for m in members if len(m) > 1]
    return mean(-math.log(s[a, p] / sum(s[a, q] for _, q in pairs)) for a, p in pairs)


def margin(nu):
    def loss(x, y, w):
        d = distance(x)
        triplets = [(a, i, j) for a, p, n in each_anchor(y) for i in p for j in n]
        pull = [max(d[a, i] - 1.2 + 0.2, 0) for a, i, _ in triplets]
        push = [max(1.2 - d[a, j] + 0.2, 0) for a, _, j in triplets]
        active = sum(v > 0 for v in pull) + sum(v > 0 for v in push)
        return (sum(pull) + sum(push)) / active, nu * 1.2, len(triplets) / active

    return loss


def margin_learned(x, y, w):
    value, nu_beta, _ = margin(0.1)(x, y, w)
    return value + nu_beta


def margin_per_class(x, y, w):
    value, nu_beta, triplets_per_active = margin(0.1)(x, y, w)
    return value + nu_beta * triplets_per_active


def triplet_variant(swap, hinge):
    def loss(x, y, w):
        d = distance(x)
        far = lambda a, i, j: min(d[a, j], d[i, j]) if swap else d[a, j]
        return non_zero(
            hinge(d[a, i] - far(a, i, j) + 0.05) for a, p, n in each_anchor(y) for i in p for j in n
        )

    return loss


def sigmoid(x, y, w):
    s = cosines(x, x)

    def soft(z):
        return math.log(1 + math.exp(z))

    return mean(
        sum(soft(-(10 * s[a, j] - 10)) for j in p) + sum(soft(10 * s[a, j] - 10) for j in n)
        for a, p, n in each_anchor(y)
    )


def nearest_rows(sims, pos, neg, *, margin=0.5):
    """A user's own kernel: what the positives are beyond the margin, and the nearest negative short of 2."""
    pull = jnp.sum(jnp.where(pos > 0, jax.nn.relu(sims - margin), 0), -1)
    some = jnp.any(neg > 0, -1) & jnp.any(pos > 0, -1)
    push = jnp.min(jnp.where(neg > 0, sims, 9.0), -1)
    return jnp.where(some, pull + jax.nn.relu(2 - push), 0), jnp.ones_like(pull)


def generic_pair(x, y, w):
    d = distance(x)
    return mean(
        sum(max(d[a, j] - 0.4, 0) for j in p) + max(2 - min(d[a, j] for j in n), 0)
        if p and n
        else 0
        for a, p, n in each_anchor(y)
    )


def multiple(x, y, w):
    return nt_xent(x, y, w) + 0.5 * triplet_margin(x, y, w)
