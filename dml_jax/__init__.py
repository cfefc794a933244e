"""Deep metric learning in JAX: losses, miners, samplers, models, training and evaluation of image retrieval."""

import os
from typing import TYPE_CHECKING

from dml_jax.errors import UserError

if TYPE_CHECKING:
    from dml_jax.inference import Encoder

__version__ = "0.1.0"
__all__ = ["UserError", "__version__", "load"]


def load(path: str | os.PathLike[str], checkpoint: str = "best") -> "Encoder":
    """Loads a trained model; `dml_jax.inference.load` says how.

    Args:
      path: the folder of a run, or a file that `dml export` wrote.
      checkpoint: of a run, `best`, `last` or the number of a step.

    Raises:
      UserError: nothing that can be loaded.
    """
    from dml_jax import inference  # it imports everything

    return inference.load(path, checkpoint)
