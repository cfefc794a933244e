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
    """Returns coordinates along the two axes of largest variance; a second one of 0 where d = 1.

    Args:
      embeddings: of the items.
      seed: plays no part.

    >>> pca_map(np.array([[1.0], [3.0]]))
    array([[-1.,  0.],
           [ 1.,  0.]])
    """
    mean, directions, _ = principal_axes(embeddings)
    found = np.zeros((len(embeddings), 2))
    found[:, : len(mean)] = (np.asarray(embeddings, np.float64) - mean) @ directions[:, :2]
    return found


def tsne_map(embeddings: Float[np.ndarray, "n d"], seed: int = 0) -> Float[np.ndarray, "n 2"]:
    """Maps by scikit-learn's t-SNE (van der Maaten and Hinton 2008): Barnes-Hut, from PCA, perplexity up to 30.

    Args:
      embeddings: of the items.
      seed: of scikit-learn's random numbers.

    Raises:
      UserError: scikit-learn is not installed, or there are fewer than 10 embeddings.
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
    """Raises `UserError` for an unknown map, or one whose package is not installed.

    Args:
      name: `pca` or `tsne`.

    >>> check_map("pca")
    """
    names.resolve("map", MAPS, name)
    if name == "tsne" and importlib.util.find_spec("sklearn") is None:
        raise UserError(
            "map 'tsne' needs the package scikit-learn: pip install 'dml_jax[map]', or choose the map 'pca'"
        )


def embedding_map(
    name: str, embeddings: Float[np.ndarray, "n d"], *, seed: int = 0
) -> Float[np.ndarray, "n 2"]:
    """Maps embeddings to two dimensions.

    Args:
      name: `pca` or `tsne`.
      embeddings: of the items.
      seed: of the map's random numbers.

    Returns: coordinates, float64 [n, 2].

    Raises:
      UserError: an unknown map, or embeddings that it cannot map.

    >>> embedding_map("pca", np.eye(3)).shape
    (3, 2)
    """
    return np.asarray(names.resolve("map", MAPS, name)(embeddings, seed), np.float64)
