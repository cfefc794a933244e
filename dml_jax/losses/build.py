"""A loss from its name and what a user writes for its parts."""

from collections.abc import Iterable, Mapping
from typing import Any

from dml_jax import distances, miners, names, reducers, regularizers, relations
from dml_jax.distances import Distance
from dml_jax.losses.base import ClassLoss, Loss, PairLoss
from dml_jax.losses.own import TripletLoss
from dml_jax.losses.registry import GENERIC, LOSSES, Entry
from dml_jax.losses.wrappers import WRAPPERS, with_miner
from dml_jax.reducers import Reducer


def get(
    name: str,
    *,
    miner: Any = None,
    distance: Any = None,
    reducer: Any = None,
    relation: Any = None,
    regularizer: Any = None,
    **hyper: Any,
) -> Loss:
    """The loss called `name`, with PML's hyper-parameters and defaults.

    Args:
      name: one of `available()`.
      miner: narrows the pairs or triplets; a loss against class weights takes it as sample weights.
      distance, reducer: the loss's defaults (PML's) where None; a few losses have no use for one.
      relation: what makes two samples positives (`relations.get`); None: equal integer labels.
      regularizer: penalties that are added, see `regularizers.get`; several as a list. None: the loss's own,
        which few have; (): none.
      **hyper: the keyword parameters of the loss's kernel.

    Each of miner, distance, reducer, relation, regularizer is a name, a dict with a name and
    hyper-parameters, or the object. Raises ValueError, with near misses, for names and hyper-parameters
    that do not exist and for a distance that the loss is not defined for.

    "generic_pair" takes `rows`, a row kernel of the user's own, `(sims [a, n], pos, neg, *, ...) ->
    (values, weights)` (docs/design.md), and its keyword parameters. "multiple" takes `losses` (a dict, or a
    list of losses, which are then called "0", "1", ...) and `weights`; "self_supervised" and
    "cross_batch_memory" take a `loss`: as names, dicts with a name, or objects.
    """
    if name in WRAPPERS:
        given = {"distance": distance, "reducer": reducer, "relation": relation}
        for keyword, value in (given | {"regularizer": regularizer}).items():
            if value is not None:
                raise ValueError(f"loss {name!r} takes the {keyword} in the loss inside it")
        return _wrapper(name, miner, hyper)
    if name == GENERIC:
        entry = _generic(hyper.pop("rows", None))
    else:
        entry = names.resolve("loss", {**LOSSES, **dict.fromkeys((*WRAPPERS, GENERIC))}, name)
    hyper = {k: tuple(v) if isinstance(v, list) else v for k, v in hyper.items()}
    names.check_hyper(f"loss {name!r}", entry.hyper_parameters(), hyper)
    given = {"distance": distance, "miner": miner, "reducer": reducer, "relation": relation}
    for setting in entry.without:
        if given[setting] is not None:
            raise ValueError(
                f"loss {name!r} has no use for a {setting}, which is {given[setting]!r}; accepted: None"
            )
    chosen, related = _reducer(name, entry, reducer), relations.build(relation)
    loss = entry.cls(
        name=name,
        relation=related,
        kernel=entry.kernel,
        hyper=tuple(sorted(hyper.items())),
        distance=_distance(name, entry, distance),
        reducer=chosen,
        miner=names.build("miner", miners.get, miners.Miner, miner),
        regularizers=_regularizers(name, entry, regularizer),
        **dict(entry.more),
    )
    by_class = any(r.class_weights for r in (chosen, *dict(chosen.terms).values()))
    if by_class and not related.kind.has_classes:
        raise ValueError(
            f"reducer 'class_weighted' needs the anchors' classes, which relation {related.name!r} does not "
            f"give; accepted: relation {relations.WITH_CLASSES}"
        )
    graded = "levels" in names.keywords(entry.kernel)
    if (loss.needs_labels or graded) and not related.kind.has_classes:
        raise ValueError(
            f"loss {name!r} reads the classes of samples and takes relation {relations.WITH_CLASSES}, not "
            f"{related.name!r}"
        )
    return loss


def _distance(name: str, entry: Entry, spec: Any) -> Distance:
    """The distance of a loss, which must be one that it is defined for."""
    built = names.build(
        "distance", distances.get, Distance, entry.distance if spec is None else spec
    )
    if entry.distances and built.name not in entry.distances:
        raise ValueError(
            f"loss {name!r} is not defined for distance {built.name!r}; accepted: "
            f"{', '.join(entry.distances)}"
        )
    if entry.unit and not built.normalized:
        raise ValueError(
            f"loss {name!r} is defined for normalised vectors; its distance {built.name!r} has "
            "normalize_embeddings=False"
        )
    return built


def _reducer(name: str, entry: Entry, spec: Any) -> Reducer:
    """The reducer of a loss, which divides by what the loss supplies."""
    built = reducers.build(spec or entry.reducer)
    if built.by == "divisor" and entry.reducer != "divisor":
        accepted = [r for r in reducers.available() if r != "divisor"]
        raise ValueError(
            f"loss {name!r} supplies nothing to divide by for reducer {built.name!r}; accepted: "
            f"{', '.join(accepted)}"
        )
    return built


def _regularizers(name: str, entry: Entry, spec: Any) -> tuple[regularizers.Regularizer, ...]:
    """The regularizers of a loss, which must have the weights that they are of."""
    built = regularizers.build(entry.regularizer if spec is None else spec)
    for one in built:
        if one.of == "weights" and not issubclass(entry.cls, ClassLoss):
            raise ValueError(
                f"loss {name!r} has no class weights for regularizer {one.name!r} of 'weights'; accepted: "
                "of='embeddings', or a loss against class weights"
            )
        if one.name == "sparse_centers" and "centers" not in dict(entry.more):
            several = sorted(n for n, e in LOSSES.items() if "centers" in dict(e.more))
            raise ValueError(
                f"loss {name!r} has one center a class, and regularizer 'sparse_centers' is of several; "
                f"accepted: {', '.join(several)}"
            )
    return built


def _generic(rows: Any) -> Entry:
    """The entry of a user's own row kernel; one with a keyword `triplets` reads triplets."""
    if not callable(rows):
        raise ValueError(
            f"loss {GENERIC!r} has rows={rows!r}; accepted: a function "
            "(sims, pos, neg, *, ...) -> (values, weights)"
        )
    cls = TripletLoss if "triplets" in names.keywords(rows) else PairLoss
    return Entry(cls, rows, "lp", "mean")


def _wrapper(name: str, miner: Any, hyper: dict[str, Any]) -> Loss:
    """A loss made of losses, from their specifications."""
    make = WRAPPERS[name]
    names.check_hyper(f"loss {name!r}", names.keywords(make), hyper)
    mined = names.build("miner", miners.get, miners.Miner, miner)

    def build(spec: Any) -> Any:
        if spec is None:
            raise ValueError(f"loss {name!r} needs a loss inside it; None is not accepted")
        return names.build("loss", get, Loss, spec)

    if name == "multiple":
        several = hyper["losses"]
        if isinstance(several, (str, Loss)) or not isinstance(several, Iterable):
            raise ValueError(f"loss 'multiple' has losses={several!r}; accepted: a list or a dict")
        if not isinstance(several, Mapping):
            several = {str(i): spec for i, spec in enumerate(several)}
        parts = tuple((part, build(spec)) for part, spec in several.items())
        if mined is not None:
            raise ValueError("loss 'multiple' takes a miner in each of its losses")
        return make(**{**hyper, "losses": parts})
    return make(**{**hyper, "loss": with_miner(name, build(hyper["loss"]), mined)})
