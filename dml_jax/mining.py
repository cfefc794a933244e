"""What a miner is: it chooses which pairs or triplets of a batch a loss will see.

The miners themselves are in `dml_jax.miners`, those of the ICML 2020 study in `dml_jax.revisiting.miners`.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Shaped

from dml_jax import distances, pairwise, parameters, relations
from dml_jax.bound import Bound
from dml_jax.distances import Distance
from dml_jax.errors import UserError
from dml_jax.pairwise import Block, Mining, Samples, WholeBatch
from dml_jax.relations import Relation
from dml_jax.selection import Listed, Selection, Streamed, Within

# Distances or similarities of the anchors to all references.
Sims = Float[Array, "a n"]
# Which references are positives, or negatives; weights where a pair may count several times.
Mask = Shaped[Array, "a n"]
# The anchors' own random keys.
Keys = Key[Array, " a"]


@dataclass(frozen=True)
class Miner:
    """A miner with its hyper-parameters: two functions and a distance, equal when made equally.

    The functions are plain functions or `bound.Bound` ones, so that a miner can be hashed and what it is part of
    compiles once.

    Attributes:
      name: as errors call it.
      select: `select(block) -> Selection` chooses on one block of anchors; with a `prepare`, `select(block,
        miner_state)`. `block` is a `pairwise.Block`: `block.sims` are by the miner's distance, and `block.keys` are the
        anchors' own random keys for this miner. `from_rows` makes it of a function of similarities and masks.
      distance: what `block.sims` are.
      triplets: True where it chooses triplets (a, p, n), False where pairs (a, p) and (a, n).
      prepare: `prepare(whole_batch) -> miner_state` is called once, with a `pairwise.WholeBatch`:
        `whole_batch.map_blocks(fn, sums)` evaluates `fn(block) -> (sums, rows)` over all blocks, with `block.sims` by
        the miner's distance, as often as it is called. None where the miner needs to know one block alone.
      draws: True where it draws at random, so that it needs a key.
    """

    name: str
    select: Callable[..., Selection]
    distance: Distance
    triplets: bool
    prepare: Callable[[WholeBatch], Any] | None = None
    draws: bool = False

    def mining(self, loss_distance: Distance | None = None) -> Mining:
        """Returns the miner as the driver takes it.

        Args:
          loss_distance: the distance of the loss; where it is the miner's, intervals of the row need no second sort.
        """
        select = partial(self._select, own_order=self.distance == loss_distance)
        prepare = None if self.prepare is None else self._prepare
        return Mining(select, prepare, distance=self.distance)

    def _prepare(self, whole_batch: WholeBatch) -> Any:
        assert self.prepare is not None
        self._check_key(whole_batch.key)
        map_blocks = partial(whole_batch.map_blocks, distance=self.distance)
        return self.prepare(replace(whole_batch, map_blocks=map_blocks))

    def _select(
        self, block: Block, keys: Keys | None, miner_state: Any, *, own_order: bool
    ) -> Selection:
        self._check_key(keys)
        block = replace(block, keys=keys)
        chosen = self.select(block) if self.prepare is None else self.select(block, miner_state)
        if isinstance(chosen.triplets, Within):
            chosen = replace(chosen, triplets=replace(chosen.triplets, own_order=own_order))
        return chosen

    def _check_key(self, key: Array | None) -> None:
        if self.draws and key is None:
            raise UserError(f"miner {self.name!r} draws at random and needs a key")

    def __call__(
        self,
        embeddings: Float[Array, "b d"] | Sequence[Sequence[float]],
        labels: Any,
        *,
        ref_embeddings: Float[Array, "m d"] | Sequence[Sequence[float]] | None = None,
        ref_labels: Any = None,
        relation: Any = None,
        key: Array | None = None,
        block: int | None = None,
    ) -> "Mined":
        """Mines a whole batch, for looking and for tests (inside a loss, blocks do the same).

        Args:
          embeddings: `[B, D]`, an array or lists.
          labels: `[B]` integers, or what `relation` takes. Labels beyond 32 bits are numbered anew.
          ref_embeddings: references to mine among, `[M, D]`; None for the batch itself. With references no pair is left
            out as a sample with itself.
          ref_labels: of the references.
          relation: a name, a dict with a name, or the object; equal labels by default. (Inside a loss its relation
            holds.)
          key: for miners that draw.
          block: anchors at a time; None for all at once. The choice is the same.

        Raises:
          UserError: an empty batch, shapes that do not belong together, a missing key.
        """
        related = relations.build(relation)
        embeddings = _vectors("embeddings", embeddings)
        if ref_embeddings is not None:
            ref_embeddings = _vectors("ref_embeddings", ref_embeddings)
            if ref_embeddings.shape[1] != embeddings.shape[1]:
                raise UserError(
                    f"ref_embeddings have {ref_embeddings.shape[1]} dimensions, and embeddings have "
                    f"{embeddings.shape[1]}; accepted: as many"
                )
        labels, ref_labels = related.prepare_labels(labels, ref_labels)
        ref_rows = None if ref_embeddings is None else ref_embeddings.shape[0]
        related.check(labels, ref_labels, embeddings.shape[0], ref_rows)
        chosen = self._mine(related, embeddings, labels, ref_embeddings, ref_labels, key, block)
        return Mined(chosen, self.triplets)

    @partial(jax.jit, static_argnums=(0, 1, 7))
    def _mine(
        self,
        relation: Relation,
        embeddings: Float[Array, "b d"],
        labels: Array,
        ref_embeddings: Float[Array, "m d"] | None,
        ref_labels: Array | None,
        key: Array | None,
        block: int | None,
    ) -> Selection:
        anchors = Samples(embeddings, labels, jnp.ones(embeddings.shape[0], bool))
        refs = anchors if relation.of_samples else anchors._replace(labels=None)
        if ref_embeddings is not None:
            refs = Samples(ref_embeddings, ref_labels, jnp.ones(ref_embeddings.shape[0], bool))

        def rows(block: Block) -> tuple[tuple[()], Selection]:
            return (), _with_refs(block.selection, None)

        _, chosen = pairwise.map_blocks(
            rows,
            anchors,
            refs,
            relation=relation,
            exclude_self=ref_embeddings is None,
            mine=self.mining(),
            key=key,
            block=block,
        )
        return _with_refs(chosen, refs.vectors)


def _vectors(what: str, x: Any) -> Float[Array, "b d"]:
    """Returns vectors as an array; raises `UserError` unless there are some."""
    if not isinstance(x, (jax.Array, np.ndarray)):
        try:
            x = np.asarray(x, np.float32)
        except (TypeError, ValueError):
            raise UserError(f"{what} are no vectors; accepted: numbers of shape [B, D]") from None
    if x.ndim != 2 or 0 in x.shape:
        raise UserError(f"{what} have shape {x.shape}; accepted: [B, D] with B and D of at least 1")
    found = jnp.asarray(x)
    return found if jnp.issubdtype(found.dtype, jnp.floating) else found.astype(jnp.float32)


def _with_refs(selection: Selection, refs: Array | None) -> Selection:
    """Returns the selection with these references, the one part of it that has no rows of anchors."""
    if not isinstance(selection.triplets, Streamed):
        return selection
    return replace(selection, triplets=replace(selection.triplets, refs=refs))


def from_rows(function: Callable[..., Selection], **hyper: Any) -> Bound[Selection]:
    """Makes the `select` of a miner that looks at similarities and masks alone.

    Args:
      function: `function(sims [a, n], pos, neg, **hyper) -> Selection`: `sims` is the miner's distance of the anchors
        to all references, `pos` and `neg` what the relation allows, self excluded.
      **hyper: its hyper-parameters; they can be hashed.
    """
    return Bound(_select_rows, function=Bound(function, **hyper))


def _select_rows(block: Block, *, function: Callable[..., Selection]) -> Selection:
    return function(block.sims, block.related.pos, block.related.neg)


def custom(
    *, triplets: bool, distance: Any = "lp", takes_block: bool = False, draws: bool = False
) -> Callable[[Callable[..., Selection]], Callable[..., Miner]]:
    """Makes a miner of the user's own: decorates a function that chooses, which becomes a factory.

    Args:
      triplets: True where it chooses triplets, False where pairs.
      distance: the default of the factory's `distance`: a name, a dict with a name, or a `Distance`.
      takes_block: False where the function is `(sims, pos, neg, *, hyper-parameters) -> Selection`, True where it is
        `(block, *, hyper-parameters) -> Selection`, with a `pairwise.Block`.
      draws: True where it draws at random, from `block.keys` alone; it takes the block then.

    Returns:
      A decorator. The factory that it makes takes the keywords of the function and `distance`. The annotations of the
      keywords are types and ranges, as in `dml_jax.parameters`, and are checked. A config names it as
      "package.module:name". A miner with a `prepare` is made as the library's are: by a factory that returns a `Miner`.

    Example:
      >>> import jax.numpy as jnp
      >>> from dml_jax.miners import custom
      >>> from dml_jax.parameters import PositiveFloat
      >>> from dml_jax.selection import Selection
      >>> @custom(triplets=False)
      ... def nearer_than(sims, pos, neg, *, radius: PositiveFloat = 1.0) -> Selection:
      ...     return Selection(pos, jnp.where(sims < radius, neg, jnp.zeros_like(neg)))
      >>> _, _, anchors, negatives = nearer_than(radius=1.2)([[1, 0], [0.6, 0.8], [-1, 0]], [0, 1, 2]).indices()
      >>> anchors.tolist(), negatives.tolist()
      ([0, 1], [1, 0])
    """

    def decorate(function: Callable[..., Selection]) -> Callable[..., Miner]:
        name, default = function.__name__, distances.build(distance)
        own = parameters.keyword_parameters(function)
        keyword = inspect.Parameter(
            "distance", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Any
        )

        @functools.wraps(function)
        def factory(*, distance: Any = None, **hyper: Any) -> Miner:
            hyper = parameters.check_keywords(f"miner {name!r}", function, hyper)
            block_form = takes_block or draws
            select = Bound(function, **hyper) if block_form else from_rows(function, **hyper)
            built = distances.build(distance, default)
            return Miner(name, select, built, triplets=triplets, draws=draws)

        vars(factory)["__signature__"] = inspect.Signature([*own, keyword])
        return factory

    return decorate


@dataclass(frozen=True)
class Mined:
    """What a miner chose from a batch.

    Attributes:
      selection: has rows for all anchors.
      triplets: True where triplets were chosen, False where pairs were.
    """

    selection: Selection
    triplets: bool

    def indices(self) -> tuple[np.ndarray, ...]:
        """Returns the choice as sorted index arrays on the host, repeated as often as it was made.

        Returns:
          (anchor, positive, negative) of a triplet miner, (anchor, positive, anchor, negative) of a pair miner.
        """
        pos, neg = np.asarray(self.selection.pos), np.asarray(self.selection.neg)
        if not self.triplets:
            return (*_repeated(pos), *_repeated(neg))
        chosen = self.selection.triplets
        if isinstance(chosen, Listed):
            weight = np.asarray(chosen.weight).astype(int)
            anchor = np.broadcast_to(np.arange(len(weight))[:, None], weight.shape)
            columns = (anchor, np.asarray(chosen.positive), np.asarray(chosen.negative))
            rows = np.repeat(np.stack([c.ravel() for c in columns], 1), weight.ravel(), axis=0)
        else:
            rows = _triplets(pos, neg, chosen)
        rows = rows[np.lexsort(rows.T[::-1])]
        return tuple(rows.T)


def _repeated(weights: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns row and column of every entry, as often as its weight says."""
    where = np.nonzero(weights)
    return tuple(np.repeat(index, weights[where].astype(int)) for index in where)


def _triplets(pos: np.ndarray, neg: np.ndarray, chosen: Within | Streamed | None) -> np.ndarray:
    """Returns all triplets, `[count, 3]`."""
    rows = [np.zeros((0, 3), int)]
    rank = np.cumsum(pos > 0, axis=1) - 1
    for k in range(rank.max(initial=-1) + 1):
        one = (pos > 0) & (rank == k)
        partners = neg
        if chosen is not None:
            partners = np.asarray(chosen.negatives(jnp.asarray(one), jnp.asarray(neg)))
        a, n = np.nonzero((partners > 0) & one.any(1, keepdims=True))
        rows.append(np.stack([a, one.argmax(1)[a], n], 1))
    return np.concatenate(rows)


def needs_distance(name: str, distance: Distance) -> None:
    """Raises `UserError` where a miner that weighs by distances is given a similarity."""
    if distance.similarity:
        raise UserError(f"miner {name!r} has a similarity as its distance; accepted: a distance")


def needs_euclidean(name: str, distance: Distance) -> None:
    """Raises `UserError` for any but the Euclidean distance between normalised embeddings."""
    if distance != distances.lp():
        raise UserError(
            f"miner {name!r} has distance {distance.name!r} with settings of its own; accepted: 'lp' as it is, "
            "Euclidean between normalised embeddings"
        )


def log_rarity(d: Sims, dim: int) -> Sims:
    """Returns -log of the density of distances d on the unit sphere of `dim` dimensions, up to a constant.

    1 - d^2 / 4 is at least 1e-7, so that an opposite vector has a finite value, the largest.
    """
    height = jnp.maximum(1 - d * d / 4, 1e-7)
    return (2 - dim) * jnp.log(d) - (dim - 3) / 2 * jnp.log(height)
