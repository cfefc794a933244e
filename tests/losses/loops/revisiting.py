"""Double loops of the losses as the ICML 2020 system computes them. Draws are by the rule of `selection.draw`."""

import math

import jax
import numpy as np

from tests.losses.loops.common import (
    KEY,
    cosines,
    distance,
    each_anchor,
    log_softmax,
    mean,
    non_zero,
    second_view,
)


def norms(x):
    return 0.005 * mean(math.sqrt(sum(v * v)) for v in x)


def draw(key, allowed):
    return allowed[int(jax.random.randint(key, (1,), 0, len(allowed))[0])]


def one_positive(y, places):
    """(anchor, one positive, all negatives); `places` are positions in the whole batch, if not all of it is here."""
    places = np.arange(len(y)) if places is None else places
    for a, p, n in each_anchor(y):
        if p:
            yield a, draw(jax.random.fold_in(KEY, places[a]), p), n


def n_pair(x, y, w, places=None):
    s = x @ x.T
    return norms(x) + mean(
        math.log(1 + sum(math.exp(s[a, j] - s[a, i]) for j in n))
        for a, i, n in one_positive(y, places)
    )


def angular(x, y, w, places=None):
    u = x / np.linalg.norm(x, axis=1, keepdims=True)

    def row(a, i, n):
        raw = sum(math.exp(max(min(x[a] @ (x[j] - x[i]), 50), -50)) for j in n)
        gap = lambda j: 4 * (u[a] + u[i]) @ u[j] - 4 * u[a] @ u[i]  # tan 45 degrees = 1
        return math.log(1 + raw) + 2 * math.log(1 + sum(math.exp(gap(j)) for j in n))

    return norms(x) + mean(row(*r) for r in one_positive(y, places))


def quadruplet(x, y, w, places=None):
    d, places = distance(x), np.arange(len(y)) if places is None else places
    near, far = [], []
    for a, p, n in each_anchor(y):
        key = jax.random.fold_in(jax.random.fold_in(KEY, places[a]), 2020)
        keys = jax.random.split(key)
        first = draw(keys[0], n)
        for j in n:
            others = [k for k in n if y[k] != y[j]]
            q = first if first in others or not others else draw(keys[1], others)
            for i in p:
                near.append(max(d[a, i] - d[a, j] + 0.2, 0))
                far += [max(d[a, i] - d[j, q] + 0.2, 0)] if others else []
    return mean(near) + mean(far)


def margin(parity):
    def loss(x, y, w):
        d = np.sqrt(distance(x) ** 2 + 1e-8)
        pull, push = zip(
            *(
                (max(d[a, i] - 1.0, 0), max(1.4 - d[a, j], 0))
                for a, p, n in each_anchor(y)
                for i in p
                for j in n
            ),
            strict=True,
        )
        either = sum(u > 0 or v > 0 for u, v in zip(pull, push, strict=True))
        each = sum(u > 0 for u in pull) + sum(v > 0 for v in push)
        return (sum(pull) + sum(push)) / (either if parity else each)

    return loss


def multi_similarity(x, y, w):
    s, rows = cosines(x, x), []
    for a, p, n in each_anchor(y):
        far = [s[a, j] for j in p if s[a, j] - 0.1 < max(s[a, k] for k in n)]
        near = [s[a, k] for k in n if p and s[a, k] + 0.1 > min(s[a, j] for j in p)]
        if far and near:
            pull = math.log(1 + sum(math.exp(-2 * (v - 0.5)) for v in far)) / 2
            rows.append(pull + math.log(1 + sum(math.exp(40 * (v - 0.5)) for v in near)) / 40)
    return mean(rows)


def proxy_nca(x, y, w):
    d = 2 - 2 * cosines(x, w)
    return mean(
        9 * d[i, c] + math.log(sum(math.exp(-9 * d[i, k]) for k in range(len(w)) if k != c))
        for i, c in enumerate(y)
    )


def generalized_lifted_structure(x, y, w):
    d = lambda a, j: math.sqrt(sum((x[a] - x[j] + 1e-6) ** 2))

    def row(a, p, n):
        pull = math.log(sum(math.exp(d(a, j)) for j in p))
        return max(pull + math.log(sum(math.exp(1 - d(a, j)) for j in n)), 0)

    return norms(x) + mean(row(*r) for r in each_anchor(y) if r[1])


def snr(x, y, w):
    r = lambda a, j: np.var(x[a] - x[j]) / np.var(x[a])
    triplets = [(a, i, j) for a, p, n in each_anchor(y) for i in p for j in n]
    penalty = mean(abs(sum(x[a])) for a, _, _ in triplets)
    return non_zero(r(a, i) - r(a, j) + 0.2 for a, i, j in triplets) + 0.005 * penalty


def histogram(nbins, parity=False):
    """With parity, on 11 nodes: values from -0.6 to 0.6 give nothing to the node above them."""

    def loss(x, y, w):
        s, width = cosines(x, x), 2 / (nbins - 1)
        found, pairs = np.zeros((2, nbins)), [0, 0]
        for a, p, n in each_anchor(y):
            for j in (j for j in p + n if j < a):
                side, place = int(j in p), (s[a, j] + 1) / width
                low = int(place)
                found[side, low] += 1 - (place - low)
                if not (parity and -0.6 <= s[a, j] < 0.6):
                    found[side, low + 1] += place - low
                pairs[side] += 1
        negative, positive = found[0] / pairs[0], found[1] / pairs[1]
        return sum(negative[r] * positive[: r + 1].sum() for r in range(nbins))

    return loss


def soft_triple(parity):
    def loss(x, y, w):
        u = x / np.linalg.norm(x, axis=1, keepdims=True)
        m = w / np.sqrt((w**2).sum((0, 1) if parity else 2, keepdims=True))
        s = np.einsum("id,ckd->ick", u, m)
        share = np.exp(0.1 * s) if parity else np.exp(10 * s)
        z = (share / share.sum(1 if parity else 2, keepdims=True) * s).sum(2)
        offset = 2.00001 if parity else 2
        gaps = sum(math.sqrt(offset - 2 * c[0] @ c[1]) for c in m) / (2 * len(m))
        logits = lambda i, c: 8 * (z[i, c] - 0.01 * (c == y[i]))
        return log_softmax(logits, y)(len(w)) + 0.2 * gaps

    return loss


def softmax(x, y, w):
    s = x @ (w / np.linalg.norm(w, axis=1, keepdims=True)).T
    return log_softmax(lambda i, c: s[i, c] / 0.05, y)(len(w))


def adversarial_separation(x, y, w):
    unit = lambda v: v / np.linalg.norm(v)
    layer = lambda v, part: v @ w[part]["kernel"] + w[part]["bias"]
    guess = lambda v: unit(layer(np.maximum(layer(unit(v), "hidden"), 0), "output"))
    pairs = zip(x, second_view(x), strict=True)
    return -1500 * mean(mean((unit(t) * guess(v)) ** 2) for v, t in pairs)
