"""A trained model as a function from images to embeddings, with the comparisons that one makes of them."""

import math
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dml_jax import checkpoints, console, data, evaluation, run_folder
from dml_jax.distances import normalize
from dml_jax.errors import UserError
from dml_jax.evaluation.evaluate import parts
from dml_jax.evaluation.vectors import normalize_rows
from dml_jax.inference.index import Found, Index
from dml_jax.inference.pictures import Picture, source_of
from dml_jax.models import Model
from dml_jax.training import build, same_data, score

Tree = Any


class Match(NamedTuple):
    """A threshold of similarity, and what it does on the pairs that it was chosen on.

    Attributes:
      threshold: two images match where their similarity is at least this.
      false_accept_rate: the share of pairs of different classes that match.
      true_accept_rate: the share of pairs of one class that do.
    """

    threshold: float
    false_accept_rate: float
    true_accept_rate: float


@dataclass(frozen=True, eq=False)
class Encoder:
    """A trained model, made by `dml_jax.load`.

    Attributes:
      apply: `apply(variables, images)` -> embeddings `[b, d]` of uint8 images `[b, size, size, channels]`.
      variables: the model's parameters and state.
      prepare: what is applied to an image before, in turn: dicts with the name of an augmentation.
      image_size: the side of the images that `apply` takes.
      channels: of these images.
      dim: the length of an embedding.
      classes: the names of the classes that the model was trained on, where they are known.
      about: where the model comes from.
    """

    apply: Callable[[Tree, Array], Float[Array, "b d"]]
    variables: Tree = field(repr=False)
    prepare: tuple[Mapping[str, Any], ...]
    image_size: int
    channels: int
    dim: int
    classes: tuple[str, ...] = field(repr=False)
    about: Mapping[str, Any]

    def encode(
        self,
        images: Picture | Sequence[Picture],
        batch_size: int = 64,
        *,
        progress: bool = False,
        threads: int = 2,
    ) -> Float[np.ndarray, "n d"]:
        """Embeds images, prepared as evaluation prepares them; float32 `[n, d]`, one row for a single image.

        Args:
          images: paths of files, Pillow images, or uint8 arrays of any size; one of them, a sequence of them, or an
            array `[N, H, W, C]`.
          batch_size: images that are embedded at a time.
          progress: True to show how far it is.
          threads: threads that decode.

        Raises:
          UserError: what is no image, or an image that cannot be decoded; the error names it.
        """
        source = source_of(images, self.channels)
        batches = data.eval_batches(
            source,
            min(batch_size, len(source)),
            transform=build.transform(self.prepare),
            threads=threads,
        )
        shown = console.watched(batches, len(source), "embedding", show=progress)
        try:
            return np.asarray(evaluation.embed(self.apply, self.variables, shown)[0])
        except data.DecodeError as error:
            # Without what a configuration could do about it.
            raise UserError(str(error.__cause__ or error)) from error

    def similarity(
        self, a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]
    ) -> Float[np.ndarray, "n m"]:
        """Returns the cosine similarity of each pair of two sets of embeddings; 0 with a zero vector.

        Args:
          a: embeddings.
          b: embeddings.
        """
        return np.asarray(normalize_rows(np.atleast_2d(a)) @ normalize_rows(np.atleast_2d(b)).T)

    def is_match(
        self, a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "n d"], threshold: float | Match
    ) -> Bool[np.ndarray, " n"]:
        """Returns for each row whether the two embeddings are similar enough.

        Args:
          a: embeddings.
          b: as many.
          threshold: of the similarity, or what `threshold` chose.

        Raises:
          UserError: not as many.
        """
        first, second = np.atleast_2d(a), np.atleast_2d(b)
        if first.shape != second.shape:
            raise UserError(
                f"embeddings {list(first.shape)} and {list(second.shape)} to match; equal shapes are accepted"
            )
        least = threshold.threshold if isinstance(threshold, Match) else threshold
        found = (normalize_rows(first) * normalize_rows(second)).sum(axis=1)
        return np.asarray(found >= least)

    def threshold(
        self,
        embeddings: Float[np.ndarray, "n d"],
        labels: Int[np.ndarray, " n"],
        false_accept_rate: float = 1e-3,
    ) -> Match:
        """Chooses the lowest threshold of similarity at which no more than a share of wrong pairs match.

        Args:
          embeddings: of validation images.
          labels: their classes.
          false_accept_rate: the share of pairs of different classes that may match, above 0 and below 1.

        Raises:
          UserError: a rate out of range, or labels without pairs of one class or of different ones.
        """
        if not 0 < false_accept_rate < 1:
            raise UserError(
                f"false_accept_rate={false_accept_rate}; a number between 0 and 1 is accepted"
            )
        curve = evaluation.roc_curve(embeddings, labels, distance="cosine")
        if np.isnan(curve.true_accept_rates).any() or np.isnan(curve.false_accept_rates).any():
            raise UserError(
                "the labels have no pairs of one class, or none of different classes; both are needed"
            )
        at = int(np.searchsorted(curve.false_accept_rates, false_accept_rate, side="right")) - 1
        # Before the first distance that is accepted lies -inf: a similarity above all others.
        distance = float(curve.thresholds[at])
        return Match(
            1 - distance if math.isfinite(distance) else math.inf,
            float(curve.false_accept_rates[at]),
            float(curve.true_accept_rates[at]),
        )

    def index(
        self,
        images: Picture | Sequence[Picture],
        names: Iterable[str] | None = None,
        labels: Sequence[str] | None = None,
        **options: Any,
    ) -> Index:
        """Embeds images into an index.

        Args:
          images: as `encode` takes them.
          names: what each is called; by default its path, or its place.
          labels: the class of each, where it is known.
          **options: further arguments of `encode`.
        """
        source = source_of(images, self.channels)
        called = [source.name(i) for i in range(len(source))] if names is None else names
        index = Index.of(self.encode(images, **options), called, labels)
        index.about = dict(self.about)
        return index

    def search(
        self, index: Index, images: Picture | Sequence[Picture], k: int = 10, **options: Any
    ) -> Found:
        """Finds what lies nearest to images in an index.

        Args:
          index: where to search.
          images: what is searched for, as `encode` takes it.
          k: how many are found for each.
          **options: further arguments of `encode`.

        Raises:
          UserError: an index of another model, or k out of range.
        """
        made = {key: index.about.get(key) for key in ("checkpoint", "step", "embedding")}
        mine = {key: self.about.get(key) for key in made}
        if all(made.values()) and made != mine:
            raise UserError(
                f"the index was made by {made} and this model is {mine}; the model that made it is accepted"
            )
        return index.search(self.encode(images, **options), k)


def load(
    path: str | os.PathLike[str], checkpoint: str = "best", *, embedding: str | None = None
) -> Encoder:
    """Loads a trained model from the folder of a run, or from a file that `dml export` wrote.

    Args:
      path: the folder or the file.
      checkpoint: of a run, `best` (the last one where none was chosen), `last` or the number of a step.
      embedding: of a run, which of the model's outputs; by default the first of `evaluation.embeddings`.

    Raises:
      UserError: no run there, no such checkpoint, or a file that is no exported model.

    Example:
      >>> load("runs/nowhere")
      Traceback (most recent call last):
      dml_jax.errors.UserError: there is no runs/nowhere; accepted: the folder of a run, or a file that dml export wrote
    """
    where = pathlib.Path(path).expanduser()
    if where.is_file():
        from dml_jax.inference.export import load_exported  # it makes encoders

        return load_exported(where)
    if not (where / "config.json").is_file():
        raise _no_run(where)
    config = run_folder.read_config(where)
    model = build.model(config.model)
    name = embedding or config.evaluation.embeddings[0]
    template = jax.eval_shape(model.without_weights().init, jax.random.key(0))
    kind, step, variables = checkpoints.restore_model(str(where), checkpoint, template)
    return encoder_of(config, model, variables, name, where, kind, step)


def _no_run(where: pathlib.Path) -> UserError:
    """Makes the error for a folder that is not that of a run."""
    accepted = "accepted: the folder of a run, or a file that dml export wrote"
    if not where.exists():
        return UserError(f"there is no {where}; {accepted}")
    model = where / "model.dml"
    if model.is_file():
        return UserError(
            f"{where} is an index of embeddings, made by the model {model}; {accepted}"
        )
    return UserError(f"{where} has no config.json, so it is not the folder of a run; {accepted}")


def encoder_of(
    config: Any,
    model: Model,
    variables: Tree,
    embedding: str,
    workdir: pathlib.Path,
    kind: str,
    step: int,
) -> Encoder:
    """Returns the model of a run with the variables of a checkpoint.

    Args:
      config: the configuration of the run; `data` says how images are prepared.
      model: its model.
      variables: of the checkpoint.
      embedding: which of the model's outputs, or a combination of them.
      workdir: the folder of the run.
      kind: of the checkpoint, "last" or "best".
      step: of the checkpoint.

    Raises:
      UserError: an output that the model does not have.
    """
    outputs, weights = score.outputs(model, (embedding,)), parts(embedding, model.outputs)

    def apply(variables: Tree, images: Array) -> Float[Array, "b d"]:
        found = outputs(variables, images)
        if embedding in weights:
            return found[embedding]
        # As `evaluation.combined`, in a compiled function.
        scaled = [weight * normalize(found[part]) for part, weight in weights.items()]
        return normalize(jnp.concatenate(scaled, axis=1))

    size, channels = model.image_size, model.channels
    shape = jax.ShapeDtypeStruct((1, size, size, channels), np.uint8)
    return Encoder(
        apply=apply,
        variables=variables,
        prepare=score.preparation(config, model),
        image_size=size,
        channels=channels,
        dim=jax.eval_shape(apply, variables, shape).shape[1],
        classes=tuple(same_data.read(workdir).get("train", {})),
        about={
            "workdir": str(workdir.resolve()),
            "checkpoint": kind,
            "step": step,
            "embedding": embedding,
        },
    )
