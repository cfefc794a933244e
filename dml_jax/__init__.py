"""Deep metric learning in JAX: losses, miners, samplers, models, training and evaluation of image retrieval."""

from dml_jax.errors import UserError

__version__ = "0.1.0"
__all__ = ["UserError", "__version__"]
