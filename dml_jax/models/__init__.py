"""Embedding models by name: an NNX backbone, an optional linear head, L2 normalisation."""

import os
from typing import Any

from dml_jax import names
from dml_jax.models import convnet, mobilenet_v2, vit
from dml_jax.models.base import Family, Model, l2_normalize
from dml_jax.models.convert import import_dinov2

__all__ = ["Family", "Model", "available", "get", "import_dinov2", "l2_normalize"]

FAMILIES: dict[str, Family] = {
    "convnet": convnet.FAMILY,
    "mobilenet_v2": mobilenet_v2.FAMILY,
    "vit": vit.FAMILY,
}
DTYPES = ("float32", "bfloat16")


def available() -> list[str]:
    """Names that `get` takes."""
    return sorted(FAMILIES)


def get(
    name: str,
    *,
    embedding_dim: int | None = None,
    normalize: bool = True,
    weights: str | os.PathLike | None = None,
    image_size: int | None = None,
    dtype: str = "float32",
    **hyper: Any,
) -> Model:
    """The model called `name`.

    Args:
      name: one of `available()`.
      embedding_dim: output dimension of the linear head; None leaves the backbone's features.
      normalize: divide every embedding by its Euclidean norm.
      weights: an .npz file with the backbone's parameters, read by `Model.init`.
      image_size: side of the (square) images in pixels; None is the architecture's own.
      dtype: "float32" or "bfloat16", what the backbone computes in.
      **hyper: the architecture's hyper-parameters.

    Raises:
      ValueError: an unknown name, hyper-parameter or value.
    """
    family = names.resolve("model", FAMILIES, name)
    # Of a module class, only __init__ has the parameters' names.
    build = vars(family.build).get("__init__", family.build)
    accepted = names.keywords(build, without=("image_size", "dtype", "rngs"))
    names.check_hyper(name, accepted, hyper)
    if dtype not in DTYPES:
        raise names.unknown("model dtype", dtype, DTYPES)
    for label, value in [("embedding_dim", embedding_dim), ("image_size", image_size)]:
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"model {label} = {value!r}: a positive integer or None is needed")
    model = Model(
        name,
        family,
        hyper=tuple(sorted(hyper.items())),
        embedding_dim=embedding_dim,
        normalize=bool(normalize),
        weights=None if weights is None else os.fspath(weights),
        image_size=family.image_size if image_size is None else image_size,
        dtype=dtype,
    )
    _ = model.channels  # builds it abstractly, so that a wrong value is reported here
    return model
