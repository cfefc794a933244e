"""From a model and a split to metrics, as training and the commands do it."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import jax

from dml_jax import data, evaluation
from dml_jax.evaluation.embed import Embedded
from dml_jax.training import build


def batches(
    config: Any, source: data.Source, skipped: Counter[str] | None = None
) -> Iterable[dict[str, Any]]:
    """A split in the batches of the section `evaluation`, this process's part of them.

    `skipped` counts the images that cannot be decoded, where `data.on_error` is "skip".
    """
    return data.eval_batches(
        source,
        config.evaluation.batch_size,
        transform=build.transform(config.data.prepare),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        skipped=skipped,
        **build.pipeline(config.data),
    )


def embedder(model: Any) -> Callable[[Any, jax.Array], jax.Array]:
    """(variables, images) -> embeddings. To be made once: another function is another compilation."""
    return lambda variables, images: model.apply(variables, images)[0]


def metrics(config: Any, embedded: Embedded) -> dict[str, Any]:
    """The metrics of the section `evaluation` of embeddings, labels and ids."""
    embeddings, labels, _ = embedded
    return evaluation.evaluate_embeddings(
        embeddings,
        labels,
        metrics=tuple(config.evaluation.metrics),
        distance=config.evaluation.distance,
        normalize=config.evaluation.normalize,
        backend=config.evaluation.backend,
    )
