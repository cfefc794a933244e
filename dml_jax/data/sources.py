"""Data sets by name.

A data set of your own is a function of `split` that returns a `Source`, in a file of yours; `Images` makes one of
labels, names and a function that reads the image at a position:

    # my_package/my_module.py
    from dml_jax import data

    def birds(split, *, path):
        rows = [line.split(",") for line in open(f"{path}/{split}.csv").read().splitlines()]
        labels, class_names = data.integer_labels(name for _, name in rows)
        files = [f"{path}/{file}" for file, _ in rows]
        return data.Images(labels, tuple(class_names), files, data.FileReader(files, channels=3))

and a config names it: `config.data = configs.data(name="my_package.my_module:birds", path=DIR)`. Further arguments are
fields of that section, and are checked against their annotations, which may be ranges of `dml_jax.parameters`.
"""

import inspect
from collections.abc import Callable
from typing import Any

from dml_jax import names, parameters
from dml_jax.data import prepared
from dml_jax.data.base import Source
from dml_jax.data.datasets.archive import archive
from dml_jax.data.datasets.cars196 import cars196
from dml_jax.data.datasets.cub200 import cub200
from dml_jax.data.datasets.folder import folder
from dml_jax.data.datasets.glyphs import glyphs
from dml_jax.data.datasets.grocery_store import grocery_store
from dml_jax.data.datasets.hugging_face import hugging_face
from dml_jax.data.datasets.inaturalist2018 import inaturalist2018
from dml_jax.data.datasets.inshop import inshop
from dml_jax.data.datasets.omniglot import omniglot
from dml_jax.data.datasets.parquet import parquet
from dml_jax.data.datasets.sop import sop
from dml_jax.data.datasets.tfds import tfds
from dml_jax.data.datasets.webdataset import webdataset

TABLE: dict[str, Callable[..., Source]] = {
    "archive": archive,
    "cars196": cars196,
    "cub200": cub200,
    "folder": folder,
    "glyphs": glyphs,
    "grocery_store": grocery_store,
    "hugging_face": hugging_face,
    "inaturalist2018": inaturalist2018,
    "inshop": inshop,
    "omniglot": omniglot,
    "parquet": parquet,
    "sop": sop,
    "tfds": tfds,
    "webdataset": webdataset,
}


def available() -> list[str]:
    """Lists the names that `load` accepts.

    Example:
      >>> available()[:4]
      ['archive', 'cars196', 'cub200', 'folder']
    """
    return sorted(TABLE)


def load(name: str, split: str, **options: Any) -> Source:
    """Loads a split of a data set by name.

    Args:
      name: a name of `available`, or "package.module:name" for a function of your own.
      split: of the data set; each documents its own.
      **options: the other arguments of the data set.

    Raises:
      UserError: an unknown name, split or option (with near misses), a value out of range, or data that are not there.

    Example:
      >>> load("glyphs", "test", size=8, classes=2).class_names
      ('D', 'E')
    """
    if name in TABLE and prepared.is_prepared(options.get("path")):
        read = {k: v for k, v in options.items() if k != "path"}
        names.check_hyper(
            f"data set {name!r}", names.keywords(inspect.unwrap(TABLE[name])), options
        )
        return prepared.open_split(options["path"], split, name, read)
    given = {"split": split, **options}
    return parameters.make("data set", TABLE, Source, name, given)  # type: ignore[type-abstract]
