"""The losses under test. A new loss is a new row here: every law then runs on it.

A row is (name, hyper-parameters, naive double loop). The double loops follow the papers in plain numpy
and know nothing of the library: `sim` is the cosine matrix, `same` the matrix of equal labels.
"""

import math

import numpy as np

LABELS = np.array([3, 0, 1, 0, 2, 4, 0, 1, 5, 2, 0, 1, 3, 0, 2, 1, 0, 4, 1, 3, 2, 6], np.int32)
CLASSES, DIM = 11, 8  # classes 7..10 never occur; 11 is no multiple of any device count


def cosines(a, b):
    a = a / np.linalg.norm(a, axis=1, keepdims=True)
    b = b / np.linalg.norm(b, axis=1, keepdims=True)
    return a @ b.T


def each_anchor(labels):
    """(anchor, its positives, its negatives)."""
    n = len(labels)
    for a in range(n):
        yield (
            a,
            [j for j in range(n) if j != a and labels[j] == labels[a]],
            [j for j in range(n) if labels[j] != labels[a]],
        )


def mean(values, empty=0.0):
    values = list(values)
    return sum(values) / len(values) if values else empty


def non_zero(values):
    return mean(v for v in values if v > 0)


def distance(x):
    return np.sqrt(np.maximum(2 - 2 * cosines(x, x), 0))


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


def softmax(own, scale):
    """Cross entropy of scale * cosine, where `own` changes the cosine of the sample's class."""

    def loss(x, y, w):
        logits = scale * cosines(x, w)
        rows = []
        for i, c in enumerate(y):
            row = logits[i].copy()
            row[c] = scale * own(row[c] / scale)
            rows.append(math.log(np.exp(row - row.max()).sum()) + row.max() - row[c])
        return mean(rows)

    return loss


def proxy_anchor(x, y, w):
    s = cosines(w, x)
    pull = [
        math.log(1 + sum(math.exp(-32 * (s[c, j] - 0.1)) for j in range(len(y)) if y[j] == c))
        for c in sorted(set(y.tolist()))
    ]
    push = [
        math.log(1 + sum(math.exp(32 * (s[c, j] + 0.1)) for j in range(len(y)) if y[j] != c))
        for c in range(len(w))
    ]
    return mean(pull) + mean(push)


def arc(c):
    return math.cos(math.acos(c) + math.radians(28.6))


LOSSES = {
    "arc_face": ({}, softmax(arc, 64)),
    "contrastive": ({}, contrastive),
    "cos_face": ({}, softmax(lambda c: c - 0.35, 64)),
    "multi_similarity": ({}, multi_similarity),
    "normalized_softmax": ({}, softmax(lambda c: c, 20)),
    "nt_xent": ({}, nt_xent),
    "proxy_anchor": ({}, proxy_anchor),
    "sup_con": ({}, sup_con),
    "threshold_consistent_margin": ({}, threshold_consistent_margin),
    "triplet_margin": ({}, triplet_margin),
}
