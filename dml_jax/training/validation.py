"""Evaluation of the model in training."""

import math
from collections import Counter
from typing import Any

from dml_jax import data, evaluation
from dml_jax.errors import UserError
from dml_jax.evaluation.embed import Embedded
from dml_jax.training import score
from dml_jax.training.experiment import Experiment
from dml_jax.training.preemption import Preemption
from dml_jax.training.state import State


class Validator:
    """Embeds and evaluates with the parameters of a training state. Every process makes one and calls its methods.

    Args:
      experiment: what is trained and evaluated.
      preemption: ends a pass over images where the run is to end.
      skipped: counts the images that cannot be decoded, by name.
    """

    def __init__(
        self, experiment: Experiment, preemption: Preemption, skipped: Counter[str]
    ) -> None:
        self._experiment, self._preemption, self._skipped = experiment, preemption, skipped
        # Made once: another function is another compilation.
        self._embedder = score.embedder(experiment.model)
        self._outputs = score.outputs(experiment.model, experiment.embeddings)

    def embed_training_images(self, state: State) -> Embedded:
        """Returns the embeddings of all training images, as they are without augmentation."""
        return self._embed(self._embedder, state, self._experiment.source)

    def evaluate(self, state: State) -> dict[str, float]:
        """Returns the numbers of every split that is evaluated, as `split/metric`.

        Raises:
          UserError: the monitored one is not a number.
        """
        results: dict[str, float] = {}
        for spec in self._experiment.eval_specs:
            embedded = score.embedded(
                spec, lambda source: self._embed(self._outputs, state, source)
            )
            results |= score.reported(score.metrics(spec, embedded), spec.split)
        monitor = self._experiment.options.monitor
        if monitor and math.isnan(results[monitor]):
            raise UserError(
                f"{monitor} is not a number: no class of the split has two images; a split where some have, or "
                "train.monitor='', is accepted"
            )
        return results

    def _embed(self, apply: Any, state: State, source: data.Source) -> Embedded:
        variables = {k: state[k]["model"] for k in ("params", "state")}
        batches = self._experiment.loader.eval_batches(source, self._skipped)
        return evaluation.embed(apply, variables, self._preemption.guard(batches))
