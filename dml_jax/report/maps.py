"""Maps of the embeddings in two dimensions, and the principal axes that they, spectra and whitening are made of."""

import importlib.util
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from dml_jax import names
from dml_jax.errors import UserError
from dml_jax.evaluation.spectrum import principal_axes
from dml_jax.evaluation.vectors import as_embeddings

# With fewer points than this t-SNE has no neighbourhoods to keep.
FEWEST = 10


def pca_map(embeddings: Float[np.ndarray, "n d"], seed: int = 0) -> Float[np.ndarray, "n 2"]:
    """Coordinates along the two axes of largest variance; a second one of 0 where d = 1. `seed` plays no part."""
    mean, directions, _ = principal_axes(embeddings)
    found = np.zeros((len(embeddings), 2))
    found[:, : len(mean)] = (np.asarray(embeddings, np.float64) - mean) @ directions[:, :2]
    return found


def tsne_map(embeddings: Float[np.ndarray, "n d"], seed: int = 0) -> Float[np.ndarray, "n 2"]:
    """t-SNE (van der Maaten and Hinton 2008) by scikit-learn: Barnes-Hut, started from PCA, perplexity up to 30.

    Raises: UserError where scikit-learn is not installed, and for fewer than 10 embeddings.
    """
    check_map("tsne")
    from sklearn.manifold import TSNE

    vectors = as_embeddings("embeddings", embeddings)
    if len(vectors) < FEWEST:
        raise UserError(f"map 'tsne' of {len(vectors)} embeddings; accepted: {FEWEST} or more")
    start = pca_map(vectors)
    # As scikit-learn starts: small beside the distances that will come about.
    start = (start * (1e-4 / max(start[:, 0].std(), 1e-12))).astype(np.float32)
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    return TSNE(init=start, perplexity=perplexity, random_state=seed).fit_transform(vectors)


MAPS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {"pca": pca_map, "tsne": tsne_map}


def check_map(name: str) -> None:
    """Raises UserError for an unknown map, or one whose package is not installed."""
    names.resolve("map", MAPS, name)
    if name == "tsne" and importlib.util.find_spec("sklearn") is None:
        raise UserError(
            "map 'tsne' needs the package scikit-learn: pip install 'dml_jax[map]', or choose the map 'pca'"
        )


def embedding_map(
    name: str, embeddings: Float[np.ndarray, "n d"], *, seed: int = 0
) -> Float[np.ndarray, "n 2"]:
    """The map of that name (`pca`, `tsne`), float64 [n, 2]; UserError for an unknown one or what it cannot map."""
    return np.asarray(names.resolve("map", MAPS, name)(embeddings, seed), np.float64)
