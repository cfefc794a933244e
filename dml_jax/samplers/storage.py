"""What samplers that look at stored embeddings share: big batches, projections, distances."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from dml_jax.samplers.base import PerClass, StorageSampler


@dataclass(frozen=True, kw_only=True)
class BigBatchSampler(PerClass, StorageSampler):
    """A batch is chosen from a big batch of images by their stored embeddings.

    Attributes:
      big_batch: images to choose from.
      project: dimensions of a random projection of the embeddings, drawn for every step; None: none.
    """

    big_batch: int = 512
    project: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(1, "big_batch", "images;")
        if self.project is not None:
            self._at_least(1, "project", "dimensions; None or")

    def projected(
        self, rng: np.random.Generator, embeddings: Float[np.ndarray, "b d"]
    ) -> Float[np.ndarray, "b p"]:
        """The embeddings in float64, projected where that is asked for.

        The entries of the projection are normal, so that it keeps squared distances on average.
        """
        embeddings = np.asarray(embeddings, np.float64)
        if self.project is None:
            return embeddings
        return embeddings @ (
            rng.normal(size=(embeddings.shape[1], self.project)) / np.sqrt(self.project)
        )


def squared_distances(x: Float[np.ndarray, "b d"]) -> Float[np.ndarray, "b b"]:
    """|x_i - x_j|^2, 0 on the diagonal."""
    squares = (x * x).sum(1)
    found = np.maximum(squares[:, None] + squares[None, :] - 2 * (x @ x.T), 0)
    np.fill_diagonal(found, 0)
    return found
