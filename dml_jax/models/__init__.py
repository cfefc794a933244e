"""Embedding models: a backbone, an optional linear head, L2 normalisation.

A model of your own is a Flax NNX module and a function that returns a `Model` of it, in a file of yours:

    # my_package/my_module.py
    import jax
    from flax import nnx
    from dml_jax import models

    class Perceptron(nnx.Module):
        features, channels = 64, 1  # of an embedding without a head, and of an image

        def __init__(self, *, image_size, dtype, rngs):
            self.layer = nnx.Linear(image_size**2, 64, dtype=dtype, rngs=rngs)

        def __call__(self, images, *, train, key):
            return jax.nn.relu(self.layer(images.reshape(len(images), -1)))

    def perceptron(*, image_size=32, **options):
        return models.Model("perceptron", Perceptron, image_size, **options)

and a config names it: `config.model = dict(name="my_package.my_module:perceptron", embedding_dim=16)`. `Model`
documents what the module has to be, and its options. Hyper-parameters are bound by
`dml_jax.bound.Bound(Perceptron, width=8)`, so that equal models are equal and compile once. Values of a config are
checked against the annotations, which may be ranges of `dml_jax.parameters`.
"""

from collections.abc import Callable
from typing import Any

from dml_jax import parameters
from dml_jax.models.backbones.convnet import convnet
from dml_jax.models.backbones.mobilenet_v2 import mobilenet_v2
from dml_jax.models.backbones.vit import vit
from dml_jax.models.base import Model
from dml_jax.models.convert import import_dinov2

__all__ = ["Model", "available", "convnet", "get", "import_dinov2", "mobilenet_v2", "vit"]

TABLE: dict[str, Callable[..., Model]] = {
    "convnet": convnet,
    "mobilenet_v2": mobilenet_v2,
    "vit": vit,
}


def available() -> list[str]:
    """Lists the names that `get` accepts.

    Example:
      >>> available()
      ['convnet', 'mobilenet_v2', 'vit']
    """
    return sorted(TABLE)


def get(name: str, **hyper: Any) -> Model:
    """Makes a model by name.

    Args:
      name: a name of `available`, or "package.module:name" for a function of your own.
      **hyper: the arguments of the factory.

    Raises:
      UserError: an unknown name or argument, with near misses, or a value out of range.

    Example:
      >>> get("convnet", width=16, embedding_dim=8).dim
      8
    """
    return parameters.make("model", TABLE, Model, name, hyper)
