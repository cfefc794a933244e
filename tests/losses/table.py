"""The losses under test. A new loss is a new row here: every law then runs on it.

A row is (name, hyper-parameters, naive double loop), its key "name/variant" for further hyper-parameters.
The double loops follow the papers in plain numpy and know nothing of the library: `sim` is the cosine
matrix, `same` the matrix of equal labels.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

LABELS = np.array([3, 0, 1, 0, 2, 4, 0, 1, 5, 2, 0, 1, 3, 0, 2, 1, 0, 4, 1, 3, 2, 6], np.int32)
CLASSES, DIM = 11, 8  # classes 7..10 never occur; 11 is no multiple of any device count


def cosines(a, b):
    a = a / np.linalg.norm(a, axis=1, keepdims=True)
    b = b / np.linalg.norm(b, axis=1, keepdims=True)
    return a @ b.T


def label_sets(labels):
    """Labels that are sets, multi-hot: c, c + 1, c + 2, and one more where c is odd.

    Neighbouring classes share two, others one or none.
    """
    sets = np.zeros((len(labels), 14), np.int32)
    for row, c in zip(sets, np.asarray(labels), strict=True):
        row[[c, c + 1, c + 2]] = 1
        row[13] = c % 2
    return sets


def paths(labels):
    """Labels that are paths in a tree of three levels, coarse to fine."""
    labels = np.asarray(labels)
    return np.stack([labels // 4, labels // 2, labels], 1)


TWO_SHARED = {"name": "overlap", "threshold": 2}


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


def softplus(v):
    return math.log1p(math.exp(v))


def log_softmax(logits, y):
    """-log softmax of each sample's class, with logits(i, c)."""

    def row(i, own, classes):
        values = [logits(i, c) for c in range(classes)]
        top = max(values)
        return math.log(sum(math.exp(v - top) for v in values)) + top - values[own]

    return lambda classes: mean(row(i, own, classes) for i, own in enumerate(y.tolist()))


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


BOTH = {"near": "nt_xent", "far": {"name": "triplet_margin"}}


# Rankings and distributions. The anchor is a positive of itself in the losses of average precision.


def logistic(z):
    return 1 / (1 + math.exp(-z)) if z > -700 else 0.0


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


def second_view(x):
    """The references of a loss on two views: row by row a function of the batch."""
    return 0.4 * x[:, ::-1] + 0.1 * x


def vic_reg(x, y, w):
    views = [x, second_view(x)]
    pull = mean(((views[0] - views[1]) ** 2).ravel().tolist())
    spread = sum(mean(max(0, 1 - math.sqrt(v.var(ddof=1) + 1e-4)) / 2 for v in z.T) for z in views)
    crossed = 0
    for z in views:
        c = np.cov(z.T)
        crossed += sum(c[i, j] ** 2 for i in range(DIM) for j in range(DIM) if i != j) / DIM
    return 25 * pull + 25 * spread + crossed


# As the ICML 2020 system computes them. Draws are by the rule of `selection.draw`.
KEY = jax.random.key(4)


def draw(key, allowed):
    return allowed[int(jax.random.randint(key, (1,), 0, len(allowed))[0])]


def one_positive(y, places):
    """(anchor, one positive, all negatives); `places` are positions in the whole batch, if not all of it is here."""
    places = np.arange(len(y)) if places is None else places
    for a, p, n in each_anchor(y):
        if p:
            yield a, draw(jax.random.fold_in(KEY, places[a]), p), n


def norms(x):
    return 0.005 * mean(math.sqrt(sum(v * v)) for v in x)


def revisiting_n_pair(x, y, w, places=None):
    s = x @ x.T
    return norms(x) + mean(
        math.log(1 + sum(math.exp(s[a, j] - s[a, i]) for j in n))
        for a, i, n in one_positive(y, places)
    )


def revisiting_angular(x, y, w, places=None):
    u = x / np.linalg.norm(x, axis=1, keepdims=True)

    def row(a, i, n):
        raw = sum(math.exp(max(min(x[a] @ (x[j] - x[i]), 50), -50)) for j in n)
        gap = lambda j: 4 * (u[a] + u[i]) @ u[j] - 4 * u[a] @ u[i]  # tan 45 degrees = 1
        return math.log(1 + raw) + 2 * math.log(1 + sum(math.exp(gap(j)) for j in n))

    return norms(x) + mean(row(*r) for r in one_positive(y, places))


def revisiting_quadruplet(x, y, w, places=None):
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


def revisiting_margin(parity):
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


def revisiting_multi_similarity(x, y, w):
    s, rows = cosines(x, x), []
    for a, p, n in each_anchor(y):
        far = [s[a, j] for j in p if s[a, j] - 0.1 < max(s[a, k] for k in n)]
        near = [s[a, k] for k in n if p and s[a, k] + 0.1 > min(s[a, j] for j in p)]
        if far and near:
            pull = math.log(1 + sum(math.exp(-2 * (v - 0.5)) for v in far)) / 2
            rows.append(pull + math.log(1 + sum(math.exp(40 * (v - 0.5)) for v in near)) / 40)
    return mean(rows)


def revisiting_proxy_nca(x, y, w):
    d = 2 - 2 * cosines(x, w)
    return mean(
        9 * d[i, c] + math.log(sum(math.exp(-9 * d[i, k]) for k in range(len(w)) if k != c))
        for i, c in enumerate(y)
    )


def revisiting_generalized_lifted_structure(x, y, w):
    d = lambda a, j: math.sqrt(sum((x[a] - x[j] + 1e-6) ** 2))

    def row(a, p, n):
        pull = math.log(sum(math.exp(d(a, j)) for j in p))
        return max(pull + math.log(sum(math.exp(1 - d(a, j)) for j in n)), 0)

    return norms(x) + mean(row(*r) for r in each_anchor(y) if r[1])


def revisiting_snr(x, y, w):
    r = lambda a, j: np.var(x[a] - x[j]) / np.var(x[a])
    triplets = [(a, i, j) for a, p, n in each_anchor(y) for i in p for j in n]
    penalty = mean(abs(sum(x[a])) for a, _, _ in triplets)
    return non_zero(r(a, i) - r(a, j) + 0.2 for a, i, j in triplets) + 0.005 * penalty


def revisiting_histogram(nbins, parity=False):
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


def revisiting_soft_triple(parity):
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


def revisiting_softmax(x, y, w):
    s = x @ (w / np.linalg.norm(w, axis=1, keepdims=True)).T
    return log_softmax(lambda i, c: s[i, c] / 0.05, y)(len(w))


def revisiting_adversarial_separation(x, y, w):
    unit = lambda v: v / np.linalg.norm(v)
    layer = lambda v, part: v @ w[part]["kernel"] + w[part]["bias"]
    guess = lambda v: unit(layer(np.maximum(layer(unit(v), "hidden"), 0), "output"))
    pairs = zip(x, second_view(x), strict=True)
    return -1500 * mean(mean((unit(t) * guess(v)) ** 2) for v, t in pairs)


# Losses that draw where there is no miner, by the position of the anchor in the batch.
DRAWN = {
    "revisiting_angular": revisiting_angular,
    "revisiting_n_pair": revisiting_n_pair,
    "revisiting_quadruplet": revisiting_quadruplet,
}
# Losses whose references are a second view of the batch.
VIEWS = ("vic_reg", "revisiting_adversarial_separation")


LOSSES = {
    "angular": ({}, angular),
    "dynamic_soft_margin": ({}, dynamic_soft_margin),
    "fast_ap": ({}, fast_ap),
    "happier": ({}, happier),
    "happier/hierarchy": ({"relation": "hierarchy"}, happier),
    "histogram": ({}, histogram),
    "manifold": ({}, manifold),
    "pnp": ({}, pnp),
    "ranked_list": (dict(margin=0.4, Tn=10.0), ranked_list),
    "recall_at_k": ({}, recall_at_k),
    "roadmap": ({}, roadmap),
    "smooth_ap": ({}, smooth_ap),
    "vic_reg": ({}, vic_reg),
    "arc_face": ({}, softmax(arc, 64)),
    "contrastive": ({}, contrastive),
    "cos_face": ({}, softmax(lambda c: c - 0.35, 64)),
    "multi_similarity": ({}, multi_similarity),
    "multi_similarity/overlap": ({"relation": TWO_SHARED}, multi_similarity),
    "normalized_softmax": ({}, softmax(lambda c: c, 20)),
    "nt_xent": ({}, nt_xent),
    "proxy_anchor": ({}, proxy_anchor),
    "sup_con": ({}, sup_con),
    "threshold_consistent_margin": ({}, threshold_consistent_margin),
    "triplet_margin": ({}, triplet_margin),
    "circle": ({}, circle),
    "generalized_lifted_structure": ({}, generalized_lifted_structure),
    "instance": ({"gamma": 8.0}, instance),  # at 64 the batch has hardly any loss
    "intra_pair_variance": ({"pos_eps": 0.1, "neg_eps": 0.2}, intra_pair_variance),
    "lifted_structure": ({}, lifted_structure),
    "margin": ({}, lambda *arrays: margin(0)(*arrays)[0]),
    "margin/learned": ({"learn_beta": True, "nu": 0.1}, margin_learned),
    "margin/per_class": ({"learn_beta": True, "nu": 0.1, "per_class": True}, margin_per_class),
    "n_pairs": ({}, n_pairs),
    "nca": ({}, nca),
    "signal_to_noise_ratio_contrastive": ({}, signal_to_noise_ratio_contrastive),
    "triplet_margin/smooth": ({"smooth_loss": True}, triplet_variant(False, softplus)),
    "triplet_margin/swap": ({"swap": True}, triplet_variant(True, lambda v: max(v, 0))),
    "tuplet_margin": ({}, tuplet_margin),
    "cross_batch_memory": ({"loss": "triplet_margin", "memory_size": 30}, triplet_margin),
    "generic_pair": ({"rows": nearest_rows, "margin": 0.4}, generic_pair),
    "large_margin_softmax": ({}, multiple_angle(True)),
    "multiple": ({"losses": BOTH, "weights": {"near": 1, "far": 0.5}}, multiple),
    "p2s_grad": ({}, p2s_grad),
    "proxy_nca": ({}, proxy_nca(1)),
    "proxy_nca_pp": ({}, proxy_nca(9)),
    "sigmoid": ({}, sigmoid),
    "soft_triple": ({}, soft_triple),
    "sphere_face": ({}, multiple_angle(False)),
    "sub_center_arc_face": ({}, sub_center_arc_face),
    **{name: ({}, loop) for name, loop in DRAWN.items()},
    "revisiting_adversarial_separation": ({"proj_dim": 5}, revisiting_adversarial_separation),
    "revisiting_arc_face": ({}, softmax(lambda c: math.cos(math.acos(c) + 0.5), 16)),
    "revisiting_generalized_lifted_structure": ({}, revisiting_generalized_lifted_structure),
    "revisiting_histogram": ({}, revisiting_histogram(65)),
    "revisiting_histogram/parity": (
        {"nbins": 11, "parity": True},
        revisiting_histogram(11, parity=True),
    ),
    "revisiting_margin": ({}, revisiting_margin(False)),
    "revisiting_margin/parity": ({"parity": True}, revisiting_margin(True)),
    "revisiting_multi_similarity": ({}, revisiting_multi_similarity),
    "revisiting_proxy_nca": ({}, revisiting_proxy_nca),
    "revisiting_snr": ({}, revisiting_snr),
    "revisiting_soft_triple": ({}, revisiting_soft_triple(False)),
    "revisiting_soft_triple/parity": ({"parity": True}, revisiting_soft_triple(True)),
    "revisiting_softmax": ({}, revisiting_softmax),
}
# Rows whose labels are not classes: what to make of these.
LABELLED = {"happier/hierarchy": paths, "multi_similarity/overlap": label_sets}
# Losses whose batch has an order, or which are not a function of one batch: tests/losses/test_wrappers.py.
# With the hyper-parameters that tests/losses/conformance.py measures them with.
APART = {"self_supervised": {"loss": "nt_xent"}}
