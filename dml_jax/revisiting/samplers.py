"""Samplers of the ICML 2020 study (Roth et al., "Revisiting Training Strategies", and its code).

They are in the table of `dml_jax.samplers`, under the same names. Four of them choose a batch out of a big batch by the
stored embeddings of its images (`plan` needs `embeddings=`), as that code was meant to.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from dml_jax.bound import Bound
from dml_jax.errors import UserError
from dml_jax.parameters import NonNegativeFloat, NonNegativeInt, PositiveInt, checked
from dml_jax.sampling import (
    Classes,
    EpochSampler,
    PlanInputs,
    Rows,
    Sampler,
    StorageSampler,
    check_groups,
    choose,
    groups_of,
    remark_small_classes,
)

# choose(rng, x [b, d], count) -> rows of x
Coreset = Callable[[np.random.Generator, Float[np.ndarray, "b d"], int], list[int]]
# costs(x [b, d], places [candidates, s]) -> [candidates]
Costs = Callable[
    [Float[np.ndarray, "b d"], Int[np.ndarray, "candidates s"]],
    Float[np.ndarray, " candidates"],
]


@checked("sampler")
def class_random(m: PositiveInt = 2, *, length: PositiveInt | None = None) -> Sampler:
    """Plans batch_size / m times a class, and m images of it, all drawn uniformly with replacement.

    A class can be in a batch several times (of g draws among C classes C (1 - (1 - 1/C)^g) are expected to differ), and
    an image can be its own positive under another crop, in a share 1 / n_c of the pairs.

    Args:
      m: images per class; 2 by default, as in the study.
      length: images an epoch; None (the default) for the size of the set.

    Raises:
      UserError: from `plan`: m does not divide batch_size; m > 1 where no class has two images.

    Example:
      >>> import numpy as np
      >>> from dml_jax import samplers
      >>> labels = np.array([0, 0, 1, 1, 2, 2])
      >>> labels[samplers.class_random().plan(labels, 6, seed=0, epoch=0)].tolist()
      [[0, 0, 0, 0, 1, 1]]

    This is the default of the ICML 2020 system, on which its published figures rest; `m_per_class` draws without
    replacement.
    """
    return EpochSampler(
        name="class_random",
        length=length,
        draw=Bound(_draw_classes, m=m),
        refuse=Bound(check_groups, m=m),
        remark=Bound(remark_small_classes, m=m),
    )


def _draw_classes(inputs: PlanInputs, *, m: int) -> Int[np.ndarray, "steps batch"]:
    groups = inputs.steps * groups_of(inputs.batch_size, m)
    drawn = draw_with_replacement(inputs.generator(), inputs.classes, groups, m)
    return drawn.reshape(inputs.steps, inputs.batch_size)


def draw_with_replacement(
    rng: np.random.Generator, classes: Classes, groups: int, m: int
) -> Int[np.ndarray, "groups m"]:
    """Draws so many times a class and m of its images, uniformly with replacement."""
    drawn = rng.integers(0, len(classes.sizes), groups)
    return classes.images(drawn, rng.integers(0, classes.sizes[drawn][:, None], (groups, m)))


@checked("sampler")
def full_random(*, length: PositiveInt | None = None) -> Sampler:
    """Plans images of classes drawn uniformly, with replacement; the last one shares the class of another.

    The last image of a batch is any image of the class of a random one before it, so that there is a positive pair.

    Args:
      length: images an epoch; None (the default) for the size of the set.

    Raises:
      UserError: from `plan`: batch_size below 2; no class has two images.

    Example:
      >>> import numpy as np
      >>> from dml_jax import samplers
      >>> labels = np.array([0, 0, 1, 1, 2, 2])
      >>> *others, last = labels[samplers.full_random().plan(labels, 6, seed=0, epoch=0)][0]
      >>> bool(last in others)
      True

    The ICML 2020 system's `full_random`.
    """
    return EpochSampler(
        name="full_random", length=length, draw=_draw_full_random, refuse=_refuse_full_random
    )


def _refuse_full_random(classes: Classes, batch_size: int) -> None:
    if batch_size < 2:
        raise UserError(
            f"batch_size={batch_size} has no place for two images of a class; at least 2 is accepted"
        )
    check_groups(classes, 2, m=2)


def _draw_full_random(inputs: PlanInputs) -> Int[np.ndarray, "steps batch"]:
    rng, classes = inputs.generator(), inputs.classes
    steps, others = inputs.steps, inputs.batch_size - 1
    free = draw_with_replacement(rng, classes, steps * others, 1).reshape(steps, others)
    partner = free[np.arange(steps), rng.integers(0, others, steps)]
    shared = classes.of_image[partner]
    ranks = rng.integers(0, classes.sizes[shared])
    return np.concatenate([free, classes.images(shared, ranks[:, None])], axis=1)


@checked("sampler")
def greedy_coreset(
    m: PositiveInt = 2,
    *,
    softened: bool = False,
    big_batch: PositiveInt = 512,
    project: PositiveInt | None = None,
    updates: bool = True,
    refresh: NonNegativeInt = 0,
    length: PositiveInt | None = None,
) -> Sampler:
    """Plans batches that cover the embedding space: k-centre greedy picks, joined by images of their classes.

    batch_size / m images are picked from a big batch, drawn without replacement (the whole set where that is smaller):
    the first at random, each other one the farthest from those picked before,

        next = argmax_j min_{i picked} |x_j - x_i|^2

    Each is followed by m - 1 other images of its class, without replacement where there are enough. Two picks may be
    of one class.

    Args:
      m: images per class; 2 by default, as in the study.
      softened: True picks uniformly among the farthest 3 % (at or above the 97th percentile); False by default.
      big_batch: images to pick from; 512 by default, as in the study.
      project: dimensions of a random normal projection of the embeddings, drawn for every step, which keeps squared
        distances on average; None (the default) for none.
      updates: True (the default) where the embeddings of a training step take the places of the stored ones.
      refresh: epochs between passes that embed all training images anew; 0 (the default) for only the one before
        training.
      length: images an epoch; None (the default) for the size of the set.

    Raises:
      UserError: from `plan`: m does not divide batch_size; more picks than images in the big batch; m > 1 where no
        class has two images; embeddings are missing or not finite.

    Example:
      >>> import numpy as np
      >>> from dml_jax import samplers
      >>> line = np.array([[0.0], [0.1], [5.0], [9.0], [10.0]])
      >>> plan = samplers.greedy_coreset(m=1).plan(range(5), 3, seed=0, epoch=0, embeddings=line)
      >>> plan.tolist()  # a random one, the farthest from it, the farthest from both
      [[3, 0, 2]]

    The ICML 2020 system's `greedy_coreset` as it was meant: there positions in one random big batch are looked up in
    another, so that the picks are random ones.
    """
    choose_rows = Bound(k_center_greedy, softened=softened)
    return _coreset("greedy_coreset", choose_rows, m, big_batch, project, updates, refresh, length)


def k_center_greedy(
    rng: np.random.Generator, x: Float[np.ndarray, "b d"], count: int, *, softened: bool
) -> list[int]:
    """Returns `count` rows of x, a random one and each time the one farthest from those before."""
    distances = squared_distances(x)
    picks = [int(rng.integers(len(x)))]
    nearest = distances[picks[0]].copy()
    while len(picks) < count:
        # Coincident images are all at 0, and none is to be picked twice.
        nearest[picks] = -1
        pick = int(nearest.argmax())
        if softened:
            left = nearest >= max(np.percentile(nearest, 97), 0)
            pick = int(rng.choice(np.flatnonzero(left)))
        picks.append(pick)
        nearest = np.minimum(nearest, distances[pick])
    return picks


@checked("sampler")
def d2_coreset(
    m: PositiveInt = 2,
    *,
    power: NonNegativeFloat = 1.0,
    big_batch: PositiveInt = 512,
    project: PositiveInt | None = None,
    updates: bool = True,
    refresh: NonNegativeInt = 0,
    length: PositiveInt | None = None,
) -> Sampler:
    """Plans batches of images drawn by density and by the distance from those drawn before, and of their classes.

    batch_size / m images are drawn from a big batch as in `greedy_coreset`, and joined by images of their classes, but
    with the probabilities

        p_j ~ N(x_j; mu, S) (sum_{i picked} |x_j - x_i|^2)^power    among those not picked

    mu and S are the big batch's mean and covariance (ddof 1); the first pick is the image nearest to a draw from
    N(mu, S). Where S is singular the density is that on the span of the images. Where all weights are 0 (coincident
    images) they are those of the density.

    Args:
      m: images per class; 2 by default, as in the study.
      power: of the sums of distances, at least 0 (`data_d2_coreset_lambda` of the study); 1 by default.
      big_batch: images to pick from; 512 by default, as in the study.
      project: dimensions of a random projection, as in `greedy_coreset`; None (the default) for none.
      updates: as in `greedy_coreset`; True by default.
      refresh: as in `greedy_coreset`; 0 by default.
      length: images an epoch; None (the default) for the size of the set.

    Raises:
      UserError: as `greedy_coreset`.

    Example:
      >>> import numpy as np
      >>> from dml_jax import samplers
      >>> x = np.random.default_rng(0).normal(size=(20, 3))
      >>> sampler = samplers.d2_coreset(m=2, power=2)
      >>> sampler.plan(np.arange(20) // 4, 8, seed=0, epoch=0, embeddings=x).shape
      (2, 8)

    The ICML 2020 system's `d2_coreset` as it was meant (see `greedy_coreset`); it adds distances up, where k-means++
    takes the least. Densities are in logarithms here: in high dimensions they leave the range of floating point
    numbers.
    """
    choose_rows = Bound(d2_sampling, power=power)
    return _coreset("d2_coreset", choose_rows, m, big_batch, project, updates, refresh, length)


def d2_sampling(
    rng: np.random.Generator, x: Float[np.ndarray, "b d"], count: int, *, power: float
) -> list[int]:
    """Returns `count` rows of x, drawn by density and distance as `d2_coreset` says."""
    white, draw = _whiten(rng, x)
    log_density = -0.5 * (white * white).sum(1)
    distances = squared_distances(x)
    picks = [int(((x - draw) ** 2).sum(1).argmin())]
    total = distances[picks[0]].copy()
    while len(picks) < count:
        with np.errstate(divide="ignore"):
            logits = log_density + (power * np.log(total) if power else 0)
        logits[picks] = -np.inf
        if not np.isfinite(logits).any():
            logits = log_density.copy()
            logits[picks] = -np.inf
        pick = int((logits + rng.gumbel(size=len(x))).argmax())
        picks.append(pick)
        total += distances[pick]
    return picks


def _whiten(
    rng: np.random.Generator, x: Float[np.ndarray, "b d"]
) -> tuple[Float[np.ndarray, "b r"], Float[np.ndarray, " d"]]:
    """Returns the rows in units of standard deviation along the principal axes, and a draw from their normal
    distribution."""
    mean = x.mean(0)
    values, axes = np.linalg.eigh((x - mean).T @ (x - mean) / max(len(x) - 1, 1))
    spanned = values > max(values[-1], 0) * len(values) * np.finfo(np.float64).eps
    values, axes = values[spanned], axes[:, spanned]
    draw = mean + axes @ (np.sqrt(values) * rng.normal(size=len(values)))
    return (x - mean) @ axes / np.sqrt(values), draw


def _coreset(
    name: str,
    choose_rows: Coreset,
    m: int,
    big_batch: int,
    project: int | None,
    updates: bool,
    refresh: int,
    length: int | None,
) -> Sampler:
    """Makes a sampler whose batches begin with a coreset of a big batch."""
    return StorageSampler(
        name=name,
        length=length,
        rows=Bound(
            _coreset_rows, choose_rows=choose_rows, m=m, big_batch=big_batch, project=project
        ),
        refuse=Bound(_refuse_coreset, m=m, big_batch=big_batch),
        remark=Bound(remark_small_classes, m=m),
        updates=updates,
        refresh=refresh,
    )


def _refuse_coreset(classes: Classes, batch_size: int, *, m: int, big_batch: int) -> None:
    check_groups(classes, batch_size, m=m)
    most = min(big_batch, len(classes.of_image))
    if groups_of(batch_size, m) > most:
        raise UserError(
            f"a batch of {batch_size} with m={m} begins with {batch_size // m} different images, and "
            f"there are {most} to choose from (big_batch={big_batch}); batch_size up to "
            f"{most * m} is accepted"
        )


def _coreset_rows(
    inputs: PlanInputs, *, choose_rows: Coreset, m: int, big_batch: int, project: int | None
) -> Rows:
    groups = groups_of(inputs.batch_size, m)

    def row(step: int) -> Int[np.ndarray, " batch"]:
        rng = inputs.step_generator(step)
        big = rng.choice(inputs.images, min(big_batch, inputs.images), replace=False)
        x = project_randomly(rng, inputs.embeddings[big], project)
        heads = big[choose_rows(rng, x, groups)]
        if m == 1:
            return heads
        others = inputs.classes.draw_others(rng, heads, m - 1)
        return np.concatenate([heads[:, None], others], axis=1).ravel()

    return row


@checked("sampler")
def fid_batchmatch(
    m: PositiveInt = 2,
    *,
    candidates: PositiveInt = 10,
    big_batch: PositiveInt = 512,
    project: PositiveInt | None = None,
    updates: bool = True,
    refresh: NonNegativeInt = 0,
    length: PositiveInt | None = None,
) -> Sampler:
    """Plans, of several candidate batches, the one of least Frechet distance to a big batch.

    The distance is that of normal distributions, with covariances of ddof 1,

        |mu_B - mu_S|^2 + tr S_B + tr S_S - 2 tr (S_B S_S)^(1/2)

    The trace of the root is the sum of the roots of the eigenvalues of C_S S_B C_S^T, where C_S are the centred rows of
    the candidate over (s - 1)^(1/2): it needs no root of a matrix, and singular covariances are no exception. The big
    batch is drawn as by `class_random`. A candidate is batch_size / m times a class of the big batch, uniformly with
    replacement, and m places of the big batch that hold it, without replacement.

    Args:
      m: images per class; 2 by default, as in the study.
      candidates: batches that are compared; 10 by default, as in the study.
      big_batch: images of the big batch, a multiple of m; 512 by default, as in the study.
      project: dimensions of a random projection, as in `greedy_coreset`; None (the default) for none.
      updates: as in `greedy_coreset`; True by default.
      refresh: as in `greedy_coreset`; 0 by default.
      length: images an epoch; None (the default) for the size of the set.

    Raises:
      UserError: m does not divide big_batch. From `plan`: m does not divide batch_size; m > 1 where no class has two
        images; embeddings are missing or not finite.

    Example:
      >>> import numpy as np
      >>> from dml_jax import samplers
      >>> x = np.random.default_rng(0).normal(size=(20, 3))
      >>> sampler = samplers.fid_batchmatch(big_batch=16, candidates=4)
      >>> sampler.plan(np.arange(20) // 4, 8, seed=0, epoch=0, embeddings=x).shape
      (2, 8)

    The ICML 2020 system's `fid_batchmatch`, which there stops with a NameError.
    """
    return _batchmatch(
        "fid_batchmatch", frechet_costs, m, candidates, big_batch, project, updates, refresh, length
    )


def frechet_costs(
    x: Float[np.ndarray, "b d"], places: Int[np.ndarray, "candidates s"]
) -> Float[np.ndarray, " candidates"]:
    """Returns the Frechet distance of each candidate, rows of x, to x."""
    mean = x.mean(0)
    covariance = (x - mean).T @ (x - mean) / max(len(x) - 1, 1)
    own = x[places]
    means = own.mean(1)
    centred = (own - means[:, None]) / np.sqrt(max(places.shape[1] - 1, 1))
    roots = np.linalg.eigvalsh(centred @ covariance @ centred.swapaxes(1, 2))
    # What rounding leaves of an eigenvalue 0 has a root that would count.
    least = roots.max(1, keepdims=True) * len(roots[0]) * np.finfo(np.float64).eps
    overlap = np.sqrt(np.where(roots > least, roots, 0)).sum(1)
    costs: np.ndarray = (
        ((mean - means) ** 2).sum(1) + np.trace(covariance) + (centred**2).sum((1, 2)) - 2 * overlap
    )
    return costs


@checked("sampler")
def disthist_batchmatch(
    m: PositiveInt = 2,
    *,
    bins: PositiveInt = 50,
    weight: NonNegativeFloat = 150.0,
    candidates: PositiveInt = 10,
    big_batch: PositiveInt = 512,
    project: PositiveInt | None = None,
    updates: bool = True,
    refresh: NonNegativeInt = 0,
    length: PositiveInt | None = None,
) -> Sampler:
    """Plans the candidate batch nearest to a big batch in mean, standard deviation and histogram of distances.

        |mu_B - mu_S| + |sd_B - sd_S| + weight W_1(h_B, h_S)

    sd is by coordinate (ddof 0); h are histograms of the Euclidean distances of all pairs over the range of the big
    batch's; W_1 is their Wasserstein distance, in units of distance. Big batch and candidates are drawn as by
    `fid_batchmatch`.

    Args:
      m: images per class; 2 by default, as in the study.
      bins: of the histograms; 50 by default, as in the study.
      weight: of the distance between histograms, at least 0; 150 by default, the two times 75 of the study.
      candidates: batches that are compared; 10 by default, as in the study.
      big_batch: images of the big batch, a multiple of m; 512 by default, as in the study.
      project: dimensions of a random projection, as in `greedy_coreset`; None (the default) for none.
      updates: as in `greedy_coreset`; True by default.
      refresh: as in `greedy_coreset`; 0 by default.
      length: images an epoch; None (the default) for the size of the set.

    Raises:
      UserError: as `fid_batchmatch`.

    Example:
      >>> import numpy as np
      >>> from dml_jax import samplers
      >>> x = np.random.default_rng(0).normal(size=(20, 3))
      >>> sampler = samplers.disthist_batchmatch(bins=10, big_batch=16)
      >>> sampler.plan(np.arange(20) // 4, 8, seed=0, epoch=0, embeddings=x).shape
      (2, 8)

    The ICML 2020 system's `disthist_batchmatch` as it was meant: there the heights of the bins are taken for samples,
    so that their order does not matter. Its cost has 75 (W(h_B, h_S) + W(h_S, h_B)).
    """
    costs = Bound(histogram_costs, bins=bins, weight=weight)
    return _batchmatch(
        "disthist_batchmatch", costs, m, candidates, big_batch, project, updates, refresh, length
    )


def histogram_costs(
    x: Float[np.ndarray, "b d"],
    places: Int[np.ndarray, "candidates s"],
    *,
    bins: int,
    weight: float,
) -> Float[np.ndarray, " candidates"]:
    """Returns the cost of each candidate, rows of x, as `disthist_batchmatch` has it."""
    distances = np.sqrt(squared_distances(x))
    of_pairs = distances[np.triu_indices(len(x), 1)]
    low, high = of_pairs.min(initial=np.inf), of_pairs.max(initial=0)
    width = (high - low) / bins

    def cumulative(values: Float[np.ndarray, " v"]) -> Float[np.ndarray, " bins"]:
        if not width > 0:
            return np.zeros(bins)
        place = np.minimum((values - low) / width, bins - 1).astype(int)
        counts = np.bincount(np.maximum(place, 0), minlength=bins)
        return np.cumsum(counts) / max(len(values), 1)

    upper = np.triu_indices(places.shape[1], 1)
    target = cumulative(of_pairs)
    histograms = np.array(
        [np.abs(cumulative(distances[np.ix_(p, p)][upper]) - target).sum() for p in places]
    )
    own = x[places]
    means = np.linalg.norm(own.mean(1) - x.mean(0), axis=1)
    deviations = np.linalg.norm(own.std(1) - x.std(0), axis=1)
    costs: np.ndarray = means + deviations + weight * width * histograms
    return costs


def _batchmatch(
    name: str,
    costs: Costs,
    m: int,
    candidates: int,
    big_batch: int,
    project: int | None,
    updates: bool,
    refresh: int,
    length: int | None,
) -> Sampler:
    """Makes a sampler whose batches are the cheapest of several candidates from a big batch."""
    if big_batch % m:
        near = max(big_batch // m, 1) * m
        raise UserError(
            f"big_batch={big_batch} is not a multiple of m={m} images per class; "
            f"{near} or {near + m} would be accepted"
        )
    return StorageSampler(
        name=name,
        length=length,
        rows=Bound(
            _batchmatch_rows,
            costs=costs,
            m=m,
            candidates=candidates,
            big_batch=big_batch,
            project=project,
        ),
        refuse=Bound(check_groups, m=m),
        remark=Bound(remark_small_classes, m=m),
        updates=updates,
        refresh=refresh,
    )


def _batchmatch_rows(
    inputs: PlanInputs,
    *,
    costs: Costs,
    m: int,
    candidates: int,
    big_batch: int,
    project: int | None,
) -> Rows:
    groups = groups_of(inputs.batch_size, m)

    def row(step: int) -> Int[np.ndarray, " batch"]:
        rng = inputs.step_generator(step)
        big = draw_with_replacement(rng, inputs.classes, big_batch // m, m).ravel()
        x = project_randomly(rng, inputs.embeddings[big], project)
        held = Classes.of(inputs.classes.of_image[big])
        drawn = rng.integers(0, len(held.sizes), candidates * groups)
        places = held.images(drawn, choose(rng, held.sizes[drawn], m))
        places = places.reshape(candidates, inputs.batch_size)
        cheapest: np.ndarray = big[places[costs(x, places).argmin()]]
        return cheapest

    return row


def project_randomly(
    rng: np.random.Generator, embeddings: Float[np.ndarray, "b d"], dim: int | None
) -> Float[np.ndarray, "b p"]:
    """Returns the embeddings in float64, under a random projection to `dim` dimensions unless that is None.

    The entries of the projection are normal, so that it keeps squared distances on average.
    """
    embeddings = np.asarray(embeddings, np.float64)
    if dim is None:
        return embeddings
    projection = rng.normal(size=(embeddings.shape[1], dim)) / np.sqrt(dim)
    projected: np.ndarray = embeddings @ projection
    return projected


def squared_distances(x: Float[np.ndarray, "b d"]) -> Float[np.ndarray, "b b"]:
    """Returns |x_i - x_j|^2, 0 on the diagonal."""
    squares = (x * x).sum(1)
    found: np.ndarray = np.maximum(squares[:, None] + squares[None, :] - 2 * (x @ x.T), 0)
    np.fill_diagonal(found, 0)
    return found
