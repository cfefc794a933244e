"""What every loss has: `init`, `apply`, and a call that gives a scalar."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dml_jax import distances, miners, names, reducers, regularizers, relations, sharded
from dml_jax import pairwise as driver
from dml_jax.blocks import check_block
from dml_jax.distances import Distance
from dml_jax.errors import UserError
from dml_jax.mean import Mean
from dml_jax.mining import Miner
from dml_jax.reducers import Reducer
from dml_jax.regularizers import Regularizer
from dml_jax.relations import SAME_LABEL, WITH_CLASSES, Relation

Variables = dict[str, Any]
State = dict[str, Any]

# What a factory takes for its parts: the object, its name, or a mapping with a name.
DistanceSpec = Distance | str | Mapping[str, Any] | None
MinerSpec = Miner | str | Mapping[str, Any] | None
ReducerSpec = Reducer | str | Mapping[str, Any] | None
RegularizerSpec = Regularizer | str | Mapping[str, Any] | Sequence[Any] | None
RelationSpec = Relation | str | Mapping[str, Any] | None


class References(NamedTuple):
    """What a batch is compared with instead of itself.

    Attributes:
      vectors: the references.
      labels: theirs, as the relation takes them.
      valid: False for references that are not there.
      refs_include_batch: True where the first of them are the batch, in order: then a sample is not compared with the
        reference of its own position.
    """

    vectors: Array
    labels: Array | None
    valid: Array
    refs_include_batch: bool = False


@dataclass(frozen=True, kw_only=True)
class Loss(ABC):
    """A loss with its settings: pure functions `init` and `apply`, hashable, free of arrays.

    Losses that are made equally are equal, and compile once.

    Attributes:
      name: its name.
      relation: what makes two samples positives; it says which labels `apply` takes.
      pairwise: True where it compares samples with samples, so that it needs the whole batch at once.
      takes_references: True where references other than the batch make sense.
      reads_labels: True where the labels matter.
      reads_classes: True where it needs the class of each sample, so that a relation without classes will not do.
      label_values: what it takes the values of labels for ("numbers of classes"); "" where it only compares them.
      takes_block: True where it can be evaluated in blocks.
      needs_positives: True where a batch without two samples of a class has no loss.
      paired_references: True where reference i is another view of sample i, and is padding where that is.
    """

    name: str
    relation: Relation
    pairwise: bool = True
    takes_references: bool = True
    reads_labels: bool = True
    reads_classes: bool = False
    label_values: str = ""
    takes_block: bool = True
    needs_positives: bool = True
    paired_references: bool = False

    def init(self, key: Array, num_classes: int, dim: int) -> Variables:
        """Makes the variables.

        Args:
          key: for what is drawn.
          num_classes: the number of classes.
          dim: of the embeddings.

        Returns:
          {"params": learned arrays, "state": arrays that steps update}; {} for a loss without either.

        Raises:
          UserError: a key that is none, or no class, or no dimension.
        """
        kind = getattr(key, "dtype", None)
        if kind is None or not (jnp.issubdtype(kind, jax.dtypes.prng_key) or kind == jnp.uint32):
            raise UserError(f"key is {key!r}; a key such as jax.random.key(0) is accepted")
        for name, number in (("num_classes", num_classes), ("dim", dim)):
            if number < 1:
                raise UserError(f"{name} is {number!r}; a whole number from 1 on is accepted")
        return self._init(key, num_classes, dim)

    @abstractmethod
    def _init(self, key: Array, num_classes: int, dim: int) -> Variables:
        """Makes the variables from arguments that `init` has checked."""

    @abstractmethod
    def step(
        self,
        variables: Variables,
        anchors: driver.Samples,
        refs: References | None,
        key: Array | None,
        block: int | None,
    ) -> tuple[Mean, State]:
        """Computes what `apply` does, for arrays that were checked: other losses build on it.

        Args:
          variables: what `init` made.
          anchors: the batch.
          refs: what it is compared with; None: with itself.
          key: for draws.
          block: anchors at a time.

        Returns:
          (the loss, the new state).
        """

    def __call__(
        self,
        embeddings: Float[Array, "b d"],
        labels: Any,
        *,
        ref_embeddings: Float[Array, "m d"] | None = None,
        ref_labels: Any = None,
        valid: Bool[Array, " b"] | None = None,
        key: Array | None = None,
        block: int | None = None,
    ) -> Float[Array, ""]:
        """Returns the loss of a batch, for a loss without variables.

        `jax.grad(lambda params: loss(model(params, images), labels))` is a gradient. The arguments are those of
        `apply`.

        Raises:
          UserError: the loss has variables; or what `apply` raises.
        """
        needed = _variable_shapes(self)[0]
        if jax.tree.leaves(needed):
            raise UserError(
                f"loss {self.name!r} has variables ({', '.join(needed)}); accepted: variables = loss.init(key, "
                "num_classes, dim), then mean, state = loss.apply(variables, embeddings, labels) and mean.compute()"
            )
        refs = dict(ref_embeddings=ref_embeddings, ref_labels=ref_labels)
        mean, _ = self.apply({}, embeddings, labels, valid=valid, key=key, block=block, **refs)
        return mean.compute()

    def apply(
        self,
        variables: Variables,
        embeddings: Float[Array, "b d"],
        labels: Any,
        *,
        ref_embeddings: Float[Array, "m d"] | None = None,
        ref_labels: Any = None,
        valid: Bool[Array, " b"] | None = None,
        key: Array | None = None,
        block: int | None = None,
        references: sharded.Layout = "replicated",
    ) -> tuple[Mean, State]:
        """Computes the loss of a batch, over the devices of the mesh in context.

        The loss is NaN where an embedding or a reference is not finite, whatever a miner would leave of it. Rows that
        are not valid have no part in value or gradient, whatever they hold. A label that is no class is an error
        outside of `jax.jit`; inside, where values cannot raise, it makes a loss that learns something for each class
        NaN.

        Args:
          variables: what `init` made.
          embeddings: `[B, D]`, not normalised (the distance does that), any float type.
          labels: `[B]` integers, or what the relation takes: `[B, levels]` for "hierarchy", `[B, L]` for
            "overlap", `[B, M]` for "matrix". Outside of `jax.jit` integers beyond 32 bits are numbered anew.
          ref_embeddings: compare the batch with these instead of with itself; then no pair is left out as a sample
            with itself.
          ref_labels: the labels of these.
          valid: False for rows that are padding.
          key: for losses and miners that draw.
          block: anchors (for a loss against class weights: classes) at a time; None: all at once. The
            value and the gradient are the same.
          references: how what anchors are compared with lies on the devices of a mesh: "replicated", where each holds
            all of it, or "sharded", where each holds its share, and the devices exchange anchors and similarities for
            each block. The value and the gradient are the same. For losses on pairs that read similarities alone.

        Returns:
          (a `Mean`, whose `compute()` is the loss; the new state).

        Raises:
          UserError: shapes that do not belong together, references where the loss takes none, variables that are not
            those of this loss, labels that are no classes; on several devices "sharded" for a loss against class
            weights, or where the loss or its miner reads the vectors of all references.
        """
        embeddings = _vectors("embeddings", embeddings)
        refs = None if ref_embeddings is None else _vectors("ref_embeddings", ref_embeddings)
        valid = None if valid is None else jnp.asarray(valid, bool)
        if self.reads_labels:
            values = f"loss {self.name!r}, which takes them for {self.label_values}"
            labels, ref_labels = self.relation.prepare_labels(
                labels, ref_labels, by_value=values if self.label_values else None
            )
        check_batch(self, embeddings, labels, refs, ref_labels, valid)
        if not self.reads_labels:
            labels = ref_labels = None
        check_block(block)
        if block is not None and not self.takes_block:
            raise UserError(f"loss {self.name!r} has no form in blocks; accepted: block=None")
        classes = check_variables(self, variables, embeddings.shape[1])
        if classes is not None and self.reads_labels:
            check_classes(self, labels, valid, classes)
        if valid is None:
            valid = jnp.ones(embeddings.shape[0], bool)
        given = None if refs is None else (refs, ref_labels)
        return self._apply(variables, embeddings, labels, given, valid, key, block, references)

    # Compiled once per loss, shapes and mesh: eager calls cost what a jitted one costs.
    @partial(jax.jit, static_argnums=(0, 7, 8))
    def _apply(
        self,
        variables: Variables,
        embeddings: Array,
        labels: Any,
        refs: Any,
        valid: Array,
        key: Array | None,
        block: int | None,
        references: sharded.Layout,
    ) -> tuple[Mean, State]:
        dtype = jnp.promote_types(embeddings.dtype, jnp.float32)
        # What padding holds is replaced before anything is computed of it: 0 * NaN would be in the gradient.
        embeddings = jnp.where(valid[:, None], embeddings.astype(dtype), 0)
        if self.reads_labels:
            there = valid.reshape(-1, *[1] * (labels.ndim - 1))
            labels = jnp.where(there, labels, jnp.zeros_like(labels))
        if refs is not None:
            vectors, ref_valid = refs[0].astype(dtype), jnp.ones(refs[0].shape[0], bool)
            if self.paired_references and vectors.shape == embeddings.shape:
                vectors, ref_valid = jnp.where(valid[:, None], vectors, 0), valid
            refs = References(vectors, refs[1], ref_valid)
        anchors = driver.Samples(embeddings, labels, valid)
        with sharded.references(references):
            mean, state = self.step(variables, anchors, refs, key, block)
        # A miner or a bound may leave out just the pairs that are NaN, and the rest would look sound.
        nothing = jnp.sum(0 * jax.lax.stop_gradient(embeddings))
        if refs is not None:
            nothing += jnp.sum(0 * jax.lax.stop_gradient(refs.vectors))
        return replace(mean, total=mean.total + nothing, weight=mean.weight + nothing), state


def _vectors(name: str, given: Any) -> Array:
    """Returns embeddings as an array; lists and NumPy's arrays are taken."""
    try:
        found = jnp.asarray(given)
    except (TypeError, ValueError):
        raise UserError(
            f"{name} are {type(given).__name__}; accepted: an array [batch, dim]"
        ) from None
    if found.ndim != 2:
        raise UserError(f"{name} have shape {found.shape}; accepted: [batch, dim]")
    if not jnp.issubdtype(found.dtype, jnp.floating):
        raise UserError(f"{name} are {found.dtype}; accepted: a float type")
    return found


def check_batch(
    loss: Loss, embeddings: Any, labels: Any, ref_embeddings: Any, ref_labels: Any, valid: Any
) -> None:
    """Checks that the arrays of a batch belong together.

    Raises:
      UserError: they do not.
    """
    batch = embeddings.shape[0]
    if not batch:
        raise UserError(
            f"embeddings has shape {tuple(embeddings.shape)}; a batch of at least one sample is accepted"
        )
    if valid is not None and tuple(valid.shape) != (batch,):
        raise UserError(f"valid has shape {tuple(valid.shape)}; accepted: {(batch,)}")
    if ref_embeddings is None:
        if ref_labels is not None:
            raise UserError("ref_labels were given without ref_embeddings")
        if loss.reads_labels:
            loss.relation.check(labels, None, batch, None)
        return
    if not loss.takes_references:
        reason = "has its own" if _variable_shapes(loss)[0] else "compares the batch with itself"
        raise UserError(f"loss {loss.name!r} takes no ref_embeddings: it {reason}")
    if ref_embeddings.shape[1] != embeddings.shape[1]:
        raise UserError(
            f"ref_embeddings have shape {ref_embeddings.shape}; accepted: [m, {embeddings.shape[1]}]"
        )
    if loss.reads_labels:
        loss.relation.check(labels, ref_labels, batch, ref_embeddings.shape[0])


# Sizes that `init` is called with to see which axes of the variables they set.
_CLASSES, _DIM = 1009, 1013


@functools.lru_cache(maxsize=1024)
def _variable_shapes(loss: Loss) -> tuple[Variables, Variables, Variables]:
    """Returns the shapes of the variables for some number of classes and dimension, and for one more of either."""

    def shapes(num_classes: int, dim: int) -> Variables:
        made = jax.eval_shape(lambda: loss.init(jax.random.key(0), num_classes, dim))
        return {part: tree for part, tree in made.items() if jax.tree.leaves(tree)}

    return shapes(_CLASSES, _DIM), shapes(_CLASSES + 1, _DIM), shapes(_CLASSES, _DIM + 1)


def check_variables(loss: Loss, variables: Variables, dim: int) -> int | None:
    """Checks that the variables are those of the loss, for embeddings of this dimension.

    Returns:
      The number of classes that they are for; None where it is in none of them.

    Raises:
      UserError: arrays that are missing, or of another shape.
    """
    leaves = jax.tree_util.tree_leaves_with_path
    expected, more_classes, more_dim = (leaves(tree) for tree in _variable_shapes(loss))
    given = {jax.tree_util.keystr(path): leaf for path, leaf in leaves(variables)}
    classes = None
    for (path, shape), (_, by_class), (_, by_dim) in zip(
        expected, more_classes, more_dim, strict=True
    ):
        where = jax.tree_util.keystr(path)
        if where not in given:
            raise UserError(
                f"variables{where} of loss {loss.name!r} is missing; accepted: what loss.init(key, num_classes, dim) "
                "makes, and the state of the step before"
            )
        found = tuple(jnp.shape(given[where]))
        wanted: list[Any] = list(shape.shape)
        if len(found) == len(wanted):
            for i in range(len(wanted)):
                if by_class.shape[i] != shape.shape[i]:
                    classes = wanted[i] = found[i]
                elif by_dim.shape[i] != shape.shape[i]:
                    wanted[i] = dim
        if found != tuple(wanted):
            raise UserError(
                f"variables{where} of loss {loss.name!r} has shape {found}, and embeddings have {dim} dimensions; "
                f"accepted: {tuple(wanted)}"
            )
    return classes


def check_classes(loss: Loss, labels: Any, valid: Any, classes: int) -> None:
    """Checks that labels are numbers of classes, where they can be looked at (outside of `jax.jit`).

    Raises:
      UserError: a label of a sample that is there is none of 0 .. classes - 1.
    """
    arrays = [labels] if valid is None else [labels, valid]
    if any(isinstance(x, jax.core.Tracer) for x in arrays):
        return
    if not all(getattr(x, "is_fully_addressable", True) for x in arrays):
        return
    found = np.asarray(loss.relation.classes(labels))
    if valid is not None:
        found = found[np.asarray(valid)]
    wrong = found[(found < 0) | (found >= classes)]
    if wrong.size:
        raise UserError(
            f"labels of loss {loss.name!r} have the value {wrong[0]}, and its variables are those of {classes} "
            f"classes; accepted: 0 to {classes - 1}"
        )


class Parts(NamedTuple):
    """What a user chose for the parts of a loss, or its defaults."""

    miner: Miner | None
    distance: Distance
    reducer: Reducer
    regularizers: tuple[Regularizer, ...]
    relation: Relation


def build_parts(
    name: str,
    *,
    miner: MinerSpec = None,
    distance: DistanceSpec = None,
    reducer: ReducerSpec = None,
    regularizer: RegularizerSpec = None,
    relation: RelationSpec = None,
    default_distance: DistanceSpec = "cosine",
    default_reducer: ReducerSpec = "mean",
    default_regularizer: RegularizerSpec = (),
    only_distances: tuple[str, ...] = (),
    unit_vectors: bool = False,
    with_classes: bool = False,
    centers: int = 0,
) -> Parts:
    """Makes the parts of a loss from what a user wrote for them, and checks that they fit.

    Args:
      name: of the loss.
      miner: as a user writes it.
      distance: as a user writes it.
      reducer: as a user writes it.
      regularizer: as a user writes it.
      relation: as a user writes it.
      default_distance: what None stands for.
      default_reducer: what None stands for.
      default_regularizer: what None stands for.
      only_distances: the names of the distances that it is defined for; () for any.
      unit_vectors: True where it is defined for normalised vectors alone.
      with_classes: True where it reads classes of samples.
      centers: how many vectors it learns for each class; 0 for none.

    Raises:
      UserError: names that do not exist, a part that the loss is not defined for.
    """
    made_distance = distances.build(distance, default_distance)
    if only_distances and made_distance.name not in only_distances:
        raise UserError(
            f"loss {name!r} is not defined for distance {made_distance.name!r}; accepted: "
            f"{', '.join(only_distances)}"
        )
    if unit_vectors and not made_distance.normalized:
        raise UserError(
            f"loss {name!r} is defined for normalised vectors; its distance {made_distance.name!r} has "
            "normalize_embeddings=False"
        )
    made_reducer = reducers.build(reducer, default_reducer)
    if made_reducer.by == "divisor" and default_reducer != "divisor":
        accepted = [r for r in reducers.available() if r != "divisor"]
        raise UserError(
            f"loss {name!r} supplies nothing to divide by for reducer {made_reducer.name!r}; accepted: "
            f"{', '.join(accepted)}"
        )
    made_regularizers = regularizers.build(regularizer, default_regularizer)
    for one in made_regularizers:
        if one.of == "weights" and not centers:
            raise UserError(
                f"loss {name!r} has no class weights for regularizer {one.name!r} of 'weights'; accepted: "
                "of='embeddings', or a loss against class weights"
            )
        if one.several_centers and centers < 2:
            raise UserError(
                f"loss {name!r} has one center a class, and regularizer {one.name!r} is of several; "
                "accepted: revisiting_soft_triple, soft_triple, sub_center_arc_face"
            )
    made_relation = relations.build(relation)
    every = (made_reducer, *dict(made_reducer.terms).values())
    if any(r.class_weights for r in every) and not made_relation.has_classes:
        raise UserError(
            f"reducer 'class_weighted' needs the anchors' classes, which relation {made_relation.name!r} does not "
            f"give; accepted: relation {WITH_CLASSES}"
        )
    if with_classes and not made_relation.has_classes:
        raise UserError(
            f"loss {name!r} reads the classes of samples and takes relation {WITH_CLASSES}, not "
            f"{made_relation.name!r}"
        )
    made_miner = names.build("miner", miners.get, Miner, miner)
    return Parts(made_miner, made_distance, made_reducer, made_regularizers, made_relation)


def with_classes(
    relation: Relation, anchors: driver.Samples, refs: References | None
) -> tuple[Relation, driver.Samples, References | None]:
    """Returns the batch with the classes of its samples as labels, and the relation of equal ones."""
    anchors = anchors._replace(labels=relation.classes(anchors.labels))
    if refs is not None:
        refs = refs._replace(labels=relation.classes(refs.labels))
    return SAME_LABEL, anchors, refs


def add_regularizers(
    mean: Mean,
    penalties: tuple[Regularizer, ...],
    variables: Variables,
    anchors: driver.Samples,
    block: int | None,
) -> Mean:
    """Returns the loss with its penalties, which are added after the division and logged by name."""
    for regularizer in penalties:
        embeddings, _, valid = anchors
        if regularizer.of == "weights":
            weights = variables["params"]["weights"].astype(embeddings.dtype)
            value = regularizer(weights, block=block)
        else:
            value = regularizer(embeddings, valid, block=block)
        total = mean.compute() + regularizer.weight * value
        stats = {**mean.stats, f"regularizer/{regularizer.name}": value}
        mean = Mean(total, jnp.ones_like(total), stats)
    return mean
