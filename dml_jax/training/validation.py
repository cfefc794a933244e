"""Evaluation of the model in training."""

import math
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any

from dml_jax import console, data, evaluation, processes
from dml_jax.errors import UserError
from dml_jax.evaluation.embed import Embedded
from dml_jax.training import score
from dml_jax.training import state as states
from dml_jax.training.experiment import Experiment
from dml_jax.training.preemption import Preemption
from dml_jax.training.state import State
from dml_jax.training.tasks import EvalSpec


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
        source = self._experiment.source
        trained = {k: state[k]["model"] for k in ("params", "state")}
        return self._embed(self._embedder, trained, source, "embedding training images")

    def evaluate(self, state: State) -> dict[str, float]:
        """Returns the numbers of every split that is evaluated in training, as `split/metric`.

        Args:
          state: the training state.

        Raises:
          UserError: the monitored one is not a number.
        """
        results = self._scores(self._experiment.eval_specs, states.evaluated(state))
        for monitor in self._experiment.monitors:
            if math.isnan(results[monitor]):
                raise UserError(
                    f"{monitor} is not a number: no class of the split has two images; a split where some have, or "
                    "train.monitor='', is accepted"
                )
        return results

    def at_end(self, variables: Any) -> dict[str, float]:
        """Returns the numbers of the splits that are evaluated at the end, as `split/metric`.

        Args:
          variables: of the model.
        """
        return self._scores(self._experiment.at_end, variables)

    def _scores(self, specs: Iterable[EvalSpec], variables: Any) -> dict[str, float]:
        results: dict[str, float] = {}
        for spec in specs:
            embed = partial(self._embed, self._outputs, variables, what=f"evaluating {spec.split}")
            embedded = score.embedded(spec, embed)
            results |= score.reported(score.metrics(spec, embedded), spec.split)
        return results

    def _embed(self, apply: Any, variables: Any, source: data.Source, what: str) -> Embedded:
        batches = self._experiment.loader.eval_batches(source, self._skipped)
        watched = console.watched(
            self._preemption.guard(batches),
            len(source),
            what,
            show=processes.is_primary(),
            seconds=self._experiment.options.log_seconds,
        )
        return evaluation.embed(apply, variables, watched)
