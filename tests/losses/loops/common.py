"""What the double loops have in common."""

import math

import jax
import numpy as np

KEY = jax.random.key(4)  # of every draw


def cosines(a, b):
    a = a / np.linalg.norm(a, axis=1, keepdims=True)
    b = b / np.linalg.norm(b, axis=1, keepdims=True)
    return a @ b.T


def each_anchor(labels):
    """(anchor, its positives, its negatives); of label sets those that share two or more, and none."""
    n = len(labels)
    for a in range(n):
        if labels.ndim == 2:
            shared = [sum(labels[a] * labels[j]) for j in range(n)]
            positive, negative = [s >= 2 for s in shared], [s == 0 for s in shared]
        else:
            positive = [labels[j] == labels[a] for j in range(n)]
            negative = [not same for same in positive]
        yield (
            a,
            [j for j in range(n) if j != a and positive[j]],
            [j for j in range(n) if j != a and negative[j]],
        )


def mean(values, empty=0.0):
    values = list(values)
    return sum(values) / len(values) if values else empty


def non_zero(values):
    return mean(v for v in values if v > 0)


def distance(x):
    return np.sqrt(np.maximum(2 - 2 * cosines(x, x), 0))


def softplus(v):
    return math.log1p(math.exp(v))


def log_softmax(logits, y):
    """-log softmax of each sample's class, with logits(i, c)."""

    def row(i, own, classes):
        values = [logits(i, c) for c in range(classes)]
        top = max(values)
        return math.log(sum(math.exp(v - top) for v in values)) + top - values[own]

    return lambda classes: mean(row(i, own, classes) for i, own in enumerate(y.tolist()))


def logistic(z):
    return 1 / (1 + math.exp(-z)) if z > -700 else 0.0


def second_view(x):
    """The references of a loss on two views: row by row a function of the batch."""
    return 0.4 * x[:, ::-1] + 0.1 * x
