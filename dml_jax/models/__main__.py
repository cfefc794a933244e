"""Lists the models with their sizes, and where their weights are published: `python -m dml_jax.models [NAME]`.

GFLOPs are operations of the forward pass of one image (a multiplication and an addition are two), as XLA counts those
of the program before it is compiled.
"""

import sys

import jax
import jax.numpy as jnp

from dml_jax import console, models, names
from dml_jax.errors import UserError
from dml_jax.models.published_weights import PUBLISHED, Published

HEADER = [
    "model",
    "parameters",
    "GFLOPs",
    "features",
    "image",
    "licence",
    "published at",
    "SHA-256",
]


def described(model: models.Model) -> list[str]:
    """Returns parameters, GFLOPs, features and image size of a model as texts.

    Args:
      model: the model.

    Example:
      >>> described(models.get("convnet"))
      ['296,384', '0.01', '128', '32 x 32 x 1']
    """
    variables = jax.eval_shape(model.init, jax.random.key(0))
    count = sum(x.size for x in jax.tree.leaves(variables["params"]))
    side = model.image_size
    image = jax.ShapeDtypeStruct((1, side, side, model.channels), jnp.uint8)
    cost = jax.jit(lambda v, x: model.apply(v, x)[0]).lower(variables, image).cost_analysis()
    flops = f"{cost['flops'] / 1e9:.2f}" if cost else "?"
    return [f"{count:,}", flops, str(model.dim), f"{side} x {side} x {model.channels}"]


def rows(name: str | None = None) -> list[list[str]]:
    """Returns the table: a header, and a row for each published file and each model without one.

    Args:
      name: of the model that is asked for; None: all.

    Raises:
      UserError: no model of that name.
    """
    if name is not None:
        names.resolve("model", models.TABLE, name)
    wanted = [name] if name is not None else models.available()
    found = [HEADER]
    for model in wanted:
        files = [file for file in PUBLISHED if file.model == model] or [Published(model, {})]
        for file in files:
            given = ", ".join(f"{key}={value!r}" for key, value in file.hyper.items())
            text = f"{model}({given})"
            at = (file.licence, file.url, file.sha256)
            found.append([text, *described(models.get(model, **file.hyper)), *at])
    return found


if __name__ == "__main__":
    try:
        console.log(console.aligned(rows(*sys.argv[1:2])))
    except UserError as error:
        sys.exit(f"error: {error}")
