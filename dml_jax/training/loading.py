"""How the images of a source become batches, in training and in evaluation."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from dml_jax import data
from dml_jax.config import typed
from dml_jax.config_options import DataOptions
from dml_jax.training import build

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Loader:
    """Loads this process's part of every batch.

    Attributes:
      options: threads, processes, and what happens to images that cannot be decoded.
      augment: what is applied to training images; None: nothing.
      prepare: what is applied to images that are evaluated; None: nothing.
      seed: of the augmentation.
      views: how often each training image of a batch comes.
      eval_batch_size: images of a batch of evaluation.
    """

    options: DataOptions
    augment: Any
    prepare: Any
    seed: int
    views: int
    eval_batch_size: int

    @classmethod
    def from_config(cls, config: ConfigDict) -> "Loader":
        """Makes the loader of a configuration.

        Raises:
          UserError: options out of range, or augmentations that do not exist.
        """
        options = typed("data", DataOptions, config.data)
        return cls(
            options=options,
            augment=build.transform(options.augment),
            prepare=build.transform(options.prepare),
            seed=config.seed,
            views=config.train.views,
            eval_batch_size=config.evaluation.batch_size,
        )

    def train_batches(
        self,
        source: data.Source,
        plan: data.Plan | data.Plans,
        labels: np.ndarray,
        *,
        epoch: int,
        epochs: int = 1,
        start_step: int = 0,
        skipped: Counter[str] | None = None,
    ) -> Iterator[Batch]:
        """Yields the batches of one or more epochs.

        Args:
          source: the images.
          plan: the sampler's plan of the epoch, or a function that returns that of any of them.
          labels: what the loss takes, a row for each image of the source.
          epoch: the number of the first one.
          epochs: how many.
          start_step: the first step of the first one that is loaded.
          skipped: counts the images that cannot be decoded, by name.
        """
        return data.train_batches(
            source,
            plan,
            labels=labels,
            transform=self.augment,
            seed=self.seed,
            epoch=epoch,
            epochs=epochs,
            views=self.views,
            start_step=start_step,
            skipped=skipped,
            **self._how(),
        )

    def eval_batches(
        self, source: data.Source, skipped: Counter[str] | None = None
    ) -> Iterator[Batch]:
        """Yields all images of a source, in batches of one shape.

        Args:
          source: the images.
          skipped: counts the images that cannot be decoded, by name.
        """
        return data.eval_batches(
            source,
            self.eval_batch_size,
            transform=self.prepare,
            skipped=skipped,
            **self._how(),
        )

    def _how(self) -> dict[str, Any]:
        return {
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
            "threads": self.options.threads,
            "workers": self.options.workers,
            "prefetch": self.options.prefetch,
            "on_error": self.options.on_error,
        }
