"""Double loops of the losses against class weights."""

import math

import numpy as np

from tests.losses.loops.common import cosines, log_softmax, mean


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


def psi(c, margin):
    angle = math.acos(max(-1, min(1, c)))
    k = math.floor(angle * margin / math.pi)
    return (-1) ** k * math.cos(margin * angle) - 2 * k


def multiple_angle(with_weights):
    def loss(x, y, w):
        s, size = cosines(x, w), np.linalg.norm(x, axis=1)
        length = np.linalg.norm(w, axis=1) if with_weights else np.ones(len(w))

        def logits(i, c):
            return size[i] * length[c] * (psi(s[i, c], 4) if c == y[i] else s[i, c])

        return log_softmax(logits, y)(len(w))

    return loss


def sub_center_arc_face(x, y, w):
    def logits(i, c):
        near = max(cosines(x[i : i + 1], w[c])[0])
        return 64 * (arc(near) if c == y[i] else near)

    return log_softmax(logits, y)(len(w))


def soft_triple(x, y, w):
    def logits(i, c):
        s = cosines(x[i : i + 1], w[c])[0]
        share = np.exp(s / 0.1) / np.exp(s / 0.1).sum()
        return 20 * ((share * s).sum() - 0.01 * (c == y[i]))

    return log_softmax(logits, y)(len(w))


def proxy_nca(scale):
    def loss(x, y, w):
        s = cosines(x, w)
        return log_softmax(lambda i, c: -scale * (2 - 2 * s[i, c]), y)(len(w))

    return loss


def p2s_grad(x, y, w):
    s = cosines(x, w)
    return mean((s[i, c] - (c == y[i])) ** 2 for i in range(len(x)) for c in range(len(w)))
