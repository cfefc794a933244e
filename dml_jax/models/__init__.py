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
from dml_jax.models.backbones.bn_inception import bn_inception
from dml_jax.models.backbones.clip import clip
from dml_jax.models.backbones.convnet import convnet
from dml_jax.models.backbones.convnext import convnext
from dml_jax.models.backbones.dinov3 import dinov3
from dml_jax.models.backbones.googlenet import googlenet
from dml_jax.models.backbones.mobilenet_v2 import mobilenet_v2
from dml_jax.models.backbones.plain_vit import plain_vit
from dml_jax.models.backbones.resnet import resnet
from dml_jax.models.backbones.siglip import siglip
from dml_jax.models.backbones.vit import vit
from dml_jax.models.base import Model

__all__ = [
    "Model",
    "available",
    "bn_inception",
    "clip",
    "convnet",
    "convnext",
    "dinov3",
    "get",
    "googlenet",
    "mobilenet_v2",
    "plain_vit",
    "resnet",
    "siglip",
    "vit",
]

TABLE: dict[str, Callable[..., Model]] = {
    "bn_inception": bn_inception,
    "clip": clip,
    "convnet": convnet,
    "convnext": convnext,
    "dinov3": dinov3,
    "googlenet": googlenet,
    "mobilenet_v2": mobilenet_v2,
    "plain_vit": plain_vit,
    "resnet": resnet,
    "siglip": siglip,
    "vit": vit,
}


def available() -> list[str]:
    """Lists the names that `get` accepts.

    Example:
      >>> available()[:4]
      ['bn_inception', 'clip', 'convnet', 'convnext']
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
