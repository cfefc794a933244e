"""Double loops of the losses on rankings and distributions.

The anchor is a positive of itself in the losses of average precision.
"""

import math

import numpy as np

from tests.losses.loops.common import (
    cosines,
    distance,
    each_anchor,
    logistic,
    mean,
    non_zero,
    second_view,
)


def step(t, s, i, others):
    """The soft number of `others` ahead of i."""
    return sum(logistic((s[j] - s[i]) / t) for j in others if j != i)


def angular(x, y, w):
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    t = math.tan(math.radians(40)) ** 2
    return mean(
        math.log(
            1 + sum(math.exp(4 * t * (u[a] + u[i]) @ u[j] - 2 * (1 + t) * u[a] @ u[i]) for j in n)
        )
        for a, p, n in each_anchor(y)
        for i in p
    )


def soft_margin_histogram(margins):
    histogram = np.zeros(10)
    for m in margins:
        place = min((m + 2) / 0.4, 9)
        low = int(place)
        histogram[low] += 1 - (place - low)
        histogram[min(low + 1, 9)] += place - low
    return histogram / histogram.sum()


def margins(x, y):
    d = distance(x)
    return [d[a, i] - d[a, j] for a, p, n in each_anchor(y) for i in p for j in n]


def dynamic_soft_margin(x, y, w, histogram=None):
    found = margins(x, y)
    below = np.cumsum(soft_margin_histogram(found) if histogram is None else histogram)
    return mean(below[min(int((m + 2) / 0.4), 9)] * m for m in found)


def fast_ap(x, y, w):
    d = 2 - 2 * cosines(x, x)

    def bins(a, others):
        return [sum(max(0, 1 - abs(d[a, j] - 0.4 * r) / 0.4) for j in others) for r in range(11)]

    rows = []
    for a, p, n in each_anchor(y):
        if p:
            positive, total = bins(a, p), bins(a, p + n)
            part = [
                positive[r] * sum(positive[: r + 1]) / sum(total[: r + 1])
                for r in range(11)
                if positive[r] > 0
            ]
            rows.append(1 - sum(part) / len(p))
    return mean(rows)


def histogram(x, y, w):
    s = cosines(x, x)
    found = {True: np.zeros(101), False: np.zeros(101)}
    for a, p, n in each_anchor(y):
        for j in p + n:
            for r in range(101):
                found[j in p][r] += max(0, 1 - abs(s[a, j] - (0.02 * r - 1)) / 0.02)
    positive, negative = (found[k] / found[k].sum() for k in (True, False))
    return sum(negative[r] * positive[: r + 1].sum() for r in range(101))


def manifold(x, y, w):
    points, n = np.concatenate([x, w]), len(x)
    s = np.exp(2 * np.maximum(cosines(points, points), 0))
    np.fill_diagonal(s, 0)
    d = s.sum(1) ** -0.5
    f = 0.2 * np.linalg.inv(np.eye(len(points)) - 0.8 * d[:, None] * s * d)

    def term(scores):
        rows = []
        for i in range(n):
            gaps = [scores[i, k] - scores[i, y[i]] + 5e-4 for k in range(len(w)) if k != y[i]]
            rows.append(math.log(1 + sum(math.exp(g) for g in gaps if g >= 0)))
        return mean(rows)

    return term(f[:n, n:]) + term(cosines(f[:n], f[n:]))


def pnp(x, y, w):
    s = cosines(x, x)
    return mean(mean(step(0.01, s[a], i, n) for i in [*p, a]) for a, p, n in each_anchor(y) if p)


def ranked_list(x, y, w):
    d, alpha, b = distance(x), 1.2, 0.8

    def row(a, p, n):
        far = [d[a, j] - b for j in p if d[a, j] > b]
        near = [alpha - d[a, j] for j in n if d[a, j] < alpha]
        weights = [math.exp(10 * v) for v in near]
        small = 1e-5 * len(y)
        pull = sum(far) / (len(far) + small)
        push = sum(u * v for u, v in zip(weights, near, strict=True)) / (sum(weights) + small)
        return 0.5 * pull + 0.5 * push

    return mean(row(*r) for r in each_anchor(y))


def recall_at_k(x, y, w):
    s = cosines(x, x)

    def row(a, p, n):
        ranks = [1 + step(0.01, s[a], i, p + n) for i in p]
        return mean(
            1 - min(sum(logistic(k - r) for r in ranks), k) / min(len(p), k)
            for k in (1, 2, 4, 8, 16)
        )

    return mean(row(a, p, n) for a, p, n in each_anchor(y) if p)


def upper(t):
    """The step function from above."""
    if t <= 0:
        return logistic(t / 0.01)
    return 0.5 + logistic(min(t, 0.05) / 0.01) + 100 * max(t - 0.05, 0)


def happier(x, y, w, alpha=1.0, anchors=None):
    s, trees = cosines(x, x), y.reshape(len(y), -1)
    everyone, top = range(len(y)), trees.shape[1]

    def row(a):
        level = [sum(trees[a] == trees[j]) for j in everyone]
        relevance = [(v / top) ** alpha / level.count(v) if v else 0 for v in level]
        total = 0
        for k in everyone:
            ahead = [j for j in everyone if j != k and s[a, j] >= s[a, k]]
            gain = relevance[k] + sum(min(relevance[j], relevance[k]) for j in ahead)
            rank = 1 + sum(level[j] >= level[k] for j in ahead)
            rank += sum(upper(s[a, j] - s[a, k]) for j in everyone if level[j] < level[k])
            total += gain / rank if level[k] else 0
        return 1 - total / sum(relevance)

    return mean(row(a) for a in (everyone if anchors is None else anchors))


def roadmap(x, y, w):
    s = cosines(x, x)

    def row(a, p, n):
        p = [*p, a]
        first = {i: 1 + sum(s[a, j] >= s[a, i] for j in p if j != i) for i in p}
        return 1 - mean(first[i] / (first[i] + sum(upper(s[a, j] - s[a, i]) for j in n)) for i in p)

    pull = non_zero(0.9 - s[a, j] for a, p, _ in each_anchor(y) for j in p)
    push = non_zero(s[a, j] - 0.6 for a, _, n in each_anchor(y) for j in n)
    return 0.5 * mean(row(*r) for r in each_anchor(y)) + 0.5 * (pull + push)


def smooth_ap(x, y, w):
    s = cosines(x, x)

    def row(a, p, n):
        p = [*p, a]
        return 1 - mean((1 + step(0.01, s[a], i, p)) / (1 + step(0.01, s[a], i, p + n)) for i in p)

    return mean(row(*r) for r in each_anchor(y))


def vic_reg(x, y, w):
    views = [x, second_view(x)]
    pull = mean(((views[0] - views[1]) ** 2).ravel().tolist())
    spread = sum(mean(max(0, 1 - math.sqrt(v.var(ddof=1) + 1e-4)) / 2 for v in z.T) for z in views)
    crossed, size = 0, x.shape[1]
    for z in views:
        c = np.cov(z.T)
        crossed += sum(c[i, j] ** 2 for i in range(size) for j in range(size) if i != j) / size
    return 25 * pull + 25 * spread + crossed
