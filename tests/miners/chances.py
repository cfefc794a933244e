"""What the miners of the ICML 2020 study draw, by definition: naive loops that know nothing of the library.

`CHANCES[name](d, y, a, ...)` is {(p, n): probability} of anchor a's triplet; what is left is the probability that
it has none. `d` are distances [b, n], `y` labels.
"""

import itertools
import math

import numpy as np


def partners(y, a):
    """(positives, negatives) of an anchor."""
    same = [j for j in range(len(y)) if y[j] == y[a] and j != a]
    return same, [j for j in range(len(y)) if y[j] != y[a]]


def uniformly(chosen):
    return {x: 1 / len(chosen) for x in chosen}


def by_weight(weights):
    total = sum(weights.values())
    return {x: w / total for x, w in weights.items()} if total > 0 else {}


def both(positives, negatives):
    return {
        (p, n): u * v for (p, u), (n, v) in itertools.product(positives.items(), negatives.items())
    }


def semihard(d, y, a, margin=0.2):
    pos, neg = partners(y, a)
    found = {}
    for p in pos:
        near = [n for n in neg if d[a, p] < d[a, n] < d[a, p] + margin]
        for n, u in uniformly(near or neg).items():
            found[p, n] = u / len(pos)
    return found


def softhard(d, y, a):
    pos, neg = partners(y, a)
    if not pos or not neg:
        return {}
    hard_pos = [p for p in pos if d[a, p] > min(d[a, n] for n in neg)]
    hard_neg = [n for n in neg if d[a, n] < max(d[a, p] for p in pos)]
    return both(uniformly(hard_pos or pos), uniformly(hard_neg or neg))


def distance(d, y, a, dim=4, cutoff=0.5):
    pos, neg = partners(y, a)

    def weight(n):
        size = max(d[a, n], cutoff)
        return 1 / (size ** (dim - 2) * (1 - size**2 / 4) ** ((dim - 3) / 2))

    return both(uniformly(pos), by_weight({n: weight(n) for n in neg}))


def rho_distance(d, y, a, p_switch=0.2, dim=4):
    pos, _ = partners(y, a)
    found = {k: (1 - p_switch) * u for k, u in distance(d, y, a, dim).items()}
    for p in pos:
        found[a, p] = p_switch / len(pos)
    return found


def random_distance(d, y, a):
    """Over all permutations of the labels."""
    found: dict[tuple[int, int], float] = {}
    for order in itertools.permutations(range(len(y))):
        for k, u in distance(d, y[list(order)], a).items():
            found[k] = found.get(k, 0) + u / math.factorial(len(y))
    return found


def parametric(d, y, a, mode="uniform", points=7, low=0.2, high=1.4):
    pos, neg = partners(y, a)
    step = (high - low) / (points - 1)

    def weight(n):
        if not low <= d[a, n] <= high:
            return 0
        end = low + step * max(math.ceil((d[a, n] - low) / step) - 1, 0)
        kept = {
            "uniform": True,
            "hards": end < 0.5 + 1e-6,
            "veryhards": end < 0.3 + 1e-6,
            "semihards": 0.3 - 1e-6 < end < 0.7 + 1e-6,
        }[mode]
        return max(float(kept), 1e-15)

    return both(uniformly(pos), by_weight({n: weight(n) for n in neg}))


def chi_square(counts, chances, draws):
    """(statistic - its mean) / its standard deviation, cells with few expected draws taken together."""
    cells = sorted(chances, key=chances.get)
    assert not set(counts) - set(cells), "a draw of probability 0"
    observed = [counts.get(c, 0) for c in cells] + [draws - sum(counts.values())]
    expected = [draws * chances[c] for c in cells]
    expected.append(draws - sum(expected))
    if expected[-1] < 1e-6 * draws:  # always a triplet
        assert observed.pop() == 0
        expected.pop()
    while len(expected) > 1 and expected[0] < 8:
        (o, e), observed, expected = (observed[0], expected[0]), observed[1:], expected[1:]
        observed[0] += o
        expected[0] += e
    observed, expected = np.array(observed), np.array(expected)
    freedom = max(len(expected) - 1, 1)
    return (np.sum((observed - expected) ** 2 / expected) - freedom) / math.sqrt(2 * freedom)


CHANCES = {
    "semihard": semihard,
    "softhard": softhard,
    "distance": distance,
    "rho_distance": rho_distance,
    "random_distance": random_distance,
    "parametric": parametric,
}
