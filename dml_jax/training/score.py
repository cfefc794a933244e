"""From a model and a split to metrics, as training and the commands do it."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from dml_jax import console, data, evaluation, processes
from dml_jax.config import plain
from dml_jax.evaluation.embed import Embedded
from dml_jax.evaluation.evaluate import parts
from dml_jax.training.loading import Loader
from dml_jax.training.tasks import EvalSpec, reported_as

Batches = Iterable[dict[str, Any]]
Rows = dict[str, dict[str, Any]]


def preparation(config: Any, model: Any) -> tuple[dict[str, Any], ...]:
    """Returns what is applied to images that are not of a run's data set, in turn, as dicts with a name.

    They are prepared as the set's are; where the set brings images in the model's size, they are scaled to it by
    their shorter side and cropped in the middle.

    Args:
      config: the configuration of the run.
      model: its model.
    """
    steps = [
        {"name": step} if isinstance(step, str) else plain(step) for step in config.data.prepare
    ]
    size = model.image_size
    return tuple(steps) or (
        {"name": "resize", "size": size},
        {"name": "center_crop", "size": size},
    )


def batches_of(config: Any, source: data.Source, skipped: Counter[str] | None = None) -> Batches:
    """Returns a split in the batches of the section `evaluation`, this process's part of them.

    Args:
      config: a configuration, of which `data` and `evaluation` are used.
      source: the split.
      skipped: counts the images that cannot be decoded, where `data.on_error` is "skip".
    """
    return Loader.from_config(config).eval_batches(source, skipped)


def embed_source(
    apply: Callable[[Any, jax.Array], Any],
    variables: Any,
    config: Any,
    source: data.Source,
    what: str,
) -> Embedded:
    """Embeds a split, shows how far that is, and says which images could not be decoded; for commands.

    Args:
      apply: what `embedder` or `outputs` returned.
      variables: of the model.
      config: a configuration, of which `data` and `evaluation` are used.
      source: the split.
      what: what is done, as in "embedding test".

    Raises:
      UserError: an image cannot be decoded and `data.on_error` is "raise", or none can.
    """
    skipped, primary = Counter[str](), processes.is_primary()
    batches = console.watched(batches_of(config, source, skipped), len(source), what, show=primary)
    found = evaluation.embed(apply, variables, batches)
    missing = len(source) - len(found[2])
    if missing and primary:
        # Of several processes each knows the names of its own images.
        names = ", ".join(itertools.islice(skipped, 5)) + (", ..." if len(skipped) > 5 else "")
        console.log(f"{missing} of {len(source)} images could not be decoded: {names}")
    return found


def embedder(model: Any) -> Callable[[Any, jax.Array], jax.Array]:
    """Returns the function (variables, images) -> embeddings of a model.

    It is to be made once: another function is another compilation.

    Args:
      model: the model.
    """
    return lambda variables, images: model.apply(variables, images)[0]


def outputs(model: Any, embeddings: tuple[str, ...]) -> Callable[[Any, jax.Array], dict[str, Any]]:
    """Returns the function (variables, images) -> the outputs that embeddings are made of, by name; as `embedder`.

    Args:
      model: the model.
      embeddings: names of outputs, or of combinations of them.

    Raises:
      UserError: an output that the model does not give.
    """
    needed = sorted({part for name in embeddings for part in parts(name, model.outputs)})

    def apply(variables: Any, images: jax.Array) -> dict[str, Any]:
        found = model.embeddings(variables, images)
        return {name: found[name] for name in needed}

    return apply


def embedded(spec: EvalSpec, embed: Callable[[data.Source], Embedded]) -> dict[str, Embedded]:
    """What `embed` makes of each of the spec's sources."""
    return {part: embed(source) for part, source in spec.sources.items()}


def metrics(spec: EvalSpec, found: Mapping[str, Embedded]) -> Rows:
    """Computes the metrics of each of the spec's embeddings, by its name."""
    rows = {part: ids for part, (_, _, ids) in found.items()}
    searched: dict[str, Any] = {}
    if spec.parents is not None:
        searched["parents"] = spec.parents[rows["queries"]]
    if "gallery" in found:
        searched["gallery_labels"] = spec.labels["gallery"][rows["gallery"]]
    result = {}
    for name in spec.embeddings:
        vectors = {part: evaluation.combined(of, name) for part, (of, _, _) in found.items()}
        result[name] = evaluation.evaluate_embeddings(
            vectors["queries"],
            spec.labels["queries"][rows["queries"]],
            gallery=vectors.get("gallery"),
            distractors=vectors.get("distractors"),
            **searched,
            **spec.options,
        )
    return result


def tabulated(spec: EvalSpec, found: Rows, called: str) -> tuple[Rows, Rows]:
    """Makes the tables (a row by embedding, a row by class of each embedding where there is a value for each class).

    The first rows have numbers: of metrics with a value for each class the mean of them, which is what the average
    `class` gives.
    """
    rows: Rows = {}
    by_class: Rows = {}
    for name, values in found.items():
        title = called if len(found) == 1 else f"{called}, {name}"
        rows[title] = {
            metric: float(np.mean(list(value.values()) or np.nan)) if _by_class(value) else value
            for metric, value in values.items()
        }
        kept = {metric: value for metric, value in values.items() if _by_class(value)}
        for label in sorted({label for value in kept.values() for label in value}):
            which = spec.class_names[label]
            by_class[which if len(found) == 1 else f"{which}, {name}"] = {
                metric: value.get(label) for metric, value in kept.items()
            }
    return rows, by_class


def _by_class(value: Any) -> bool:
    return isinstance(value, Mapping)


def reported(found: Rows, split: str) -> dict[str, float]:
    """Returns the numbers of a split as a run reports them, by `reported_as`; lists are for the command `evaluate`."""
    begin = reported_as(tuple(found), split)
    return {
        f"{begin[name]}/{metric}": value
        for name, values in found.items()
        for metric, value in values.items()
        if isinstance(value, float)
    }
