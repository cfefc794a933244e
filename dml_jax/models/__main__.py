"""Lists the models with their sizes, and where their weights are published: `python -m dml_jax.models [NAME]`.

GFLOPs are operations of the forward pass of one image (a multiplication and an addition are two), as XLA counts those
of the program before it is compiled. Each model is traced for that, which takes a second or two.
"""

import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from dml_jax import models, names
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


def rows(name: str | None = None) -> Iterator[list[str]]:
    """Yields the table: a header, and a row for each published file and each model without one, as they are computed.

    Args:
      name: of the model that is asked for; None: all.

    Raises:
      UserError: no model of that name.
    """
    if name is not None:
        names.resolve("model", models.TABLE, name)
    wanted = [name] if name is not None else models.available()
    files = [
        file
        for model in wanted
        for file in [f for f in PUBLISHED if f.model == model] or [Published(model, {})]
    ]
    called = [f"{f.model}({', '.join(f'{k}={v!r}' for k, v in f.hyper.items())})" for f in files]
    width = max(map(len, called))
    yield [HEADER[0].ljust(width), *HEADER[1:]]
    for text, file in zip(called, files, strict=True):
        at = (file.licence, file.url, file.sha256)
        yield [text.ljust(width), *described(models.get(file.model, **file.hyper)), *at]


# Of the columns from the second on: a row is printed before the next one is known, and the last three are as they come.
WIDTHS = (13, 8, 8, 13, 24)


if __name__ == "__main__":
    try:
        for row in rows(*sys.argv[1:2]):
            print(
                "  ".join([row[0], *map(str.ljust, row[1:6], WIDTHS), *row[6:]]).rstrip(),
                flush=True,
            )
    except UserError as error:
        sys.exit(f"error: {error}")
